// Likelihoods over classes: positions as tasks, their logits with padding, their normalizers, and the sums over the
// positions of each sample.
#pragma once

#include "../formulas/categorical.h"
#include "kernels.h"
#include "tiles.h"

namespace vk::cpu {

// Classes are padded to full vectors.
constexpr int kAlign = 16;
constexpr int64_t padded(int64_t classes) { return (classes + kAlign - 1) / kAlign * kAlign; }
VK_INLINE int pitch(const Tile& tile) { return int(padded(tile.cols)); }

// Full vectors, written out for the reason that lane_sum() gives.
template <class T>
struct Vectors {
  static constexpr int kWidth = 64 / sizeof(T);
  typedef T Vector __attribute__((vector_size(64)));

  VK_INLINE static void read(const T* from, Vector& to) { memcpy(&to, from, sizeof to); }

  // Folds halves of a size that the compiler knows: a loop took 100 cycles.
  template <int kHalf = kWidth / 2, class Fold>
  VK_INLINE static T fold(T (&lanes)[kWidth], const Fold& f) {
    for (int k = 0; k < kHalf; ++k) lanes[k] = f(lanes[k], lanes[k + kHalf]);
    if constexpr (kHalf == 1) {
      return lanes[0];
    } else {
      return fold<kHalf / 2>(lanes, f);
    }
  }
  template <class Fold>
  VK_INLINE static T fold(const Vector& vector, const Fold& f) {
    T lanes[kWidth];
    memcpy(lanes, &vector, sizeof lanes);
    return fold<kWidth / 2>(lanes, f);
  }
  VK_INLINE static T sum(const Vector& vector) {
    return fold(vector, [](T a, T b) __attribute__((always_inline)) { return a + b; });
  }
};

// The largest of n logits; NaN is ignored.
template <class T>
VK_INLINE T largest(const T* logits, int n) {
  using V = Vectors<T>;
  typename V::Vector lanes = typename V::Vector{} - T(INFINITY), part;
  for (int i = 0; i < n; i += V::kWidth) {
    V::read(logits + i, part);
    lanes = part > lanes ? part : lanes;
  }
  return V::fold(lanes, [](T a, T b) __attribute__((always_inline)) { return b > a ? b : a; });
}

// The weights e^(l - max) of n classes.
template <class T>
VK_INLINE void weigh(const T* logits, int n, T max, T* __restrict weights) {
#pragma GCC ivdep
  for (int k = 0; k < n; ++k) weights[k] = exp_minus(max - logits[k]);
}

// The normalizer of n classes, and their weights.
template <class T>
VK_INLINE Normalizer<T> normalizer(const T* logits, int n, T* __restrict weights) {
  using V = Vectors<T>;
  Normalizer<T> result;
  result.largest = largest(logits, n);
  const T max = result.largest;
  weigh(logits, n, max, weights);
  typename V::Vector ties = {}, rest = {}, logit, weight;
  for (int i = 0; i < n; i += V::kWidth) {
    V::read(logits + i, logit);
    V::read(weights + i, weight);
    const auto tie = logit == max;
    ties += tie ? typename V::Vector{} + T(1) : typename V::Vector{};
    rest += tie ? typename V::Vector{} : weight;
  }
  result.ties = V::sum(ties);
  result.rest = V::sum(rest);
  return result;
}

// A view of one column for a tensor of one value for each position.
inline View per_position(View view) {
  view.col_inner = 1;
  view.dense = view.row_inner == 1 && view.stride[0] == 1;
  return view;
}

// How both directions divide positions into tasks: as many positions as a tile holds, or one position, tile by tile.
template <class T>
struct Positions {
  static constexpr int kMost = kTile / kAlign;  // most positions of a task

  int64_t positions, classes, per_task;

  Positions(int64_t positions, int64_t classes)
      : positions(positions), classes(classes), per_task(std::max<int64_t>(1, kTile / padded(classes))) {}

  int64_t tasks() const { return (positions + per_task - 1) / per_task; }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / (per_task * classes)); }

  VK_INLINE Tile tile(int64_t task) const {
    const int64_t first = task * per_task;
    return {first, 0, int(std::min(per_task, positions - first)), int(classes)};
  }
  VK_INLINE bool one_tile() const { return classes <= kTile; }

  // The classes from `col` on of a task's positions, as many as a tile holds. All pieces but the last have whole
  // vectors.
  VK_INLINE Tile piece(const Tile& tile, int64_t col) const {
    return {tile.row, col, tile.rows, int(std::min<int64_t>(kTile, classes - col))};
  }

  // A tile of a tensor of this shape, with `padding` behind the last class.
  VK_INLINE static const T* load(const View& view, const Tile& tile, T padding, T* buffer) {
    if (pitch(tile) == tile.cols) return cpu::load(view, tile, buffer);
    for (int i = 0; i < tile.rows; ++i) {
      const Tile one{tile.row + i, tile.col, 1, tile.cols};
      T* row = buffer + i * pitch(tile);
      std::fill(row + pitch(tile) - kAlign, row + pitch(tile), padding);
      if (const T* memory = in_place<T>(view, one)) {
        std::copy_n(memory, tile.cols, row);
      } else {
        gather(view, one, row);
      }
    }
    return buffer;
  }

  // Where a tile is written. Padded positions go to `buffer`, because memory has no room for the padding.
  VK_INLINE static T* target_of(const View& view, const Tile& tile, T* buffer) {
    return pitch(tile) == tile.cols ? target(view, tile, buffer) : buffer;
  }
  VK_INLINE static void put(const View& view, const Tile& tile, const T* written, const T* buffer) {
    if (written != buffer) return;
    for (int i = 0; i < tile.rows; ++i) {
      const Tile one{tile.row + i, tile.col, 1, tile.cols};
      const T* row = buffer + i * pitch(tile);
      if (T* memory = in_place<T>(view, one)) {
        std::copy_n(row, tile.cols, memory);
      } else {
        scatter(view, one, row);
      }
    }
  }
};

// Runs a kernel over its positions, which are its member `all`.
template <class Kernel>
void run(const Kernel& kernel, ParallelFor parallel) {
  run_tasks(parallel, kernel, kernel.all.tasks(), kernel.all.grain());
}

// Sums over the positions of each sample.
template <class T>
struct PositionSums {
  static constexpr bool kAvx512 = is_float<T>;
  const T* log_probs;
  Grid grid;
  RowSums<T> sums;

  PositionSums(const T* log_probs, int64_t samples, int64_t positions, T* out)
      : log_probs(log_probs), grid(samples, samples ? positions / samples : 0, false), sums(grid, out) {}

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      sums.template add<Isa>(tile, task, log_probs + tile.row * grid.cols + tile.col);
    });
  }
};

// Computes the log-probabilities of all positions with a kernel, Kernel{arguments, log_probs}, and their sum for each
// sample.
template <class Kernel, class T, class Arguments>
void sum_positions(const Arguments& a, ParallelFor parallel) {
  const std::unique_ptr<T[]> log_probs(new T[a.positions + kLanes]);
  run(Kernel{a, log_probs.get()}, parallel);
  const PositionSums<T> kernel(log_probs.get(), a.samples, a.positions, static_cast<T*>(a.log_prob));
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
  kernel.sums.finish();
}

}  // namespace vk::cpu
