// What all CPU kernels are made of: a grid of tiles over the rows, reading and writing a tile in any layout and dtype,
// the noise of a tile, and sums whose order depends on the sizes alone.
//
// A tile is a block of at most kTile elements that lies in L1 in the arithmetic's type: a piece of one long row, or
// several short rows, one behind the other. If memory has this form, the tile is memory itself.
//
// All code here is inlined into, or a member of, one struct per instruction set, which gcc compiles with the vectors of
// that instruction set: see VK_DEFINE_ISA.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <vector>

#include "../dtypes.h"
#include "../philox.h"
#include "../view.h"
#include "isa.h"
#include "kernels.h"
#include "pages.h"

namespace vk::cpu {

constexpr int kTile = 1024;
constexpr int kLanes = 32;         // lanes of a sum; a buffer that is summed has kLanes more elements than a tile
constexpr int64_t kBlock = 16384;  // columns of a long row in one task
constexpr int64_t kGrain = 32768;  // elements below which a second thread does not pay

struct Tile {
  int64_t row, col;
  int rows, cols;
  VK_INLINE int size() const { return rows * cols; }
};

// Divides rows and columns into tiles, and tiles into tasks. This depends on the sizes alone.
struct Grid {
  int64_t rows, cols;
  int64_t rows_per_task;
  bool short_rows;  // several share a tile
  int tile;         // most elements of a tile

  // `tall`: a task has 32 long rows, for sums over rows.
  Grid(int64_t rows, int64_t cols, bool tall, int tile = kTile) : rows(rows), cols(cols), tile(tile) {
    short_rows = cols <= tile / 2;
    rows_per_task = short_rows ? tile / std::max<int64_t>(cols, 1) : tall ? 32 : 1;
  }
  int64_t row_tasks() const { return (rows + rows_per_task - 1) / rows_per_task; }
  int64_t col_tasks() const { return short_rows ? 1 : (cols + kBlock - 1) / kBlock; }
  int64_t tasks() const { return row_tasks() * col_tasks(); }
  int64_t grain() const {
    return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, rows_per_task * std::min(cols, kBlock)));
  }

  // Calls visit(tile, task) for the tiles of one task, always in the same order.
  template <class Visit>
  VK_INLINE void visit_tiles(int64_t task, const Visit& visit) const {
    const int64_t first = task / col_tasks() * rows_per_task;
    const int64_t last = std::min(rows, first + rows_per_task);
    const int64_t end = std::min(cols, (task % col_tasks() + 1) * kBlock);
    const int64_t step = short_rows ? last - first : 1;
    int64_t col = task % col_tasks() * kBlock;
    do {  // the only call of `visit`, which is inlined here
      const int n = int(std::min<int64_t>(tile, end - col));
      for (int64_t row = first; row < last; row += step) visit(Tile{row, col, int(step), n}, task);
      col += tile;
    } while (col < end);
  }
};

// A sum in float64 that carries its rounding errors along (Neumaier 1974): exact for all that matters here.
struct Total {
  double sum = 0, carry = 0;
  VK_INLINE void add(double value) {
    const double next = sum + value;
    const double big = (sum < 0 ? -sum : sum) >= (value < 0 ? -value : value) ? sum : value;
    const double small = big == sum ? value : sum;
    carry += (big - next) + small;
    sum = next;
  }
  VK_INLINE double value() const {
    return carry == carry ? sum + carry : sum;
  }  // a carry of inf - inf: the sum has the result
};

// True if a tile's elements are contiguous in memory.
VK_INLINE bool in_one_run(const View& view, const Tile& tile) {
  return view.dense ||
         (tile.rows == 1 && view.stride[3] == 1 && tile.col % view.col_inner + tile.cols <= view.col_inner);
}

// The tile in memory, if it is contiguous there and has the element type T; else null.
template <class T>
VK_INLINE T* in_place(const View& view, const Tile& tile) {
  if (view.type != type_of<T> || !in_one_run(view, tile)) return nullptr;
  return static_cast<T*>(view.data) + view.row_offset(tile.row) + view.col_offset(tile.col);
}

