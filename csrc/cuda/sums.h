// The second pass of a sum: adds up what the blocks of a first pass left, in a fixed order.
#pragma once

#include <vector>

#include "../dtypes.h"
#include "device.h"

namespace vk::cuda {

// Sums over the middle axis of an array (outer, count, inner), contiguous, into (outer, inner), in float64.
template <class T>
void sum_axis(const char* op, const T* from, int64_t outer, int64_t count, int64_t inner, void* to, Type type,
              const Queue& queue);

// An axis of an array, and whether its sum keeps it.
struct Axis {
  int64_t size;
  bool kept;
};

// Sums a contiguous array over the axes, slowest first, that are not kept.
template <class T>
void sum_axes(const char* op, const T* from, const std::vector<Axis>& axes, void* to, Type type, const Queue& queue);

// The gradient of a parameter that is the same for all rows: the elements' gradients summed over the rows and over the
// axes of the columns that are not kept, contiguous in the order of the columns.
struct Sum {
  void* data = nullptr;
  Type type = Type::kFloat32;
  std::vector<Axis> columns;
};

}  // namespace vk::cuda
