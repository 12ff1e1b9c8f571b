#include "../latent.h"
#include "../philox.h"
#include "dispatch.h"
#include "latent.h"
#include "rows.h"

namespace vk::cuda {
namespace {

// Multiplies two words in one instruction; of 64-bit factors nvcc makes two.
struct DeviceCounter {
  using Word = uint64_t;
  __device__ __forceinline__ static void multiply(Word a, Word b, Word& product) {
#ifdef __CUDA_ARCH__
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(product) : "r"(uint32_t(a)), "r"(uint32_t(b)));
#else
    OneCounter::multiply(a, b, product);
#endif
  }
};

// The noise of a pack: column c of row r has lane c % 4 of the counter (c / 4, r). Without a carry: the first quad of a
// part is a multiple of their number.
template <class T, int kWidth>
__device__ __forceinline__ void noise(uint64_t seed, const Packs& packs, int pack, T (&eps)[kWidth]) {
  constexpr int kQuads = kWidth / 4;
  const uint64_t first = uint64_t(packs.first) * kQuads;
#pragma unroll
  for (int q = 0; q < kQuads; ++q) {
    uint64_t words[4];
    float lanes[4];
    philox<DeviceCounter>(seed, first | uint32_t(pack * kQuads + q), uint64_t(packs.row), words);
    normals(uint32_t(words[0]), uint32_t(words[1]), uint32_t(words[2]), uint32_t(words[3]), lanes);
#pragma unroll
    for (int k = 0; k < 4; ++k) eps[4 * q + k] = T(lanes[k]);
  }
}

template <class Access>
struct Forward {
  using T = typename Access::T;
  static constexpr int kWidth = Access::kWidth, kQuads = Access::kQuads;
  static constexpr int kThreads = Access::kThreads, kRegisters = Access::kRegisters;
  static constexpr bool kSums = true;
  int64_t cols;
  const int64_t* seed;
  Operand mu, logvar, eps, z;

  explicit Forward(const LatentForward& a)
      : cols(a.cols),
        seed(a.seed),
        mu(a.mu, cols, kWidth),
        logvar(a.logvar, cols, kWidth),
        eps(a.eps, cols, kWidth),
        z(a.z, cols, kWidth) {}

  bool served() const {
    return (Access::kAny || seed) && Access::serves(mu, cols) && Access::serves(logvar, cols) &&
           Access::serves(z, cols);
  }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[kQuads]) const {
    const bool drawn = !Access::kAny || seed;
    const uint64_t key = drawn ? uint64_t(*seed) : 0;
    const auto mu_run = Access::run(mu, packs), logvar_run = Access::run(logvar, packs);
    const auto eps_run = Access::run(eps, packs), z_run = Access::run(z, packs);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      const int n = Access::count(packs, pack, cols);
      T m[kWidth], l[kWidth], e[kWidth], out[kWidth];
      Access::load(mu, mu_run, pack, n, m);
      Access::load(logvar, logvar_run, pack, n, l);
      drawn ? noise(key, packs, pack, e) : Access::load(eps, eps_run, pack, n, e);
      for_each<!is_float<T>, kWidth>([&](int k) {
        const Latent<T> r = latent(pick(m, k), pick(l, k), pick(e, k));
        put(out, k, r.z);
        put(m, k, r.kl);
      });
#pragma unroll
      for (int k = 0; k < kWidth; ++k) sums[k / 4] += k < n ? m[k] : T(0);
      Access::store(z, z_run, pack, n, out);
    }
  }
};

template <class Access>
struct Backward {
  using T = typename Access::T;
  static constexpr int kWidth = Access::kWidth, kQuads = Access::kQuads;
  static constexpr int kThreads = Access::kThreads, kRegisters = Access::kRegisters;
  static constexpr bool kSums = false;
  int64_t cols;
  const int64_t* seed;
  Operand grad_z, grad_kl, mu, logvar, eps, grad_mu, grad_logvar, grad_eps;

