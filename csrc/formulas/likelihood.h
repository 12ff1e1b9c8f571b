// Families of likelihoods, per element. A family is a struct with its name, the number of its arguments in the order
// (decoder output, x, further parameters), the number of constants among the last of them (numbers without a gradient),
// its cost, the log-probability and its derivatives. Add a family to VK_FAMILIES as well, in the order of FAMILIES in
// vae_kernels/families.py.
#pragma once

#include <utility>

#include "../gamma.h"

namespace vk {

// The cost of a family's formula. Next to a short one, conversions and a second load take noticeable time; a heavy one
// takes many registers.
enum class Cost { kShort, kUsual, kHeavy };

// x a - ln(1 + e^a), a = logits, computed as (x - [a > 0]) a - ln(1 + e^-|a|): for x in [0, 1] both terms have one
// sign, so nothing cancels. The same holds for the derivative. Kingma & Welling 2014, appendix C.1.
struct Bernoulli {
  static constexpr const char* kName = "bernoulli";
  static constexpr int kArguments = 2;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kShort;

  template <class T>
  VK_INLINE static T log_prob(T logits, T x) {
    const T a = logits, factor = a > T(0) ? x - T(1) : x;
    return fused(factor, a, -log1p_unit(exp_minus(absolute(a))));
  }

  template <class T>
  VK_INLINE static void gradient(T logits, T x, T& to_logits, T& to_x) {
    const T a = logits, u = exp_minus(absolute(a)), tail = divide(u, T(1) + u);
    to_logits = a > T(0) ? (x - T(1)) + tail : x - tail;
    to_x = a;
  }
};

// -1/2 (l + y^2 + ln 2 pi), y = (x - mean) e^(-l/2), l = logvar. Kingma & Welling 2014, appendix C.2.
struct Gaussian {
  static constexpr const char* kName = "gaussian";
  static constexpr int kArguments = 3;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kShort;

  template <class T>
  VK_INLINE static T log_prob(T mean, T x, T logvar) {
    const T l = logvar, y = times_exp(x - mean, T(-0.5) * l);
    return fused(T(-0.5) * y, y, T(-0.5) * (l + T(1.8378770664093453)));
  }

  template <class T>
  VK_INLINE static void gradient(T mean, T x, T logvar, T& to_mean, T& to_x, T& to_logvar) {
    const T half = T(-0.5) * logvar, y = times_exp(x - mean, half);
    to_mean = times_exp(y, half);
    to_x = -to_mean;
    to_logvar = fused(T(0.5) * y, y, T(-0.5));
  }
};

// Terms that the value and the gradients of a negative binomial share; mu_eps = mu + eps, e = mu_eps + theta.
// Stirling's series at x + theta, theta and x + 1 combines its logarithms with those of the rates,
//   ln p = x ln(mu_eps c / (e b)) + theta ln(c (theta + eps) / (t e)) + O(1),
// where c, t and b are these three arguments, shifted if small. Each ratio is also known as its difference from 1,
// computed without cancellation, so large counts and theta (a Poisson's limit) lose nothing. Factors are multiplied in
// an order in which no product leaves the type's range while the ratio is in it; for that, a large x, and b, are scaled
// down by a power of two.
template <class T, bool kGradient>
struct NegativeBinomialTerms {
  static constexpr T kEps = T(1e-8);
  static constexpr T kLarge = is_float<T> ? T(0x1p60) : T(0x1p500);
  T mu, x, theta, mu_eps, inverse_e, down, up;
  GammaTerms<T> c, t, b;

  VK_INLINE NegativeBinomialTerms(T mu, T x, T theta)
      : mu(mu),
        x(x),
        theta(theta),
        mu_eps(mu + kEps),
        inverse_e(reciprocal(mu + (theta + kEps))),
        down(x > kLarge ? T(1) / kLarge : T(1)),
        up(x > kLarge ? kLarge : T(1)),
        c(x + theta),
        t(theta),
        b(x + T(1)) {}

