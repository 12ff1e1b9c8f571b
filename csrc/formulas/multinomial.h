// The multinomial likelihood of one position: the sum of x_k ln p_k over the classes k, with ln p_k of categorical.h,
// and the logarithm of the multinomial coefficient, ln Gamma(N + 1) - sum of ln Gamma(x_k + 1), N = sum of x_k.
#pragma once

#include "categorical.h"
#include "likelihood.h"

namespace vk {

// ln Gamma(x + 1), from a Poisson with rate 1: its ln p is -1 - ln Gamma(x + 1). Exactly 0 for x = 0 and x = 1.
// Types: float, double.
// Largest error: 5 ulp (double: 9 ulp) of the larger of the result and 1.
// Range: x >= 0.
template <class T>
VK_INLINE T log_factorial(T x) {
  const T value = T(-1) - PoissonTerms<T>(T(1), T(1), T(0), x).log_prob();
  return x == T(1) ? T(0) : value;
}
// psi(x + 1), the derivative of log_factorial.
template <class T>
VK_INLINE T log_factorial_slope(T x) {
  return -PoissonTerms<T>(T(1), T(1), T(0), x).gradient_x();
}

// x (l - max). A count of 0 adds 0, even if its class has no probability.
template <class T>
VK_INLINE T weighted_logit(T logit, T x, T largest) {
  const T product = x * (logit - largest);  // outside the condition: inside, it becomes a branch
  return x == T(0) ? T(0) : product;
}

// The sum of x_k ln p_k from `count`, the sum of x_k, and `weighted`, the sum of x_k (l_k - max). No term cancels
// another, as all have one sign.
template <class T>
VK_INLINE T multinomial_log_prob(const Normalizer<T>& n, T count, T weighted) {
  return weighted - count * log_total(n);
}

// The gradients of one position: to the logits x_k - N p_k, to the counts ln p_k + psi(N + 1) - psi(x_k + 1), the last
// two for the coefficient. If one class has more than half of the probability, its gradient is N (1 - p) - (N - x),
// which keeps its digits if it has nearly all of the probability.
template <class T>
struct MultinomialGradient {
  T upstream, count, largest, log_sum;
  T scale;                  // N over the sum of all weights
  T dominant, of_dominant;  // the logit of that class, or NaN, and N (1 - p)

  VK_INLINE MultinomialGradient(const Normalizer<T>& n, T count, T upstream)
      : upstream(upstream),
        count(count),
        largest(n.largest),
        log_sum(log_total(n)),
        scale(count / n.total()),
        dominant(n.total() < T(2) ? n.largest : T(NAN)),
        of_dominant(count * (n.total_minus_1() / n.total())) {}

  // `weight` is e^(l - max).
  VK_INLINE T to_logit(T logit, T weight, T x) const {
    const T others = of_dominant - (count - x), usual = x - scale * weight;
    return upstream * (logit == dominant ? others : usual);
  }
  // A class without probability and counts has the gradient of ln p = 0, as with torch.distributions.Multinomial.
  VK_INLINE T to_x(T logit, T x) const {
    const T log_p = (logit - largest) - log_sum;
    return upstream * (x == T(0) && log_p == -T(INFINITY) ? T(0) : log_p);
  }
  // The same with the gradient of the coefficient; `slope` is psi(N + 1).
  VK_INLINE T to_x(T logit, T x, T slope) const { return to_x(logit, x) + upstream * (slope - log_factorial_slope(x)); }
};

}  // namespace vk
