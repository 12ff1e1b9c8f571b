// The second pass of a sum: adds up the results of a first pass's blocks, in a fixed order.
#pragma once

#include "../dtypes.h"
#include "device.h"

namespace vk::cuda {

// Sums over the middle axis of an array (outer, count, inner), contiguous, into (outer, inner), in float64.
template <class T>
void sum_axis(const char* op, const T* from, int64_t outer, int64_t count, int64_t inner, void* to, Type type,
              const Queue& queue);

// Sums a contiguous array over the axes, slowest first, that are not kept.
template <class T>
void sum_axes(const char* op, const T* from, const std::vector<Axis>& axes, void* to, Type type, const Queue& queue);

}  // namespace vk::cuda
