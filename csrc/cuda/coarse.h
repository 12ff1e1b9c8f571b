// Arithmetic for results that are rounded to a half type: that of float, with functions whose relative error is at most
// 2^-16. A formula uses these functions if its numbers are Coarse instead of float.
#pragma once

#include "device.h"

namespace vk::cuda {

struct Coarse {
  float value;
  Coarse() = default;
  VK_INLINE constexpr explicit Coarse(float value) : value(value) {}

  friend VK_INLINE Coarse operator+(Coarse a, Coarse b) { return Coarse(a.value + b.value); }
  friend VK_INLINE Coarse operator-(Coarse a, Coarse b) { return Coarse(a.value - b.value); }
  friend VK_INLINE Coarse operator*(Coarse a, Coarse b) { return Coarse(a.value * b.value); }
  friend VK_INLINE Coarse operator-(Coarse a) { return Coarse(-a.value); }
  friend VK_INLINE bool operator<(Coarse a, Coarse b) { return a.value < b.value; }
  friend VK_INLINE bool operator>(Coarse a, Coarse b) { return a.value > b.value; }
  friend VK_INLINE Coarse fused(Coarse a, Coarse b, Coarse c) { return Coarse(vk::fused(a.value, b.value, c.value)); }

  // e^(x/2) if that is a normal number, 0 below.
  friend __device__ __forceinline__ Coarse exp_half(Coarse x) {
    return Coarse(special::exp2(x.value * 0.7213475204444817f));
  }

  // d e^t. An infinite e^(t/2) counts as the largest finite number, so that 0 times it is 0.
  friend __device__ __forceinline__ Coarse times_exp(Coarse d, Coarse t) {
    const float power = special::exp2(t.value * 0.7213475204444817f);
    const float finite = power > 3.40282347e+38f ? 3.40282347e+38f : power;
    return Coarse(d.value * finite * finite);
  }

  // e^l - 1; `e` is e^l.
  friend __device__ __forceinline__ Coarse exp_minus_1_by_excess(Coarse l, Coarse e) {
    const float x = l.value, near = x * vk::fused(x, vk::fused(x, 0.16666667f, 0.5f), 1.0f), far = e.value - 1.0f;
    return Coarse(absolute(x) < 0.0625f ? near : far);
  }
};

VK_INLINE float value(float x) { return x; }
VK_INLINE float value(Coarse x) { return x.value; }

}  // namespace vk::cuda
