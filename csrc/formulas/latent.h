// The latent step, per element: z = mu + std eps, and the KL divergence of q = N(mu, e^l) to the prior p = N(m, e^v),
//   analytic: ½ (u^2 + e^d - 1 - d),
//   sampled at one z: log q(z) - log p(z) = ½ (u^2 + 2 u r eps + (e^d - 1) eps^2 - d),
// where u = (mu - m) e^(-v/2), d = l - v, r = std e^(-v/2). Kingma & Welling 2014, appendix B; Roeder et al. 2017.
#pragma once

#include "../elementary.h"

namespace vk {

// As in vae_kernels/options.py: what an encoder's second output is, how the KL is estimated, and what is summed.
enum class Scale { kLogvar, kLogstd, kStd, kVariance, kSoftplus };
enum class KlEstimator { kAnalytic, kMonteCarlo, kPath };
enum class Reduction { kSum, kNone };

// The log-variance l and the standard deviation, and their derivatives to raw.
template <class T>
struct Spread {
  T l, std, dl, dstd;
};

// The bounds of the log-variance, and the standard deviations at these bounds.
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
  } else if constexpr (kScale == Scale::kVariance) {
    s.std = root(raw), s.l = log(raw);
    s.dl = T(1) / raw, s.dstd = T(0.5) / s.std;
  } else {
    // For negative raw, ln(1 + e^raw) is e^raw times a factor near 1. Its logarithm, raw + ln(factor), does not
    // underflow.
    const T u = exp_minus(absolute(raw)), factor = log1p_unit(u) / u;
    s.std = softplus(raw, u), s.dstd = sigmoid(raw, u);
    const T scaled = raw > T(0) ? s.std : u > T(0) ? factor : T(1);
    s.l = T(2) * (log(scaled) + (raw > T(0) ? T(0) : raw)), s.dl = T(2) * reciprocal((T(1) + u) * scaled);
  }
  return s;
}

// Adds `floor` to the standard deviation. If that changes nothing, the log-variance stays as it was, because the sum
// may be 0 or infinite.
template <class T>
VK_INLINE Spread<T> raised(Spread<T> s, T floor) {
  const T std = s.std + floor, l = T(2) * log(std), dl = T(2) * s.dstd / std;
  const bool more = std > s.std;
  s.l = more ? l : s.l;
  s.dl = more ? dl : s.dl;
  s.std = std;
  return s;
}

template <class T>
VK_INLINE Spread<T> clamped(Spread<T> s, const Clamp<T>& clamp) {
  const bool below = s.l<clamp.low, above = s.l> clamp.high, outside = below | above;
  s.l = below ? clamp.low : above ? clamp.high : s.l;
  s.std = below ? clamp.std_low : above ? clamp.std_high : s.std;
  s.dl = outside ? T(0) : s.dl;
  s.dstd = outside ? T(0) : s.dstd;
  return s;
}

// q relative to the prior: u, d and r as above, e = e^d, w = e^(-v/2).
template <class T>
struct Relative {
  T u, d, e, r, w;
  VK_INLINE T expm1() const { return exp_minus_1_by_excess(d, e); }
  // True if e^d is too large for the type, but its root r is not.
  VK_INLINE bool e_overflows() const { return !(e < T(INFINITY)) && r < T(INFINITY); }
};

// Relative to N(0, 1). e^l is std^2, so the step needs one exponential.
template <class T>
VK_INLINE Relative<T> relative(T mu, T l, T std) {
  return {mu, l, std * std, std, T(1)};
}

// Relative to N(m, e^v). e^d is r^2, within 6 ulp. An exponential of its own would halve that error, but only |d| > 3/2
// needs it, and it would take a fifth of the time of a forward pass. Where w would be infinite, it is the largest
// finite number: its product with u, which is large then or 0, is infinite or 0.
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
  const T by_r = q.r * eps, from_r = fused(by_r, by_r, -q.d), from_e = fused(q.expm1(), eps * eps, -q.d);
  return T(0.5) * fused(q.u, fused(T(2) * q.r, eps, q.u), q.e_overflows() ? from_r : from_e);
}

// z = mu + std eps
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

// Upstream gradients, summed over the samples of z: the gradient of z alone and times eps; the gradient of the KL
// alone, times eps, and times eps^2.
template <class T>
struct Upstream {
  T z, z_eps, kl, kl_eps, kl_eps2;
};

// Gradients to mu, std and l, and to the prior's mu and logvar.
template <class T>
struct LatentGradient {
  T mu, std, l, prior_mu, prior_logvar;
};

// If z or the KL was not used, its terms are left out, not multiplied by zero: zero times inf is not zero. `path`
// selects one of the two estimators of a sampled KL.
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
    // The derivative of the KL to z is (z - m) e^-v = u w + r w eps. Through z alone it also has - eps/std, and nothing
    // cancels in r w - 1/std = (e^d - 1)/std. Where that is infinite, the spread gets its part through l, and mu by a
    // quotient that stays divided by `lift` until it is multiplied.
    const T rw = q.r * q.w, uw = q.u * q.w;
    T by_mu = rw * g.kl_eps, by_std = rw * g.kl_eps2;
    to.l = T(-0.5) * g.kl;
    if (path) {
      const T lift = std < T(0x1p-100) ? T(0x1p100) : T(1);
      const T expm1 = q.expm1(), quotient = expm1 / (std * lift), by_eps = q.e_overflows() ? rw : quotient * lift;
      const bool infinite = !(absolute(by_eps) < T(INFINITY));
      by_mu = infinite ? (g.kl_eps == T(0) ? T(0) : quotient * (g.kl_eps * lift)) : by_eps * g.kl_eps;
      by_std = infinite ? T(0) : by_eps * g.kl_eps2;
      to.l = infinite ? T(0.5) * expm1 * g.kl_eps2 : T(0);
    }
    to.mu += fused(uw, g.kl, by_mu);
    to.std += fused(uw, g.kl_eps, by_std);
    to.prior_mu = -fused(uw, g.kl, rw * g.kl_eps);
    to.prior_logvar = T(0.5) * (g.kl - fused(q.u, fused(q.u, g.kl, T(2) * q.r * g.kl_eps), q.r * q.r * g.kl_eps2));
  }
  return to;
}

// The gradient to raw; `kl` is that of Upstream.
template <bool kZ, bool kKl, bool kSampled, class T>
VK_INLINE T gradient_of_raw(const Relative<T>& q, T dl, T dstd, const LatentGradient<T>& g, T kl, bool path) {
  T raw = T(0);
  if constexpr (kZ) raw = dstd * g.std;
  if constexpr (kKl) {
    const T from_r = fused(dstd * q.r * q.w, kl, raw), from_e = fused(dl, g.l, raw);
    raw = kSampled ? (path && g.l == T(0) ? raw : from_e) : q.e_overflows() ? from_r : from_e;
  }
  return raw;
}

// The gradient of one sample's KL to eps.
template <class T>
VK_INLINE T sampled_kl_gradient_eps(const Relative<T>& q, T eps, T grad_kl) {
  const T from_r = q.r * eps * q.r, from_e = q.expm1() * eps;
  return grad_kl * fused(q.u, q.r, q.e_overflows() ? from_r : from_e);
}

}  // namespace vk
