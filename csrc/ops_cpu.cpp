// The CPU kernels as dispatcher ops: check, allocate, call, register.
#include "cpu/categorical.h"
#include "cpu/latent.h"
#include "cpu/likelihood.h"
#include "ops.h"

namespace vk {
namespace {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, f, context));
}

std::tuple<Tensor, Tensor> latent_forward(const Tensor& mu, const std::optional<Tensor>& logvar,
                                          const std::optional<Tensor>& prior_mu,
                                          const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& seed,
                                          const std::optional<Tensor>& eps, int64_t batch_dims, int64_t packed_dim,
                                          std::optional<int64_t> num_samples, const Name& scale,
                                          std::optional<double> low, std::optional<double> high,
                                          const Name& kl_estimator, const Name& kl_reduction) {
  cpu::LatentForward a{};
  LatentCall call(a, mu, logvar, prior_mu, prior_logvar, eps, batch_dims, packed_dim, num_samples, scale, low, high,
                  kl_estimator);
  a.seeds = call.seeds(seed, eps);
  const std::tuple<Tensor, Tensor> results = call.results(kl_reduction);
  cpu::latent_forward(a, parallel_for);
  call.finish();
  return results;
}

// Where the kernels put the gradient of a parameter that may be broadcast.
cpu::Gradient parameter_gradient(Rows& rows, const Tensor& input, std::vector<Tensor>* gradients) {
  gradients->push_back(rows.empty_gradient(input));
  const Tensor& gradient = gradients->back();
  cpu::Gradient to;
  if (rows.same_shape(gradient)) {
    to.view = rows.output(gradient);
    return to;
  }
  to.view.data = gradient.mutable_data_ptr();
  to.view.type = type_of_tensor(gradient);
  to.sums = gradient.numel();
  if (to.by_column()) to.cells = rows.column_offsets_of(gradient);
  return to;
}

std::vector<Tensor> latent_backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                                    const Tensor& mu, const std::optional<Tensor>& logvar,
                                    const std::optional<Tensor>& prior_mu, const std::optional<Tensor>& prior_logvar,
                                    const std::optional<Tensor>& seed, const std::optional<Tensor>& eps,
                                    std::vector<bool> needs, int64_t batch_dims, int64_t packed_dim,
                                    std::optional<int64_t> num_samples, const Name& scale, std::optional<double> low,
                                    std::optional<double> high, const Name& kl_estimator, const Name& kl_reduction) {
  cpu::LatentBackward a{};
  LatentCall call(a, mu, logvar, prior_mu, prior_logvar, eps, batch_dims, packed_dim, num_samples, scale, low, high,
                  kl_estimator);
  a.seeds = call.seeds(seed, eps);
  call.set_upstream(grad_z, grad_kl, kl_reduction);
  std::vector<Tensor> gradients;
  call.add_gradients(mu, needs, &gradients, &a.grad_mu, &a.grad_raw);
  if (needs.at(2)) a.grad_prior_mu = parameter_gradient(call.rows, *prior_mu, &gradients);
  if (needs.at(3)) a.grad_prior_logvar = parameter_gradient(call.rows, *prior_logvar, &gradients);
  if (needs.at(4)) a.grad_eps = call.add_gradient(call.z_rows, *eps, &gradients);
  if (!grad_z && !grad_kl) {  // nothing was used
    for (Tensor& gradient : gradients) torch::stable::zero_(gradient);
    return gradients;
  }
  cpu::latent_backward(a, parallel_for);
  call.finish();
  return gradients;
}

// Fills in the arguments that both directions share; `constants` must outlive the call.
template <class Arguments>
void set_arguments(Arguments& a, Rows& rows, const std::string& family, const std::vector<Tensor>& inputs,
                   const std::vector<double>& constants) {
  check_family(family, inputs.size(), constants.size());
  a.family = family.c_str();
  for (size_t i = 0; i < inputs.size(); ++i) a.arguments[i] = rows.argument(inputs[i]);
  for (size_t i = 0; i < constants.size(); ++i) {
    View& view = a.arguments[inputs.size() + i];
    view.data = const_cast<double*>(&constants[i]);
    view.type = Type::kFloat64;
    view.col_inner = std::max<int64_t>(rows.cols, 1);
  }
  a.arithmetic = rows.arithmetic;
  a.rows = rows.rows, a.cols = rows.cols;
}

