// Terms of ln Gamma and its derivative psi, by Stirling's series.
#pragma once

#include "elementary.h"

namespace vk {

// ln Gamma(z) - ((z - 1/2) ln z - z + ln(2 pi)/2), u = 1/z.
// Types: float, double.
// Largest error: 1 ulp of 1.
// Range: 0 < u <= 1/kGammaSteps.
template <class T>
VK_INLINE T lgamma_tail(T u) {
  T p;
  if constexpr (is_float<T>) {
    p = polynomial(u * u, 0.08333332178671254f, -0.0027762802492264666f, 0.0007615399684259511f,
                   -0.00034972389564190425f);
  } else {
    p = polynomial(u * u, 0.08333333333333333, -0.002777777777773988, 0.0007936507897524059, -0.0005952365845057049,
                   0.0008414700852503147, -0.001890382993887715, 0.005065905360156132);
  }
  return u * p;
}
// psi(z) - ln z, u = 1/z.
// Types: float, double.
// Largest error: 1 ulp of 1.
// Range: 0 < u <= 1/kGammaSteps.
template <class T>
VK_INLINE T digamma_tail(T u) {
  T p;
  if constexpr (is_float<T>) {
    p = polynomial(u * u, 0.08333332453745723f, -0.00833155071868131f, 0.003907189544334103f, -0.003369202911177285f,
                   0.0024051080762988396f);
  } else {
    p = polynomial(u * u, 0.08333333333333333, -0.008333333333331664, 0.003968253965999701, -0.004166665501516725,
                   0.007575459920369176, -0.02105106090804774, 0.08002337465397756, -0.29942537062673501);
  }
  return u * fused(-u, p, T(-0.5));
}

// Terms of ln Gamma(a) and psi(a), by Stirling's series at z = a, or at z = a + n for a < n, n = kGammaSteps:
//   ln Gamma(a) = (z - 1/2) ln z - z + ln(2 pi)/2 + lgamma_tail(1/z) - ln product,
//   psi(a) = ln z + digamma_tail(1/z) - slope / product,
// where product = a (a + 1) … (a + n - 1), and slope is its derivative. The factors are multiplied in pairs from both
// ends: (a + k) (a + n - 1 - k) = a (a + n - 1) + k (n - 1 - k). Differences of ln Gamma at large arguments cancel:
// combine these terms instead.
// Types: float, double.
// Largest error: n + 1 ulp for slope / product.
// Range: a >= 0; NaN elsewhere.
template <class T>
constexpr int kGammaSteps = is_float<T> ? 2 : 8;

template <class T>
struct GammaTerms {
  T shift, z, inverse, product, slope;
  T lost;  // the rounding error of z

  VK_INLINE explicit GammaTerms(T a) : slope(1) {
    constexpr int n = kGammaSteps<T>;
    const T ends = a * (a + T(n - 1));
    product = ends;
    for (int k = 1; k < n / 2; ++k) {
      const T pair = ends + T(k * (n - 1 - k));
      slope = fused(slope, pair, product);
      product *= pair;
    }
    const bool large = a >= T(n);
    product = large ? T(1) : product;
    slope = large ? T(0) : slope * fused(T(2), a, T(n - 1));
    shift = large ? T(0) : T(n);
    z = a + shift;
    lost = large ? T(0) : a - (z - shift);
    inverse = a >= T(0) ? reciprocal(z) : T(NAN);
  }

  // product e^n and z^n, or 1 and 1 for z = a: their quotient is near 1.
  VK_INLINE T product_lifted() const {
    return shift > T(0) ? product * (is_float<T> ? T(7.38905609893065) : T(2980.9579870417283)) : T(1);
  }
  VK_INLINE T power() const {
    const T square = z * z;
    const T p = is_float<T> ? square : square * square * (square * square);
    return shift > T(0) ? p : T(1);
  }
  // lgamma_tail(1/z), plus what the other terms of ln Gamma(a) lose by the rounding of z.
  VK_INLINE T tail() const { return lgamma_tail(inverse) + lost * fused(T(-0.5), inverse, T(1)); }
};

// The sum of 1/(b + k) minus the sum of 1/(a + k), k = 0, …, kGammaSteps - 1; `difference` is a - b. Nothing cancels.
// Types: float, double.
// Largest error: 6.5 ulp; 5 ulp for b = 3/2.
// Range: a, b > 0.
template <class T>
VK_INLINE T slope_difference(T a, T b, T difference) {
  T sum = T(0);
  for (int k = 0; k < kGammaSteps<T>; ++k) sum += T(1) / (b + T(k)) / (a + T(k));
  return difference * sum;
}

}  // namespace vk
