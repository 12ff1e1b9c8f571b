// The CPU kernels of the latent step: what they take. A view without data stands for a tensor that is not there.
#pragma once

#include "../latent.h"
#include "gradients.h"
#include "tiles.h"

namespace vk::cpu {

struct LatentInputs {
  Type arithmetic;
  int64_t rows, cols;  // of mu; z has `samples` times as many rows, samples first
  int64_t samples;
  const int64_t* seeds;  // null where eps is given: one, or one for each row
  bool own_seeds;
  View mu, raw, prior_mu, prior_logvar;  // raw: what `scale` says
  View eps;                              // of z's rows
  Scale scale;
  double low, high;  // between which the log-variance is clamped
  KlEstimator estimator;

  bool prior() const { return prior_mu.data || prior_logvar.data; }
  bool clamped() const { return low > -INFINITY || high < INFINITY; }
};

struct LatentForward : LatentInputs {
  View z;
  void* kl;          // (rows), or of an estimator (samples, rows), of the arithmetic's type; or
  View kl_elements;  // each element's, not summed
};

struct LatentBackward : LatentInputs {
  View grad_z, grad_kl;  // of z's rows; grad_kl of the analytic KL, of mu's; one of them at least is there
  View grad_mu, grad_raw, grad_eps;
  Gradient grad_prior_mu, grad_prior_logvar;
};

void latent_forward(const LatentForward& arguments, ParallelFor parallel);
void latent_backward(const LatentBackward& arguments, ParallelFor parallel);

}  // namespace vk::cpu
