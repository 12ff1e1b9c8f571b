#include "../formulas/categorical.h"

#include "kernels.h"
#include "tiles.h"

namespace vk::cpu {
namespace {

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

// The normalizer of n classes, and their weights e^(l - max).
template <class T>
VK_INLINE Normalizer<T> normalizer(const T* logits, int n, T* __restrict weights) {
  using V = Vectors<T>;
  Normalizer<T> result;
  result.largest = largest(logits, n);
  const T max = result.largest;
#pragma GCC ivdep
  for (int k = 0; k < n; ++k) weights[k] = exp_minus(max - logits[k]);
  typename V::Vector ties = {}, rest = {}, logit, weight;
  for (int i = 0; i < n; i += V::kWidth) {
    V::read(logits + i, logit);
    V::read(weights + i, weight);
    const auto tie = logit == max;
    ties += tie ? typename V::Vector{} + T(1) : typename V::Vector{};
    rest += tie ? typename V::Vector{} : weight;
  }
  const auto plus = [](T a, T b) __attribute__((always_inline)) { return a + b; };
  result.ties = V::fold(ties, plus);
  result.rest = V::fold(rest, plus);
  return result;
}

// The normalizers of kWidth positions side by side, with logits and weights class by class: nothing is folded.
template <class T>
VK_INLINE void normalizers(const T* logits, int classes, T* __restrict weights, Normalizer<T>* found) {
  using V = Vectors<T>;
  typename V::Vector max = typename V::Vector{} - T(INFINITY), ties = {}, rest = {}, logit, weight;
  for (int i = 0; i < classes * V::kWidth; i += V::kWidth) {
    V::read(logits + i, logit);
    max = logit > max ? logit : max;
  }
  T largest[V::kWidth];
  memcpy(largest, &max, sizeof max);
  for (int i = 0; i < classes * V::kWidth; i += V::kWidth) {
#pragma GCC ivdep
    for (int p = 0; p < V::kWidth; ++p) weights[i + p] = exp_minus(largest[p] - logits[i + p]);
  }
  for (int i = 0; i < classes * V::kWidth; i += V::kWidth) {
    V::read(logits + i, logit);
    V::read(weights + i, weight);
    const auto tie = logit == max;
    ties += tie ? typename V::Vector{} + T(1) : typename V::Vector{};
    rest += tie ? typename V::Vector{} : weight;
  }
  for (int p = 0; p < V::kWidth; ++p) found[p].largest = max[p], found[p].ties = ties[p], found[p].rest = rest[p];
}

// A view of one column for a tensor of one value for each position.
View per_position(View view) {
  view.col_inner = 1;
  view.dense = view.row_inner == 1 && view.stride[0] == 1;
  return view;
}

// Calls f(class, position, offset) for the elements of up to kWidth positions, in the order in which they lie closest.
template <int kWidth, class F>
VK_INLINE void for_each_class(const View& view, const Tile& tile, const F& f) {
  int64_t offset[kWidth];
  bool adjacent = true;
  for (int p = 0; p < kWidth; ++p) {
    offset[p] = view.row_offset(tile.row + (p < tile.rows ? p : 0));
    adjacent &= offset[p] == offset[0] + p;
  }
  const int64_t stride = view.stride[3];
  if (adjacent) {
    for (int c = 0; c < tile.cols; ++c) {
      for (int p = 0; p < kWidth; ++p) f(c, p, offset[0] + c * stride + p);
    }
  } else {
    for (int p = 0; p < tile.rows; ++p) {
      for (int c = 0; c < tile.cols; ++c) f(c, p, offset[p] + c * stride);
    }
  }
}

// Copy kWidth positions side by side between memory and a buffer. Better instruction sets do not make a mere copy
// faster.
template <class T>
__attribute__((noinline)) void load_by_class(const View& view, const Tile& tile, T* to) {
  constexpr int kWidth = Vectors<T>::kWidth;
  if (tile.rows < kWidth) std::fill(to, to + tile.cols * kWidth, T(0));
  with_float_type(view.type, [&](auto* null) {
    const auto* from = static_cast<decltype(null)>(view.data);
    for_each_class<kWidth>(view, tile, [&](int c, int p, int64_t at) { to[c * kWidth + p] = widen<T>(from[at]); });
  });
}
template <class T>
__attribute__((noinline)) void store_by_class(const View& view, const Tile& tile, const T* from) {
  constexpr int kWidth = Vectors<T>::kWidth;
  with_float_type(view.type, [&](auto* null) {
    auto* to = static_cast<decltype(null)>(view.data);
    for_each_class<kWidth>(view, tile, [&](int c, int p, int64_t at) { narrow(from[c * kWidth + p], to + at); });
  });
}

// How both directions divide positions into tasks. With few classes, or classes that lie apart in memory, a task has
// kWidth positions, class by class. Otherwise it has as many positions as a tile holds, position by position, or one
// position, tile by tile.
template <class T>
struct Positions {
  static constexpr int kWidth = Vectors<T>::kWidth;
  static constexpr int kMost = kTile / kAlign;  // most positions of a task
  static constexpr int kFew = 32, kApart = 256;