  // The gradients subtract these logarithms from others of nearly the same value.
  VK_INLINE static Logarithm<T> log_of(T a, T b, T f) {
    if constexpr (kGradient) return log_product(a, b, f);
    return coarse_log_product(a, b, f);
  }

  // ln(mu_eps z_c / (e z_b)), from the ratio and its difference from 1; `shifts` is (z_c - x - theta) - (z_b - x - 1)
  VK_INLINE Logarithm<T> log_counts(T z_c, T z_b, T inverse_b, T shifts) const {
    const T minus_1 =
        fused(theta * inverse_e, ((mu - z_b) + kEps) * inverse_b, (mu_eps * inverse_e) * ((shifts - T(1)) * inverse_b));
    return log_of(mu_eps * (inverse_b * up), (z_c * down) * inverse_e, minus_1);
  }
  // ln(c (theta + eps) / (t e)), from 1 and the ratio's difference from 1 where that loses nothing
  VK_INLINE Logarithm<T> log_dispersion() const {
    const T minus_1 = dispersion_excess() * inverse_e;
    const bool exact = absolute(minus_1) < T(0.5);
    const T up_to_1 = exact ? T(1) : (theta + kEps) * t.inverse * up;
    return log_of(up_to_1, exact ? T(1) + minus_1 : (c.z * down) * inverse_e, minus_1);
  }
  // e times the difference from 1 of the ratio in log_dispersion()
  VK_INLINE T dispersion_excess() const {
    const T shifts = c.shift - t.shift;
    return fused(theta * t.inverse, (x - mu) + shifts,
                 fused(kEps * t.inverse, x + shifts, -(t.shift * t.inverse) * mu));
  }
  // theta times the logarithm, also where the ratio's difference from 1 is smaller than any number of the type
  VK_INLINE T dispersion_term(const Logarithm<T>& dispersion) const {
    const T excess = dispersion_excess();
    const bool is_near = absolute(excess * inverse_e) < T(0.25);
    return fused(theta, is_near ? dispersion.beyond : dispersion.value, is_near ? excess * (theta * inverse_e) : T(0));
  }

  VK_INLINE T log_prob() const {
    const T products =
        t.product_lifted() * b.product_lifted() * c.power() / (c.product_lifted() * t.power() * b.power());
    const T roots = root_of_normal(t.z * (c.inverse * up) * (b.inverse * up)) * down;
    const T tails = (c.tail() - t.tail() - b.tail()) + T(0.08106146679532726);  // 1 - ln(2 pi) / 2
    const T order_1 = log_of(roots, products, roots * products - T(1)).value + tails;
    const T counts = log_counts(c.z, b.z, b.inverse, c.shift - b.shift).value;
    return fused(x, counts, dispersion_term(log_dispersion()) + (x == T(0) ? T(0) : order_1)) + undefined();
  }

