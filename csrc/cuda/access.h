// Reading and writing packs. A pack is what a thread handles at a time: neighbouring elements of a row, one or two
// quads of four, 16 bytes of the first tensor. There are two ways of access. With `Vectors`, every tensor consists of
// whole aligned packs of one type that the compiler knows. With `Elements`, each tensor has its own type and layout,
// and the last pack of a row may be cut off. A block handles 256 quads at a time in any case, so the order of a sum
// depends neither on the way of access nor on the type.
#pragma once

#include <type_traits>

#include "../dtypes.h"
#include "device.h"

namespace vk::cuda {

// A pack moves 16 bytes at a time, or as a whole if it is smaller. The moves are intrinsics: the compiler may split the
// assignment of a struct into single words.
template <size_t kBytes>
using Move = std::conditional_t<kBytes % 16 == 0, uint4, std::conditional_t<kBytes == 8, uint2, uint32_t>>;

template <class S, class T, int kWidth>
__device__ __forceinline__ void widen_pack(const S (&stored)[kWidth], T (&values)[kWidth]) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) values[k] = widen<T>(stored[k]);
}
template <int kWidth>  // one instruction each; for the halves of a word nvcc takes two
__device__ __forceinline__ void widen_pack(const BFloat16 (&stored)[kWidth], float (&values)[kWidth]) {
  uint32_t pairs[kWidth / 2];
  memcpy(pairs, stored, sizeof pairs);
#pragma unroll
  for (int k = 0; k < kWidth; ++k) values[k] = bits_as<float>(k % 2 ? pairs[k / 2] & 0xffff0000u : pairs[k / 2] << 16);
}

template <class T, class S, int kWidth>
__device__ __forceinline__ void narrow_pack(const T (&values)[kWidth], S (&stored)[kWidth]) {
#pragma unroll
  for (int k = 0; k < kWidth; ++k) narrow(values[k], &stored[k]);
}
#ifdef __CUDA_ARCH__  // two at a time: one instruction instead of three
#define VK_NARROW_PACK(S, CONVERT)                                                                                     \
  template <int kWidth>                                                                                                \
  __device__ __forceinline__ void narrow_pack(const float (&values)[kWidth], S(&stored)[kWidth]) {                     \
    uint32_t pairs[kWidth / 2];                                                                                        \
    _Pragma("unroll") for (int k = 0; k < kWidth / 2; ++k) {                                                           \
      asm(CONVERT " %0, %1, %2;" : "=r"(pairs[k]) : "f"(values[2 * k + 1]), "f"(values[2 * k]));                       \
    }                                                                                                                  \
    memcpy(stored, pairs, sizeof stored);                                                                              \
  }
VK_NARROW_PACK(BFloat16, "cvt.rn.bf16x2.f32")
VK_NARROW_PACK(Float16, "cvt.rn.f16x2.f32")
#undef VK_NARROW_PACK
#endif

template <class S, class T, int kWidth>
__device__ __forceinline__ void load_pack(const S* from, T (&values)[kWidth]) {
  using M = Move<sizeof(S) * kWidth>;
  constexpr int kMoves = sizeof(S) * kWidth / sizeof(M);
  M moves[kMoves];
  S stored[kWidth];
#pragma unroll
  for (int i = 0; i < kMoves; ++i) moves[i] = __ldg(reinterpret_cast<const M*>(from) + i);
  memcpy(stored, moves, sizeof stored);
  widen_pack(stored, values);
}

template <class S, class T, int kWidth>
__device__ __forceinline__ void store_pack(S* to, const T (&values)[kWidth]) {
  using M = Move<sizeof(S) * kWidth>;
  constexpr int kMoves = sizeof(S) * kWidth / sizeof(M);
  M moves[kMoves];
  S stored[kWidth];
  narrow_pack(values, stored);
  memcpy(moves, stored, sizeof stored);
#pragma unroll
  for (int i = 0; i < kMoves; ++i) __stwb(reinterpret_cast<M*>(to) + i, moves[i]);
}

