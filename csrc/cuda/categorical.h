// The CUDA kernels of the categorical likelihood: what they take.
#pragma once

#include "../rows.h"
#include "device.h"

namespace vk::cuda {

// Logits as (positions, classes); `x` and `grad` as one value for each position. Where x is not in [0, classes), the
// log-probability and the gradients of the position are NaN.
struct CategoricalForward {
  Type arithmetic;
  int64_t positions, classes, samples;  // positions of one sample lie side by side
  View logits, x;
  void* log_prob;  // (samples), of the arithmetic's type
};

struct CategoricalBackward {
  Type arithmetic;
  int64_t positions, classes;
  View grad, logits, x, grad_logits;
};

void categorical_forward(const CategoricalForward& arguments, const Queue& queue);
void categorical_backward(const CategoricalBackward& arguments, const Queue& queue);

}  // namespace vk::cuda
