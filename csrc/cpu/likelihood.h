// The CPU kernels of the likelihoods: what they take. A view without data stands for a tensor that is not there.
#pragma once

#include "gradients.h"

namespace vk::cpu {

constexpr int kMaxArguments = 4;

struct LikelihoodForward {
  const char* family;
  Type arithmetic;
  int64_t rows, cols;
  View arguments[kMaxArguments];
  void* log_prob;  // (rows), of the arithmetic's type
};

struct LikelihoodBackward {
  const char* family;
  Type arithmetic;
  int64_t rows, cols;
  View grad;
  View arguments[kMaxArguments];
  Gradient gradients[kMaxArguments];
};

void likelihood_forward(const LikelihoodForward& arguments, ParallelFor parallel);
void likelihood_backward(const LikelihoodBackward& arguments, ParallelFor parallel);

}  // namespace vk::cpu