  const View& logits;
  const View x;
  int64_t positions;
  int64_t classes;
  bool by_class = classes <= kFew || (classes <= kApart && logits.stride[3] != 1);
  int64_t per_task = by_class ? kWidth : std::max<int64_t>(1, kTile / padded(classes));

  int64_t tasks() const { return (positions + per_task - 1) / per_task; }
  int64_t grain() const { return std::max<int64_t>(1, kGrain / (per_task * classes)); }

  VK_INLINE Tile tile(int64_t task) const {
    const int64_t first = task * per_task;
    return {first, 0, int(std::min(per_task, positions - first)), int(classes)};
  }
  VK_INLINE bool one_tile() const { return classes <= kTile; }

  // One tile of a position with more classes than a tile holds.
  VK_INLINE Tile piece(int64_t position, int64_t col) const {
    const int64_t n = std::min<int64_t>(kTile, classes - col);
    return {position, col, 1, int(n)};
  }

  VK_INLINE const T* load(const Tile& tile, T* buffer) const {
    if (pitch(tile) == tile.cols) return cpu::load(logits, tile, buffer);
    for (int i = 0; i < tile.rows; ++i) {
      T* row = buffer + i * pitch(tile);
      std::fill(row + pitch(tile) - kAlign, row + pitch(tile), -T(INFINITY));
      gather(logits, Tile{tile.row + i, tile.col, 1, tile.cols}, row);
    }
    return buffer;
  }

  VK_INLINE void load_x(const Tile& tile, int64_t* to) const { gather(x, Tile{tile.row, 0, tile.rows, 1}, to); }
  VK_INLINE bool is_class(int64_t k) const { return uint64_t(k) < uint64_t(classes); }

  // The normalizer over all tiles of a position; `*logit` becomes the logit of class k, if there is such a class.
  VK_INLINE Normalizer<T> normalize(int64_t position, int64_t k, T* buffer, T* weights, T* logit) const {
    Normalizer<T> all;
    for (int64_t col = 0; col < classes; col += kTile) {
      const Tile part = piece(position, col);
      const T* read = load(part, buffer);
      all.merge(normalizer(read, pitch(part), weights));
      if (k >= col && k < col + part.cols) *logit = read[k - col];
    }
    return all;
  }
};

template <class T>
struct Forward {
  static constexpr bool kAvx512 = is_float<T>;
  const CategoricalForward& a;
  T* log_probs;
  Positions<T> all{a.logits, per_position(a.x), a.positions, a.classes};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    using P = Positions<T>;
    T logit[P::kMost];
    Normalizer<T> found[P::kMost];
    int64_t k[P::kMost];
    const Tile tile = all.tile(i);
    all.load_x(tile, k);
    if (all.by_class) {
      T logits[P::kApart * P::kWidth], weights[P::kApart * P::kWidth];
      load_by_class(all.logits, tile, logits);
      normalizers(logits, tile.cols, weights, found);
      for (int p = 0; p < tile.rows; ++p) logit[p] = all.is_class(k[p]) ? logits[k[p] * P::kWidth + p] : T(NAN);
    } else if (all.one_tile()) {
      T buffer[kTile], weights[kTile];
      const T* logits = all.load(tile, buffer);
      for (int p = 0; p < tile.rows; ++p) {
        const T* row = logits + p * pitch(tile);
        found[p] = normalizer(row, pitch(tile), weights);
        logit[p] = all.is_class(k[p]) ? row[k[p]] : T(NAN);
      }
    } else {
      T buffer[kTile], weights[kTile];
      logit[0] = T(NAN);
      found[0] = all.normalize(tile.row, k[0], buffer, weights, logit);
    }
    T* out = log_probs + tile.row;
#pragma GCC ivdep
    for (int p = 0; p < tile.rows; ++p) out[p] = log_prob(found[p], logit[p]);
  }
};

// Sums over the positions of each sample.
template <class T>
struct Sums {
  static constexpr bool kAvx512 = is_float<T>;
  const T* log_probs;
  Grid grid;
  RowSums<T> sums;

  Sums(const T* log_probs, const CategoricalForward& a)
      : log_probs(log_probs),
        grid(a.samples, a.samples ? a.positions / a.samples : 0, false),
        sums(grid, static_cast<T*>(a.log_prob)) {}

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      sums.template add<Isa>(tile, task, log_probs + tile.row * grid.cols + tile.col);
    });
  }
};