// Prefetches a tile that will be read soon. A tile is as long as a page, and a processor by itself does not prefetch
// beyond a page.
VK_INLINE void prefetch(const View& view, const Tile& tile) {
  if (!view.data || !in_one_run(view, tile)) return;
  const int64_t size = size_of(view.type);
  const char* data = static_cast<const char*>(view.data);
  data += (view.row_offset(tile.row) + view.col_offset(tile.col)) * size;
  for (int64_t at = 0; at < tile.size() * size; at += 64) __builtin_prefetch(data + at, 0, 2);
}

// Copy a tile from memory to a buffer, and back, for every layout and element type: see tiles.cpp.
template <class T>
void gather(const View& view, const Tile& tile, T* buffer);
template <class T>
void scatter(const View& view, const Tile& tile, const T* buffer);

// The sum of a vector's elements, folded in halves of kBytes.
template <class T, int kBytes, class Vector>
VK_INLINE T fold(const Vector& vector) {
  if constexpr (kBytes < int(sizeof(T))) {
    return vector[0];
  } else {
    typedef T Half __attribute__((vector_size(kBytes)));
    Half halves[2];
    memcpy(halves, &vector, sizeof halves);
    return fold<T, kBytes / 2>(halves[0] + halves[1]);
  }
}

// The sum of n values in kLanes lanes, each added in order and then folded in halves. Up to kLanes values behind them
// are read, and not used. Vector types are written out: without them gcc gathers single elements, which takes ten times
// as long.
template <class T>
VK_INLINE T lane_sum(const T* values, int n) {
  constexpr int kWidth = 64 / sizeof(T), kVectors = kLanes / kWidth;
  using Index = std::conditional_t<is_float<T>, int32_t, int64_t>;
  typedef T Vector __attribute__((vector_size(64)));
  typedef Index Indices __attribute__((vector_size(64)));
  Indices index = {};
  for (int k = 0; k < kWidth; ++k) index[k] = k;
  Vector lanes[kVectors] = {};
  int i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int v = 0; v < kVectors; ++v) {
      Vector part;
      memcpy(&part, values + i + v * kWidth, sizeof part);
      lanes[v] += part;
    }
  }
  for (int v = 0; v < kVectors; ++v) {
    Vector part;
    memcpy(&part, values + i + v * kWidth, sizeof part);
    lanes[v] += index < Index(n - i - v * kWidth) ? part : Vector{};
  }
  for (int v = kVectors / 2; v > 0; v /= 2) {
    for (int k = 0; k < v; ++k) lanes[k] += lanes[k + v];
  }
  return fold<T, 32>(lanes[0]);
}

#if defined(__x86_64__) && defined(__GNUC__)
template <int kBytes>
struct Counters {
  typedef uint64_t Word __attribute__((vector_size(kBytes)));
  // One instruction. clang finds it; gcc does not: its 64-bit product takes three.
  VK_INLINE static void multiply(const Word& a, const Word& b, Word& product) {
#ifdef __clang__
    product = (a & 0xffffffffu) * (b & 0xffffffffu);
#else
    asm("vpmuludq %2, %1, %0" : "=v"(product) : "v"(a), "v"(b));
#endif
  }
};
#endif

