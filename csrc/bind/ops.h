// A device's kernels as dispatcher ops: check, allocate, call, register. vae_kernels/ops.py has the schemas.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <optional>
#include <string>
#include <tuple>

#include "../dtypes.h"
#include "../formulas/likelihood.h"
#include "glibc.h"
#include "torch_views.h"

namespace vk {

using OptionalTensor = std::optional<Tensor>;

// The value of an argument that must not be None.
template <class T>
const T& required(const std::optional<T>& argument, const char* name) {
  STD_TORCH_CHECK(argument, name, " is missing");
  return *argument;
}

// The view, checked to be of floating point. Except for targets, the kernels know no other types and would read
// nothing.
inline View floating(const View& view) {
  bool is_floating = !view.data;
  with_float_type(view.type, [&](auto*) { is_floating = true; });
  STD_TORCH_CHECK(is_floating, "all arguments but x must be floating point tensors");
  return view;
}

using OptionalInt = std::optional<int64_t>;
using OptionalDouble = std::optional<double>;

// None means the first member.
template <class Enumeration>
Enumeration enumerator(OptionalInt value, Enumeration last, const char* what) {
  STD_TORCH_CHECK(value.value_or(0) >= 0 && value.value_or(0) <= int64_t(last), what, " must be between 0 and ",
                  int64_t(last), ", got ", value.value_or(0));
  return Enumeration(value.value_or(0));
}

inline bool is_summed(OptionalInt reduction) {
  return enumerator(reduction, Reduction::kNone, "reduction") == Reduction::kSum;
}

// An op returns this for a gradient that is not wanted.
inline const Tensor& no_tensor() {
  static const Tensor none;
  return none;
}

// True if gradient number `index` is wanted.
inline bool needed(int64_t needs, int index) { return needs >> index & 1; }

// A call of the latent step without its results: checked arguments, in row form.
class LatentCall {
 public:
  const bool packed;
  const Tensor mean, raw;  // raw: the spread in the form that `scale` names
  const bool summed;
  Rows rows, z_rows;

  LatentCall(LatentInputs& a, const Tensor& mu, const OptionalTensor& logvar, const OptionalTensor& prior_mu,
             const OptionalTensor& prior_logvar, const Tensor& noise, int64_t batch_dims, OptionalInt packed_dim,
             OptionalInt num_samples, OptionalInt scale, OptionalDouble std_floor, OptionalDouble low,
             OptionalDouble high, OptionalInt kl_estimator, OptionalInt kl_reduction)
      : packed(!logvar),
        mean(packed ? half(mu, required(packed_dim, "packed_dim"), 0) : mu),
        raw(packed ? half(mu, required(packed_dim, "packed_dim"), 1) : *logvar),
        summed(is_summed(kl_reduction)),
        rows(mean, batch_dims),
        z_rows(num_samples ? rows.samples(*num_samples) : rows),
        moments_(mu),
        packed_dim_(packed_dim.value_or(0)) {
    a.scale = enumerator(scale, Scale::kSoftplus, "scale");
    a.estimator = enumerator(kl_estimator, KlEstimator::kPath, "kl_estimator");
    a.std_floor = std_floor.value_or(0);
    a.low = low.value_or(-INFINITY), a.high = high.value_or(INFINITY);
    a.mu = floating(rows.argument(mean));
    a.raw = floating(rows.argument(raw));
    if (prior_mu) a.prior_mu = floating(rows.argument(*prior_mu));
    if (prior_logvar) a.prior_logvar = floating(rows.argument(*prior_logvar));
    a.arithmetic = z_rows.arithmetic = rows.arithmetic;
    a.rows = rows.rows, a.cols = rows.cols;
    a.samples = num_samples.value_or(1);
    STD_TORCH_CHECK(a.samples >= 1, "num_samples must be at least 1, got ", a.samples);
    STD_TORCH_CHECK(rows.same_shape(raw), "logvar must have the shape of mu");
    sampled_ = a.sampled();
    if (noise.scalar_type() != ScalarType::Long) {
      STD_TORCH_CHECK(z_rows.same_shape(noise), "noise must be int64 seeds, or have the shape of z");
      a.eps = floating(z_rows.view(noise));
      return;
    }
    const int64_t seeds = noise.numel();
    STD_TORCH_CHECK(seeds == 1 || seeds == rows.rows, "noise must have one seed, or one for each of ", rows.rows,
                    " samples, got ", seeds);
    a.own_seeds = seeds != 1;
    seeds_ = a.own_seeds ? torch::stable::contiguous(noise) : noise;
    a.seeds = seeds_->const_data_ptr<int64_t>();
  }

