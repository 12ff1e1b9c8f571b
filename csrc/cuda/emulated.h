// Stand-ins on the host for the CUDA features that the kernels of this folder use, for tests without a GPU. The kernels
// run with the same indices and the same order of sums. Each thread of a block is a fiber, which waits at a barrier or
// a shuffle for the others. Blocks run one after another.
#pragma once

#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <exception>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __forceinline__ inline

struct uint3 {
  unsigned x = 0, y = 0, z = 0;
};
struct alignas(8) uint2 {
  uint32_t x, y;
};
struct alignas(16) uint4 {
  uint32_t x, y, z, w;
};

inline uint3 threadIdx, blockIdx, blockDim;

namespace emulated {

constexpr size_t kStack = 128 << 10;

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  int waits = 0;  // barriers and shuffles reached so far
  bool done = false;
  uint64_t handed[2];  // to shuffles, in turns
};

struct Block {
  ucontext_t scheduler;
  std::vector<Fiber> fibers;
  std::function<void()> body;
  std::exception_ptr failure;
};

inline Block block;

inline Fiber& current() { return block.fibers[threadIdx.x]; }

// Waits until all other threads have come as far as this one.
inline void wait() {
  Fiber& fiber = current();
  ++fiber.waits;
  swapcontext(&fiber.context, &block.scheduler);
}

inline void enter() {
  try {
    block.body();
  } catch (...) {  // an exception cannot leave the fiber
    block.failure = std::current_exception();
  }
  current().done = true;
}

inline void start(Fiber& fiber) {
  fiber.waits = 0;
  fiber.done = false;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  fiber.context.uc_link = &block.scheduler;
  makecontext(&fiber.context, enter, 0);
}

// Lets every thread run up to its next wait; returns false if all are done. All threads must wait alike: a thread that
// leaves before a barrier that others reach is an error here, as it may be on a device.
inline bool step() {
  size_t done = 0;
  for (size_t i = 0; i < block.fibers.size(); ++i) {
    Fiber& fiber = block.fibers[i];
    threadIdx.x = unsigned(i);
    if (!fiber.done) swapcontext(&block.scheduler, &fiber.context);
    if (block.failure) std::rethrow_exception(std::exchange(block.failure, nullptr));
    if (fiber.waits != block.fibers[0].waits) throw std::logic_error("threads of a block do not meet at one barrier");
    done += fiber.done;
  }
  if (done != 0 && done != block.fibers.size()) throw std::logic_error("a thread left before a barrier");
  return done == 0;
}

inline void run_blocks(unsigned blocks, int threads, const std::function<void()>& body) {
  block.body = body;
  block.fibers.resize(threads);
  blockDim.x = unsigned(threads);
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x) {
    for (Fiber& fiber : block.fibers) start(fiber);
    while (step()) {
    }
  }
}

}  // namespace emulated

inline void __syncthreads() { emulated::wait(); }

template <class T>
T __shfl_down_sync(unsigned, T value, int delta, int width) {
  emulated::Fiber& fiber = emulated::current();
  const int turn = fiber.waits % 2, me = int(threadIdx.x), source = me % width + delta < width ? me + delta : me;
  memcpy(&fiber.handed[turn], &value, sizeof value);
  emulated::wait();
  memcpy(&value, &emulated::block.fibers[source].handed[turn], sizeof value);
  return value;
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int mask, int) {
  emulated::Fiber& fiber = emulated::current();
  const int turn = fiber.waits % 2, source = int(threadIdx.x) ^ mask;
  memcpy(&fiber.handed[turn], &value, sizeof value);
  emulated::wait();
  memcpy(&value, &emulated::block.fibers[source].handed[turn], sizeof value);
  return value;
}

template <class T>
T __ldg(const T* from) {
  return *from;
}

template <class T>
void __stwb(T* to, T value) {
  *to = value;
}

inline uint64_t __umul64hi(uint64_t a, uint64_t b) { return uint64_t((unsigned __int128)(a)*b >> 64); }
