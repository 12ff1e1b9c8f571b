// The special-function unit of a GPU. Bounds of the errors, from the PTX ISA: relative to the result, but of a
// logarithm between 1/2 and 2, of sine and cosine absolute. Subnormal numbers count as 0. The host stands in for tests:
// there every result is as far off as it may be, to either side.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define VK_INLINE __host__ __device__ __forceinline__
#else
#define VK_INLINE inline __attribute__((always_inline))
#endif

// Where formulas may use it.
#if defined(__CUDA_ARCH__) || defined(VK_EMULATED)
#define VK_SPECIAL_FUNCTIONS
#endif

namespace vk::special {

inline float off(float x, double exact, double bound) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  const double result = bits * 0x9E3779B9u >> 31 ? exact + bound : exact - bound;
  return fabs(result) < 0x1p-126 ? 0 : float(result);
}

#ifdef __CUDA_ARCH__
#define VK_SPECIAL(NAME, INSTRUCTION, EXACT, BOUND)                                                                    \
  __device__ __forceinline__ float NAME(float x) {                                                                     \
    asm(INSTRUCTION ".approx.ftz.f32 %0, %0;" : "+f"(x));                                                              \
    return x;                                                                                                          \
  }
#else
#define VK_SPECIAL(NAME, INSTRUCTION, EXACT, BOUND)                                                                    \
  VK_INLINE float NAME(float given) {                                                                                  \
    const double x = fabs(given) < 0x1p-126 ? 0 : given;                                                               \
    const double exact = EXACT;                                                                                        \
    return off(given, exact, BOUND);                                                                                   \
  }
#endif
VK_SPECIAL(exp2, "ex2", ::exp2(x), x == 0 ? 0 : exact * 0x1p-22)
VK_SPECIAL(log2, "lg2", ::log2(x), x > 0.5 && x < 2 ? 0x1p-22 : fabs(exact) * 0x1p-22)
VK_SPECIAL(sin, "sin", ::sin(x), 6.7435e-7)
VK_SPECIAL(cos, "cos", ::cos(x), 6.7435e-7)
VK_SPECIAL(reciprocal, "rcp", 1 / x, fabs(exact) * 0x1p-23)
VK_SPECIAL(root, "sqrt", ::sqrt(x), exact * 0x1p-23)
#undef VK_SPECIAL

}  // namespace vk::special