  // Allocates the results of the forward pass.
  std::tuple<Tensor, Tensor> results(LatentForward& a) {
    const Tensor z = z_rows.empty_like_first(dtype_of(mean));
    a.z = z_rows.output(z);
    if (summed) {
      const Tensor kl = kl_rows().empty_sums();
      a.kl = kl.mutable_data_ptr();
      return {z, kl};
    }
    const Tensor kl = kl_rows().empty_elements();
    a.kl_elements = kl_rows().output(kl);
    return {z, kl};
  }

  void set_upstream(LatentBackward& a, const OptionalTensor& grad_z, const OptionalTensor& grad_kl) {
    if (grad_z) a.grad_z = floating(z_rows.view(*grad_z));
    if (grad_kl) a.grad_kl = floating(summed ? kl_rows().row_view(*grad_kl) : kl_rows().view(*grad_kl));
  }

  // Allocates the gradients of mu and raw: one tensor if mu and raw came in one.
  std::tuple<Tensor, Tensor> gradients(LatentBackward& a, int64_t needs) {
    Tensor of_mu = no_tensor(), of_raw = no_tensor();
    if (packed && needed(needs, 0)) {
      of_mu = empty_strided(dense_like(shape_of(moments_)), dtype_of(moments_), moments_);
      a.grad_mu = rows.output(half(of_mu, packed_dim_, 0));
      a.grad_raw = rows.output(half(of_mu, packed_dim_, 1));
    }
    if (!packed && needed(needs, 0)) a.grad_mu = rows.gradient(mean, &of_mu).view;
    if (!packed && needed(needs, 1)) a.grad_raw = rows.gradient(raw, &of_raw).view;
    return {of_mu, of_raw};
  }

  void finish() {
    rows.finish();
    z_rows.finish();
  }

 private:
  // The rows of the KL.
  Rows& kl_rows() { return sampled_ ? z_rows : rows; }

  const Tensor moments_;
  const int64_t packed_dim_;
  bool sampled_;
  OptionalTensor seeds_;
};

// Fills in a likelihood's arguments without its results; returns the row form of its tensors.
inline Rows set_likelihood(LikelihoodInputs& a, const Tensor& first, const Tensor& x, const OptionalTensor& parameter0,
                           const OptionalTensor& parameter1, int64_t family, OptionalDouble number0,
                           OptionalDouble number1, int64_t batch_dims) {
  constexpr int kCount = sizeof kFamilies / sizeof *kFamilies;
  STD_TORCH_CHECK(family >= 0 && family < kCount, "family must be between 0 and ", kCount - 1, ", got ", family);
  const FamilyInfo info = kFamilies[family];
  Rows rows(first, batch_dims);
  a.family = int(family);
  a.arguments[0] = floating(rows.argument(first));
  a.arguments[1] = rows.argument(x);
  const OptionalTensor* const parameters[] = {&parameter0, &parameter1};
  const OptionalDouble numbers[] = {number0, number1};
  for (int i = 0; i < kMaxArguments - 2; ++i) {
    const OptionalTensor& parameter = *parameters[i];
    a.numbers[i + 2] = numbers[i].value_or(0);
    STD_TORCH_CHECK(bool(parameter) + bool(numbers[i]) == (i + 2 < info.arguments), info.name, " takes ",
                    info.arguments - 2, " parameters, each a tensor or a number");
    if (!parameter) continue;
    STD_TORCH_CHECK(i + 2 < info.arguments - info.constants, info.name, " needs the last ", info.constants,
                    " of its parameters as numbers, got a tensor");
    a.arguments[i + 2] = floating(rows.argument(*parameter));
  }
  a.arithmetic = rows.arithmetic;
  a.rows = rows.rows, a.cols = rows.cols;
  return rows;
}

// A call of a likelihood over classes, without its results. For the kernels, logits are (positions, classes); the
// positions are the elements of all dims but the last.
class ClassesCall {
 public:
  Rows rows, samples;

  ClassesCall(const Tensor& logits, int64_t batch_dims) : rows(logits, logits.dim() - 1), samples(logits, batch_dims) {
    STD_TORCH_CHECK(rows.cols > 0, "logits must have at least one class");
  }

  // For each position, the gradient of its sample.
  View upstream(const Tensor& grad) {
    dense_grad_ = torch::stable::contiguous(grad);
    View view = floating(samples.row_view(*dense_grad_));
    view.row_inner = samples.rows > 0 ? std::max<int64_t>(rows.rows / samples.rows, 1) : 1;
    return view;
  }

 protected:
  // Sets the arguments that all such likelihoods have, after the views of all tensors were made.
  template <class Inputs>
  void set_sizes(Inputs& a) {
    a.arithmetic = samples.arithmetic = rows.arithmetic;
    a.positions = rows.rows, a.classes = rows.cols;
  }

