// The CUDA kernels as dispatcher ops: check, allocate, call, register.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "cuda/categorical.h"
#include "cuda/latent.h"
#include "cuda/likelihood.h"
#include "dtypes.h"
#include "ops.h"

namespace vk {
namespace {

#ifdef VK_EMULATED  // the kernels run on the host, on CPU tensors: see cuda/emulated.h
#define VK_DEVICE CPU
struct Guard {
  explicit Guard(int32_t) {}
};
void* current_stream(int32_t) { return nullptr; }
#else
#define VK_DEVICE CUDA
using Guard = torch::stable::accelerator::DeviceGuard;

// Looked up, not linked: the library is built against a torch that may lack CUDA, and so the function.
void* current_stream(int32_t device) {
  using GetStream = AOTITorchError (*)(int32_t, void**);
  static const auto get_stream = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    void* function = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
    STD_TORCH_CHECK(function, "this torch has no CUDA");
    return reinterpret_cast<GetStream>(function);
  }();
  void* stream;
  TORCH_ERROR_CODE_CHECK(get_stream(device, &stream));
  return stream;
}
#endif

int32_t device_of(const Tensor& tensor) {
  int32_t device;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(tensor.get(), &device));
  return device;
}

// The tensor's device made the current one, its current stream, and memory there. Kernels that are still to run may use
// that memory after this object is gone: torch hands it to nobody but the same stream.
class Device {
 public:
  cuda::Queue queue;

  explicit Device(const Tensor& tensor)
      : queue{current_stream(device_of(tensor)), [this](size_t bytes) { return scratch(bytes); }},
        tensor_(tensor),
        guard_(device_of(tensor)) {}
  Device(const Device&) = delete;

 private:
  void* scratch(size_t bytes) {
    Shape shape;
    shape.sizes.push_back(int64_t(bytes));
    shape.strides.push_back(1);
    memory_.push_back(empty_strided(shape, aoti_torch_dtype_uint8(), tensor_));
    return memory_.back().mutable_data_ptr();
  }

  const Tensor& tensor_;
  Guard guard_;
  std::vector<Tensor> memory_;
};

// All but targets: the kernels know no others, and would read nothing.
void check_floating(std::initializer_list<std::optional<Tensor>> tensors) {
  for (const std::optional<Tensor>& tensor : tensors) {
    bool floating = !tensor;
    if (tensor) with_float_type(type_of_tensor(*tensor), [&](auto*) { floating = true; });
    STD_TORCH_CHECK(floating, "all arguments but x must be floating point tensors");
  }
}

// The gradient of a parameter that the rows share. The kernels write it in the order of the columns; where that is not
// the order of its own dims, into memory of its own.
struct SharedGradient {
  Tensor gradient, written;
  cuda::Sum sum;

  SharedGradient(const Rows& rows, const Tensor& gradient) : gradient(gradient), written(gradient) {
    Shape shape = shape_of(gradient), ordered = shape;
    const int missing = rows.shape().dims() - shape.dims();
    Dims order;
    for (const int64_t dim : rows.columns()) {
      const int d = int(dim) - missing;
      const bool kept = d >= 0 && shape.sizes[d] != 1;
      sum.columns.push_back({rows.shape().sizes[int(dim)], kept});
      if (kept) order.push_back(d);
    }
    std::reverse(order.begin(), order.end());
    fill_strides(&ordered, order);
    if (!same_strides(shape, ordered)) written = empty_strided(ordered, dtype_of(gradient), gradient);
    sum.data = written.mutable_data_ptr();
    sum.type = type_of_tensor(gradient);
  }

  void finish() {
    if (written.get() != gradient.get()) torch::stable::copy_(gradient, written);
  }
};

// Memory for the gradient of a parameter that may be broadcast, and where the kernels put it: element by element, or
// summed over the rows.
void add_parameter_gradient(Rows& rows, const Tensor& input, std::vector<Tensor>* gradients,
                            std::vector<SharedGradient>* shared, View* elements, cuda::Sum* sum) {
  gradients->push_back(rows.empty_gradient(input));
  if (rows.same_shape(gradients->back())) {
    *elements = rows.output(gradients->back());
  } else {
    shared->emplace_back(rows, gradients->back());
    *sum = shared->back().sum;
  }
}

std::tuple<Tensor, Tensor> latent_forward(const Tensor& mu, const std::optional<Tensor>& logvar,
                                          const std::optional<Tensor>& prior_mu,
                                          const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& seed,
                                          const std::optional<Tensor>& eps, int64_t batch_dims, int64_t packed_dim,
                                          std::optional<int64_t> num_samples, const Name& scale,
                                          std::optional<double> low, std::optional<double> high,
                                          const Name& kl_estimator, const Name& kl_reduction) {
  check_floating({mu, logvar, prior_mu, prior_logvar, eps});
  const Device device(mu);
  cuda::LatentForward a{};
  LatentCall call(a, mu, logvar, prior_mu, prior_logvar, eps, batch_dims, packed_dim, num_samples, scale, low, high,
                  kl_estimator);
  a.seeds = call.seeds(seed, eps);
  const std::tuple<Tensor, Tensor> results = call.results(kl_reduction);
  cuda::latent_forward(a, device.queue);
  call.finish();
  return results;
}

