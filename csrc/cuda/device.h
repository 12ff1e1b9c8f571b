// Launching kernels, and sums across threads. Without nvcc the kernels of this folder run on the host: see emulated.h.
#pragma once

#include <functional>
#include <stdexcept>
#include <string>

#include "../math.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulated.h"
#endif

namespace vk::cuda {

constexpr int kThreads = 256;  // of every block

// Where kernels are put, and memory for them that lives as long as they need it. Handed in: no kernel knows torch.
struct Queue {
  void* stream;
  std::function<void*(size_t bytes)> scratch;
};

// Runs kernel(arguments...) on `blocks` blocks. Throws, naming the op, where the launch fails.
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), int64_t blocks, const Queue& queue,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error(std::string(op) + ": too many elements for one launch");
#ifdef __CUDACC__
  std::tuple<Parameters...> values{arguments...};
  const cudaError_t error = std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(kThreads), pointers,
                                0, static_cast<cudaStream_t>(queue.stream));
      },
      values);
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
#else
  emulated::run_blocks(unsigned(blocks), kThreads, [&] { kernel(arguments...); });
#endif
}

// The sum of `value` over each group of `lanes` neighbouring threads, a power of two, in a fixed order; the group's
// first thread has it. Every thread of the block must call it.
template <class T>
__device__ __forceinline__ T group_sum(T value, int lanes) {
  for (int half = (lanes < 32 ? lanes : 32) / 2; half > 0; half /= 2) value += __shfl_down_sync(~0u, value, half, 32);
  if (lanes <= 32) return value;
  __shared__ T warps[kThreads / 32];
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = value;
  __syncthreads();
  const int warp = int(threadIdx.x) / 32;
  if (int(threadIdx.x) % lanes != 0) return T(0);
  T sum = warps[warp];
  for (int i = 1; i < lanes / 32; ++i) sum += warps[warp + i];
  return sum;
}

}  // namespace vk::cuda
