// Copies tiles between memory and buffers; compiled once for all kernels.
#include "tiles.h"

namespace vk::cpu {
namespace {

// Calls f(buffer position, memory position, stride, count) for the runs of evenly spaced elements in a tile: the entire
// tile if it is dense, else each row, else each part of a row that lies in one inner dim.
template <class F>
VK_INLINE void for_each_run(const View& view, const Tile& tile, const F& f) {
  const bool rows_are_runs = view.dense || tile.col + tile.cols <= view.col_inner;
  const int rows = view.dense ? 1 : tile.rows, cols = view.dense ? tile.size() : tile.cols;
  const int64_t stride = view.dense ? 1 : view.stride[3], first = tile.col * stride;
  for (int i = 0; i < rows; ++i) {
    const int64_t base = view.row_offset(tile.row + i);
    for (int j = 0; j < cols;) {  // the only call of `f`, which is inlined here
      const int64_t col = tile.col + j;
      const int count = rows_are_runs ? cols : int(std::min<int64_t>(cols - j, view.col_inner - col % view.col_inner));
      f(i * cols + j, base + (rows_are_runs ? first : view.col_offset(col)), stride, count);
      j += count;
    }
  }
}

template <class T>
struct Gather {
  static constexpr bool kAvx512 = false;
  const View& view;
  const Tile& tile;
  T* __restrict buffer;

  template <class Isa>
  VK_INLINE void task(int64_t) const {
    with_type(view.type, [&](auto* null) __attribute__((always_inline)) {
      using S = std::remove_pointer_t<decltype(null)>;
      for_each_run(view, tile, [&](int at, int64_t offset, int64_t stride, int count) __attribute__((always_inline)) {
        const S* __restrict from = static_cast<const S*>(view.data) + offset;
        T* __restrict to = buffer + at;
        if (stride == 1) {
          for (int k = 0; k < count; ++k) to[k] = widen<T>(from[k]);
        } else if (stride == 0) {
          const T value = widen<T>(from[0]);
          for (int k = 0; k < count; ++k) to[k] = value;
        } else {
          for (int k = 0; k < count; ++k) to[k] = widen<T>(from[k * stride]);
        }
      });
    });
  }
};

template <class T>
struct Scatter {
  static constexpr bool kAvx512 = false;
  const View& view;
  const Tile& tile;
  const T* __restrict buffer;

  template <class Isa>
  VK_INLINE void task(int64_t) const {
    with_float_type(view.type, [&](auto* null) __attribute__((always_inline)) {
      using D = std::remove_pointer_t<decltype(null)>;
      for_each_run(view, tile, [&](int at, int64_t offset, int64_t stride, int count) __attribute__((always_inline)) {
        D* __restrict to = static_cast<D*>(view.data) + offset;
        const T* __restrict from = buffer + at;
        if (stride == 1) {
          for (int k = 0; k < count; ++k) narrow(from[k], to + k);
        } else {
          for (int k = 0; k < count; ++k) narrow(from[k], to + k * stride);
        }
      });
    });
  }
};

}  // namespace

template <class T>
void gather(const View& view, const Tile& tile, T* buffer) {
  Gather<T> kernel{view, tile, buffer};
  code_of<Gather<T>>()(0, 1, &kernel);
}

template <class T>
void scatter(const View& view, const Tile& tile, const T* buffer) {
  Scatter<T> kernel{view, tile, buffer};
  code_of<Scatter<T>>()(0, 1, &kernel);
}

template void gather(const View&, const Tile&, float*);
template void gather(const View&, const Tile&, double*);
template void gather(const View&, const Tile&, int64_t*);  // the classes x
template void scatter(const View&, const Tile&, const float*);
template void scatter(const View&, const Tile&, const double*);

}  // namespace vk::cpu