 private:
  OptionalTensor dense_grad_;
};

struct CategoricalCall : ClassesCall {
  CategoricalCall(CategoricalInputs& a, const Tensor& logits, const Tensor& x, int64_t batch_dims)
      : ClassesCall(logits, batch_dims) {
    STD_TORCH_CHECK(x.dim() == logits.dim() - 1 && x.numel() == rows.rows, "x must have one element for each position");
    bool integers = false;
    with_integer_type(type_of_tensor(x), [&](auto*) { integers = true; });
    STD_TORCH_CHECK(integers, "x must be an integer or bool tensor");
    a.logits = floating(rows.argument(logits));
    a.x = rows.row_view(x);
    set_sizes(a);
  }
};

struct MultinomialCall : ClassesCall {
  MultinomialCall(MultinomialInputs& a, const Tensor& logits, const Tensor& x, int64_t batch_dims, bool coefficient)
      : ClassesCall(logits, batch_dims) {
    STD_TORCH_CHECK(rows.same_shape(x), "x must have the shape of logits");
    a.logits = floating(rows.argument(logits));
    a.x = rows.argument(x);
    a.coefficient = coefficient;
    set_sizes(a);
  }
};

// The ops. A Device is made from a tensor that lies on it, and runs the kernels there.
template <class Device>
struct Ops {
  static std::tuple<Tensor, Tensor> latent_forward(const Tensor& mu, const OptionalTensor& logvar,
                                                   const OptionalTensor& prior_mu, const OptionalTensor& prior_logvar,
                                                   const Tensor& noise, int64_t batch_dims, OptionalInt packed_dim,
                                                   OptionalInt num_samples, OptionalInt scale, OptionalDouble std_floor,
                                                   OptionalDouble low, OptionalDouble high, OptionalInt kl_estimator,
                                                   OptionalInt kl_reduction) {
    const Device device(mu);
    LatentForward a{};
    LatentCall call(a, mu, logvar, prior_mu, prior_logvar, noise, batch_dims, packed_dim, num_samples, scale, std_floor,
                    low, high, kl_estimator, kl_reduction);
    const std::tuple<Tensor, Tensor> results = call.results(a);
    device.run(a);
    call.finish();
    return results;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> latent_backward(
      const OptionalTensor& grad_z, const OptionalTensor& grad_kl, const Tensor& mu, const OptionalTensor& logvar,
      const OptionalTensor& prior_mu, const OptionalTensor& prior_logvar, const Tensor& noise, int64_t batch_dims,
      OptionalInt packed_dim, OptionalInt num_samples, OptionalInt scale, OptionalDouble std_floor, OptionalDouble low,
      OptionalDouble high, OptionalInt kl_estimator, OptionalInt kl_reduction, int64_t needs) {
    const Device device(mu);
    LatentBackward a{};
    LatentCall call(a, mu, logvar, prior_mu, prior_logvar, noise, batch_dims, packed_dim, num_samples, scale, std_floor,
                    low, high, kl_estimator, kl_reduction);
    call.set_upstream(a, grad_z, grad_kl);
    Tensor of_prior_mu = no_tensor(), of_prior_logvar = no_tensor(), of_noise = no_tensor();
    auto [of_mu, of_raw] = call.gradients(a, needs);
    if (needed(needs, 2)) a.grad_prior_mu = call.rows.gradient(required(prior_mu, "prior_mu"), &of_prior_mu);
    if (needed(needs, 3))
      a.grad_prior_logvar = call.rows.gradient(required(prior_logvar, "prior_logvar"), &of_prior_logvar);
    if (needed(needs, 4)) a.grad_eps = call.z_rows.gradient(noise, &of_noise).view;
    if (grad_z || grad_kl) {
      device.run(a);
      call.finish();
    } else {  // neither z nor the KL was used
      Tensor* const gradients[] = {&of_mu, &of_raw, &of_prior_mu, &of_prior_logvar, &of_noise};
      for (int i = 0; i < 5; ++i) {
        if (needed(needs, i) && gradients[i]->defined()) torch::stable::zero_(*gradients[i]);
      }
    }
    return {of_mu, of_raw, of_prior_mu, of_prior_logvar, of_noise};
  }

  static Tensor likelihood_forward(const Tensor& first, const Tensor& x, const OptionalTensor& parameter0,
                                   const OptionalTensor& parameter1, int64_t family, OptionalDouble number0,
                                   OptionalDouble number1, int64_t batch_dims, OptionalInt reduction) {
    const Device device(first);
    LikelihoodForward a{};
    Rows rows = set_likelihood(a, first, x, parameter0, parameter1, family, number0, number1, batch_dims);
    const bool summed = is_summed(reduction);
    Tensor log_prob = summed ? rows.empty_sums() : rows.empty_elements();
    if (summed) {
      a.log_prob = log_prob.mutable_data_ptr();
    } else {
      a.elements = rows.output(log_prob);
    }
    device.run(a);
    rows.finish();
    return log_prob;
  }

  static std::tuple<Tensor, Tensor, Tensor, Tensor> likelihood_backward(
      const Tensor& grad, const Tensor& first, const Tensor& x, const OptionalTensor& parameter0,
      const OptionalTensor& parameter1, int64_t family, OptionalDouble number0, OptionalDouble number1,
      int64_t batch_dims, OptionalInt reduction, int64_t needs) {
    const Device device(first);
    LikelihoodBackward a{};
    Rows rows = set_likelihood(a, first, x, parameter0, parameter1, family, number0, number1, batch_dims);
    a.grad_of_elements = !is_summed(reduction);
    a.grad = floating(a.grad_of_elements ? rows.view(grad) : rows.row_view(grad));
    Tensor of_first = no_tensor(), of_x = no_tensor(), of_parameter0 = no_tensor(), of_parameter1 = no_tensor();
    if (needed(needs, 0)) a.gradients[0] = rows.gradient(first, &of_first);
    if (needed(needs, 1)) a.gradients[1] = rows.gradient(x, &of_x);
    if (needed(needs, 2)) a.gradients[2] = rows.gradient(required(parameter0, "parameter0"), &of_parameter0);
    if (needed(needs, 3)) a.gradients[3] = rows.gradient(required(parameter1, "parameter1"), &of_parameter1);
    device.run(a);
    rows.finish();
    return {of_first, of_x, of_parameter0, of_parameter1};
  }

  static Tensor categorical_forward(const Tensor& logits, const Tensor& x, int64_t batch_dims) {
    const Device device(logits);
    CategoricalForward a{};
    CategoricalCall call(a, logits, x, batch_dims);
    a.samples = call.samples.rows;
    Tensor log_prob = call.samples.empty_sums();
    a.log_prob = log_prob.mutable_data_ptr();
    device.run(a);
    return log_prob;
  }

  static Tensor categorical_backward(const Tensor& grad, const Tensor& logits, const Tensor& x, int64_t batch_dims) {
    const Device device(logits);
    CategoricalBackward a{};
    CategoricalCall call(a, logits, x, batch_dims);
    a.grad = call.upstream(grad);
    Tensor of_logits = no_tensor();
    a.grad_logits = call.rows.gradient(logits, &of_logits).view;
    device.run(a);
    call.rows.finish();
    return of_logits;
  }

  static Tensor multinomial_forward(const Tensor& logits, const Tensor& x, int64_t batch_dims, bool coefficient) {
    const Device device(logits);
    MultinomialForward a{};
    MultinomialCall call(a, logits, x, batch_dims, coefficient);
    a.samples = call.samples.rows;
    Tensor log_prob = call.samples.empty_sums();
    a.log_prob = log_prob.mutable_data_ptr();
    device.run(a);
    return log_prob;
  }

  static std::tuple<Tensor, Tensor> multinomial_backward(const Tensor& grad, const Tensor& logits, const Tensor& x,
                                                         int64_t batch_dims, bool coefficient, int64_t needs) {
    const Device device(logits);
    MultinomialBackward a{};
    MultinomialCall call(a, logits, x, batch_dims, coefficient);
    a.grad = call.upstream(grad);
    Tensor of_logits = no_tensor(), of_x = no_tensor();
    if (needed(needs, 0)) a.grad_logits = call.rows.gradient(logits, &of_logits).view;
    if (needed(needs, 1)) a.grad_x = floating(call.rows.gradient(x, &of_x).view);
    device.run(a);
    call.rows.finish();
    return {of_logits, of_x};
  }

  static void implement(torch::stable::detail::StableLibrary& m) {
    m.impl("latent_forward", TORCH_BOX(&latent_forward));
    m.impl("latent_backward", TORCH_BOX(&latent_backward));
    m.impl("likelihood_forward", TORCH_BOX(&likelihood_forward));
    m.impl("likelihood_backward", TORCH_BOX(&likelihood_backward));
    m.impl("categorical_forward", TORCH_BOX(&categorical_forward));
    m.impl("categorical_backward", TORCH_BOX(&categorical_backward));
    m.impl("multinomial_forward", TORCH_BOX(&multinomial_forward));
    m.impl("multinomial_backward", TORCH_BOX(&multinomial_backward));
  }
};

// The names of the families in their order, which vae_kernels compares with its own.
inline std::string families() {
  std::string names;
  for (const FamilyInfo& family : kFamilies) names += names.empty() ? family.name : std::string(" ") + family.name;
  return names;
}

}  // namespace vk
