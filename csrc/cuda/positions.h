// Likelihoods over classes: which thread takes which classes of which position, and the normalizer of a position.
#pragma once

#include "../formulas/categorical.h"
#include "access.h"
#include "sums.h"

namespace vk::cuda {

// How lanes share the quads of a position's classes. Very many classes are split into equal parts. Each lane takes
// every lanes-th quad, `kBatch` quads at a time. This depends on the number of classes alone, so neither other
// positions, nor the layout, nor the device change a normalizer.
template <class T>
struct ClassGrid {
  static constexpr int kMostLanes = is_float<T> ? 1024 : 256;
  static constexpr int kBatch = is_float<T> ? 4 : 1;
  static constexpr int64_t kPart = 8192;  // quads of a part; up to twice as many are not split

  int64_t quads;
  int parts = 1, lanes;

  explicit ClassGrid(int64_t classes) : quads((classes + 3) / 4), lanes(quads > 1 ? 2 : 1) {
    while (lanes < 32 && 4 * lanes < quads) lanes *= 2;
    if (quads > 8 * 32) lanes = 256;
    if (quads > 8 * 256) lanes = kMostLanes;
    if (quads > 2 * kPart) parts = int((quads + kPart - 1) / kPart);
  }
};

// The threads of a block form groups, each for one position. A group is a run of neighbouring threads. If the classes
// lie apart in memory and positions side by side (`across`), neighbouring threads take neighbouring positions instead.
// A group may also have the threads of several blocks. All numbers are powers of two.
struct Groups {
  int threads, count;  // threads of a group, groups of a block
  int blocks = 1;      // blocks of a group
  bool across;

  __device__ __forceinline__ int lane() const {
    if (blocks > 1) return (int(blockIdx.x) & (blocks - 1)) * int(blockDim.x) + int(threadIdx.x);
    return across ? int(threadIdx.x) / count : int(threadIdx.x) & (threads - 1);
  }
  __device__ __forceinline__ int64_t task() const {
    if (blocks > 1) return blockIdx.x / unsigned(blocks);
    const int index = across ? int(threadIdx.x) & (count - 1) : int(threadIdx.x) / threads;
    return int64_t(blockIdx.x) * count + index;
  }

  // Folds the values of a group with f, for all of its threads: neighbours first, then neighbouring pairs, and so on.
  // Every thread of the block must call it.
  template <int kMost, class T, class F>
  __device__ __forceinline__ T fold(T value, const F& f) const {
    __shared__ T shared[kMost];
    const int me = int(threadIdx.x);
    if (across) {
      for (int step = 1; step < threads; step *= 2) {
        shared[me] = value;
        __syncthreads();
        value = f(value, shared[me ^ step * count]);
        __syncthreads();
      }
      return value;
    }
    for (int step = 1; step < threads && step < 32; step *= 2) value = f(value, __shfl_xor_sync(~0u, value, step, 32));
    if (threads > 32) {
      const int warps = threads / 32;
      if (me % 32 == 0) shared[me / 32] = value;
      __syncthreads();
      value = shared[me & (warps - 1)];
      for (int step = 1; step < warps; step *= 2) value = f(value, __shfl_xor_sync(~0u, value, step, 32));
      __syncthreads();
    }
    return value;
  }
};

constexpr int64_t kMany = 132;  // blocks: an H100 has 132 multiprocessors

// The logits, and x: the class of each position, or a count for each of its classes.
template <class T>
struct Classes {
  int64_t positions, classes;
  Operand logits, x;

  Classes(const CategoricalInputs& a, int width)
      : positions(a.positions), classes(a.classes), logits(a.logits, classes, width), x(a.x, 1, width) {}
  Classes(const MultinomialInputs& a, int width)
      : positions(a.positions), classes(a.classes), logits(a.logits, classes, width), x(a.x, classes, width) {}

  __device__ __forceinline__ int64_t class_of(int64_t row) const {
    int64_t k = -1;
    const int64_t at = x.row_offset(row);
    with_integer_type(x.type, [&](auto* null) { k = int64_t(static_cast<decltype(null)>(x.data)[at]); });
    return k;
  }
  __device__ __forceinline__ bool is_class(int64_t k) const { return uint64_t(k) < uint64_t(classes); }

  // NaN if there is no such class.
  __device__ __forceinline__ T logit(int64_t row, int64_t k) const {
    return is_class(k) ? load_element<T>(logits, logits.row_offset(row) + k * logits.stride[3]) : T(NAN);
  }
};

template <class Access>
struct Positions : Classes<typename Access::T> {
  using T = typename Access::T;
  using Grid = ClassGrid<T>;
  static constexpr int kWidth = Access::kWidth, kQuads = Access::kQuads, kBatch = Grid::kBatch;
  static constexpr int kMostThreads = Grid::kMostLanes / kQuads;
  static constexpr int kBlocks = Access::kAny ? 1 : 1024 / kMostThreads;  // per multiprocessor, at 64 registers each
  Grid grid;
  Groups groups;

  template <class A>
  explicit Positions(const A& a) : Classes<T>(a, kWidth), grid(a.classes) {
    const Operand& l = this->logits;
    groups.threads = std::max(1, grid.lanes / kQuads);
    groups.count = std::max(1, kBlockQuads / kQuads / groups.threads);
    groups.across = groups.count > 1 && l.stride[3] > 1 && l.stride[3] > l.stride[l.even_rows ? 0 : 1];
  }