  // x / mu_eps - (x + theta) / e = theta (x - mu_eps) / (mu_eps e), in an order in which large factors meet small ones
  VK_INLINE T gradient_mu() const {
    const T inverse_mu_eps = reciprocal(mu_eps), less = theta < T(1) ? theta : T(1), more = theta < T(1) ? T(1) : theta;
    const T relative = ((x - mu) - kEps) * down * inverse_mu_eps, rate = more * inverse_e * up;
    return inverse_e < T(1) ? (relative * rate) * less : (relative * less) * rate;
  }
  // ln(mu_eps / e) + psi(x + theta) - psi(x + 1); both arguments are shifted or none, so that no sum cancels the shifts
  VK_INLINE T gradient_x() const {
    const T of_c = x + theta, of_b = x + T(1);
    const bool large = of_c >= T(kGammaSteps<T>) && of_b >= T(kGammaSteps<T>);
    const T shift = large ? T(0) : T(kGammaSteps<T>), slopes = slope_difference(of_c, of_b, theta - T(1));
    const T z_c = of_c + shift, z_b = of_b + shift, inverse_b = reciprocal(z_b);
    const T logarithm = log_counts(z_c, z_b, inverse_b, T(0)).value;
    const T tails = digamma_tail(reciprocal(z_c)) - digamma_tail(inverse_b);
    return (large ? T(0) : slopes) + (logarithm + tails);
  }
  // ln((theta + eps) / e) + (mu_eps - x) / e - eps / (theta + eps) + psi(x + theta) - psi(theta). If c and t have the
  // same shift, ln(c (theta + eps) / (t e)) cancels (mu_eps - x) / e to first order.
  VK_INLINE T gradient_theta(const Logarithm<T>& dispersion) const {
    const bool alike = c.shift == t.shift;
    const T of_eps = kEps / (theta + kEps);
    const T remainder = of_eps * (dispersion_excess() * inverse_e) - (t.shift * t.inverse) * (x * inverse_e);
    const T difference = ((mu - x) + kEps) * inverse_e - of_eps;
    const T steps = t.slope / t.product - c.slope / c.product,
            tails = digamma_tail(c.inverse) - digamma_tail(t.inverse);
    return (steps + (alike ? remainder : difference)) + ((alike ? dispersion.beyond : dispersion.value) + tails);
  }
  // 0, or NaN if an argument is not finite
  VK_INLINE T undefined() const { return ((mu - mu) + (x - x)) + (theta - theta); }
};

// ln Gamma(x + theta) - ln Gamma(theta) - ln Gamma(x + 1) + theta ln((theta + eps) / e) + x ln((mu + eps) / e),
// e = mu + theta + eps, eps = 1e-8: mean mu, variance mu + mu^2 / theta. Lopez et al. 2018, as scvi-tools computes it.
struct NegativeBinomial {
  static constexpr const char* kName = "negative_binomial";
  static constexpr int kArguments = 3;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kHeavy;

  template <class T>
  VK_INLINE static T log_prob(T mu, T x, T theta) {
    return NegativeBinomialTerms<T, false>(mu, x, theta).log_prob();
  }

  template <class T>
  VK_INLINE static void gradient(T mu, T x, T theta, T& to_mu, T& to_x, T& to_theta) {
    const NegativeBinomialTerms<T, true> terms(mu, x, theta);
    to_mu = terms.gradient_mu() + terms.undefined();
    to_x = terms.gradient_x() + terms.undefined();
    to_theta = terms.gradient_theta(terms.log_dispersion()) + terms.undefined();
  }
};

// A zero-inflated distribution of counts: ln(s + (1 - s) e^l) for a zero, and ln(1 - s) + l for other counts, where
// s = 1 / (1 + e^-z) is the probability of an excess zero, and l is ln p of the distribution without these.
template <class T>
struct ZeroInflation {
  bool zero;
  T l, z, b, unit_z, unit;

  VK_INLINE static bool is_zero(T x) { return x < T(1e-8); }

  // b is l - z, also if both are infinite. `unit` is e^-|b|, or e^l for z > 0, where b has lost digits of a small l.
  VK_INLINE ZeroInflation(bool zero, T l, T z)
      : zero(zero),
        l(l),
        z(z),
        b(z == -T(INFINITY) ? T(INFINITY) : l - z),
        unit_z(exp_minus(absolute(z))),
        unit(exp_minus(absolute(z > T(0) ? l : b))) {}