template <class T>
struct Backward {
  static constexpr bool kAvx512 = is_float<T>;
  using P = Positions<T>;
  const CategoricalBackward& a;
  View grad = per_position(a.grad);
  P all{a.logits, per_position(a.x), a.positions, a.classes};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    T upstream[P::kMost];
    int64_t k[P::kMost];
    const Tile tile = all.tile(i);
    all.load_x(tile, k);
    gather(grad, Tile{tile.row, 0, tile.rows, 1}, upstream);
    if (all.by_class) {
      by_class(tile, k, upstream);
    } else if (all.one_tile()) {
      one_tile(tile, k, upstream);
    } else {
      many_tiles(tile.row, k[0], upstream[0]);
    }
  }

  VK_INLINE void by_class(const Tile& tile, const int64_t* k, const T* upstream) const {
    T logits[P::kApart * P::kWidth], weights[P::kApart * P::kWidth], scale[P::kWidth] = {};
    Normalizer<T> n[P::kWidth];
    load_by_class(all.logits, tile, logits);
    normalizers(logits, tile.cols, weights, n);
    for (int p = 0; p < tile.rows; ++p) scale[p] = all.is_class(k[p]) ? -upstream[p] / n[p].total() : T(NAN);
    for (int c = 0; c < tile.cols; ++c) {
#pragma GCC ivdep
      for (int p = 0; p < P::kWidth; ++p) weights[c * P::kWidth + p] *= scale[p];
    }
    for (int p = 0; p < tile.rows; ++p) {
      const int64_t at = k[p] * P::kWidth + p;
      if (all.is_class(k[p])) weights[at] = upstream[p] * one_minus_prob(n[p], logits[at]);
    }
    store_by_class(a.grad_logits, tile, weights);
  }

  VK_INLINE void one_tile(const Tile& tile, const int64_t* k, const T* upstream) const {
    T buffer[kTile], weights[kTile], out_buffer[kTile];
    const T* logits = all.load(tile, buffer);
    T* out = target_of(tile, out_buffer);
    for (int p = 0; p < tile.rows; ++p) {
      const T* row = logits + p * pitch(tile);
      T* to = out + p * pitch(tile);
      const Normalizer<T> n = normalizer(row, pitch(tile), weights);
      const bool is_class = all.is_class(k[p]);
      const T logit = is_class ? row[k[p]] : T(NAN);
      write(weights, pitch(tile), is_class ? -upstream[p] / n.total() : T(NAN), to);
      if (is_class) to[k[p]] = upstream[p] * one_minus_prob(n, logit);
    }
    put(tile, out, out_buffer);
  }

  VK_INLINE void many_tiles(int64_t position, int64_t k, T upstream) const {
    T buffer[kTile], weights[kTile], out_buffer[kTile];
    T logit = T(NAN);
    const Normalizer<T> n = all.normalize(position, k, buffer, weights, &logit);
    const T scale = all.is_class(k) ? -upstream / n.total() : T(NAN);
    for (int64_t col = 0; col < all.classes; col += kTile) {
      const Tile tile = all.piece(position, col);
      const T* logits = all.load(tile, buffer);
      T* to = target_of(tile, out_buffer);
      const int width = pitch(tile);
#pragma GCC ivdep
      for (int j = 0; j < width; ++j) weights[j] = exp_minus(n.largest - logits[j]);
      write(weights, width, scale, to);
      if (k >= col && k < col + tile.cols) to[k - col] = upstream * one_minus_prob(n, logit);
      put(tile, to, out_buffer);
    }
  }

  // Where a tile is written. Padded positions go to `buffer`, because memory has no room for the padding.
  VK_INLINE T* target_of(const Tile& tile, T* buffer) const {
    return pitch(tile) == tile.cols ? target(a.grad_logits, tile, buffer) : buffer;
  }
  VK_INLINE void put(const Tile& tile, const T* written, const T* buffer) const {
    if (written != buffer) return;
    for (int i = 0; i < tile.rows; ++i) {
      scatter(a.grad_logits, Tile{tile.row + i, tile.col, 1, tile.cols}, buffer + i * pitch(tile));
    }
  }

  VK_INLINE static void write(const T* weights, int n, T scale, T* __restrict to) {
#pragma GCC ivdep
    for (int j = 0; j < n; ++j) to[j] = scale * weights[j];
  }
};

template <class Kernel>
void run(const Kernel& kernel, ParallelFor parallel) {
  run_tasks(parallel, kernel, kernel.all.tasks(), kernel.all.grain());
}

template <class T>
void forward(const CategoricalForward& a, ParallelFor parallel) {
  const std::unique_ptr<T[]> log_probs(new T[a.positions + kLanes]);
  run(Forward<T>{a, log_probs.get()}, parallel);
  const Sums<T> kernel(log_probs.get(), a);
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
  kernel.sums.finish();
}

}  // namespace

void categorical_forward(const CategoricalForward& a, ParallelFor parallel) {
  a.arithmetic == Type::kFloat64 ? forward<double>(a, parallel) : forward<float>(a, parallel);
}

void categorical_backward(const CategoricalBackward& a, ParallelFor parallel) {
  expect_writes(a.grad_logits, a.positions * a.classes);
  a.arithmetic == Type::kFloat64 ? run(Backward<double>{a}, parallel) : run(Backward<float>{a}, parallel);
}

}  // namespace vk::cpu
