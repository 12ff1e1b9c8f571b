// Reading and writing packs: kWidth neighbouring elements of a row, what a thread takes at a time. In two ways:
// `Vectors`, where every tensor consists of whole aligned packs of one type, known to the compiler; `Elements`, where
// each tensor has its own type and layout and the last pack of a row may be cut off.
#pragma once

#include <type_traits>

#include "../dtypes.h"
#include "device.h"

namespace vk::cuda {

// Moves of 16 bytes, or of the whole pack where that is less.
template <size_t kBytes>
using Move = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes == 8, uint2, uint32_t>>;

template <class S, class T, int kWidth>
__device__ __forceinline__ void load_pack(const S* from, T (&values)[kWidth]) {
  using M = Move<sizeof(S) * kWidth>;
  constexpr int kMoves = sizeof(S) * kWidth / sizeof(M);
  M moves[kMoves];
  S stored[kWidth];
#pragma unroll
  for (int i = 0; i < kMoves; ++i) moves[i] = __ldg(reinterpret_cast<const M*>(from) + i);
  memcpy(stored, moves, sizeof stored);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) values[k] = widen<T>(stored[k]);
}

template <class T, class S, int kWidth>
__device__ __forceinline__ void narrow_pack(const T (&values)[kWidth], S (&stored)[kWidth]) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) narrow(values[k], &stored[k]);
}
#ifdef __CUDA_ARCH__  // two at a time: one instruction instead of three
#define VK_NARROW_PACK(S, CONVERT)                                                                                  \
  template <int kWidth>                                                                                             \
  __device__ __forceinline__ void narrow_pack(const float (&values)[kWidth], S (&stored)[kWidth]) {                 \
    uint32_t pairs[kWidth / 2];                                                                                     \
    _Pragma("unroll") for (int k = 0; k < kWidth / 2; ++k) {                                                        \
      asm(CONVERT " %0, %1, %2;" : "=r"(pairs[k]) : "f"(values[2 * k + 1]), "f"(values[2 * k]));                    \
    }                                                                                                               \
    memcpy(stored, pairs, sizeof stored);                                                                           \
  }
VK_NARROW_PACK(BFloat16, "cvt.rn.bf16x2.f32")
VK_NARROW_PACK(Float16, "cvt.rn.f16x2.f32")
#undef VK_NARROW_PACK
#endif

template <class S, class T, int kWidth>
__device__ __forceinline__ void store_pack(S* to, const T (&values)[kWidth]) {
  using M = Move<sizeof(S) * kWidth>;
  constexpr int kMoves = sizeof(S) * kWidth / sizeof(M);
  M moves[kMoves];
  S stored[kWidth];
  narrow_pack(values, stored);
  memcpy(moves, stored, sizeof stored);
#pragma unroll
  for (int i = 0; i < kMoves; ++i) reinterpret_cast<M*>(to)[i] = moves[i];
}

template <class T>
__device__ __forceinline__ T load_element(const View& view, int64_t offset) {
  T value;
  with_type(view.type, [&](auto* null) {
    using S = std::remove_pointer_t<decltype(null)>;
    value = widen<T>(static_cast<const S*>(view.data)[offset]);
  });
  return value;
}

template <class T>
__device__ __forceinline__ void store_element(const View& view, int64_t offset, T value) {
  with_type(view.type, [&](auto* null) { narrow(value, static_cast<decltype(null)>(view.data) + offset); });
}

// A tensor as a kernel sees it.
struct Operand : View {
  bool packs = false;  // every pack that is whole lies in one piece, aligned for its moves
};

inline Operand operand(const View& view, int64_t cols, int width) {
  Operand x{view};
  const int64_t pack = int64_t(size_of(view.type)) * width, move = std::min<int64_t>(pack, 16);
  const auto aligned = [&](int64_t n) { return n * size_of(view.type) % move == 0; };
  const bool one_run = view.col_inner >= cols, whole_runs = view.col_inner % width == 0 && aligned(view.stride[2]);
  x.packs = view.stride[3] == 1 && (one_run || whole_runs) && uintptr_t(view.data) % move == 0 &&
            aligned(view.stride[0]) && (view.row_inner == 1 || aligned(view.stride[1]));
  return x;
}

// Every tensor consists of whole packs of type S, 16 bytes each, and its rows are evenly spaced.
template <class S>
struct Vectors {
  static constexpr bool kAny = false;
  using T = float;
  static constexpr int kWidth = 16 / sizeof(S);

  static bool serves(const Operand& x, int64_t cols) {
    S* null = nullptr;
    bool type = false;
    with_type(x.type, [&](auto* other) { type = std::is_same_v<decltype(other), decltype(null)>; });
    return type && x.packs && x.row_inner == 1 && x.col_inner >= cols && cols % kWidth == 0;
  }

  __device__ __forceinline__ static int count(int64_t, int64_t) { return kWidth; }

  __device__ __forceinline__ static void load(const Operand& x, int64_t row, int64_t pack, int, T (&values)[kWidth]) {
    load_pack(static_cast<const S*>(x.data) + row * x.stride[0] + pack * kWidth, values);
  }
  __device__ __forceinline__ static void store(const Operand& x, int64_t row, int64_t pack, int,
                                               const T (&values)[kWidth]) {
    store_pack(static_cast<S*>(x.data) + row * x.stride[0] + pack * kWidth, values);
  }
};

// Calls f(k, offset) for the first n elements of a pack.
template <int kWidth, class F>
__device__ __forceinline__ void for_each_offset(const View& x, int64_t row, int64_t pack, int n, const F& f) {
  const int64_t col = pack * kWidth;
  int64_t outer = 0, inner = col;
  if (col >= x.col_inner) outer = col / x.col_inner, inner = col % x.col_inner;
  const int64_t base = x.row_offset(row);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) {
    if (k < n) f(k, base + outer * x.stride[2] + inner * x.stride[3]);
    if (++inner == x.col_inner) ++outer, inner = 0;
  }
}

template <class Arithmetic, int kPackWidth>
struct Elements {
  static constexpr bool kAny = true;
  using T = Arithmetic;
  static constexpr int kWidth = kPackWidth;

  __device__ __forceinline__ static int count(int64_t pack, int64_t cols) {
    const int64_t left = cols - pack * kWidth;
    return left < kWidth ? int(left) : kWidth;
  }

  // What lies beyond the row is 0.
  __device__ __forceinline__ static void load(const Operand& x, int64_t row, int64_t pack, int n, T (&values)[kWidth]) {
    with_type(x.type, [&](auto* null) {
      using S = std::remove_pointer_t<decltype(null)>;
      const S* data = static_cast<const S*>(x.data);
      if (x.packs && n == kWidth) return load_pack(data + x.row_offset(row) + x.col_offset(pack * kWidth), values);
      for_each_offset<kWidth>(x, row, pack, kWidth,
                              [&](int k, int64_t offset) { values[k] = k < n ? widen<T>(data[offset]) : T(0); });
    });
  }
  __device__ __forceinline__ static void store(const Operand& x, int64_t row, int64_t pack, int n,
                                               const T (&values)[kWidth]) {
    with_type(x.type, [&](auto* null) {
      auto* data = static_cast<decltype(null)>(x.data);
      if (x.packs && n == kWidth) return store_pack(data + x.row_offset(row) + x.col_offset(pack * kWidth), values);
      for_each_offset<kWidth>(x, row, pack, n, [&](int k, int64_t offset) { narrow(values[k], data + offset); });
    });
  }
};

}  // namespace vk::cuda
