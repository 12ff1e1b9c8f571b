// The instruction set of the CPU kernels: the best one that the processor has, or the one that VAE_KERNELS_ISA names.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace vk::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

constexpr const char* kIsaNames[] = {"baseline", "avx2", "avx512"};

inline Isa best_isa() {
#if defined(__x86_64__) && defined(__GNUC__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl")) {
    return Isa::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Isa::kAvx2;
#endif
  return Isa::kBaseline;
}

inline Isa choose_isa() {
  const Isa best = best_isa();
  const char* wanted = std::getenv("VAE_KERNELS_ISA");
  if (wanted == nullptr || *wanted == 0) return best;
  for (int i = 0; i <= int(best); ++i) {
    if (std::string(wanted) == kIsaNames[i]) return Isa(i);
  }
  throw std::runtime_error("VAE_KERNELS_ISA must name an instruction set of this processor, baseline to " +
                           std::string(kIsaNames[int(best)]) + ", got " + wanted);
}

inline Isa isa() {
  static const Isa chosen = choose_isa();
  return chosen;
}

}  // namespace vk::cpu
