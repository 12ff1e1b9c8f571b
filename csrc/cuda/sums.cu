#include "sums.h"

#include "access.h"

namespace vk::cuda {
namespace {

constexpr int64_t kPart = 4096;  // numbers that one block adds up at most

// Groups of `lanes` threads add up a slot, or one of `parts` parts of it, in float64.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_kernel(const __grid_constant__ Slots<T> slots, int lanes, int64_t parts, T* partial,
               const __grid_constant__ View out) {
  const int64_t task = int64_t(blockIdx.x) * (kThreads / lanes) + int(threadIdx.x) / lanes;
  const int64_t slot = task / parts, part = task % parts;
  const int64_t first = part * kPart, end = slots.count < first + kPart ? slots.count : first + kPart;
  const int lane = int(threadIdx.x) & (lanes - 1);
  double sum = 0;
  if (slot < slots.slots) {
    const T* from = slots.from + slot * slots.slot_stride;
    for (int64_t i = first + lane; i < end; i += lanes) {
      const int64_t outer = i < slots.inner ? 0 : i / slots.inner;
      sum += from[outer * slots.outer_stride + (i - outer * slots.inner) * slots.inner_stride];
    }
  }
  sum = group_sum(sum, lanes);
  if (lane != 0 || slot >= slots.slots) return;
  if (parts > 1) {
    partial[task] = T(sum);
  } else {
    store_element(out, out.col_offset(slot * slots.out_step), sum);
  }
}

}  // namespace

template <class T>
void sum_slots(const char* op, Slots<T> slots, const View& out, const Queue& queue) {
  for (;;) {
    const int lanes = slots.count <= 16 ? 1 : slots.count <= 1024 ? 32 : kThreads;
    const int64_t parts = std::max<int64_t>(1, (slots.count + kPart - 1) / kPart), groups = kThreads / lanes;
    T* partial = parts > 1 ? static_cast<T*>(queue.scratch(slots.slots * parts * sizeof(T))) : nullptr;
    launch(op, sum_kernel<T>, (slots.slots * parts + groups - 1) / groups, queue, slots, lanes, parts, partial, out);
    if (parts == 1) return;
    slots = {partial, slots.slots, parts, parts, 0, 1, parts, slots.out_step};
  }
}

template void sum_slots(const char*, Slots<float>, const View&, const Queue&);
template void sum_slots(const char*, Slots<double>, const View&, const Queue&);

}  // namespace vk::cuda
