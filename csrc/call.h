// The arguments of the kernels on every device, one struct for each op. A view without data stands for a missing
// tensor.
#pragma once

#include <vector>

#include "formulas/latent.h"
#include "view.h"

namespace vk {

// One dim of the columns; `kept` is true if a sum keeps this dim.
struct Axis {
  int64_t size;
  bool kept;
};

// Where a gradient is written: element by element, or, for a parameter that all rows share, summed over the rows and
// over the column dims that are not kept. A sum's view is contiguous memory in the order of the columns.
struct Gradient {
  View view;  // no data: this gradient is not wanted
  bool summed = false;
  std::vector<Axis> columns;  // dims of a sum's columns, slowest first

  bool is_sum() const { return summed && view.data; }
  View elements() const { return summed ? View{} : view; }
  // The number of sums.
  int64_t sums() const {
    int64_t count = 1;
    for (const Axis& axis : columns) count *= axis.kept ? axis.size : 1;
    return count;
  }
};

struct LatentInputs {
  Type arithmetic;
  int64_t rows, cols;  // the size of mu; z has `samples` times as many rows, the sample dim first
  int64_t samples;
  const int64_t* seeds;  // on the device: one, or one for each row; null if there is eps
  bool own_seeds;
  View mu, raw, prior_mu, prior_logvar;  // raw: the spread in the form that `scale` names
  View eps;                              // with the rows of z
  Scale scale;
  double std_floor;  // added to the standard deviation
  double low, high;  // the log-variance is clamped to [low, high]
  KlEstimator estimator;

  bool sampled() const { return estimator != KlEstimator::kAnalytic; }
  bool prior() const { return prior_mu.data || prior_logvar.data; }
  bool floored() const { return std_floor > 0; }
  bool clamped() const { return low > -INFINITY || high < INFINITY; }
};

struct LatentForward : LatentInputs {
  View z;
  void* kl;          // (rows), or (samples, rows) for a sampled KL, of the arithmetic's type; or
  View kl_elements;  // the KL of each element, not summed
};

struct LatentBackward : LatentInputs {
  View grad_z, grad_kl;  // with z's rows; grad_kl of the analytic KL has mu's; at least one has data
  View grad_mu, grad_raw, grad_eps;
  Gradient grad_prior_mu, grad_prior_logvar;
};

constexpr int kMaxArguments = 4;

struct LikelihoodInputs {
  int family;
  Type arithmetic;
  int64_t rows, cols;
  View arguments[kMaxArguments];
  double numbers[kMaxArguments];  // values of the arguments that are not tensors
};

struct LikelihoodForward : LikelihoodInputs {
  void* log_prob;  // (rows), of the arithmetic's type; or
  View elements;   // the log-probability of each element, not summed, of the same type
};

struct LikelihoodBackward : LikelihoodInputs {
  View grad;  // one value for each row, or for each element
  bool grad_of_elements;
  Gradient gradients[kMaxArguments];
};

// Logits are (positions, classes); `x` and `grad` have one value for each position. If x is not in [0, classes), the
// log-probability and the gradients of that position are NaN.
struct CategoricalInputs {
  Type arithmetic;
  int64_t positions, classes;
  View logits, x;
};

struct CategoricalForward : CategoricalInputs {
  int64_t samples;  // the positions of one sample follow one another
  void* log_prob;   // (samples), of the arithmetic's type
};

struct CategoricalBackward : CategoricalInputs {
  View grad, grad_logits;
};

// Logits and counts are (positions, classes), and `grad` has one value for each position. `coefficient` is true if the
// logarithm of the multinomial coefficient is added.
struct MultinomialInputs {
  Type arithmetic;
  int64_t positions, classes;
  bool coefficient;
  View logits, x;
};

struct MultinomialForward : MultinomialInputs {
  int64_t samples;  // the positions of one sample follow one another
  void* log_prob;   // (samples), of the arithmetic's type
};

struct MultinomialBackward : MultinomialInputs {
  View grad, grad_logits, grad_x;
};

}  // namespace vk
