// The CPU kernels of the categorical likelihood.
#pragma once

#include "../categorical.h"
#include "tiles.h"

namespace vk::cpu {

void categorical_forward(const CategoricalForward& arguments, ParallelFor parallel);
void categorical_backward(const CategoricalBackward& arguments, ParallelFor parallel);

}  // namespace vk::cpu
