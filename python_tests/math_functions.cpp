// The functions of csrc/elementary.h and csrc/gamma.h over arrays, for a table of their errors.
#include "../csrc/gamma.h"

// ln Gamma from its pieces, by the formula that gamma.h gives for it.
template <class T>
T log_gamma(T a) {
  const vk::GammaTerms<T> terms(a);
  const T stirling = (terms.z - T(0.5)) * vk::log(terms.z) - terms.z + T(0.9189385332046727);
  return stirling + vk::lgamma_tail(terms.inverse) - vk::log(terms.product);
}

template <class T>
T gamma_slope(T a) {
  const vk::GammaTerms<T> terms(a);
  return terms.slope / terms.product;
}

float sine_or_cosine(uint32_t word, bool cosine) {
  float of_sine, of_cosine;
  vk::sincos_turns(word, of_sine, of_cosine);
  return cosine ? of_cosine : of_sine;
}

#define VK_MAP(NAME, EXPRESSION)                                                                                       \
  extern "C" void NAME##_float32(const float* x, float* y, long n) {                                                   \
    for (long i = 0; i < n; ++i) y[i] = [](auto a) { return EXPRESSION; }(x[i]);                                       \
  }                                                                                                                    \
  extern "C" void NAME##_float64(const double* x, double* y, long n) {                                                 \
    for (long i = 0; i < n; ++i) y[i] = [](auto a) { return EXPRESSION; }(x[i]);                                       \
  }

VK_MAP(exp, vk::exp(a))
VK_MAP(times_exp, vk::times_exp(decltype(a)(1.625), a))
VK_MAP(log, vk::log(a))
VK_MAP(log1p_unit, vk::log1p_unit(a))
VK_MAP(log_next_to_1, vk::log_ratio(decltype(a)(1) + a, a).value)
VK_MAP(log_beyond, vk::log_ratio(decltype(a)(1) + a, a).beyond)
VK_MAP(exp_minus_1_minus, vk::exp_minus_1_minus(a, vk::exp(a)))
VK_MAP(exp_minus_1, vk::exp_minus_1(a, vk::exp(a)))
VK_MAP(exp_minus_1_by_excess, vk::exp_minus_1_by_excess(a, vk::exp(a)))
VK_MAP(sine, sine_or_cosine(uint32_t(a), false))
VK_MAP(cosine, sine_or_cosine(uint32_t(a), true))
VK_MAP(sigmoid, vk::sigmoid(a, vk::exp(-vk::absolute(a))))
VK_MAP(softplus, vk::softplus(a, vk::exp(-vk::absolute(a))))
VK_MAP(lgamma_tail, vk::lgamma_tail(a))
VK_MAP(digamma_tail, vk::digamma_tail(a))
VK_MAP(log_gamma, log_gamma(a))
VK_MAP(gamma_slope, gamma_slope(a))
VK_MAP(slope_difference, vk::slope_difference(a, decltype(a)(1.5), a - decltype(a)(1.5)))
