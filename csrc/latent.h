// The latent step, per element: z = mu + exp(l/2) eps and KL(N(mu, e^l) || N(0, 1)) = 1/2 (mu^2 + e^l - 1 - l).
// Kingma & Welling 2014, appendix B.
#pragma once

#include "math.h"

namespace vk {

template <class T>
struct Latent {
  T z, kl;
};

// e^l is the square of exp(l/2): the step needs one exponential.
template <class T>
VK_INLINE Latent<T> latent(T mu, T l, T eps) {
  const T std = exp(T(0.5) * l);
  return {fused(std, eps, mu), T(0.5) * fused(mu, mu, exp_minus_1_minus(l, std * std))};
}

template <class T>
struct LatentGradient {
  T mu, logvar, eps;
};

// Where z or the KL was not used, its terms are left out, not multiplied by zero: zero times inf is not zero.
template <bool kZ, bool kKl, class T>
VK_INLINE LatentGradient<T> latent_gradient(T mu, T l, T eps, T grad_z, T grad_kl) {
  const T std = exp(T(0.5) * l);
  LatentGradient<T> g{T(0), T(0), T(0)};
  if constexpr (kZ) {
    g.eps = grad_z * std;
    g.mu = grad_z;
    g.logvar = T(0.5) * g.eps * eps;
  }
  if constexpr (kKl) {
    const T e = std * std;
    const T excess = exp_minus_1_minus(l, e);  // outside the condition: inside it makes a branch of it
    const T expm1 = absolute(l) <= T(1.5) ? l + excess : e - T(1);
    g.mu = fused(grad_kl, mu, g.mu);
    g.logvar = fused(T(0.5) * grad_kl, expm1, g.logvar);
  }
  return g;
}

}  // namespace vk
