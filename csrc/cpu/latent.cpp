#include "../formulas/latent.h"

#include "gradients.h"
#include "kernels.h"
#include "tiles.h"

namespace vk::cpu {
namespace {

// The tile of z's rows, for one sample, that belongs to a tile of mu's rows.
VK_INLINE Tile sample_tile(const LatentInputs& a, Tile tile, int64_t sample) {
  tile.row += sample * a.rows;
  return tile;
}

// The noise of a tile. Every row begins a new quad, so rows are drawn padded to full quads and then moved together,
// quad by quad. `eps` has kQuad more elements than the tile.
constexpr int kQuad = 4;

template <class Isa, class T>
VK_INLINE void draw(uint64_t seed, const Tile& tile, T* eps) {
  if (tile.rows == 1 || tile.cols % kQuad == 0) return Isa::noise(seed, tile, eps);
  const int pitch = (tile.cols + kQuad - 1) / kQuad * kQuad;
  T padded[kTile];
  for (int i = 0; i < tile.rows;) {
    const int count = std::min(tile.rows - i, kTile / pitch);
    Isa::noise(seed, Tile{tile.row + i, 0, count, tile.cols}, padded);
    for (const T* row = padded; row < padded + count * pitch; row += pitch, ++i) {
      for (int j = 0; j < pitch; j += kQuad) memcpy(eps + i * tile.cols + j, row + j, kQuad * sizeof(T));
    }
  }
}

template <class Isa, class T>
VK_INLINE const T* load_noise(const LatentInputs& a, const Tile& tile, int64_t sample, T* buffer) {
  if (!a.seeds) return load(a.eps, sample_tile(a, tile, sample), buffer);
  if (!a.own_seeds) {
    draw<Isa>(uint64_t(*a.seeds), sample_tile(a, tile, sample), buffer);
    return buffer;
  }
  for (int i = 0; i < tile.rows; ++i) {
    draw<Isa>(uint64_t(a.seeds[tile.row + i]), Tile{sample, tile.col, 1, tile.cols}, buffer + i * tile.cols);
  }
  return buffer;
}

// The plain latent step, the most common case, in float32: one z, the analytic KL, and a log-variance, which is used as
// it is, clamped, or compared with a prior. One loop does it all.
enum class Form { kBare, kClamped, kPrior };

bool is_plain(const LatentInputs& a) {
  return a.samples == 1 && a.scale == Scale::kLogvar && !a.floored() && a.estimator == KlEstimator::kAnalytic &&
         !(a.prior() && a.clamped());
}

// Calls f with the form as a constant.
template <class F>
void with_form(const LatentInputs& a, const F& f) {
  if (a.prior()) return f(std::integral_constant<Form, Form::kPrior>());
  a.clamped() ? f(std::integral_constant<Form, Form::kClamped>()) : f(std::integral_constant<Form, Form::kBare>());
}

// A tile of mu, raw and the prior.
template <Form kForm, class S>
struct PlainInputs {
  using T = float;
  static constexpr int kSize = buffered<T, S>, kPriorSize = kForm == Form::kPrior ? kSize : 1;
  S mu_buffer[kSize], raw_buffer[kSize], m_buffer[kPriorSize], v_buffer[kPriorSize];
  const S *mu, *raw, *m, *v;

  VK_INLINE void load(const LatentInputs& a, const Tile& tile) {
    mu = load_as<T>(a.mu, tile, mu_buffer);
    raw = load_as<T>(a.raw, tile, raw_buffer);
    if constexpr (kForm == Form::kPrior) {
      m = load_as<T>(a.prior_mu, tile, m_buffer);
      v = load_as<T>(a.prior_logvar, tile, v_buffer);
    }
  }