template <class T, class Tensor>
__device__ __forceinline__ T load_element(const Tensor& x, int64_t offset) {
  T value = T(0);
  with_float_type(x.type, [&](auto* null) { value = widen<T>(static_cast<decltype(null)>(x.data)[offset]); });
  return value;
}

// Divides by a number known on the host: the quotient by its reciprocal is right or 1 too small. A size of 0, of a
// tensor without elements, counts as 1.
struct Divisor {
  uint64_t number, reciprocal;
  explicit Divisor(int64_t size = 1) : number(std::max<int64_t>(size, 1)), reciprocal(~uint64_t(0) / number) {}

  __device__ __forceinline__ int64_t quotient(int64_t n, int64_t& remainder) const {
    const uint64_t low = __umul64hi(uint64_t(n), reciprocal), left = uint64_t(n) - low * number;
    const bool more = left >= number;
    remainder = int64_t(more ? left - number : left);
    return int64_t(low + more);
  }
};

// Element k of an array that must stay in registers, which only constants can index.
template <class T, int kSize>
__device__ __forceinline__ T pick(const T (&values)[kSize], int k) {
  T value = values[0];
#pragma unroll
  for (int i = 1; i < kSize; ++i) value = i == k ? values[i] : value;
  return value;
}
template <class T, int kSize>
__device__ __forceinline__ void put(T (&values)[kSize], int k, T value) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) values[i] = i == k ? value : values[i];
}

// Calls f(k) for k = 0, 1, …; as a loop if kLoop, where unrolled code would be too long or need too many registers.
template <bool kLoop, int kSize, class F>
__device__ __forceinline__ void for_each(const F& f) {
  if constexpr (kLoop) {
#pragma unroll 1
    for (int k = 0; k < kSize; ++k) f(k);
  } else {
#pragma unroll
    for (int k = 0; k < kSize; ++k) f(k);
  }
}

// A tensor as a kernel sees it.
struct Operand {
  void* data = nullptr;
  Type type = Type::kFloat32;
  bool aligned_packs = false;  // every whole pack is contiguous and aligned for its moves
  bool even_rows = false;      // all rows are evenly spaced
  bool even_cols = false;      // the elements of a row are evenly spaced
  int64_t stride[4] = {};
  Divisor row_inner, col_inner;

  Operand() = default;
  Operand(const View& view, int64_t cols, int width)
      : data(view.data), type(view.type), row_inner(view.row_inner), col_inner(view.col_inner) {
    std::copy(view.stride, view.stride + 4, stride);
    const int64_t size = size_of(type), move = std::min<int64_t>(size * width, 16);
    const auto aligned = [&](int64_t n) { return n * size % move == 0; };
    const bool one_run = view.col_inner >= cols, whole_packs = view.col_inner % width == 0 && aligned(stride[2]);
    aligned_packs = stride[3] == 1 && (one_run || whole_packs) && uintptr_t(data) % move == 0 && aligned(stride[0]) &&
                    (view.row_inner == 1 || aligned(stride[1]));
    even_rows = view.row_inner == 1;
    even_cols = one_run;
  }

  __device__ __forceinline__ int64_t row_offset(int64_t row) const {
    if (even_rows) return row * stride[0];
    int64_t inner;
    const int64_t outer = row_inner.quotient(row, inner);
    return outer * stride[0] + inner * stride[1];
  }
};

// Neighbouring packs of one row, of which a thread takes every step-th.
struct Packs {
  int64_t row, first;    // the first pack of all threads
  int begin, end, step;  // counted from `first`
};

constexpr int kBlockQuads = 256;

template <class S>
struct Vectors {
  using T = float;
  static constexpr int kWidth = 16 / sizeof(S), kQuads = kWidth / 4, kThreads = kBlockQuads / kQuads;
  static constexpr bool kAny = false;  // any layout, any mixture of types
  static constexpr bool kHalf = sizeof(S) == 2;
  static constexpr int kRegisters = 64, kHeavyRegisters = 128;  // at most, per thread

  static bool serves(const Operand& x, int64_t cols) {
    return x.type == type_of<S> && x.aligned_packs && x.even_rows && x.even_cols && cols % kWidth == 0;
  }

