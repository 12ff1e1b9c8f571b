// The ops on CUDA devices.
#include <dlfcn.h>
#include <torch/csrc/stable/accelerator.h>

#include "../cuda/kernels.h"
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

// Looked up at run time, not linked: the library may be built against a torch without CUDA, which lacks this function.
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

// Makes the tensor's device the current one, and holds its current stream and memory on it. Kernels that still have to
// run may use this memory after the object is gone, because torch reuses it only on the same stream.
class Cuda {
 public:
  explicit Cuda(const Tensor& tensor)
      : tensor_(tensor),
        guard_(device_of(tensor)),
        queue_{current_stream(device_of(tensor)), [this](size_t bytes) { return scratch(bytes); }} {}
  Cuda(const Cuda&) = delete;

  void run(const LatentForward& a) const { cuda::latent_forward(a, queue_); }
  void run(const LatentBackward& a) const { cuda::latent_backward(a, queue_); }
  void run(const LikelihoodForward& a) const { cuda::likelihood_forward(a, queue_); }
  void run(const LikelihoodBackward& a) const { cuda::likelihood_backward(a, queue_); }
  void run(const CategoricalForward& a) const { cuda::categorical_forward(a, queue_); }
  void run(const CategoricalBackward& a) const { cuda::categorical_backward(a, queue_); }
  void run(const MultinomialForward& a) const { cuda::multinomial_forward(a, queue_); }
  void run(const MultinomialBackward& a) const { cuda::multinomial_backward(a, queue_); }

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
  cuda::Queue queue_;
  std::vector<Tensor> memory_;
};

}  // namespace
}  // namespace vk

STABLE_TORCH_LIBRARY_FRAGMENT(vae_kernels_cuda, m) { m.def("families() -> str"); }

STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cuda, VK_DEVICE, m) { vk::Ops<vk::Cuda>::implement(m); }

// This op takes no tensor that could tell the device.
STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cuda, CompositeExplicitAutograd, m) {
  m.impl("families", TORCH_BOX(&vk::families));
}