  VK_INLINE T mean(int k) const { return widen<T>(mu[k]); }
  VK_INLINE Spread<T> spread(int k, const Clamp<T>& clamp) const {
    const T l = widen<T>(raw[k]);
    const Spread<T> s = vk::spread<Scale::kLogvar>(l);
    if constexpr (kForm == Form::kClamped) return clamped(s, clamp);
    return s;
  }
  VK_INLINE Relative<T> relative(int k, const Spread<T>& s) const {
    if constexpr (kForm == Form::kPrior) return vk::relative(mean(k), s.l, s.std, widen<T>(m[k]), widen<T>(v[k]));
    return vk::relative(mean(k), s.l, s.std);
  }

  // True if all inputs are dense tensors of type S.
  static bool fit(const LatentInputs& a) {
    const bool prior = kForm != Form::kPrior || (is_dense<S>(a.prior_mu) && is_dense<S>(a.prior_logvar));
    return is_dense<S>(a.mu) && is_dense<S>(a.raw) && prior;
  }
};

// Prefetches the inputs of a tile, so that they arrive from memory while its noise is drawn.
VK_INLINE void prefetch_inputs(const LatentInputs& a, const Tile& tile) {
  for (const View* view : {&a.mu, &a.raw, &a.prior_mu, &a.prior_logvar}) prefetch(*view, tile);
}

template <Form kForm, class S>
struct PlainForward {
  using T = float;
  static constexpr bool kAvx512 = true;
  const LatentForward& a;
  Grid grid{a.rows, a.cols, false};
  RowSums<T> kl{grid, static_cast<T*>(a.kl)};
  Clamp<T> clamp{a.low, a.high};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      T eps_buffer[kTile + kQuad], kl_values[kTile + kLanes];
      PlainInputs<kForm, S> in;
      S z_buffer[in.kSize];
      prefetch_inputs(a, tile);
      const T* eps = load_noise<Isa>(a, tile, 0, eps_buffer);
      in.load(a, tile);
      S* z = target(a.z, tile, z_buffer);
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        const Spread<T> s = in.spread(k, clamp);
        narrow(drawn(in.mean(k), s.std, eps[k]), z + k);
        kl_values[k] = analytic_kl(in.relative(k, s));
      }
      if constexpr (std::is_same_v<S, T>) store(a.z, tile, z, z_buffer);
      if (a.kl) {
        kl.template add<Isa>(tile, task, kl_values);
      } else {
        scatter(a.kl_elements, tile, kl_values);
      }
    });
  }

  static bool fits(const LatentForward& a) { return PlainInputs<kForm, S>::fit(a) && is_dense<S>(a.z); }
};