// The noise of a tile, with each row padded to full quads.
template <class Counters, class T>
VK_INLINE void noise(uint64_t seed, const Tile& tile, T* __restrict eps) {
  using Word = typename Counters::Word;
  constexpr int kQuads = kTile / 4, kLanes = sizeof(Word) / sizeof(uint64_t);
  const uint32_t quads = (tile.cols + 3) / 4;
  const int n = tile.rows * int(quads);
  if (n == 0) return;
  alignas(64) uint64_t offset[kQuads], row[kQuads];
  const uint32_t inverse = 65536u / quads + 1;  // q / quads = q inverse >> 16 for all q here
  for (int q = 0; q < n; ++q) {
    const uint32_t i = uint32_t(q) * inverse >> 16;
    offset[q] = uint64_t(tile.col >> 2) + (uint32_t(q) - i * quads);
    row[q] = uint64_t(tile.row) + i;
  }
  alignas(64) uint64_t words[4][kQuads];
  for (int q = 0; q < n; q += kLanes) {
    Word four[4];
    philox<Counters>(seed, *reinterpret_cast<const Word*>(offset + q), *reinterpret_cast<const Word*>(row + q), four);
    for (int k = 0; k < 4; ++k) *reinterpret_cast<Word*>(words[k] + q) = four[k];
  }
  float lanes[4][kQuads];
  for (int q = 0; q < n; ++q) {
    float four[4];
    normals(uint32_t(words[0][q]), uint32_t(words[1][q]), uint32_t(words[2][q]), uint32_t(words[3][q]), four);
    for (int k = 0; k < 4; ++k) lanes[k][q] = four[k];
  }
  for (int q = 0; q < n; ++q) {
    for (int k = 0; k < 4; ++k) eps[4 * q + k] = T(lanes[k][q]);
  }
}

#ifdef __clang__
#define VK_APART __attribute__((noinline))
#else
#define VK_APART __attribute__((noinline, noclone))
#endif

