// The noise in kernels. If all tensors of a latent step are of half types, its normals come from the special-function
// unit: within 2^-14 of their definition in philox.h.
#pragma once

#include "../philox.h"
#include "device.h"

namespace vk::cuda {

// Multiplies two words in one instruction; for 64-bit factors nvcc takes two.
struct DeviceCounter {
  using Word = uint64_t;
  __device__ __forceinline__ static void multiply(Word a, Word b, Word& product) {
#ifdef __CUDA_ARCH__
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(uint32_t(a)), "r"(uint32_t(b)));
#else
    OneCounter::multiply(a, b, product);
#endif
  }
};

// sqrt(-2 ln u) sin(t) and sqrt(-2 ln u) cos(t), t = w1 2^-32 turns. Next to u = 1, the unit's logarithm is off by
// 2^-22 and its root by more, so -2 ln u is replaced by 2 (1 - u).
__device__ __forceinline__ void coarse_box_muller(uint32_t w0, uint32_t w1, float& first, float& second) {
  const float u = fused(float(w0), 0x1p-32f, 0x1p-33f);
  const float far = special::log2(u) * -1.3862943611198906f, near = fused(u, -2.0f, 2.0f);
  const float radius = special::root(u > 0.999755859375f ? near : far);
  const float angle = float(int32_t(w1)) * 1.4629180792671596e-9f;  // pi 2^-31
  first = radius * special::sin(angle);
  second = radius * special::cos(angle);
}

// The noise of a row of z. Column c is lane c % 4 of the counter c / 4. This needs no carry: the first quad of a part
// is a multiple of the part's number of quads. What the first two rounds compute from the row alone is computed once.
template <bool kCoarse>
class Stream {
  uint64_t seed;
  uint32_t quads, word0, word2, word2_next, word3_next;

 public:
  __device__ __forceinline__ Stream(uint64_t seed, uint64_t subsequence, uint64_t first) : seed(seed) {
    const uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    uint64_t product;
    DeviceCounter::multiply(subsequence, 0xCD9E8D57u, product);
    word0 = uint32_t(product) ^ (key0 + kWeyl0);
    DeviceCounter::multiply((product >> 32) ^ (first >> 32) ^ key0, 0xD2511F53u, product);
    quads = uint32_t(first);
    word2 = uint32_t(subsequence >> 32) ^ key1;
    word2_next = uint32_t(product >> 32) ^ (key1 + kWeyl1);
    word3_next = uint32_t(product);
#ifdef __CUDA_ARCH__  // otherwise it is computed again in every iteration of a loop
    asm("" : "+r"(word0), "+r"(word2), "+r"(word2_next), "+r"(word3_next));
#endif
  }

  template <class T>
  __device__ __forceinline__ void draw(uint32_t quad, T* eps) const {
    uint64_t first, second;
    DeviceCounter::multiply(quads | quad, 0xD2511F53u, first);
    DeviceCounter::multiply((first >> 32) ^ word2, 0xCD9E8D57u, second);
    uint64_t c0 = (second >> 32) ^ word0, c1 = second, c2 = uint32_t(first) ^ word2_next, c3 = word3_next;
    philox_rounds<DeviceCounter, 2>(seed, c0, c1, c2, c3);
    float lanes[4];
    if constexpr (kCoarse) {
      coarse_box_muller(uint32_t(c0), uint32_t(c1), lanes[0], lanes[1]);
      coarse_box_muller(uint32_t(c2), uint32_t(c3), lanes[2], lanes[3]);
    } else {
      normals(uint32_t(c0), uint32_t(c1), uint32_t(c2), uint32_t(c3), lanes);
    }
#pragma unroll
    for (int k = 0; k < 4; ++k) eps[k] = T(lanes[k]);
  }
};

}  // namespace vk::cuda
