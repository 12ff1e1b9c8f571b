// The CPU kernels as dispatcher ops: check, allocate, call, register.
#include "cpu/latent.h"
#include "cpu/likelihood.h"
#include "ops.h"

namespace vk {
namespace {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, f, context));
}

uint64_t seed_value(const std::optional<Tensor>& seed, const std::optional<Tensor>& eps) {
  if (eps) return 0;
  STD_TORCH_CHECK(seed && seed->scalar_type() == ScalarType::Long && seed->numel() == 1,
                  "seed must be an int64 tensor of one element where no eps is given");
  return uint64_t(*seed->const_data_ptr<int64_t>());
}

std::tuple<Tensor, Tensor> latent_forward(const Tensor& mu, const Tensor& logvar, const std::optional<Tensor>& seed,
                                          const std::optional<Tensor>& eps, int64_t batch_dims) {
  Rows rows(mu, batch_dims);
  cpu::LatentForward a{};
  a.seed = seed_value(seed, eps);
  a.mu = rows.argument(mu);
  a.logvar = rows.argument(logvar);
  if (eps) a.eps = rows.view(*eps);
  a.arithmetic = rows.arithmetic;
  a.rows = rows.rows, a.cols = rows.cols;
  Tensor z = rows.empty_like_first(dtype_of(mu));
  Tensor kl = rows.empty_sums();
  a.z = rows.output(z);
  a.kl = kl.mutable_data_ptr();
  cpu::latent_forward(a, parallel_for);
  rows.finish();
  return {z, kl};
}

std::vector<Tensor> latent_backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                                    const Tensor& mu, const Tensor& logvar, const std::optional<Tensor>& seed,
                                    const std::optional<Tensor>& eps, int64_t batch_dims, std::vector<bool> needs) {
  Rows rows(mu, batch_dims);
  cpu::LatentBackward a{};
  a.seed = seed_value(seed, eps);
  a.mu = rows.argument(mu);
  a.logvar = rows.argument(logvar);
  a.arithmetic = rows.arithmetic;
  if (eps) a.eps = rows.view(*eps);
  if (grad_z) a.grad_z = rows.view(*grad_z);
  if (grad_kl) a.grad_kl = rows.row_view(*grad_kl);
  a.rows = rows.rows, a.cols = rows.cols;
  std::vector<Tensor> gradients;
  const auto wanted = [&](size_t i, const Tensor& input, View* view) {
    if (!needs.at(i)) return;
    gradients.push_back(rows.empty_gradient(input));
    *view = rows.output(gradients.back());
  };
  wanted(0, mu, &a.grad_mu);
  wanted(1, logvar, &a.grad_logvar);
  if (eps) wanted(2, *eps, &a.grad_eps);
  cpu::latent_backward(a, parallel_for);
  rows.finish();
  return gradients;
}

// Fills in the arguments that both directions share; `constants` must outlive the call.
template <class Arguments>
void set_arguments(Arguments& a, Rows& rows, const std::string& family, const std::vector<Tensor>& inputs,
                   const std::vector<double>& constants) {
  const int count = cpu::family_arguments(family.c_str());
  STD_TORCH_CHECK(count > 0, "no family is named ", family);
  STD_TORCH_CHECK(inputs.size() + constants.size() == size_t(count), family, " takes ", count, " arguments, got ",
                  inputs.size() + constants.size());
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

Tensor likelihood_forward(const Family& family, std::vector<Tensor> inputs, std::vector<double> constants,
                          int64_t batch_dims) {
  Rows rows(inputs.at(0), batch_dims);
  cpu::LikelihoodForward a{};
  set_arguments(a, rows, family.name, inputs, constants);
  Tensor log_prob = rows.empty_sums();
  a.log_prob = log_prob.mutable_data_ptr();
  cpu::likelihood_forward(a, parallel_for);
  return log_prob;
}

std::vector<Tensor> likelihood_backward(const Family& family, const Tensor& grad, std::vector<Tensor> inputs,
                                        std::vector<double> constants, int64_t batch_dims, std::vector<bool> needs) {
  Rows rows(inputs.at(0), batch_dims);
  cpu::LikelihoodBackward a{};
  set_arguments(a, rows, family.name, inputs, constants);
  a.grad = rows.row_view(grad);
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (!needs.at(i)) continue;
    gradients.push_back(rows.empty_gradient(inputs[i]));
    Tensor& gradient = gradients.back();
    if (rows.same_shape(gradient)) {
      a.gradients[i] = rows.output(gradient);
    } else {
      a.gradients[i].data = gradient.mutable_data_ptr();
      a.gradients[i].type = type_of_tensor(gradient);
      a.sums[i] = gradient.numel();
      if (a.sums[i] > 1) a.cells[i] = rows.column_offsets_of(gradient);
    }
  }
  cpu::likelihood_backward(a, parallel_for);
  rows.finish();
  return gradients;
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
  m.impl("likelihood_forward", TORCH_BOX(&vk::likelihood_forward));
  m.impl("likelihood_backward", TORCH_BOX(&vk::likelihood_backward));
}

// It takes no tensor that could tell the device.
STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cpp, CompositeExplicitAutograd, m) { m.impl("isa", TORCH_BOX(&vk::isa)); }