std::vector<Tensor> latent_backward(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                                    const Tensor& mu, const std::optional<Tensor>& logvar,
                                    const std::optional<Tensor>& prior_mu, const std::optional<Tensor>& prior_logvar,
                                    const std::optional<Tensor>& seed, const std::optional<Tensor>& eps,
                                    std::vector<bool> needs, int64_t batch_dims, int64_t packed_dim,
                                    std::optional<int64_t> num_samples, const Name& scale, std::optional<double> low,
                                    std::optional<double> high, const Name& kl_estimator, const Name& kl_reduction) {
  check_floating({grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, eps});
  const Device device(mu);
  cuda::LatentBackward a{};
  LatentCall call(a, mu, logvar, prior_mu, prior_logvar, eps, batch_dims, packed_dim, num_samples, scale, low, high,
                  kl_estimator);
  a.seeds = call.seeds(seed, eps);
  call.set_upstream(grad_z, grad_kl, kl_reduction);
  std::vector<Tensor> gradients;
  std::vector<SharedGradient> shared;
  call.add_gradients(mu, needs, &gradients, &a.grad_mu, &a.grad_raw);
  if (needs.at(2))
    add_parameter_gradient(call.rows, *prior_mu, &gradients, &shared, &a.grad_prior_mu, &a.prior_sums[0]);
  if (needs.at(3))
    add_parameter_gradient(call.rows, *prior_logvar, &gradients, &shared, &a.grad_prior_logvar, &a.prior_sums[1]);
  if (needs.at(4)) a.grad_eps = call.add_gradient(call.z_rows, *eps, &gradients);
  cuda::latent_backward(a, device.queue);
  call.finish();
  for (SharedGradient& gradient : shared) gradient.finish();
  return gradients;
}

// Fills in the arguments that both directions share.
template <class Arguments>
void set_arguments(Arguments& a, Rows& rows, const std::string& family, const std::vector<Tensor>& inputs,
                   const std::vector<double>& constants) {
  check_family(family, inputs.size(), constants.size());
  a.family = family.c_str();
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (i != 1) check_floating({inputs[i]});
    a.arguments[i] = rows.argument(inputs[i]);
  }
  for (size_t i = 0; i < constants.size(); ++i) a.constants[inputs.size() + i] = constants[i];
  a.arithmetic = rows.arithmetic;
  a.rows = rows.rows, a.cols = rows.cols;
}

Tensor likelihood_forward(const Name& family, std::vector<Tensor> inputs, std::vector<double> constants,
                          int64_t batch_dims) {
  const Device device(inputs.at(0));
  Rows rows(inputs[0], batch_dims);
  cuda::LikelihoodForward a{};
  set_arguments(a, rows, family.text, inputs, constants);
  Tensor log_prob = rows.empty_sums();
  a.log_prob = log_prob.mutable_data_ptr();
  cuda::likelihood_forward(a, device.queue);
  return log_prob;
}

std::vector<Tensor> likelihood_backward(const Name& family, const Tensor& grad, std::vector<Tensor> inputs,
                                        std::vector<double> constants, int64_t batch_dims, std::vector<bool> needs) {
  const Device device(inputs.at(0));
  Rows rows(inputs[0], batch_dims);
  cuda::LikelihoodBackward a{};
  set_arguments(a, rows, family.text, inputs, constants);
  check_floating({grad});
  a.grad = rows.row_view(grad);
  std::vector<Tensor> gradients;
  std::vector<SharedGradient> shared;
  for (size_t i = 0; i < inputs.size(); ++i) {
    if (needs.at(i)) add_parameter_gradient(rows, inputs[i], &gradients, &shared, &a.gradients[i], &a.sums[i]);
  }
  cuda::likelihood_backward(a, device.queue);
  rows.finish();
  for (SharedGradient& gradient : shared) gradient.finish();
  return gradients;
}

Tensor categorical_forward(const Tensor& logits, const Tensor& x, int64_t batch_dims) {
  check_floating({logits});
  const Device device(logits);
  CategoricalForward a{};
  CategoricalCall call(a, logits, x, batch_dims);
  a.samples = call.samples.rows;
  Tensor log_prob = call.samples.empty_sums();
  a.log_prob = log_prob.mutable_data_ptr();
  cuda::categorical_forward(a, device.queue);
  return log_prob;
}

Tensor categorical_backward(const Tensor& grad, const Tensor& logits, const Tensor& x, int64_t batch_dims) {
  check_floating({grad, logits});
  const Device device(logits);
  CategoricalBackward a{};
  CategoricalCall call(a, logits, x, batch_dims);
  a.grad = call.upstream(grad);
  Tensor grad_logits = call.rows.empty_gradient(logits);
  a.grad_logits = call.rows.output(grad_logits);
  cuda::categorical_backward(a, device.queue);
  call.rows.finish();
  return grad_logits;
}

}  // namespace
}  // namespace vk

STABLE_TORCH_LIBRARY(vae_kernels_cuda, m) { vk::define_ops(m); }

STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cuda, VK_DEVICE, m) {
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