  int threads() const { return groups.threads * groups.count / groups.blocks; }
  int64_t blocks(int64_t tasks) const { return (tasks + groups.count - 1) / groups.count * groups.blocks; }

  // Fewer groups per block, if there would be too few blocks otherwise.
  Positions narrow(int64_t tasks) const {
    Positions all = *this;
    Groups& g = all.groups;
    while (!g.across && g.count > 1 && g.threads * g.count > 32 && all.blocks(tasks) < kMany) g.count /= 2;
    return all;
  }
  // Also several blocks per group, if there would still be too few blocks.
  Positions filling(int64_t tasks) const {
    Positions all = narrow(tasks);
    Groups& g = all.groups;
    while (g.count == 1 && g.threads / g.blocks > 32 && all.blocks(tasks) < kMany) g.blocks *= 2;
    return all;
  }
  // One block per group: its threads can exchange values.
  Positions joined() const {
    Positions all = *this;
    all.groups.blocks = 1;
    return all;
  }

  // A thread's packs in a part of a position.
  __device__ __forceinline__ Packs packs(int64_t row, int part) const {
    const int64_t first = part * Grid::kPart, left = grid.quads - first;
    const int quads = int(grid.parts == 1 || left < Grid::kPart ? left : Grid::kPart);
    return {row, first / kQuads, groups.lane(), (quads + kQuads - 1) / kQuads, groups.threads};
  }

  // Calls f(i, pack, n) for the next kCount packs of a thread, as far as they exist.
  template <int kCount, class F>
  __device__ __forceinline__ void for_packs(const Packs& packs, int pack, const F& f) const {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      if (i * packs.step < packs.end - pack) {
        f(i, pack + i * packs.step, Access::count(packs, pack + i * packs.step, this->classes));
      }
    }
  }

  // The logits of these packs, -inf where there is no class. Without conditions, all loads start before the first value
  // is used; for that, a pack beyond the end is the first of these packs.
  template <int kCount>
  __device__ __forceinline__ void load(const Packs& packs, typename Access::Run run, int pack,
                                       T (&values)[kCount][kWidth]) const {
    if constexpr (Access::kAny) {
      for_packs<kCount>(packs, pack, [&](int i, int at, int n) {
        Access::load(this->logits, run, at, n, values[i]);
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[i][k] = k < n ? values[i][k] : -T(INFINITY);
      });
    } else {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int beyond = i * packs.step < packs.end - pack ? i * packs.step : 0;
        Access::load(this->logits, run, pack + beyond, kWidth, values[i]);
      }
    }
  }

  // Adds a thread's packs in a part of a position to its normalizers, one for each quad of a pack.
  __device__ __forceinline__ void gather(int64_t row, int part, Normalizer<T> (&found)[kQuads]) const {
    if (row < this->positions) {
      const Packs packs = this->packs(row, part);
      const auto run = Access::run(this->logits, packs);
      for (int pack = packs.begin; pack < packs.end; pack += kBatch * packs.step) {
        T values[kBatch][kWidth], largest[kQuads];
        load(packs, run, pack, values);
#pragma unroll
        for (int q = 0; q < kQuads; ++q) largest[q] = found[q].largest;
        for_packs<kBatch>(packs, pack, [&](int i, int, int) {
#pragma unroll
          for (int k = 0; k < kWidth; ++k) largest[k / 4] = larger(largest[k / 4], values[i][k]);
        });
#pragma unroll
        for (int q = 0; q < kQuads; ++q) found[q].raise(largest[q]);
        for_packs<kBatch>(packs, pack, [&](int i, int, int) {
#pragma unroll
          for (int k = 0; k < kWidth; ++k) found[k / 4].add(values[i][k]);
        });
      }
    }
  }

  // The normalizer of a part, for all threads of a group, from the normalizers of these threads.
  __device__ __forceinline__ Normalizer<T> join(Normalizer<T> (&found)[kQuads]) const {
    const auto largest_of = [](T a, T b) { return larger(a, b); };
    const auto sum_of = [](T a, T b) { return a + b; };
    Normalizer<T> all;
#pragma unroll
    for (int q = 0; q < kQuads; ++q) all.largest = larger(all.largest, found[q].largest);
    all.largest = groups.template fold<kMostThreads>(all.largest, largest_of);
#pragma unroll
    for (int q = 0; q < kQuads; ++q) {
      found[q].raise(all.largest);
      all.ties += found[q].ties;
      all.rest += found[q].rest;
    }
    all.ties = groups.template fold<kMostThreads>(all.ties, sum_of);
    all.rest = groups.template fold<kMostThreads>(all.rest, sum_of);
    return all;
  }

  // The normalizer of a position, for all threads of its group, which must not have several blocks.
  __device__ __forceinline__ Normalizer<T> normalize(int64_t row) const {
    Normalizer<T> all;
    for (int part = 0; part < grid.parts; ++part) {
      Normalizer<T> found[kQuads];
      gather(row, part, found);
      const Normalizer<T> of_part = join(found);
      part == 0 ? void(all = of_part) : all.merge(of_part);
    }
    return all;
  }
};

}  // namespace vk::cuda