// One struct per instruction set. `run` is the entry point: everything is inlined into it, except members that would be
// inlined many times.
#define VK_DEFINE_ISA(NAME, COUNTERS, ...)                                                                             \
  struct NAME {                                                                                                        \
    template <class Kernel>                                                                                            \
    __VA_ARGS__ static void run(int64_t begin, int64_t end, void* kernel) {                                            \
      for (int64_t i = begin; i < end; ++i) static_cast<const Kernel*>(kernel)->template task<NAME>(i);                \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    __VA_ARGS__ VK_APART static void noise(uint64_t seed, const Tile& tile, T* eps) {                                  \
      cpu::noise<COUNTERS>(seed, tile, eps);                                                                           \
    }                                                                                                                  \
    template <class T>                                                                                                 \
    __VA_ARGS__ VK_APART static void row_sums(const T* values, const Tile& tile, T* sums) {                            \
      for (int i = 0; i < tile.rows; ++i) sums[i] = lane_sum(values + i * tile.cols, tile.cols);                       \
    }                                                                                                                  \
  };

VK_DEFINE_ISA(Baseline, OneCounter)
#if defined(__x86_64__) && defined(__GNUC__)
VK_DEFINE_ISA(Avx2, Counters<32>, __attribute__((target("avx2,fma"))))
VK_DEFINE_ISA(Avx512, Counters<64>,
              __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512"))))
#endif

// The entry point of a kernel for the instruction set in use. With kAvx512 = false a kernel uses its AVX2 code instead
// of AVX-512: it takes too little time to justify code of its own.
template <class Kernel>
auto code_of() {
#if defined(__x86_64__) && defined(__GNUC__)
  if constexpr (Kernel::kAvx512) {
    if (isa() == Isa::kAvx512) return &Avx512::run<Kernel>;
  }
  if (isa() != Isa::kBaseline) return &Avx2::run<Kernel>;
#endif
  return &Baseline::run<Kernel>;
}

// Runs kernel.task<Isa>(i) for every i in [0, n) on torch's threads.
template <class Kernel>
void run_tasks(ParallelFor parallel, const Kernel& kernel, int64_t n, int64_t grain) {
  if (n > 0) parallel(0, n, grain, code_of<Kernel>(), const_cast<Kernel*>(&kernel));
}

// The tile as arithmetic reads it: memory itself, or a copy in `buffer`.
template <class T>
VK_INLINE const T* load(const View& view, const Tile& tile, T* buffer) {
  if (const T* memory = in_place<T>(view, tile)) return memory;
  gather(view, tile, buffer);
  return buffer;
}

// Where arithmetic writes a tile: memory itself, or `buffer`, which store() then copies to memory.
template <class T>
VK_INLINE T* target(const View& view, const Tile& tile, T* buffer) {
  T* memory = in_place<T>(view, tile);
  return memory ? memory : buffer;
}
template <class T>
VK_INLINE void store(const View& view, const Tile& tile, const T* written, const T* buffer) {
  if (written == buffer) scatter(view, tile, buffer);
}

template <class S>
bool is_dense(const View& view) {
  return view.dense && view.type == type_of<S>;
}

// S is T, or the type of all tensors, which are dense; then the loop itself converts between memory and registers.
template <class T, class S>
constexpr int buffered = std::is_same_v<S, T> ? kTile + kLanes : 1;
template <class T, class S>
VK_INLINE const S* load_as(const View& view, const Tile& tile, S* buffer) {
  if constexpr (std::is_same_v<S, T>) return load(view, tile, buffer);
  return in_place<S>(view, tile);
}

// Call this before writing `elements` elements without gaps, in any order.
inline void expect_writes(const View& view, int64_t elements) {
  if (view.data) prefer_large_pages(view.data, size_t(elements) * size_of(view.type));
}

// The sum of each row, for a grid that is not tall.
template <class T>
struct RowSums {
  const Grid& grid;
  T* out;
  mutable std::vector<Total> partial;  // one for each task and sample, if rows are long

  RowSums(const Grid& grid, T* out, int64_t samples = 1)
      : grid(grid), out(out), partial(grid.short_rows ? 0 : samples * grid.tasks()) {}

  // Each sample has its own sums, which follow those of the sample before.
  template <class Isa>
  VK_INLINE void add(const Tile& tile, int64_t task, const T* values, int64_t sample = 0) const {
    if (grid.short_rows) return Isa::row_sums(values, tile, out + sample * grid.rows + tile.row);
    T sum;
    Isa::row_sums(values, tile, &sum);
    partial[sample * grid.tasks() + task].add(double(sum));
  }

  void finish() const {
    const int64_t blocks = grid.col_tasks(), rows = int64_t(partial.size()) / blocks;
    for (int64_t row = 0; row < rows; ++row) {
      Total total;
      for (int64_t b = 0; b < blocks; ++b) total.add(partial[row * blocks + b].value());
      out[row] = T(total.value());
    }
  }
};

// The sum over all elements of what a grid's tasks add.
template <class T>
struct ElementSum {
  const Grid& grid;
  mutable std::vector<Total> partial;  // one for each task

  explicit ElementSum(const Grid& grid) : grid(grid), partial(grid.tasks()) {}

  template <class Isa>
  VK_INLINE void add(const Tile& tile, int64_t task, const T* values) const {
    T sum;
    Isa::row_sums(values, Tile{0, 0, 1, tile.size()}, &sum);
    partial[task].add(double(sum));
  }

  double finish() const {
    Total total;
    for (const Total& part : partial) total.add(part.value());
    return total.value();
  }
};

// The sum over the rows, for each column, of what a grid's tasks add. The grid must be tall.
template <class T>
struct ColumnSums {
  const Grid& grid;
  std::unique_ptr<T[]> partial;  // (row_tasks, cols)

  explicit ColumnSums(const Grid& grid) : grid(grid), partial(new T[grid.row_tasks() * grid.cols]) {}

  VK_INLINE void add(const Tile& tile, int64_t task, const T* values) const {
    T* sum = partial.get() + task / grid.col_tasks() * grid.cols + tile.col;
    if (tile.row % grid.rows_per_task == 0) std::fill(sum, sum + tile.cols, T(0));
    for (int i = 0; i < tile.rows; ++i) {
#pragma GCC ivdep
      for (int j = 0; j < tile.cols; ++j) sum[j] += values[i * tile.cols + j];
    }
  }

  std::vector<double> finish() const {
    std::vector<double> sums(grid.cols, 0.0);
    for (int64_t task = 0; task < grid.row_tasks(); ++task) {
      const T* part = partial.get() + task * grid.cols;
      for (int64_t col = 0; col < grid.cols; ++col) sums[col] += part[col];
    }
    return sums;
  }
};

}  // namespace vk::cpu
