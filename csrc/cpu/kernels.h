// The CPU kernels.
#pragma once

#include "../call.h"

namespace vk::cpu {

// Calls f(first, last, context) for parts of [begin, end), which have the size `grain` if they run in parallel. The
// caller passes it in, because no kernel knows torch.
using ParallelFor = void (*)(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*),
                             void* context);

void latent_forward(const LatentForward& arguments, ParallelFor parallel);
void latent_backward(const LatentBackward& arguments, ParallelFor parallel);
void likelihood_forward(const LikelihoodForward& arguments, ParallelFor parallel);
void likelihood_backward(const LikelihoodBackward& arguments, ParallelFor parallel);
void categorical_forward(const CategoricalForward& arguments, ParallelFor parallel);
void categorical_backward(const CategoricalBackward& arguments, ParallelFor parallel);
void multinomial_forward(const MultinomialForward& arguments, ParallelFor parallel);
void multinomial_backward(const MultinomialBackward& arguments, ParallelFor parallel);

}  // namespace vk::cpu