  // The number of columns in a pack.
  __device__ __forceinline__ static int count(const Packs&, int, int64_t) { return kWidth; }

  using Run = S*;
  __device__ __forceinline__ static Run run(const Operand& x, const Packs& packs) {
    return static_cast<S*>(x.data) + packs.row * x.stride[0] + packs.first * kWidth;
  }
  template <bool kIntegers = false>
  __device__ __forceinline__ static void load(const Operand&, Run run, int pack, int, T (&values)[kWidth]) {
    load_pack(at(run, pack), values);
  }
  __device__ __forceinline__ static void store(const Operand&, Run run, int pack, int, const T (&values)[kWidth]) {
    store_pack(at(run, pack), values);
  }

 private:
  // The address of a pack, in one instruction.
  __device__ __forceinline__ static S* at(Run run, int pack) {
#ifdef __CUDA_ARCH__
    uint64_t address = uint64_t(run);
    asm("mad.wide.u32 %0, %1, 16, %0;" : "+l"(address) : "r"(pack));
    return reinterpret_cast<S*>(address);
#else
    return run + uint32_t(pack) * kWidth;
#endif
  }
};

template <class Arithmetic, int kPackWidth>
struct Elements {
  using T = Arithmetic;
  static constexpr int kWidth = kPackWidth, kQuads = kWidth / 4, kThreads = kBlockQuads / kQuads;
  static constexpr bool kAny = true;
  static constexpr int kRegisters = is_float<Arithmetic> ? 128 : 255;
  static constexpr int kHeavyRegisters = is_float<Arithmetic> ? 168 : 255;

  static bool serves(const Operand&, int64_t) { return true; }

  __device__ __forceinline__ static int count(const Packs& packs, int pack, int64_t cols) {
    const int64_t left = cols - (packs.first + pack) * kWidth;
    return left < kWidth ? int(left) : kWidth;
  }

  struct Run {
    int64_t offset, col;  // offset of the row, column of the first pack
  };
  __device__ __forceinline__ static Run run(const Operand& x, const Packs& packs) {
    return {x.row_offset(packs.row), packs.first * kWidth};
  }

  // The offsets of a pack's elements.
  __device__ __forceinline__ static void offsets(const Operand& x, Run run, int pack, int64_t (&at)[kWidth]) {
    const int64_t col = run.col + int64_t(pack) * kWidth;
    int64_t inner = col;
    const int64_t outer = x.even_cols ? 0 : x.col_inner.quotient(col, inner);
    const int64_t wrap = x.stride[2] - int64_t(x.col_inner.number) * x.stride[3];
    int64_t offset = run.offset + outer * x.stride[2] + inner * x.stride[3];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      at[k] = offset;
      offset += x.stride[3];
      if (++inner == int64_t(x.col_inner.number)) inner = 0, offset += wrap;
    }
  }

  // Elements beyond the row are 0. Only x may consist of integers.
  template <bool kIntegers = false>
  __device__ __forceinline__ static void load(const Operand& x, Run run, int pack, int n, T (&values)[kWidth]) {
    int64_t at[kWidth];
    offsets(x, run, pack, at);
    const auto read = [&](auto* null) {
      const auto* data = static_cast<decltype(null)>(x.data);
      if (x.aligned_packs && n == kWidth) return load_pack(data + at[0], values);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values[k] = k < n ? widen<T>(data[at[k]]) : T(0);
    };
    kIntegers ? with_type(x.type, read) : with_float_type(x.type, read);
  }
  __device__ __forceinline__ static void store(const Operand& x, Run run, int pack, int n, const T (&values)[kWidth]) {
    int64_t at[kWidth];
    offsets(x, run, pack, at);
    with_float_type(x.type, [&](auto* null) {
      auto* data = static_cast<decltype(null)>(x.data);
      if (x.aligned_packs && n == kWidth) return store_pack(data + at[0], values);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        if (k < n) narrow(values[k], data + at[k]);
      }
    });
  }
};

}  // namespace vk::cuda
