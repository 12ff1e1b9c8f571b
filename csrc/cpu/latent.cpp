#include "../latent.h"

#include "latent.h"
#include "tiles.h"

namespace vk::cpu {
namespace {

template <class T>
struct Forward {
  const LatentForward& a;
  Grid grid{a.rows, a.cols, 4, false};
  RowSums<T> kl{grid, static_cast<T*>(a.kl)};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      T mu_buffer[kTile], logvar_buffer[kTile], eps_buffer[kTile], z_buffer[kTile], kl_values[kTile + kLanes];
      const T* mu = load<Isa>(a.mu, tile, mu_buffer);
      const T* logvar = load<Isa>(a.logvar, tile, logvar_buffer);
      const T* eps = eps_buffer;
      if (a.eps.data) {
        eps = load<Isa>(a.eps, tile, eps_buffer);
      } else {
        Isa::noise(a.seed, tile, eps_buffer);
      }
      T* z = target(a.z, tile, z_buffer);
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        const Latent<T> r = latent(mu[k], logvar[k], eps[k]);
        z[k] = r.z;
        kl_values[k] = r.kl;
      }
      store<Isa>(a.z, tile, z, z_buffer);
      kl.template add<Isa>(tile, task, kl_values);
    });
  }
};

template <class T, bool kZ, bool kKl>
struct Backward {
  const LatentBackward& a;
  Grid grid{a.rows, a.cols, 4, false};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t) __attribute__((always_inline)) {
      T mu_buffer[kTile], logvar_buffer[kTile], eps_buffer[kTile], grad_z_buffer[kTile], grad_kl_buffer[kTile];
      T grad_mu_buffer[kTile], grad_logvar_buffer[kTile], grad_eps_buffer[kTile];
      const T* mu = load<Isa>(a.mu, tile, mu_buffer);
      const T* logvar = load<Isa>(a.logvar, tile, logvar_buffer);
      const T *eps = mu, *grad_z = mu, *grad_kl = mu;  // what is not used may be anything
      if constexpr (kZ) {
        grad_z = load<Isa>(a.grad_z, tile, grad_z_buffer);
        eps = eps_buffer;
        if (a.eps.data) {
          eps = load<Isa>(a.eps, tile, eps_buffer);
        } else if (a.grad_logvar.data) {
          Isa::noise(a.seed, tile, eps_buffer);
        } else {
          eps = mu;
        }
      }
      if constexpr (kKl) grad_kl = load<Isa>(a.grad_kl, tile, grad_kl_buffer);
      T* grad_mu = target(a.grad_mu, tile, grad_mu_buffer);
      T* grad_logvar = target(a.grad_logvar, tile, grad_logvar_buffer);
      T* grad_eps = target(a.grad_eps, tile, grad_eps_buffer);
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        const LatentGradient<T> g = latent_gradient<kZ, kKl>(mu[k], logvar[k], eps[k], grad_z[k], grad_kl[k]);
        grad_mu[k] = g.mu;
        grad_logvar[k] = g.logvar;
        grad_eps[k] = g.eps;
      }
      if (a.grad_mu.data) store<Isa>(a.grad_mu, tile, grad_mu, grad_mu_buffer);
      if (a.grad_logvar.data) store<Isa>(a.grad_logvar, tile, grad_logvar, grad_logvar_buffer);
      if (a.grad_eps.data) store<Isa>(a.grad_eps, tile, grad_eps, grad_eps_buffer);
    });
  }
};

template <class Kernel>
void run(const Kernel& kernel, ParallelFor parallel) {
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
}

template <class T>
void forward(const LatentForward& a, ParallelFor parallel) {
  const Forward<T> kernel{a};
  run(kernel, parallel);
  kernel.kl.finish();
}

template <class T>
void backward(const LatentBackward& a, ParallelFor parallel) {
  if (a.grad_z.data && a.grad_kl.data) return run(Backward<T, true, true>{a}, parallel);
  if (a.grad_z.data) return run(Backward<T, true, false>{a}, parallel);
  if (a.grad_kl.data) return run(Backward<T, false, true>{a}, parallel);
  run(Backward<T, false, false>{a}, parallel);
}

}  // namespace

void latent_forward(const LatentForward& a, ParallelFor parallel) {
  a.arithmetic == Type::kFloat64 ? forward<double>(a, parallel) : forward<float>(a, parallel);
}

void latent_backward(const LatentBackward& a, ParallelFor parallel) {
  a.arithmetic == Type::kFloat64 ? backward<double>(a, parallel) : backward<float>(a, parallel);
}

}  // namespace vk::cpu
