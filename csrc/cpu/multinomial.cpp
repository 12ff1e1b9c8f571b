#include "../formulas/multinomial.h"

#include "positions.h"

namespace vk::cpu {
namespace {

// The sum of n values, padded to full vectors.
template <class T>
VK_INLINE T padded_sum(const T* values, int n) {
  using V = Vectors<T>;
  typename V::Vector lanes = {}, part;
  for (int i = 0; i < n; i += V::kWidth) {
    V::read(values + i, part);
    lanes += part;
  }
  return V::sum(lanes);
}

// The sum of log_factorial(x). Where there are many classes, most counts are 0 or 1: a vector of them is left out.
template <class T>
VK_INLINE T log_factorials(const T* x, int n) {
  using V = Vectors<T>;
  typename V::Vector lanes = {}, part;
  T terms[V::kWidth];
  for (int i = 0; i < n; i += V::kWidth) {
    int others = 0;
    for (int k = 0; k < V::kWidth; ++k) others |= int(x[i + k] != T(0)) & int(x[i + k] != T(1));
    if (!others) continue;
#pragma GCC ivdep
    for (int k = 0; k < V::kWidth; ++k) terms[k] = log_factorial(x[i + k]);
    V::read(terms, part);
    lanes += part;
  }
  return V::sum(lanes);
}

// What the classes of one position add up to, tile by tile.
template <class T>
struct ClassSums {
  Normalizer<T> normalizer;
  Total count;       // of x
  Total weighted;    // of x (l - max), with the largest logit so far
  Total factorials;  // of ln Gamma(x + 1)

  // Adds n classes, padded to full vectors. `scratch` has room for them.
  VK_INLINE void add(const T* logits, const T* x, int n, bool coefficient, T* __restrict scratch) {
    const T before = reference();
    normalizer.merge(cpu::normalizer(logits, n, scratch));
    const T max = reference();
    if (max > before && count.value() != 0) weighted.add(count.value() * (double(before) - double(max)));
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) scratch[k] = weighted_logit(logits[k], x[k], max);
    weighted.add(double(padded_sum(scratch, n)));
    count.add(double(padded_sum(x, n)));
    if (coefficient) factorials.add(double(log_factorials(x, n)));
  }

  VK_INLINE T log_prob(bool coefficient) const {
    const T n = T(count.value()), log_p = multinomial_log_prob(normalizer, n, T(weighted.value()));
    return coefficient ? log_p + (log_factorial(n) - T(factorials.value())) : log_p;
  }

 private:
  // The largest logit; a finite number as long as all are -inf, so that a count there makes the sum -inf.
  VK_INLINE T reference() const {
    constexpr T kLowest = is_float<T> ? T(-3.40282347e+38) : T(-1.7976931348623157e+308);
    return normalizer.largest < kLowest ? kLowest : normalizer.largest;
  }
};

template <class T>
struct Forward {
  static constexpr bool kAvx512 = is_float<T>;
  using P = Positions<T>;
  const MultinomialForward& a;
  T* log_probs;
  P all{a.positions, a.classes};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    T logits_buffer[kTile], x_buffer[kTile], scratch[kTile];
    ClassSums<T> sums[P::kMost];
    const Tile tile = all.tile(i);
    for (int64_t col = 0; col < all.classes; col += kTile) {
      const Tile piece = all.piece(tile, col);
      const T* logits = P::load(a.logits, piece, -T(INFINITY), logits_buffer);
      const T* x = P::load(a.x, piece, T(0), x_buffer);
      for (int p = 0; p < tile.rows; ++p) {
        const int at = p * pitch(piece);
        sums[p].add(logits + at, x + at, pitch(piece), a.coefficient, scratch);
      }
    }
    for (int p = 0; p < tile.rows; ++p) log_probs[tile.row + p] = sums[p].log_prob(a.coefficient);
  }
};

