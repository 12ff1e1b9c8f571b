// The categorical likelihood of one position: ln p(x) = l_x - max - ln(sum of e^(l_k - max)) over the classes k, where
// l are the logits and max is the largest of them.
#pragma once

#include "../elementary.h"

namespace vk {

// The normalizer of some of the classes. The classes at the maximum are counted in `ties`, and only the others are
// added up in `rest`. So the logarithm of the sum, and 1 - p of the likeliest class, are accurate even if one class has
// nearly all of the probability.
template <class T>
struct Normalizer {
  T largest = -T(INFINITY), ties = T(0), rest = T(0);

  // NaN if the largest logit is not finite: then no class has a probability.
  VK_INLINE T total() const { return sum() + (largest - largest); }
  VK_INLINE T total_minus_1() const { return (ties - T(1)) + rest; }

  // Adds a class whose logit is not above the largest.
  VK_INLINE void add(T logit) {
    const bool tie = logit == largest;
    const T weight = exp_minus(largest - logit);  // outside the condition: inside, it becomes a branch
    ties += tie ? T(1) : T(0);
    rest += tie ? T(0) : weight;
  }

  // Raises the largest logit to `to`, if `to` is larger.
  VK_INLINE void raise(T to) {
    const bool more = to > largest;
    const T below = sum() * exp_minus(to - largest);
    rest = more ? below : rest;
    ties = more ? T(0) : ties;
    largest = more ? to : largest;
  }

  // Adds the classes of another normalizer.
  VK_INLINE void merge(Normalizer other) {
    other.raise(largest);
    raise(other.largest);
    ties += other.ties;
    rest += other.rest;
  }

 private:
  VK_INLINE T sum() const { return ties + rest; }
};

// The logarithm of the sum of all weights.
template <class T>
VK_INLINE T log_total(const Normalizer<T>& n) {
  return log_ratio(n.total(), n.total_minus_1()).value;
}

// ln p of the class with this logit.
template <class T>
VK_INLINE T log_prob(const Normalizer<T>& n, T logit) {
  return (logit - n.largest) - log_total(n);
}

// 1 - p_x. The derivative of ln p(x) to the logit of class k is [k = x] - p_k.
template <class T>
VK_INLINE T one_minus_prob(const Normalizer<T>& n, T logit) {
  return (logit == n.largest ? n.total_minus_1() : n.total() - exp(logit - n.largest)) / n.total();
}

}  // namespace vk