  // For a zero and l > -1 or z > 0: ln(1 + t), t = (1 - s)(e^l - 1), which is exact for small t. Else:
  // ln(1 + e^(l - z)) - ln(1 + e^-z), with the larger of the two terms taken out of both. All cases share one division.
  VK_INLINE T log_prob() const {
    const bool direct = zero & ((l > T(-1)) | (z > T(0)));
    const T of_direct = (z > T(0) ? unit_z : T(1)) * exp_minus_1(l, unit);
    const T t = direct ? of_direct : zero ? unit - unit_z : unit_z;
    const T f = divide(t, zero ? T(1) + unit_z : T(1));
    const T log = log_ratio(T(1) + f, f).value;
    const T positive = z > T(0) ? z : T(0), negative = z > T(0) ? T(0) : z;
    return zero ? (direct ? log : log + (b > T(0) ? l : negative)) : (l - positive) - log;
  }
  // The derivative to l.
  VK_INLINE T weight() const {
    return (zero ? (b > T(0) ? T(1) : unit_b()) * larger_sigmoid(unit_b()) : T(1)) + undefined();
  }
  // The derivative to z; l matters for a zero only.
  VK_INLINE T gradient_z() const {
    const T of_z = larger_sigmoid(unit_z);
    const T kept = (z > T(0) ? unit_z : T(1)) * of_z, outdone = (b > T(0) ? unit_b() : T(1)) * larger_sigmoid(unit_b());
    const T dropped = kept * outdone * -exp_minus_1(l, exp_minus(absolute(l)));
    return (zero ? dropped : (z > T(0) ? T(-1) : -unit_z) * of_z) + undefined();
  }

 private:
  // e^-|b|, for a zero
  VK_INLINE T unit_b() const { return z > T(0) ? unit * unit_z : unit; }
  // sigmoid(|y|), where u is e^-|y|
  VK_INLINE static T larger_sigmoid(T u) { return divide(T(1), T(1) + u); }
  // 0, or NaN if z is NaN
  VK_INLINE T undefined() const { return z == z ? T(0) : z; }
};

// The zero-inflated negative binomial. Lopez et al. 2018, as scvi-tools computes it.
struct ZeroInflatedNegativeBinomial {
  static constexpr const char* kName = "zero_inflated_negative_binomial";
  static constexpr int kArguments = 4;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kHeavy;

  template <class T>
  VK_INLINE static T log_prob(T mu, T x, T theta, T zero_logits) {
    const bool zero = ZeroInflation<T>::is_zero(x);
    const T l = NegativeBinomial::log_prob(mu, zero ? T(0) : x, theta);
    return ZeroInflation<T>(zero, l, zero_logits).log_prob();
  }

  template <class T>
  VK_INLINE static void gradient(T mu, T x, T theta, T zero_logits, T& to_mu, T& to_x, T& to_theta, T& to_zero_logits) {
    const bool zero = ZeroInflation<T>::is_zero(x);
    const NegativeBinomialTerms<T, true> terms(mu, zero ? T(0) : x, theta);
    const Logarithm<T> dispersion = terms.log_dispersion();
    const ZeroInflation<T> inflation(zero, terms.dispersion_term(dispersion), zero_logits + terms.undefined());
    const T weight = inflation.weight();
    to_mu = weight * terms.gradient_mu();
    to_x = zero ? T(0) : weight * terms.gradient_x();
    to_theta = weight * terms.gradient_theta(dispersion);
    to_zero_logits = inflation.gradient_z();
  }
};

// Terms that the value and the gradients of a Poisson share, for its rate and ln rate = ln logged + offset. With
// Stirling's series at z,
//   ln p = x (ln(rate / z) - (rate - z) / z) - rate (z - x) / z - ln sqrt(z) + O(1),
// where z is x itself, or a small x shifted by an integer, so large counts and rates lose nothing. Both results are NaN
// if x is not finite; the families add the same for the rate.
template <class T>
struct PoissonTerms {
  T rate, logged, offset, x, step;  // step: 0 for a large x, else 1
  GammaTerms<T> a;                  // at x + step

  VK_INLINE PoissonTerms(T rate, T logged, T offset, T x)
      : rate(rate), logged(logged), offset(offset), x(x), step(x < T(kGammaSteps<T>) ? T(1) : T(0)), a(x + step) {}

  // ln(rate / z), and this minus (rate / z - 1)
  VK_INLINE Logarithm<T> log_rate() const {
    const Logarithm<T> ratio = log_product(logged, a.inverse, (rate - a.z) * a.inverse);
    return {ratio.value + offset, ratio.beyond + offset};
  }

