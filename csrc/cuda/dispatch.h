// From the types of a call's tensors to the way of access for which a kernel is compiled.
#pragma once

#include "access.h"

namespace vk::cuda {

// Calls f with ways of access, the fastest first, until one returns true. A pack has 16 bytes of the first tensor: 8
// elements of a half type, else 4, as many as a counter of the noise gives.
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