template <class T>
struct Backward {
  static constexpr bool kAvx512 = is_float<T>;
  using P = Positions<T>;
  const MultinomialBackward& a;
  View grad = per_position(a.grad);
  P all{a.positions, a.classes};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    T logits_buffer[kTile], x_buffer[kTile], weights[kTile], out_buffer[kTile], upstream[P::kMost];
    Normalizer<T> normalizers[P::kMost];
    Total counts[P::kMost];
    const Tile tile = all.tile(i);
    gather(grad, Tile{tile.row, 0, tile.rows, 1}, upstream);
    const T *logits = nullptr, *x = nullptr;
    const auto load = [&](const Tile& piece) __attribute__((always_inline)) {
      logits = P::load(a.logits, piece, -T(INFINITY), logits_buffer);
      x = P::load(a.x, piece, T(0), x_buffer);
    };
    for (int64_t col = 0; col < all.classes; col += kTile) {
      const Tile piece = all.piece(tile, col);
      load(piece);
      T* const to = weights_of(piece, weights);
      for (int p = 0; p < tile.rows; ++p) {
        const int at = p * pitch(piece);
        normalizers[p].merge(normalizer(logits + at, pitch(piece), to + at));
        counts[p].add(double(padded_sum(x + at, pitch(piece))));
      }
    }
    for (int64_t col = 0; col < all.classes; col += kTile) {
      const Tile piece = all.piece(tile, col);
      if (!all.one_tile()) load(piece);
      if (a.grad_logits.data) {
        const T* const kept = weights_of(piece, weights);
        T factor = T(1);
        if (!all.one_tile()) {
          const T max = largest(logits, pitch(piece));
          factor = exp_minus(normalizers[0].largest - max);
          if (kept == weights) weigh(logits, pitch(piece), max, weights);
        }
        write(a.grad_logits, piece, out_buffer, [&](int p, int at, int n, T* to) __attribute__((always_inline)) {
          const MultinomialGradient<T> g(normalizers[p], T(counts[p].value()), upstream[p]);
          to_logits(g, logits + at, kept + at, factor, x + at, n, to);
        });
      }
      write(a.grad_x, piece, out_buffer, [&](int p, int at, int n, T* to) __attribute__((always_inline)) {
        const T count = T(counts[p].value());
        to_x({normalizers[p], count, upstream[p]}, a.coefficient, count, logits + at, x + at, n, to);
      });
    }
  }

  // Where the weights of a piece, relative to its own largest logit, stay until the normalizer is known: if there are
  // several pieces, in the memory of their gradients. If that cannot be, they are computed again.
  VK_INLINE T* weights_of(const Tile& piece, T* buffer) const {
    if (all.one_tile() || !a.grad_logits.data) return buffer;
    return P::target_of(a.grad_logits, piece, buffer);
  }

  // The weights are multiplied by `factor`, and may be where the gradients are written.
  VK_INLINE static void to_logits(const MultinomialGradient<T> g, const T* logits, const T* weights, T factor,
                                  const T* x, int n, T* to) {
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) to[k] = g.to_logit(logits[k], weights[k] * factor, x[k]);
  }
  VK_INLINE static void to_x(const MultinomialGradient<T> g, bool coefficient, T count, const T* logits, const T* x,
                             int n, T* __restrict to) {
    if (coefficient) {
      const T slope = log_factorial_slope(count);
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) to[k] = g.to_x(logits[k], x[k], slope);
    } else {
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) to[k] = g.to_x(logits[k], x[k]);
    }
  }

  // Writes a tile of a gradient, if it is wanted: f(position, index of its first class, classes, memory) computes a
  // row.
  template <class F>
  VK_INLINE static void write(const View& view, const Tile& tile, T* buffer, const F& f) {
    if (!view.data) return;
    T* out = P::target_of(view, tile, buffer);
    for (int p = 0; p < tile.rows; ++p) f(p, p * pitch(tile), pitch(tile), out + p * pitch(tile));
    P::put(view, tile, out, buffer);
  }
};

}  // namespace

void multinomial_forward(const MultinomialForward& a, ParallelFor parallel) {
  a.arithmetic == Type::kFloat64 ? sum_positions<Forward<double>, double>(a, parallel)
                                 : sum_positions<Forward<float>, float>(a, parallel);
}

void multinomial_backward(const MultinomialBackward& a, ParallelFor parallel) {
  expect_writes(a.grad_logits, a.positions * a.classes);
  expect_writes(a.grad_x, a.positions * a.classes);
  a.arithmetic == Type::kFloat64 ? run(Backward<double>{a}, parallel) : run(Backward<float>{a}, parallel);
}

}  // namespace vk::cpu
