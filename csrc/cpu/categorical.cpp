#include "positions.h"

namespace vk::cpu {
namespace {

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

// With few classes, or classes that lie apart in memory, a task has kWidth positions, class by class.
template <class T>
struct Classes : Positions<T> {
  static constexpr int kWidth = Vectors<T>::kWidth;
  static constexpr int kFew = 32, kApart = 256;

  const View& logits;
  const View x;
  bool by_class;

  explicit Classes(const CategoricalInputs& a)
      : Positions<T>(a.positions, a.classes),
        logits(a.logits),
        x(per_position(a.x)),
        by_class(a.classes <= kFew || (a.classes <= kApart && a.logits.stride[3] != 1)) {
    if (by_class) this->per_task = kWidth;
  }

  VK_INLINE void load_x(const Tile& tile, int64_t* to) const { gather(x, Tile{tile.row, 0, tile.rows, 1}, to); }
  VK_INLINE bool is_class(int64_t k) const { return uint64_t(k) < uint64_t(this->classes); }

  VK_INLINE const T* load(const Tile& tile, T* buffer) const {
    return Positions<T>::load(logits, tile, -T(INFINITY), buffer);
  }

  // The normalizer over all tiles of a position; `*logit` becomes the logit of class k, if there is such a class.
  VK_INLINE Normalizer<T> normalize(const Tile& tile, int64_t k, T* buffer, T* weights, T* logit) const {
    Normalizer<T> all;
    for (int64_t col = 0; col < this->classes; col += kTile) {
      const Tile part = this->piece(tile, col);
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
  Classes<T> all{a};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    using P = Classes<T>;
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
      found[0] = all.normalize(tile, k[0], buffer, weights, logit);
    }
    T* out = log_probs + tile.row;
#pragma GCC ivdep
    for (int p = 0; p < tile.rows; ++p) out[p] = log_prob(found[p], logit[p]);
  }
};

template <class T>
struct Backward {
  static constexpr bool kAvx512 = is_float<T>;
  using P = Classes<T>;
  const CategoricalBackward& a;
  View grad = per_position(a.grad);
  P all{a};

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
      many_tiles(tile, k[0], upstream[0]);
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
    T* out = all.target_of(a.grad_logits, tile, out_buffer);
    for (int p = 0; p < tile.rows; ++p) {
      const T* row = logits + p * pitch(tile);
      T* to = out + p * pitch(tile);
      const Normalizer<T> n = normalizer(row, pitch(tile), weights);
      const bool is_class = all.is_class(k[p]);
      const T logit = is_class ? row[k[p]] : T(NAN);
      write(weights, pitch(tile), is_class ? -upstream[p] / n.total() : T(NAN), to);
      if (is_class) to[k[p]] = upstream[p] * one_minus_prob(n, logit);
    }
    all.put(a.grad_logits, tile, out, out_buffer);
  }

  VK_INLINE void many_tiles(const Tile& tile, int64_t k, T upstream) const {
    T buffer[kTile], weights[kTile], out_buffer[kTile];
    T logit = T(NAN);
    const Normalizer<T> n = all.normalize(tile, k, buffer, weights, &logit);
    const T scale = all.is_class(k) ? -upstream / n.total() : T(NAN);
    for (int64_t col = 0; col < all.classes; col += kTile) {
      const Tile part = all.piece(tile, col);
      const T* logits = all.load(part, buffer);
      T* to = all.target_of(a.grad_logits, part, out_buffer);
      const int width = pitch(part);
      weigh(logits, width, n.largest, weights);
      write(weights, width, scale, to);
      if (k >= col && k < col + part.cols) to[k - col] = upstream * one_minus_prob(n, logit);
      all.put(a.grad_logits, part, to, out_buffer);
    }
  }

  VK_INLINE static void write(const T* weights, int n, T scale, T* __restrict to) {
#pragma GCC ivdep
    for (int j = 0; j < n; ++j) to[j] = scale * weights[j];
  }
};

}  // namespace

void categorical_forward(const CategoricalForward& a, ParallelFor parallel) {
  a.arithmetic == Type::kFloat64 ? sum_positions<Forward<double>, double>(a, parallel)
                                 : sum_positions<Forward<float>, float>(a, parallel);
}

void categorical_backward(const CategoricalBackward& a, ParallelFor parallel) {
  expect_writes(a.grad_logits, a.positions * a.classes);
  a.arithmetic == Type::kFloat64 ? run(Backward<double>{a}, parallel) : run(Backward<float>{a}, parallel);
}

}  // namespace vk::cpu
