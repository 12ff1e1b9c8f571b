// The CPU kernels of the latent step: what they take. A view without data stands for a tensor that is not there.
#pragma once

#include "tiles.h"

namespace vk::cpu {

struct LatentForward {
  Type arithmetic;
  int64_t rows, cols;
  uint64_t seed;  // used where there is no eps
  View mu, logvar, eps, z;
  void* kl;  // (rows), of the arithmetic's type
};

struct LatentBackward {
  Type arithmetic;
  int64_t rows, cols;
  uint64_t seed;
  View grad_z, grad_kl, mu, logvar, eps;
  View grad_mu, grad_logvar, grad_eps;
};

void latent_forward(const LatentForward& arguments, ParallelFor parallel);
void latent_backward(const LatentBackward& arguments, ParallelFor parallel);

}  // namespace vk::cpu
