// Philox4x32-10 and the four standard normals of one counter: the stream of cuRAND's Philox4_32_10 normal generator.
// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
#pragma once

#include "math.h"

namespace vk {

VK_INLINE void philox(uint64_t seed, uint64_t offset, uint64_t subsequence, uint32_t (&words)[4]) {
  uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
  uint32_t c0 = uint32_t(offset), c1 = uint32_t(offset >> 32);
  uint32_t c2 = uint32_t(subsequence), c3 = uint32_t(subsequence >> 32);
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = uint64_t(c0) * 0xD2511F53u;
    const uint64_t product1 = uint64_t(c2) * 0xCD9E8D57u;
    c0 = uint32_t(product1 >> 32) ^ c1 ^ key0;
    c1 = uint32_t(product1);
    c2 = uint32_t(product0 >> 32) ^ c3 ^ key1;
    c3 = uint32_t(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// sqrt(-2 ln u) times sine and cosine of (w1 + 1/2) 2^-32 turns, u = w0 2^-32 + 2^-33 rounded to float; 4 ulp.
VK_INLINE void box_muller(uint32_t w0, uint32_t w1, float& first, float& second) {
  const float u = fused(float(w0), 0x1p-32f, 0x1p-33f);
  const float radius = ::sqrtf(-2.0f * log_unit(u));
  sincos_turns(w1, first, second);
  first *= radius;
  second *= radius;
}

// Lanes 0 to 3 of one counter.
VK_INLINE void normals(const uint32_t (&words)[4], float (&lanes)[4]) {
  box_muller(words[0], words[1], lanes[0], lanes[1]);
  box_muller(words[2], words[3], lanes[2], lanes[3]);
}

}  // namespace vk
