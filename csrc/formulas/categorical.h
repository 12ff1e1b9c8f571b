// The categorical likelihood of one position: ln p(x) = l_x - m - ln(sum of e^(l_k - m)) over the classes k, l the
// logits and m the largest of them.
#pragma once

#include "../elementary.h"

namespace vk {

// The normalizer of some of the classes. Those at the maximum are counted and only the others added up, so that the
// logarithm of the sum, and 1 - p of the likeliest class, lose nothing where one class has nearly all of the
// probability.
template <class T>
struct Normalizer {
  T largest = -T(INFINITY), ties = T(0), rest = T(0);

  // Not a number where the largest logit is not finite: then no class has a probability.
  VK_INLINE T total() const { return sum() + (largest - largest); }
  VK_INLINE T total_minus_1() const { return (ties - T(1)) + rest; }

  // Adds a class whose logit is not above the largest.
  VK_INLINE void add(T logit) {
    const bool tie = logit == largest;
    const T weight = exp_minus(largest - logit);  // outside the condition: inside it makes a branch of it
    ties += tie ? T(1) : T(0);
    rest += tie ? T(0) : weight;
  }

  // Counts from a larger largest logit, if `to` is one.
  VK_INLINE void raise(T to) {
    const bool more = to > largest;
    const T below = sum() * exp_minus(to - largest);
    rest = more ? below : rest;
    ties = more ? T(0) : ties;
    largest = more ? to : largest;
  }

  // Adds other classes.
  VK_INLINE void merge(Normalizer other) {
    other.raise(largest);
    raise(other.largest);
    ties += other.ties;
    rest += other.rest;
  }

 private:
  VK_INLINE T sum() const { return ties + rest; }
};

// Of the class with this logit.
template <class T>
VK_INLINE T log_prob(const Normalizer<T>& n, T logit) {
  return (logit - n.largest) - log_ratio(n.total(), n.total_minus_1()).value;
}

// The derivative of ln p(x) to the logit of class k is [k = x] - p_k; this is 1 - p_x.
template <class T>
VK_INLINE T one_minus_prob(const Normalizer<T>& n, T logit) {
  return (logit == n.largest ? n.total_minus_1() : n.total() - exp(logit - n.largest)) / n.total();
}

}  // namespace vk
