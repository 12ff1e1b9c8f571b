// Philox4x32-10, and the four standard normals of one counter: the stream of cuRAND's Philox4_32_10 normal generator.
// Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
#pragma once

#include "elementary.h"

namespace vk {

// One counter at a time. A type for several counters has the same two members.
struct OneCounter {
  using Word = uint64_t;
  // product = the low half of a times the low half of b
  VK_INLINE static void multiply(const Word& a, const Word& b, Word& product) {
    product = uint64_t(uint32_t(a)) * uint32_t(b);
  }
};

// Added to the key in each round.
constexpr uint32_t kWeyl0 = 0x9E3779B9u, kWeyl1 = 0xBB67AE85u;

// Rounds kFirst, …, 9 on the words of a counter under the key `seed`. Each word lies in the low half of a Word, or of
// each lane of a Word; the high halves hold leftovers.
template <class Counters, int kFirst, class Word = typename Counters::Word>
VK_INLINE void philox_rounds(uint64_t seed, Word& c0, Word& c1, Word& c2, Word& c3) {
  const Word multiplier0 = Word{} + 0xD2511F53u, multiplier1 = Word{} + 0xCD9E8D57u;
  uint32_t key0 = uint32_t(seed) + kFirst * kWeyl0, key1 = uint32_t(seed >> 32) + kFirst * kWeyl1;
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = kFirst; round < 10; ++round) {
    Word product0, product1;
    Counters::multiply(c0, multiplier0, product0);
    Counters::multiply(c2, multiplier1, product1);
    c0 = (product1 >> 32) ^ c1 ^ uint64_t(key0);
    c1 = product1;
    c2 = (product0 >> 32) ^ c3 ^ uint64_t(key1);
    c3 = product0;
    key0 += kWeyl0;
    key1 += kWeyl1;
  }
}

// The four words of the counter (offset, subsequence).
template <class Counters, class Word = typename Counters::Word>
VK_INLINE void philox(uint64_t seed, const Word& offset, const Word& subsequence, Word (&words)[4]) {
  Word c0 = offset, c1 = offset >> 32, c2 = subsequence, c3 = subsequence >> 32;
  philox_rounds<Counters, 0>(seed, c0, c1, c2, c3);
  words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// sqrt(-2 ln u) sin(t) and sqrt(-2 ln u) cos(t), t = (w1 + 1/2) 2^-32 turns, u = w0 2^-32 + 2^-33 rounded to float;
// 4 ulp.
VK_INLINE void box_muller(uint32_t w0, uint32_t w1, float& first, float& second) {
  const float u = fused(float(w0), 0x1p-32f, 0x1p-33f);
  const float radius = root_of_normal(minus_2_log_unit(u));
  sincos_turns(w1, first, second);
  first *= radius;
  second *= radius;
}

// The four normals of one counter: lanes 0 to 3.
VK_INLINE void normals(uint32_t w0, uint32_t w1, uint32_t w2, uint32_t w3, float (&lanes)[4]) {
  box_muller(w0, w1, lanes[0], lanes[1]);
  box_muller(w2, w3, lanes[2], lanes[3]);
}

}  // namespace vk
