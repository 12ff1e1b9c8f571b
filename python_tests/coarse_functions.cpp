// What csrc/cuda/ computes for half types, over arrays. The special-function unit is stood in for, as far off as it may
// be.
#include "../csrc/cuda/coarse.h"
#include "../csrc/cuda/noise.h"

using vk::cuda::Coarse;

extern "C" void box_muller(const uint32_t* words0, const uint32_t* words1, float* first, float* second, long n) {
  for (long i = 0; i < n; ++i) vk::cuda::coarse_box_muller(words0[i], words1[i], first[i], second[i]);
}

extern "C" void exp_half_of(const float* x, float* y, long n) {
  for (long i = 0; i < n; ++i) y[i] = exp_half(Coarse(x[i])).value;
}

// e^l - 1, from e^(l/2).
extern "C" void expm1_of(const float* l, float* y, long n) {
  for (long i = 0; i < n; ++i) {
    const Coarse std = exp_half(Coarse(l[i]));
    y[i] = exp_minus_1_by_excess(Coarse(l[i]), std * std).value;
  }
}

// 3 e^t
extern "C" void times_exp_of(const float* t, float* y, long n) {
  for (long i = 0; i < n; ++i) y[i] = times_exp(Coarse(3.0f), Coarse(t[i])).value;
}
