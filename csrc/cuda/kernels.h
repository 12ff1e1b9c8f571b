// The CUDA kernels.
#pragma once

#include <functional>

#include "../call.h"

namespace vk::cuda {

// The stream for kernels, and memory that lives as long as they need it. The caller passes it in: no kernel knows
// torch.
struct Queue {
  void* stream;
  std::function<void*(size_t bytes)> scratch;
};

void latent_forward(const LatentForward& arguments, const Queue& queue);
void latent_backward(const LatentBackward& arguments, const Queue& queue);
void likelihood_forward(const LikelihoodForward& arguments, const Queue& queue);
void likelihood_backward(const LikelihoodBackward& arguments, const Queue& queue);
void categorical_forward(const CategoricalForward& arguments, const Queue& queue);
void categorical_backward(const CategoricalBackward& arguments, const Queue& queue);
void multinomial_forward(const MultinomialForward& arguments, const Queue& queue);
void multinomial_backward(const MultinomialBackward& arguments, const Queue& queue);

}  // namespace vk::cuda
