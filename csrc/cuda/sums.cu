#include "sums.h"

namespace vk::cuda {
namespace {

constexpr int64_t kPart = 4096;  // most numbers that one block adds up
constexpr int kThreads = 256;

// A group of `lanes` threads adds up the numbers of one sum, or of one of its `parts` equal parts. `to` is
// (outer, inner), or (outer, inner, parts) with several parts.
template <class T>
__global__ void __launch_bounds__(kThreads) sum_kernel(const T* from, int64_t sums, int64_t count, int64_t inner,
                                                       int64_t parts, int lanes, void* to, Type type) {
  const int64_t task = int64_t(blockIdx.x) * (kThreads / lanes) + int(threadIdx.x) / lanes;
  const int64_t index = task / parts, first = task % parts * kPart;
  const int64_t end = count < first + kPart ? count : first + kPart;
  const int lane = int(threadIdx.x) & (lanes - 1);
  double sum = 0;
  if (index < sums) {
    from += index / inner * count * inner + index % inner;
    for (int64_t i = first + lane; i < end; i += lanes) sum += from[i * inner];
  }
  sum = group_sum<kThreads>(sum, lanes);
  if (lane != 0 || index >= sums) return;
  with_float_type(type, [&](auto* null) { narrow(sum, static_cast<decltype(null)>(to) + task); });
}

// Merges neighbouring axes that are all kept or all summed; at least one axis of the result is summed.
std::vector<Axis> merge_axes(const std::vector<Axis>& axes) {
  std::vector<Axis> merged;
  for (const Axis& axis : axes) {
    if (axis.size == 1) continue;
    if (merged.empty() || merged.back().kept != axis.kept) merged.push_back({1, axis.kept});
    merged.back().size *= axis.size;
  }
  if (std::all_of(merged.begin(), merged.end(), [](const Axis& axis) { return axis.kept; })) {
    merged.insert(merged.begin(), {1, false});
  }
  return merged;
}

}  // namespace

template <class T>
void sum_axis(const char* op, const T* from, int64_t outer, int64_t count, int64_t inner, void* to, Type type,
              const Queue& queue) {
  const int lanes = count <= 16 ? 1 : count <= 1024 ? 32 : kThreads;
  const int64_t sums = outer * inner, groups = kThreads / lanes;
  const int64_t parts = std::max<int64_t>(1, (count + kPart - 1) / kPart);
  const int64_t blocks = (sums * parts + groups - 1) / groups;
  if (parts == 1)
    return launch(op, sum_kernel<T>, blocks, kThreads, queue, from, sums, count, inner, parts, lanes, to, type);
  T* partial = static_cast<T*>(queue.scratch(sums * parts * sizeof(T)));
  launch(op, sum_kernel<T>, blocks, kThreads, queue, from, sums, count, inner, parts, lanes, partial, type_of<T>);
  sum_axis<T>(op, partial, sums, parts, 1, to, type, queue);
}

template <class T>
void sum_axes(const char* op, const T* from, const std::vector<Axis>& axes, void* to, Type type, const Queue& queue) {
  const std::vector<Axis> merged = merge_axes(axes);
  int64_t outer = 1;
  for (size_t i = 0; i < merged.size(); ++i) {
    int64_t inner = 1;
    bool last = true;
    for (size_t j = i + 1; j < merged.size(); ++j) inner *= merged[j].size, last &= merged[j].kept;
    if (merged[i].kept) {
      outer *= merged[i].size;
      continue;
    }
    void* sums = last ? to : queue.scratch(outer * inner * sizeof(T));
    sum_axis(op, from, outer, merged[i].size, inner, sums, last ? type : type_of<T>, queue);
    from = static_cast<const T*>(sums);
  }
}

template void sum_axis(const char*, const float*, int64_t, int64_t, int64_t, void*, Type, const Queue&);
template void sum_axis(const char*, const double*, int64_t, int64_t, int64_t, void*, Type, const Queue&);
template void sum_axes(const char*, const float*, const std::vector<Axis>&, void*, Type, const Queue&);
template void sum_axes(const char*, const double*, const std::vector<Axis>&, void*, Type, const Queue&);

}  // namespace vk::cuda