  VK_INLINE T log_prob() const {
    const T products = root_of_normal(a.inverse) * (a.product_lifted() / a.power());
    const T constants = (log(products) - a.tail()) + (step - T(0.9189385332046727));  // ln(2 pi) / 2
    const T sum = (constants - rate * ((step + a.shift) * a.inverse)) + x * log_rate().beyond;
    const T finite = rate < T(INFINITY) ? sum : -rate;  // one condition for both would become a branch
    return (x == T(0) ? -rate : finite) + (x - x);
  }
  // ln rate - psi(x + 1). The recurrence is added up term by term, with the first and largest term last, because that
  // term cancels the logarithm.
  VK_INLINE T gradient_x() const {
    T slopes = T(0);
    for (int k = kGammaSteps<T> - 1; k > 0; --k) slopes += T(1) / ((x + step) + T(k));
    const T tail = digamma_tail(a.inverse) + (step == T(0) ? a.inverse : T(0));
    const bool shifted = a.shift > T(0);
    const T others = (log_rate().value + (shifted ? slopes : T(0))) - tail;
    return (others + (shifted ? T(1) / (x + step) : T(0))) + (x - x);
  }
};

// x ln rate - rate - ln Gamma(x + 1).
struct PoissonRate {
  static constexpr const char* kName = "poisson_rate";
  static constexpr int kArguments = 2;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kHeavy;

  template <class T>
  VK_INLINE static T log_prob(T rate, T x) {
    return PoissonTerms<T>(rate, rate, T(0), x).log_prob() + (rate - rate);
  }

  template <class T>
  VK_INLINE static void gradient(T rate, T x, T& to_rate, T& to_x) {
    const T undefined = rate - rate;
    to_rate = (x == T(0) ? T(-1) : (x - rate) / rate) + ((x - x) + undefined);
    to_x = PoissonTerms<T>(rate, rate, T(0), x).gradient_x() + undefined;
  }
};

// x l - e^l - ln Gamma(x + 1), l = log_rate.
struct Poisson {
  static constexpr const char* kName = "poisson";
  static constexpr int kArguments = 2;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kHeavy;

  // Where the rate may leave the type's range, ln rate is counted from kLow or kHigh: logged is e^kLow or e^kHigh.
  template <class T>
  VK_INLINE static PoissonTerms<T> terms(T l, T x) {
    constexpr T kLow = is_float<T> ? T(-60) : T(-600), kHigh = is_float<T> ? T(88) : T(709);
    constexpr T kExpOfLow = is_float<T> ? T(8.756510762696521e-27) : T(2.650396553004311e-261);
    constexpr T kExpOfHigh = is_float<T> ? T(1.6516362549940018e+38) : T(8.218407461554972e+307);
    const T rate = exp(l), logged = l < kLow ? kExpOfLow : l > kHigh ? kExpOfHigh : rate;
    return {rate, logged, l < kLow ? l - kLow : l > kHigh ? l - kHigh : T(0), x};
  }

  template <class T>
  VK_INLINE static T log_prob(T log_rate, T x) {
    return terms(log_rate, x).log_prob() + (log_rate - log_rate);
  }

  template <class T>
  VK_INLINE static void gradient(T log_rate, T x, T& to_log_rate, T& to_x) {
    const PoissonTerms<T> poisson = terms(log_rate, x);
    const T undefined = log_rate - log_rate;
    to_log_rate = (x - poisson.rate) + ((x - x) + undefined);
    to_x = poisson.gradient_x() + undefined;
  }
};

// The zero-inflated Poisson. Lambert 1992.
struct ZeroInflatedPoisson {
  static constexpr const char* kName = "zero_inflated_poisson";
  static constexpr int kArguments = 3;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kHeavy;

