// The ops on the CPU.
#include "../cpu/isa.h"
#include "../cpu/kernels.h"
#include "ops.h"

namespace vk {
namespace {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*f)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, f, context));
}

struct Cpu {
  explicit Cpu(const Tensor&) {}

  void run(const LatentForward& a) const { cpu::latent_forward(a, parallel_for); }
  void run(const LatentBackward& a) const { cpu::latent_backward(a, parallel_for); }
  void run(const LikelihoodForward& a) const { cpu::likelihood_forward(a, parallel_for); }
  void run(const LikelihoodBackward& a) const { cpu::likelihood_backward(a, parallel_for); }
  void run(const CategoricalForward& a) const { cpu::categorical_forward(a, parallel_for); }
  void run(const CategoricalBackward& a) const { cpu::categorical_backward(a, parallel_for); }
  void run(const MultinomialForward& a) const { cpu::multinomial_forward(a, parallel_for); }
  void run(const MultinomialBackward& a) const { cpu::multinomial_backward(a, parallel_for); }
};

std::string isa() { return cpu::kIsaNames[int(cpu::isa())]; }

}  // namespace
}  // namespace vk

STABLE_TORCH_LIBRARY_FRAGMENT(vae_kernels_cpp, m) {
  m.def("isa() -> str");
  m.def("families() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cpp, CPU, m) { vk::Ops<vk::Cpu>::implement(m); }

// These ops take no tensor that could tell the device.
STABLE_TORCH_LIBRARY_IMPL(vae_kernels_cpp, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&vk::isa));
  m.impl("families", TORCH_BOX(&vk::families));
}
