// The special-function unit of a GPU. On the host, stand-ins for tests give results that are as far off as they may be,
// to either side.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#ifdef __CUDACC__
#define VK_INLINE __host__ __device__ __forceinline__
#else
#define VK_INLINE inline __attribute__((always_inline))
#endif

// Defined where formulas may use these functions.
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
  VK_INLINE float NAME(float argument) {                                                                               \
    const double x = fabs(argument) < 0x1p-126 ? 0 : argument;                                                         \
    const double exact = EXACT;                                                                                        \
    return off(argument, exact, BOUND);                                                                                \
  }
#endif

// The functions, each with its instruction, its exact value and its largest error.
// Types: float.
// Largest error: the last argument of each line, from the PTX ISA.
// Range: every x; sin and cos for |x| <= pi. Subnormal numbers count as 0.
VK_SPECIAL(exp2, "ex2", ::exp2(x), x == 0 ? 0 : exact * 0x1p-22)
VK_SPECIAL(log2, "lg2", ::log2(x), x > 0.5 && x < 2 ? 0x1p-22 : fabs(exact) * 0x1p-22)
VK_SPECIAL(sin, "sin", ::sin(x), 6.7435e-7)
VK_SPECIAL(cos, "cos", ::cos(x), 6.7435e-7)
VK_SPECIAL(reciprocal, "rcp", 1 / x, fabs(exact) * 0x1p-23)
VK_SPECIAL(root, "sqrt", ::sqrt(x), exact * 0x1p-23)
#undef VK_SPECIAL

}  // namespace vk::special