  template <class T>
  VK_INLINE static T log_prob(T log_rate, T x, T zero_logits) {
    const bool zero = ZeroInflation<T>::is_zero(x);
    return ZeroInflation<T>(zero, Poisson::log_prob(log_rate, zero ? T(0) : x), zero_logits).log_prob();
  }

  template <class T>
  VK_INLINE static void gradient(T log_rate, T x, T zero_logits, T& to_log_rate, T& to_x, T& to_zero_logits) {
    const bool zero = ZeroInflation<T>::is_zero(x);
    const T count = zero ? T(0) : x, undefined = (count - count) + (log_rate - log_rate);
    Poisson::gradient(log_rate, count, to_log_rate, to_x);
    // For a zero, the logarithm of its probability is -rate, and so is the derivative to log_rate.
    const ZeroInflation<T> inflation(zero, to_log_rate, zero_logits + undefined);
    const T weight = inflation.weight();
    to_log_rate = weight == T(0) ? T(0) : weight * to_log_rate;  // the rate may be infinite
    to_x = zero ? T(0) : weight * to_x;
    to_zero_logits = inflation.gradient_z();
  }
};

// -|x - loc| e^-s - s - ln 2, s = log_scale; the derivative at x = loc is 0.
struct Laplace {
  static constexpr const char* kName = "laplace";
  static constexpr int kArguments = 3;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kShort;

  // d e^-s in two steps, because d = x - loc may be subnormal.
  template <class T>
  VK_INLINE static T scaled(T d, T s) {
    return times_exp(times_exp(d, T(-0.5) * s), T(-0.5) * s);
  }

  template <class T>
  VK_INLINE static T log_prob(T loc, T x, T log_scale) {
    return -(scaled(absolute(x - loc), log_scale) + log_scale + T(0.6931471805599453));
  }

  template <class T>
  VK_INLINE static void gradient(T loc, T x, T log_scale, T& to_loc, T& to_x, T& to_log_scale) {
    const T difference = x - loc, rate = scaled(T(1), log_scale);
    to_loc = difference > T(0) ? rate : difference < T(0) ? -rate : T(0);
    to_x = -to_loc;
    to_log_scale = scaled(absolute(difference), log_scale) - T(1);
  }
};

// x a - ln((e^a - 1) / a), a = logits. Near 0: (x - 1/2) a - a^2 p(a^2), p from ln(sinh(a/2) / (a/2)). Elsewhere:
// (x - [a > 0]) a - ln((1 - e^-|a|) / |a|). Loaiza-Ganem & Cunningham 2019, equation 5.
struct ContinuousBernoulli {
  static constexpr const char* kName = "continuous_bernoulli";
  static constexpr int kArguments = 2;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kUsual;

  template <class T>
  VK_INLINE static T log_prob(T logits, T x) {
    const T a = logits, size = absolute(a), square = a * a;
    T p;
    if constexpr (is_float<T>) {
      p = polynomial(square, 0.04166666659526108f, -0.0003472213281091202f, 5.509659380392218e-06f,
                     -1.0205134121730446e-07f, 1.702779136817845e-09f);
    } else {
      p = polynomial(square, 0.041666666666666664, -0.00034722222222220624, 5.511463844664847e-06,
                     -1.0333994666461168e-07, 2.0876750027486815e-09, -4.403426126342947e-11, 9.555163766073461e-13,
                     -2.1048763241763512e-14, 4.466450757756472e-16, -6.972042082143168e-18);
    }
    const T far = fused(a > T(0) ? x - T(1) : x, a, -log((T(1) - exp_minus(size)) / size));
    return size <= T(2) ? fused(x - T(0.5), a, -p * square) : far;
  }

