// From the types of a call's tensors to the way of access that a kernel is compiled for.
#pragma once

#include "access.h"

namespace vk::cuda {

// Calls f with ways of access, the faster one first, until one returns true. Packs have 16 bytes of the first tensor,
// so 8 elements in half precision, else 4: a counter of the noise.
template <class F>
void with_access(Type first, Type arithmetic, const F& f) {
  if (arithmetic == Type::kFloat64) {
    f(Elements<double, 4>{});
  } else if (first == Type::kFloat32) {
    f(Vectors<float>{}) || f(Elements<float, 4>{});
  } else if (first == Type::kBFloat16) {
    f(Vectors<BFloat16>{}) || f(Elements<float, 8>{});
  } else {
    f(Vectors<Float16>{}) || f(Elements<float, 8>{});
  }
}

}  // namespace vk::cuda
