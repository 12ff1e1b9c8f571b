// Families of likelihoods, per element. A family is a struct with its name, the number of its arguments in the order
// (decoder output, x, further parameters), their log-probability and its derivatives. Add it to VK_FAMILIES as well.
#pragma once

#include "math.h"

namespace vk {

// x a - ln(1 + e^a), a = logits, as (x - [a > 0]) a - ln(1 + e^-|a|): for x in [0, 1] both terms have one sign, so that
// nothing cancels; likewise the derivative. Kingma & Welling 2014, appendix C.1.
struct Bernoulli {
  static constexpr const char* kName = "bernoulli";
  static constexpr int kArguments = 2;

  template <class T>
  VK_INLINE static T log_prob(const T (&v)[2]) {
    const T a = v[0], x = a > T(0) ? v[1] - T(1) : v[1];
    return fused(x, a, -log1p_unit(exp(-absolute(a))));
  }

  template <class T>
  VK_INLINE static void gradient(const T (&v)[2], T (&g)[2]) {
    const T a = v[0], u = exp(-absolute(a)), tail = divide(u, T(1) + u);
    g[0] = a > T(0) ? (v[1] - T(1)) + tail : v[1] - tail;
    g[1] = a;
  }
};

// -1/2 (l + (x - m)^2 e^-l + ln 2 pi), l = logvar. Kingma & Welling 2014, appendix C.2.
struct Gaussian {
  static constexpr const char* kName = "gaussian";
  static constexpr int kArguments = 3;

  template <class T>
  VK_INLINE static T log_prob(const T (&v)[3]) {
    const T difference = v[1] - v[0], l = v[2];
    return T(-0.5) * (l + fused(difference * difference, exp(-l), T(1.8378770664093453)));
  }

  template <class T>
  VK_INLINE static void gradient(const T (&v)[3], T (&g)[3]) {
    const T difference = v[1] - v[0];
    g[0] = difference * exp(-v[2]);
    g[1] = -g[0];
    g[2] = T(0.5) * fused(g[0], difference, T(-1));
  }
};

#define VK_FAMILIES(X) X(Bernoulli) X(Gaussian)

}  // namespace vk