  template <class T>
  VK_INLINE static void gradient(T logits, T x, T& to_logits, T& to_x) {
    const T a = logits, size = absolute(a), u = exp_minus(size), square = a * a;
    T p;
    if constexpr (is_float<T>) {
      p = polynomial(square, 0.08333333250542785f, -0.0013888785191038882f, 3.304782282007058e-05f,
                     -8.117004179946352e-07f, 1.6356871898348408e-08f);
    } else {
      p = polynomial(square, 0.08333333333333333, -0.0013888888888888885, 3.306878306877968e-05, -8.267195767037382e-07,
                     2.087675694949121e-08, -5.28418958886776e-10, 1.338248644725405e-11, -3.3893786760928355e-13,
                     8.573861074517476e-15, -2.1418775817833587e-16, 4.929715344504075e-18, -7.765969416069672e-20);
    }
    const T tail = (T(1) / size - u / (T(1) - u)) + (a - a);  // NaN if a is infinite
    const T far = a > T(0) ? (x - T(1)) + tail : x - tail;
    to_logits = size <= T(2) ? fused(-a, p, x - T(0.5)) : far;
    to_x = a;
  }
};

// x ln p + (1 - x) ln(1 - p), p = probs. As in torch's binary_cross_entropy, each logarithm is at least -100, and the
// derivative is (x - p) / max(p (1 - p), 1e-12). NaN for p outside [0, 1].
struct BernoulliProbs {
  static constexpr const char* kName = "bernoulli_probs";
  static constexpr int kArguments = 2;
  static constexpr int kConstants = 0;
  static constexpr Cost kCost = Cost::kHeavy;

  template <class T>
  VK_INLINE static T log_one(T p) {
    const T l = log(p);
    return l < T(-100) ? T(-100) : l;
  }
  template <class T>
  VK_INLINE static T log_zero(T p) {
    const T l = log_ratio(T(1) - p, -p).value;
    return l < T(-100) ? T(-100) : l;
  }

  template <class T>
  VK_INLINE static T log_prob(T probs, T x) {
    return fused(x, log_one(probs), (T(1) - x) * log_zero(probs));
  }

  template <class T>
  VK_INLINE static void gradient(T probs, T x, T& to_probs, T& to_x) {
    const T p = probs, variance = p * (T(1) - p);
    const T floored = variance < T(1e-12) ? T(1e-12) : variance;
    to_probs = p >= T(0) && p <= T(1) ? (x - p) / floored : T(NAN);
    // ln p - ln(1 - p); one of these is clamped only where the other is 0
    const T logit = log_ratio(p / (T(1) - p), fused(T(2), p, T(-1)) / (T(1) - p)).value;
    to_x = logit < T(-100) ? T(-100) : logit > T(100) ? T(100) : logit;
  }
};

// ln(sigmoid(p) - sigmoid(q)), p, q = (x - mean ± h) e^-s, h = 1 / (bins - 1), s = log_scale; the first bin has no
// lower end, the last bin no upper end. Computed as ln sigmoid(p) + ln sigmoid(-q) + ln(1 - e^(q - p)), where no term
// cancels another. Kingma et al. 2016, appendix, and Salimans et al. 2017, equation 2.
struct DiscretizedLogistic {
  static constexpr const char* kName = "discretized_logistic";
  static constexpr int kArguments = 4;
  static constexpr int kConstants = 1;
  static constexpr Cost kCost = Cost::kHeavy;

  template <class T>
  struct Bin {
    T s, half, p, q, width, unit_p, unit_q, unit_width;
    bool first, last;

    VK_INLINE Bin(T mean, T x, T log_scale, T bins) {
      const T difference = x - mean;
      s = log_scale, half = T(1) / (bins - T(1));
      p = times_exp(difference + half, -s), q = times_exp(difference - half, -s);
      width = times_exp(T(2) * half, -s);
      unit_p = exp_minus(absolute(p));
      unit_q = exp_minus(absolute(q));
      unit_width = exp_minus(width);
      first = x < half - T(1);
      last = x > T(1) - half;
    }
    VK_INLINE T inside() const { return -exp_minus_1(-width, unit_width); }  // 1 - e^-width
    // ln(1 - e^-width), which is ln width for a tiny width
    VK_INLINE T log_inside() const {
      const T of_tiny = log(T(2) * half) - s, value = log_ratio(inside(), -unit_width).value;
      return width < T(1e-30) ? of_tiny : value;
    }
  };

