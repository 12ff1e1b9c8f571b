// The CUDA kernels of the likelihoods: what they take. A view without data stands for a tensor that is not there.
#pragma once

#include "../rows.h"
#include "sums.h"

namespace vk::cuda {

constexpr int kMaxArguments = 4;

struct LikelihoodForward {
  const char* family;
  Type arithmetic;
  int64_t rows, cols;
  View arguments[kMaxArguments];
  double constants[kMaxArguments];  // of the arguments that are not tensors
  void* log_prob;                   // (rows), of the arithmetic's type
};

struct LikelihoodBackward {
  const char* family;
  Type arithmetic;
  int64_t rows, cols;
  View grad;
  View arguments[kMaxArguments];
  double constants[kMaxArguments];
  View gradients[kMaxArguments];
  Sum sums[kMaxArguments];
};

void likelihood_forward(const LikelihoodForward& arguments, const Queue& queue);
void likelihood_backward(const LikelihoodBackward& arguments, const Queue& queue);

}  // namespace vk::cuda