// The backward pass where both z and the KL were used.
template <Form kForm, class S>
struct PlainBackward {
  using T = float;
  static constexpr bool kAvx512 = true;
  const LatentBackward& a;
  Grid grid{a.rows, a.cols, by_column(a.grad_prior_mu) || by_column(a.grad_prior_logvar)};
  GradientWriter<T> prior_mu{a.grad_prior_mu, grid}, prior_logvar{a.grad_prior_logvar, grid};
  Clamp<T> clamp{a.low, a.high};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      T eps_buffer[kTile + kQuad], grad_kl_buffer[kTile];
      PlainInputs<kForm, S> in;
      S grad_z_buffer[in.kSize], grad_mu_buffer[in.kSize], grad_raw_buffer[in.kSize], grad_eps_buffer[in.kSize];
      S grad_m_buffer[in.kPriorSize], grad_v_buffer[in.kPriorSize];
      prefetch_inputs(a, tile);
      prefetch(a.grad_z, tile);
      const T* eps = eps_buffer;
      if (a.grad_raw.data) eps = load_noise<Isa>(a, tile, 0, eps_buffer);
      in.load(a, tile);
      const S* grad_z = load_as<T>(a.grad_z, tile, grad_z_buffer);
      const T* grad_kl = load(a.grad_kl, tile, grad_kl_buffer);
      S* grad_mu = target(a.grad_mu, tile, grad_mu_buffer);
      S* grad_raw = target(a.grad_raw, tile, grad_raw_buffer);
      S* grad_eps = target(a.grad_eps, tile, grad_eps_buffer);
      S* grad_m = prior_mu.target(tile, grad_m_buffer);
      S* grad_v = prior_logvar.target(tile, grad_v_buffer);
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        const Spread<T> s = in.spread(k, clamp);
        const T gz = widen<T>(grad_z[k]);
        const Upstream<T> up{gz, gz * eps[k], grad_kl[k], T(0), T(0)};
        const LatentGradient<T> g = latent_gradient<true, true, false>(in.relative(k, s), s.std, up);
        narrow(g.mu, grad_mu + k);
        narrow(fused(s.dstd, g.std, s.dl * g.l), grad_raw + k);
        if constexpr (std::is_same_v<S, T>) grad_eps[k] = gz * s.std;
        if constexpr (kForm == Form::kPrior) narrow(g.prior_mu, grad_m + k), narrow(g.prior_logvar, grad_v + k);
      }
      if constexpr (std::is_same_v<S, T>) {
        if (a.grad_mu.data) store(a.grad_mu, tile, grad_mu, grad_mu_buffer);
        if (a.grad_raw.data) store(a.grad_raw, tile, grad_raw, grad_raw_buffer);
        if (a.grad_eps.data) store(a.grad_eps, tile, grad_eps, grad_eps_buffer);
        if constexpr (kForm == Form::kPrior) {
          prior_mu.template write<Isa>(tile, task, grad_m, grad_m_buffer);
          prior_logvar.template write<Isa>(tile, task, grad_v, grad_v_buffer);
        }
      }
    });
  }

  static bool fits(const LatentBackward& a) {
    const auto is_written = [](const Gradient& gradient) {
      return !gradient.summed && gradient.view.data && is_dense<S>(gradient.view);
    };
    const bool prior = kForm != Form::kPrior || (is_written(a.grad_prior_mu) && is_written(a.grad_prior_logvar));
    return PlainInputs<kForm, S>::fit(a) && is_dense<S>(a.grad_z) && prior && !a.grad_eps.data && a.grad_mu.data &&
           is_dense<S>(a.grad_mu) && a.grad_raw.data && is_dense<S>(a.grad_raw);
  }
};

// Elements of a tile where the formulas need many buffers, all of which then fit into L1.
constexpr int kPart = 256;

// One tile of q and the prior, in L1: what was passed, and what the formulas need of it.
template <class T>
struct LatentTile {
  static constexpr bool kAvx512 = is_float<T>;
  T mu_buffer[kPart], raw_buffer[kPart], m_buffer[kPart], v_buffer[kPart];
  T l[kPart], std[kPart], dl[kPart], dstd[kPart];
  T u_buffer[kPart], d_buffer[kPart], e[kPart], r_buffer[kPart], w[kPart];
  const T *mu, *raw, *m, *v, *u, *d, *r;
  const LatentInputs* a;
  int n;

  template <class Isa>
  VK_INLINE void load(const LatentInputs& inputs, const Tile& tile) {
    a = &inputs;
    n = tile.size();
    mu = u = cpu::load(a->mu, tile, mu_buffer);
    raw = cpu::load(a->raw, tile, raw_buffer);
    d = l, r = std;
    if (a->prior()) {
      m = cpu::load(a->prior_mu, tile, m_buffer);
      v = cpu::load(a->prior_logvar, tile, v_buffer);
      u = u_buffer, d = d_buffer, r = r_buffer;
    }
    Isa::template run<LatentTile>(0, 1, this);  // compiled once for all kernels
  }

  VK_INLINE Relative<T> relative(int k) const { return {u[k], d[k], e[k], r[k], w[k]}; }

  template <class Isa>
  VK_INLINE void task(int64_t) const {
    LatentTile& self = const_cast<LatentTile&>(*this);
    a->floored() ? self.fill<true>() : self.fill<false>();
  }

 private:
  template <bool kFloored>
  VK_INLINE void fill() {
    switch (a->scale) {
      case Scale::kLogvar: return fill<Scale::kLogvar, kFloored>();
      case Scale::kLogstd: return fill<Scale::kLogstd, kFloored>();
      case Scale::kStd: return fill<Scale::kStd, kFloored>();
      case Scale::kVariance: return fill<Scale::kVariance, kFloored>();
      case Scale::kSoftplus: return fill<Scale::kSoftplus, kFloored>();
    }
  }

