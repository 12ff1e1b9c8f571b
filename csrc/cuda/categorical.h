// The CUDA kernels of the categorical likelihood.
#pragma once

#include "../categorical.h"
#include "device.h"

namespace vk::cuda {

void categorical_forward(const CategoricalForward& arguments, const Queue& queue);
void categorical_backward(const CategoricalBackward& arguments, const Queue& queue);

}  // namespace vk::cuda
