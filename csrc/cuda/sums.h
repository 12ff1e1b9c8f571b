// The second pass of a sum: adds up what the blocks of a first pass left, in a fixed order.
#pragma once

#include "../dtypes.h"
#include "device.h"

namespace vk::cuda {

// `slots` sums of `count` numbers each. Number i of slot s lies at
// s slot_stride + (i / inner) outer_stride + (i % inner) inner_stride; its sum goes to column s out_step of the result.
template <class T>
struct Slots {
  const T* from;
  int64_t slots, count;
  int64_t inner, outer_stride, inner_stride, slot_stride, out_step;
};

template <class T>
void sum_slots(const char* op, Slots<T> slots, const View& out, const Queue& queue);

}  // namespace vk::cuda