  template <Scale kScale, bool kFloored>
  VK_INLINE void fill() {
    const T floor = T(a->std_floor);
    const Clamp<T> clamp(a->low, a->high);
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) {
      Spread<T> s = spread<kScale>(raw[k]);
      if constexpr (kFloored) s = raised(s, floor);
      s = clamped(s, clamp);
      l[k] = s.l, std[k] = s.std, dl[k] = s.dl, dstd[k] = s.dstd;
    }
    if (!a->prior()) {
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) e[k] = vk::relative(mu[k], l[k], std[k]).e, w[k] = T(1);
      return;
    }
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) {
      const Relative<T> q = vk::relative(mu[k], l[k], std[k], m[k], v[k]);
      u_buffer[k] = q.u, d_buffer[k] = q.d, e[k] = q.e, r_buffer[k] = q.r, w[k] = q.w;
    }
  }
};

template <class T, bool kSampled>
struct Forward {
  static constexpr bool kAvx512 = is_float<T>;
  const LatentForward& a;
  Grid grid{a.rows, a.cols, false, kPart};
  RowSums<T> kl{grid, static_cast<T*>(a.kl), kSampled ? a.samples : 1};

  template <class Isa>
  VK_INLINE void put_kl(const Tile& tile, int64_t task, int64_t sample, const T* values) const {
    if (a.kl) {
      kl.template add<Isa>(tile, task, values, sample);
    } else {
      scatter(a.kl_elements, sample_tile(a, tile, sample), values);
    }
  }

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      T eps_buffer[kPart + kQuad], z_buffer[kPart], kl_values[kPart + kLanes];
      LatentTile<T> q;
      q.template load<Isa>(a, tile);
      const int n = tile.size();
      if constexpr (!kSampled) {
#pragma GCC ivdep
        for (int k = 0; k < n; ++k) kl_values[k] = analytic_kl(q.relative(k));
        put_kl<Isa>(tile, task, 0, kl_values);
      }
      for (int64_t sample = 0; sample < a.samples; ++sample) {
        const Tile z_tile = sample_tile(a, tile, sample);
        const T* eps = load_noise<Isa>(a, tile, sample, eps_buffer);
        T* z = target(a.z, z_tile, z_buffer);
#pragma GCC ivdep
        for (int k = 0; k < n; ++k) {
          z[k] = drawn(q.mu[k], q.std[k], eps[k]);
          if constexpr (kSampled) kl_values[k] = sampled_kl(q.relative(k), eps[k]);
        }
        store(a.z, z_tile, z, z_buffer);
        if constexpr (kSampled) put_kl<Isa>(tile, task, sample, kl_values);
      }
    });
  }
};

// With a sampled KL, a missing gradient of z counts as zero: the KL has terms of the same kind.
template <class T, bool kZ, bool kKl, bool kSampled>
struct Backward {
  static constexpr bool kAvx512 = is_float<T>;
  const LatentBackward& a;
  Grid grid{a.rows, a.cols, by_column(a.grad_prior_mu) || by_column(a.grad_prior_logvar), kPart};
  GradientWriter<T> prior_mu{a.grad_prior_mu, grid}, prior_logvar{a.grad_prior_logvar, grid};

  // Upstream gradients, summed over the samples.
  struct Sums {
    T z[kPart], z_eps[kPart], kl[kPart], kl_eps[kPart], kl_eps2[kPart];
  };