  template <class T>
  VK_INLINE static T log_prob(T mean, T x, T log_scale, T bins) {
    const Bin<T> bin(mean, x, log_scale, bins);
    const T upper = -softplus(-bin.p, bin.unit_p), lower = -softplus(bin.q, bin.unit_q);
    const T between = (upper + lower) + bin.log_inside();
    return bin.first ? upper : bin.last ? lower : between;
  }

  template <class T>
  VK_INLINE static void gradient(T mean, T x, T log_scale, T bins, T& to_mean, T& to_x, T& to_log_scale, T& to_bins) {
    const Bin<T> bin(mean, x, log_scale, bins);
    const T upper = bin.last ? T(0) : sigmoid(-bin.p, bin.unit_p);
    const T lower = bin.first ? T(0) : sigmoid(bin.q, bin.unit_q);
    // At the bounds e^-|y| is 0, and infinity must not be multiplied by it. An open end has no term.
    constexpr T kEnd = -ExpRange<T>::kLeast;
    const T p = bin.last ? T(0) : bin.p > kEnd ? kEnd : bin.p;
    const T q = bin.first ? T(0) : -kEnd > bin.q ? -kEnd : bin.q;
    const T width = bin.width > kEnd ? kEnd : bin.width;
    const T inside = width > T(0) ? width * bin.unit_width / bin.inside() : T(1);
    to_mean = times_exp(lower, -bin.s) - times_exp(upper, -bin.s);
    to_x = -to_mean;
    to_log_scale = -(fused(p, upper, -q * lower) + (bin.first | bin.last ? T(0) : inside));
    to_bins = T(0);
  }
};

// clang-format off
#define VK_FAMILIES(X) \
  X(Bernoulli) \
  X(Gaussian) \
  X(Laplace) \
  X(ContinuousBernoulli) \
  X(BernoulliProbs) \
  X(NegativeBinomial) \
  X(ZeroInflatedNegativeBinomial) \
  X(DiscretizedLogistic) \
  X(Poisson) \
  X(PoissonRate) \
  X(ZeroInflatedPoisson)
// clang-format on

// Outside the kernels a family is its index in this list: its name, the number of its arguments, and the number of
// constants among the last of them.
struct FamilyInfo {
  const char* name;
  int arguments, constants;
};
#define X(FAMILY) {FAMILY::kName, FAMILY::kArguments, FAMILY::kConstants},
constexpr FamilyInfo kFamilies[] = {VK_FAMILIES(X)};
#undef X

// A family's log-probability of arguments in an array, and its gradients in an array.
template <class Family, class T, size_t... j>
VK_INLINE T log_prob_of(const T (&v)[Family::kArguments], std::index_sequence<j...>) {
  return Family::log_prob(v[j]...);
}
template <class Family, class T>
VK_INLINE T log_prob(const T (&v)[Family::kArguments]) {
  return log_prob_of<Family>(v, std::make_index_sequence<Family::kArguments>());
}
template <class Family, class T, size_t... j>
VK_INLINE void gradient_of(const T (&v)[Family::kArguments], T (&g)[Family::kArguments], std::index_sequence<j...>) {
  Family::gradient(v[j]..., g[j]...);
}
template <class Family, class T>
VK_INLINE void gradient(const T (&v)[Family::kArguments], T (&g)[Family::kArguments]) {
  gradient_of<Family>(v, g, std::make_index_sequence<Family::kArguments>());
}

// Calls f with an object of the family's struct.
template <class F>
void with_family(int family, const F& f) {
  int index = 0;
#define X(FAMILY)                                                                                                      \
  if (family == index++) return f(FAMILY{});
  VK_FAMILIES(X)
#undef X
}

}  // namespace vk
