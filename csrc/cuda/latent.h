// The CUDA kernels of the latent step: what they take. A view without data stands for a tensor that is not there.
#pragma once

#include "../rows.h"
#include "device.h"

namespace vk::cuda {

struct LatentForward {
  Type arithmetic;
  int64_t rows, cols;
  const int64_t* seed;  // on the device; null where eps is given
  View mu, logvar, eps, z;
  void* kl;  // (rows), of the arithmetic's type
};

struct LatentBackward {
  Type arithmetic;
  int64_t rows, cols;
  const int64_t* seed;
  View grad_z, grad_kl, mu, logvar, eps;
  View grad_mu, grad_logvar, grad_eps;
};

void latent_forward(const LatentForward& arguments, const Queue& queue);
void latent_backward(const LatentBackward& arguments, const Queue& queue);

}  // namespace vk::cuda
