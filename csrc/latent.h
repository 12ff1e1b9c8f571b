// The latent step, per element: z = mu + std eps, and the KL divergence of q = N(mu, e^l) to the prior p = N(m, e^v),
// analytic, ½ (u^2 + e^d - 1 - d), or of one z, log q(z) - log p(z) = ½ (u^2 + 2 u r eps + (e^d - 1) eps^2 - d), where
// u = (mu - m) e^(-v/2), d = l - v, r = std e^(-v/2). Kingma & Welling 2014, appendix B; Roeder et al. 2017.
#pragma once

#include "math.h"

namespace vk {

// As in vae_kernels/settings.py. What an encoder's second output is; how the KL is estimated; and what is summed.
enum class Scale { kLogvar, kLogstd, kStd, kVariance };
enum class KlEstimator { kAnalytic, kMonteCarlo, kPath };
enum class Reduction { kSum, kNone };

// Log-variance and standard deviation, and their derivatives by what was passed.
template <class T>
struct Spread {
  T l, std, dl, dstd;
};

template <class T>
struct Clamp {
  T low, high, std_low, std_high;

  template <class Other>
  VK_INLINE explicit Clamp(const Clamp<Other>& c)
      : low(c.low), high(c.high), std_low(c.std_low), std_high(c.std_high) {}
  VK_INLINE Clamp(double low, double high)
      : low(T(low)), high(T(high)), std_low(exp(T(0.5) * T(low))), std_high(exp(T(0.5) * T(high))) {}
};

template <Scale kScale, class T>
VK_INLINE Spread<T> spread(T raw) {
  Spread<T> s;
  if constexpr (kScale == Scale::kLogvar) {
    s.std = exp_half(raw);
    s.l = raw, s.dl = T(1), s.dstd = T(0.5) * s.std;
  } else if constexpr (kScale == Scale::kLogstd) {
    s.std = exp(raw);
    s.l = T(2) * raw, s.dl = T(2), s.dstd = s.std;
  } else if constexpr (kScale == Scale::kStd) {
    s.l = T(2) * log(raw);
    s.std = raw, s.dl = T(2) / raw, s.dstd = T(1);
  } else {
    s.std = root(raw), s.l = log(raw);
    s.dl = T(1) / raw, s.dstd = T(0.5) / s.std;
  }
  return s;
}

template <Scale kScale, class T>
VK_INLINE Spread<T> spread(T raw, const Clamp<T>& clamp) {
  Spread<T> s = spread<kScale>(raw);
  const bool below = s.l<clamp.low, above = s.l> clamp.high, outside = below | above;
  s.l = below ? clamp.low : above ? clamp.high : s.l;
  s.std = below ? clamp.std_low : above ? clamp.std_high : s.std;
  s.dl = outside ? T(0) : s.dl;
  s.dstd = outside ? T(0) : s.dstd;
  return s;
}

// q as seen from the prior. `e` is e^d, `w` is e^(-v/2).
template <class T>
struct Relative {
  T u, d, e, r, w;
  VK_INLINE T expm1() const { return exp_minus_1_by_excess(d, e); }
};

// To N(0, 1). e^l is the square of std: the step needs one exponential.
template <class T>
VK_INLINE Relative<T> relative(T mu, T l, T std) {
  return {mu, l, std * std, std, T(1)};
}

// To N(m, e^v). e^d is the square of r, within 6 ulp: an exponential of its own would be nearer by half, but only
// |d| > 3/2 needs it, and it would take a fifth of the time of a forward pass. Where w would be infinite it is the
// largest number: times u, which is large then or 0, it is infinite or 0.
template <class T>
VK_INLINE Relative<T> relative(T mu, T l, T std, T m, T v) {
  constexpr T kLargest = is_float<T> ? T(3.40282347e+38) : T(1.7976931348623157e+308);
  const T t = T(-0.5) * v, w = times_exp(T(1), t), r = times_exp(std, t);
  return {times_exp(mu - m, t), l - v, r * r, r, w > kLargest ? kLargest : w};
}

template <class T>
VK_INLINE T analytic_kl(const Relative<T>& q) {
  return fused(T(0.5) * q.u, q.u, half_exp_minus_1_minus(q.d, q.e));
}

template <class T>
VK_INLINE T sampled_kl(const Relative<T>& q, T eps) {
  return T(0.5) * fused(q.u, fused(T(2) * q.r, eps, q.u), fused(q.expm1(), eps * eps, -q.d));
}

// z
template <class T>
VK_INLINE T drawn(T mu, T std, T eps) {
  return fused(std, eps, mu);
}

template <class T>
struct Latent {
  T z, kl;
};

template <class T>
VK_INLINE Latent<T> latent(T mu, const Spread<T>& s, T eps) {
  return {drawn(mu, s.std, eps), analytic_kl(relative(mu, s.l, s.std))};
}

// What the gradients are made of, summed over the samples of z: of the gradient of z, alone and times eps, and of the
// gradient of the KL, alone, times eps and times eps^2.
template <class T>
struct Upstream {
  T z, z_eps, kl, kl_eps, kl_eps2;
};

// By mu, std and l, and by the prior's two.
template <class T>
struct LatentGradient {
  T mu, std, l, prior_mu, prior_logvar;
};

// Where z or the KL was not used, its terms are left out, not multiplied by zero: zero times inf is not zero.
// `path` tells apart the two estimators of a sampled KL.
template <bool kZ, bool kKl, bool kSampled, class T>
VK_INLINE LatentGradient<T> latent_gradient(const Relative<T>& q, T std, const Upstream<T>& g, bool path = false) {
  LatentGradient<T> to{T(0), T(0), T(0), T(0), T(0)};
  if constexpr (kZ) to.mu = g.z, to.std = g.z_eps;
  if constexpr (kKl && !kSampled) {
    const T expm1 = q.expm1(), by_u = g.kl * q.u;
    to.mu = fused(by_u, q.w, to.mu);
    to.l = T(0.5) * g.kl * expm1;
    to.prior_mu = -by_u * q.w;
    to.prior_logvar = fused(T(-0.5) * by_u, q.u, T(-0.5) * g.kl * expm1);
  }
  if constexpr (kKl && kSampled) {
    // By z the KL has the derivative (z - m) e^-v = u w + r w eps; through z alone also - eps/std, where nothing
    // cancels in r w - 1/std = (e^d - 1)/std.
    const T rw = q.r * q.w, uw = q.u * q.w, by_eps = path ? q.expm1() / std : rw;
    to.mu += fused(uw, g.kl, by_eps * g.kl_eps);
    to.std += fused(uw, g.kl_eps, by_eps * g.kl_eps2);
    to.l = path ? T(0) : T(-0.5) * g.kl;
    to.prior_mu = -fused(uw, g.kl, rw * g.kl_eps);
    to.prior_logvar = T(0.5) * (g.kl - fused(q.u, fused(q.u, g.kl, T(2) * q.r * g.kl_eps), q.r * q.r * g.kl_eps2));
  }
  return to;
}

// By eps, of one sample.
template <class T>
VK_INLINE T sampled_kl_gradient_eps(const Relative<T>& q, T eps, T grad_kl) {
  return grad_kl * fused(q.u, q.r, q.expm1() * eps);
}

}  // namespace vk