Tensor likelihood_forward(const Name& family, std::vector<Tensor> inputs, std::vector<double> constants,
                          int64_t batch_dims) {
  Rows rows(inputs.at(0), batch_dims);
  cpu::LikelihoodForward a{};
  set_arguments(a, rows, family.text, inputs, constants);
  Tensor log_prob = rows.empty_sums();
  a.log_prob = log_prob.mutable_data_ptr();
  cpu::likelihood_forward(a, parallel_for);
  return log_prob;
}

std::vector<Tensor> likelihood_backward(const Name& family, const Tensor& grad, std::vector<Tensor> inputs,
                                        std::vector<double> constants, int64_t batch_dims, std::vector<bool> needs) {
  Rows rows(inputs.at(0), batch_dims);
  cpu::LikelihoodBackward a{};
  set_arguments(a, rows, family.text, inputs, constants);
  a.grad = rows.row_view(grad);
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (needs.at(i)) a.gradients[i] = parameter_gradient(rows, inputs[i], &gradients);
  }
  cpu::likelihood_backward(a, parallel_for);
  rows.finish();
  return gradients;
}

Tensor categorical_forward(const Tensor& logits, const Tensor& x, int64_t batch_dims) {
  CategoricalForward a{};
  CategoricalCall call(a, logits, x, batch_dims);
  a.samples = call.samples.rows;
  Tensor log_prob = call.samples.empty_sums();
  a.log_prob = log_prob.mutable_data_ptr();
  cpu::categorical_forward(a, parallel_for);
  return log_prob;
}

Tensor categorical_backward(const Tensor& grad, const Tensor& logits, const Tensor& x, int64_t batch_dims) {
  CategoricalBackward a{};
  CategoricalCall call(a, logits, x, batch_dims);
  a.grad = call.upstream(grad);
  Tensor grad_logits = call.rows.empty_gradient(logits);
  a.grad_logits = call.rows.output(grad_logits);
  cpu::categorical_backward(a, parallel_for);
  call.rows.finish();
  return grad_logits;
}

std::string isa() { return cpu::kIsaNames[int(cpu::isa())]; }

}  // namespace
}  // namespace vk

STABLE_TORCH_LIBRARY(vae_kernels_cpp, m) {
  vk::define_ops(m);
  m.def("isa() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cpp, CPU, m) {
  m.impl("latent_forward", TORCH_BOX(&vk::latent_forward));
  m.impl("latent_backward", TORCH_BOX(&vk::latent_backward));
  m.impl("latent_plain_forward", TORCH_BOX((&vk::latent_plain_forward<&vk::latent_forward>)));
  m.impl("latent_plain_backward", TORCH_BOX((&vk::latent_plain_backward<&vk::latent_backward>)));
  m.impl("latent_prior_forward", TORCH_BOX((&vk::latent_prior_forward<&vk::latent_forward>)));
  m.impl("latent_prior_backward", TORCH_BOX((&vk::latent_prior_backward<&vk::latent_backward>)));
  m.impl("latent_packed_forward", TORCH_BOX((&vk::latent_packed_forward<&vk::latent_forward>)));
  m.impl("latent_packed_backward", TORCH_BOX((&vk::latent_packed_backward<&vk::latent_backward>)));
  m.impl("likelihood_forward", TORCH_BOX(&vk::likelihood_forward));
  m.impl("likelihood_backward", TORCH_BOX(&vk::likelihood_backward));
  m.impl("likelihood_pair_forward", TORCH_BOX((&vk::likelihood_pair_forward<&vk::likelihood_forward>)));
  m.impl("likelihood_pair_backward", TORCH_BOX((&vk::likelihood_pair_backward<&vk::likelihood_backward>)));
  m.impl("likelihood_triple_forward", TORCH_BOX((&vk::likelihood_triple_forward<&vk::likelihood_forward>)));
  m.impl("likelihood_triple_backward", TORCH_BOX((&vk::likelihood_triple_backward<&vk::likelihood_backward>)));
  m.impl("categorical_forward", TORCH_BOX(&vk::categorical_forward));
  m.impl("categorical_backward", TORCH_BOX(&vk::categorical_backward));
}

// It takes no tensor that could tell the device.
STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cpp, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&vk::isa)); }
