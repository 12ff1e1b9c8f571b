// The CUDA kernels of the latent step: what they take. A view without data stands for a tensor that is not there.
#pragma once

#include "../latent.h"
#include "../rows.h"
#include "sums.h"

namespace vk::cuda {

struct LatentInputs {
  Type arithmetic;
  int64_t rows, cols;  // of mu; z has `samples` times as many rows, samples first
  int64_t samples;
  const int64_t* seeds;  // on the device; null where eps is given: one, or one for each row
  bool own_seeds;
  View mu, raw, prior_mu, prior_logvar;  // raw: what `scale` says
  View eps;                              // of z's rows
  Scale scale;
  double low, high;  // between which the log-variance is clamped
  KlEstimator estimator;

  bool sampled() const { return estimator != KlEstimator::kAnalytic; }
  bool prior() const { return prior_mu.data || prior_logvar.data; }
  // Whether the noise is that of half types: forward and backward agree on it. A sampled KL depends on the noise
  // itself.
  bool coarse_noise() const {
    return is_half(mu.type) && is_half(raw.type) && arithmetic == Type::kFloat32 && !sampled();
  }
  bool clamped() const { return low > -INFINITY || high < INFINITY; }
  // The commonest case: one z of one seed, the analytic KL, a log-variance.
  bool plain() const { return seeds && !own_seeds && samples == 1 && !sampled() && scale == Scale::kLogvar; }
};

struct LatentForward : LatentInputs {
  View z;
  void* kl;          // (rows), or of an estimator (samples, rows), of the arithmetic's type; or
  View kl_elements;  // each element's, not summed
};

struct LatentBackward : LatentInputs {
  View grad_z, grad_kl;  // of z's rows; grad_kl of the analytic KL, of mu's
  View grad_mu, grad_raw, grad_prior_mu, grad_prior_logvar, grad_eps;
  Sum prior_sums[2];  // the gradients of a prior's mu and logvar that the rows share
};

void latent_forward(const LatentForward& arguments, const Queue& queue);
void latent_backward(const LatentBackward& arguments, const Queue& queue);

}  // namespace vk::cuda
