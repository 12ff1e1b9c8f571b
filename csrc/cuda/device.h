// Launches kernels, and sums across threads. Without nvcc, the kernels of this folder run on the host: see emulated.h.
#pragma once

#include <stdexcept>
#include <string>
#include <tuple>

#include "../elementary.h"
#include "kernels.h"

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include "emulated.h"
#endif

namespace vk::cuda {

// Runs kernel(arguments...) on `blocks` blocks of `threads` threads. Throws an error with the op's name if the launch
// fails.
template <class... Parameters, class... Arguments>
void launch(const char* op, void (*kernel)(Parameters...), int64_t blocks, int threads, const Queue& queue,
            const Arguments&... arguments) {
  if (blocks == 0) return;
  if (blocks > 0x7fffffff) throw std::runtime_error(std::string(op) + ": too many elements for one launch");
#ifdef __CUDACC__
  std::tuple<Parameters...> values{arguments...};
  const cudaError_t error = std::apply(
      [&](auto&... value) {
        void* pointers[] = {&value...};
        return cudaLaunchKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(blocks)), dim3(unsigned(threads)),
                                pointers, 0, static_cast<cudaStream_t>(queue.stream));
      },
      values);
  if (error == cudaSuccess) return;
  cudaGetLastError();  // clears the error: the next call that asks would report it as its own
  throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
#else
  emulated::run_blocks(unsigned(blocks), threads, [&] { kernel(arguments...); });
#endif
}

// The sum of `value` over each group of `lanes` neighbouring threads, a power of two, by halves. The group's first
// thread gets it. A group is part of a warp, or the entire block; every thread of the block must call it.
template <int kThreads, class T>
__device__ __forceinline__ T group_sum(T value, int lanes) {
  if (lanes > 32) {
    __shared__ T values[kThreads];
    values[threadIdx.x] = value;
    __syncthreads();
    for (int half = lanes / 2; half >= 32; half /= 2) {
      if (int(threadIdx.x) < half) values[threadIdx.x] += values[threadIdx.x + half];
      __syncthreads();
    }
    value = values[threadIdx.x % 32];
    __syncthreads();
  }
  for (int half = (lanes < 32 ? lanes : 32) / 2; half > 0; half /= 2) value += __shfl_down_sync(~0u, value, half, 32);
  return value;
}

}  // namespace vk::cuda
