// What the kernels of every device take: one struct for each op. A view without data stands for a tensor that is not
// there.
#pragma once

#include <vector>

#include "formulas/latent.h"
#include "view.h"

namespace vk {

// A dim of the columns, and whether a sum keeps it.
struct Axis {
  int64_t size;
  bool kept;
};

// Where a gradient goes: element by element, or, for a parameter that all rows share, summed over the rows and over the
// axes of the columns that are not kept. A sum's view is contiguous memory in the order of the columns.
struct Gradient {
  View view;  // without data: not wanted
  bool summed = false;
  std::vector<Axis> columns;  // of a sum, slowest first

  bool is_sum() const { return summed && view.data; }
  View elements() const { return summed ? View{} : view; }
  // How many sums there are.
  int64_t sums() const {
    int64_t count = 1;
    for (const Axis& axis : columns) count *= axis.kept ? axis.size : 1;
    return count;
  }
};

struct LatentInputs {
  Type arithmetic;
  int64_t rows, cols;  // of mu; z has `samples` times as many rows, samples first
  int64_t samples;
  const int64_t* seeds;  // on the device; null where eps is given: one, or one for each row
  bool own_seeds;
  View mu, raw, prior_mu, prior_logvar;  // raw: what `scale` says
  View eps;                              // of z's rows
  Scale scale;
  double std_floor;  // added to the standard deviation
  double low, high;  // between which the log-variance is clamped
  KlEstimator estimator;

  bool sampled() const { return estimator != KlEstimator::kAnalytic; }
  bool prior() const { return prior_mu.data || prior_logvar.data; }
  bool floored() const { return std_floor > 0; }
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

constexpr int kMaxArguments = 4;

struct LikelihoodInputs {
  int family;
  Type arithmetic;
  int64_t rows, cols;
  View arguments[kMaxArguments];
  double numbers[kMaxArguments];  // of the arguments that are not tensors
};

struct LikelihoodForward : LikelihoodInputs {
  void* log_prob;  // (rows), of the arithmetic's type; or
  View elements;   // each element's, not summed, of that type too
};

struct LikelihoodBackward : LikelihoodInputs {
  View grad;  // of a row; or
  bool grad_of_elements;
  Gradient gradients[kMaxArguments];
};

// Logits as (positions, classes); `x` and `grad` as one value for each position. Where x is not in [0, classes), the
// log-probability and the gradients of the position are NaN.
struct CategoricalInputs {
  Type arithmetic;
  int64_t positions, classes;
  View logits, x;
};

struct CategoricalForward : CategoricalInputs {
  int64_t samples;  // positions of one sample lie side by side
  void* log_prob;   // (samples), of the arithmetic's type
};

struct CategoricalBackward : CategoricalInputs {
  View grad, grad_logits;
};

}  // namespace vk