  VK_INLINE void add(Sums& sums, int k, bool first, const Upstream<T>& up) const {
    const auto add = [&](T* sum, T value) __attribute__((always_inline)) { sum[k] = first ? value : sum[k] + value; };
    if constexpr (kZ) add(sums.z, up.z), add(sums.z_eps, up.z_eps);
    if constexpr (kSampled) add(sums.kl, up.kl), add(sums.kl_eps, up.kl_eps), add(sums.kl_eps2, up.kl_eps2);
  }

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      Sums sums;
      LatentTile<T> q;
      q.template load<Isa>(a, tile);
      const int n = tile.size();
      if (kZ || kSampled || a.grad_eps.data) {
        for (int64_t sample = 0; sample < a.samples; ++sample) add_sample<Isa>(tile, sample, q, sums);
      }
      T grad_kl_buffer[kPart], mu_buffer[kPart], raw_buffer[kPart], m_buffer[kPart + kLanes], v_buffer[kPart + kLanes];
      const T* grad_kl = sums.kl;
      if constexpr (kKl && !kSampled) grad_kl = load(a.grad_kl, tile, grad_kl_buffer);
      T* grad_mu = target(a.grad_mu, tile, mu_buffer);
      T* grad_raw = target(a.grad_raw, tile, raw_buffer);
      T* grad_m = prior_mu.target(tile, m_buffer);
      T* grad_v = prior_logvar.target(tile, v_buffer);
      const auto loop = [&](auto path) __attribute__((always_inline)) {
#pragma GCC ivdep
        for (int k = 0; k < n; ++k) {
          Upstream<T> up{T(0), T(0), T(0), T(0), T(0)};
          if constexpr (kZ) up.z = sums.z[k], up.z_eps = sums.z_eps[k];
          if constexpr (kKl) up.kl = grad_kl[k];
          if constexpr (kSampled) up.kl_eps = sums.kl_eps[k], up.kl_eps2 = sums.kl_eps2[k];
          const LatentGradient<T> g = latent_gradient<kZ, kKl, kSampled>(q.relative(k), q.std[k], up, path);
          grad_mu[k] = g.mu;
          grad_raw[k] = gradient_of_raw<kZ, kKl, kSampled>(q.relative(k), q.dl[k], q.dstd[k], g, up.kl, path);
          grad_m[k] = g.prior_mu;
          grad_v[k] = g.prior_logvar;
        }
      };
      kSampled&& a.estimator == KlEstimator::kPath ? loop(std::true_type()) : loop(std::false_type());
      if (a.grad_mu.data) store(a.grad_mu, tile, grad_mu, mu_buffer);
      if (a.grad_raw.data) store(a.grad_raw, tile, grad_raw, raw_buffer);
      prior_mu.template write<Isa>(tile, task, grad_m, m_buffer);
      prior_logvar.template write<Isa>(tile, task, grad_v, v_buffer);
    });
  }

  template <class Isa>
  VK_INLINE void add_sample(const Tile& tile, int64_t sample, const LatentTile<T>& q, Sums& sums) const {
    T eps_buffer[kPart + kQuad], grad_z_buffer[kPart], grad_kl_buffer[kPart], grad_eps_buffer[kPart];
    const Tile z_tile = sample_tile(a, tile, sample);
    const T *eps = q.mu, *grad_z = q.mu, *grad_kl = q.mu;  // unused values may be anything
    if (kSampled || (kZ && a.grad_raw.data)) eps = load_noise<Isa>(a, tile, sample, eps_buffer);
    if (kZ && a.grad_z.data) {
      grad_z = load(a.grad_z, z_tile, grad_z_buffer);
    } else if (kZ) {
      std::fill(grad_z_buffer, grad_z_buffer + tile.size(), T(0));
      grad_z = grad_z_buffer;
    }
    if constexpr (kSampled) grad_kl = load(a.grad_kl, z_tile, grad_kl_buffer);
    const int n = tile.size();
    const auto loop = [&](auto first) __attribute__((always_inline)) {
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        const T gkl_eps = grad_kl[k] * eps[k];
        add(sums, k, first, {grad_z[k], grad_z[k] * eps[k], grad_kl[k], gkl_eps, gkl_eps * eps[k]});
      }
    };
    sample == 0 ? loop(std::true_type()) : loop(std::false_type());
    if (!a.grad_eps.data) return;
    T* grad_eps = target(a.grad_eps, z_tile, grad_eps_buffer);