  explicit Backward(const LatentBackward& a)
      : cols(a.cols),
        seed(a.seed),
        grad_z(a.grad_z, cols, kWidth),
        grad_kl(a.grad_kl, cols, kWidth),
        mu(a.mu, cols, kWidth),
        logvar(a.logvar, cols, kWidth),
        eps(a.eps, cols, kWidth),
        grad_mu(a.grad_mu, cols, kWidth),
        grad_logvar(a.grad_logvar, cols, kWidth),
        grad_eps(a.grad_eps, cols, kWidth) {}

  bool served() const {
    if (Access::kAny) return true;
    bool all = seed && grad_kl.data;
    for (const Operand* x : {&grad_z, &mu, &logvar, &grad_mu, &grad_logvar}) all &= x->data && Access::serves(*x, cols);
    return all;
  }

  __device__ __forceinline__ static LatentGradient<T> gradient(bool z, bool kl, T m, T l, T e, T gz, T gkl) {
    if (!Access::kAny || (z && kl)) return latent_gradient<true, true>(m, l, e, gz, gkl);
    if (z) return latent_gradient<true, false>(m, l, e, gz, gkl);
    if (kl) return latent_gradient<false, true>(m, l, e, gz, gkl);
    return {};
  }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&)[kQuads]) const {
    constexpr bool kAny = Access::kAny;
    const bool z = !kAny || grad_z.data, kl = !kAny || grad_kl.data, noisy = z && (!kAny || grad_logvar.data);
    const bool drawn = !kAny || (noisy && seed);
    const uint64_t key = drawn ? uint64_t(*seed) : 0;
    const T gkl = kl ? load_element<T>(grad_kl, grad_kl.row_offset(packs.row)) : T(0);
    const auto grad_z_run = Access::run(grad_z, packs), mu_run = Access::run(mu, packs);
    const auto logvar_run = Access::run(logvar, packs), eps_run = Access::run(eps, packs);
    const auto grad_mu_run = Access::run(grad_mu, packs), grad_logvar_run = Access::run(grad_logvar, packs);
    const auto grad_eps_run = Access::run(grad_eps, packs);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      const int n = Access::count(packs, pack, cols);
      T gz[kWidth] = {}, m[kWidth], l[kWidth], e[kWidth] = {};
      T to_mu[kWidth], to_logvar[kWidth], to_eps[kWidth];
      if (z) Access::load(grad_z, grad_z_run, pack, n, gz);
      Access::load(mu, mu_run, pack, n, m);
      Access::load(logvar, logvar_run, pack, n, l);
      if (drawn) {
        noise(key, packs, pack, e);
      } else if (noisy) {
        Access::load(eps, eps_run, pack, n, e);
      }
      for_each<!is_float<T>, kWidth>([&](int k) {
        const LatentGradient<T> g = gradient(z, kl, pick(m, k), pick(l, k), pick(e, k), pick(gz, k), gkl);
        put(to_mu, k, g.mu);
        put(to_logvar, k, g.logvar);
        put(to_eps, k, g.eps);
      });
      if (!kAny || grad_mu.data) Access::store(grad_mu, grad_mu_run, pack, n, to_mu);
      if (!kAny || grad_logvar.data) Access::store(grad_logvar, grad_logvar_run, pack, n, to_logvar);
      if (kAny && grad_eps.data) Access::store(grad_eps, grad_eps_run, pack, n, to_eps);
    }
  }
};

}  // namespace

void latent_forward(const LatentForward& a, const Queue& queue) {
  with_access(a.mu.type, a.arithmetic, [&](auto access) {
    using Access = decltype(access);
    using T = typename Access::T;
    const Forward<Access> body(a);
    if (!body.served()) return false;
    launch_rows("vae_kernels_cuda::latent_forward", body, RowGrid(a.rows, a.cols), static_cast<T*>(a.kl), queue);
    return true;
  });
}

void latent_backward(const LatentBackward& a, const Queue& queue) {
  with_access(a.mu.type, a.arithmetic, [&](auto access) {
    using Access = decltype(access);
    using T = typename Access::T;
    const Backward<Access> body(a);
    if (!body.served()) return false;
    launch_rows("vae_kernels_cuda::latent_backward", body, RowGrid(a.rows, a.cols), static_cast<T*>(nullptr), queue);
    return true;
  });
}

}  // namespace vk::cuda