#pragma GCC ivdep
    for (int k = 0; k < n; ++k) {
      T g = T(0);
      if (kZ && a.grad_z.data) g = grad_z[k] * q.std[k];
      if constexpr (kSampled) g += sampled_kl_gradient_eps(q.relative(k), eps[k], grad_kl[k]);
      grad_eps[k] = g;
    }
    store(a.grad_eps, z_tile, grad_eps, grad_eps_buffer);
  }
};

template <class Kernel>
void run(const Kernel& kernel, ParallelFor parallel) {
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
}

template <class Kernel>
void run_forward(const LatentForward& a, ParallelFor parallel) {
  const Kernel kernel{a};
  run(kernel, parallel);
  if (a.kl) kernel.kl.finish();
}

// True if the loop itself converts bfloat16. With a clamp's comparisons gcc does not vectorize such a loop: it takes
// four times as long as converting tiles first.
template <Form kForm>
constexpr bool kConverts = kForm != Form::kClamped;

template <class T>
void forward(const LatentForward& a, ParallelFor parallel) {
  if constexpr (is_float<T>) {
    if (is_plain(a)) {
      return with_form(a, [&](auto form) {
        if constexpr (kConverts<form()>) {
          using Converting = PlainForward<form(), BFloat16>;
          if (Converting::fits(a)) return run_forward<Converting>(a, parallel);
        }
        run_forward<PlainForward<form(), T>>(a, parallel);
      });
    }
  }
  const bool sampled = a.estimator != KlEstimator::kAnalytic;
  sampled ? run_forward<Forward<T, true>>(a, parallel) : run_forward<Forward<T, false>>(a, parallel);
}

template <class Kernel>
void run_backward(const LatentBackward& a, ParallelFor parallel) {
  const Kernel kernel{a};
  run(kernel, parallel);
  kernel.prior_mu.finish();
  kernel.prior_logvar.finish();
}

template <class T>
void backward(const LatentBackward& a, ParallelFor parallel) {
  const bool z = a.grad_z.data, kl = a.grad_kl.data;
  if constexpr (is_float<T>) {
    if (is_plain(a) && z && kl) {
      return with_form(a, [&](auto form) {
        if constexpr (kConverts<form()>) {
          using Converting = PlainBackward<form(), BFloat16>;
          if (Converting::fits(a)) return run_backward<Converting>(a, parallel);
        }
        run_backward<PlainBackward<form(), T>>(a, parallel);
      });
    }
  }
  if (kl && a.estimator != KlEstimator::kAnalytic) return run_backward<Backward<T, true, true, true>>(a, parallel);
  if (z && kl) return run_backward<Backward<T, true, true, false>>(a, parallel);
  z ? run_backward<Backward<T, true, false, false>>(a, parallel)
    : run_backward<Backward<T, false, true, false>>(a, parallel);
}

// If only one of the prior's two tensors is given, the other is 0.
template <class Arguments>
Arguments completed(Arguments a) {
  static const double zero = 0;
  for (View* view : {&a.prior_mu, &a.prior_logvar}) {
    if (!a.prior() || view->data) continue;
    view->data = const_cast<double*>(&zero);
    view->type = Type::kFloat64;
    view->col_inner = std::max<int64_t>(a.cols, 1);
  }
  return a;
}

}  // namespace

void latent_forward(const LatentForward& arguments, ParallelFor parallel) {
  const LatentForward a = completed(arguments);
  expect_writes(a.z, a.samples * a.rows * a.cols);
  a.arithmetic == Type::kFloat64 ? forward<double>(a, parallel) : forward<float>(a, parallel);
}

void latent_backward(const LatentBackward& arguments, ParallelFor parallel) {
  const LatentBackward a = completed(arguments);
  for (const View& view : {a.grad_mu, a.grad_raw}) expect_writes(view, a.rows * a.cols);
  for (const Gradient* gradient : {&a.grad_prior_mu, &a.grad_prior_logvar}) {
    expect_writes(gradient->elements(), a.rows * a.cols);
  }
  a.arithmetic == Type::kFloat64 ? backward<double>(a, parallel) : backward<float>(a, parallel);
}

}  // namespace vk::cpu
