#include "../formulas/latent.h"
#include "coarse.h"
#include "columns.h"
#include "dispatch.h"
#include "noise.h"
#include "rows.h"

namespace vk::cuda {
namespace {

// The plain latent step, the most common case: one z of one seed, the analytic KL, a log-variance.
bool is_plain(const LatentInputs& a) {
  return a.seeds && !a.own_seeds && a.samples == 1 && !a.sampled() && a.scale == Scale::kLogvar && !a.floored();
}

// True if the noise is that of half types, for forward and backward alike. A sampled KL depends on the noise itself, so
// it never uses this noise.
bool has_coarse_noise(const LatentInputs& a) {
  return is_half(a.mu.type) && is_half(a.raw.type) && a.arithmetic == Type::kFloat32 && !a.sampled();
}

// With 64 registers, a half type spills 8 bytes on sm_80; with 72, a clamped float16 spills 16 bytes on sm_90.
template <class Access, bool kClamped, bool kPrior>
constexpr int kPlainRegisters = Access::kQuads == 1 ? (kPrior ? 80 : 64) : (kPrior ? 96 : 72);
template <>
constexpr int kPlainRegisters<Vectors<Float16>, true, false> = 80;

// The inputs of the plain kernels: a log-variance as it is or clamped, and the prior's mu and logvar if it is not
// N(0, 1).
template <class Access, bool kClamped, bool kPrior>
struct Plain {
  using T = typename Access::T;
  static constexpr int kWidth = Access::kWidth, kQuads = Access::kQuads;
  static constexpr int kThreads = Access::kThreads, kRegisters = kPlainRegisters<Access, kClamped, kPrior>;
  using Values = T[kWidth];
  int64_t cols;
  const int64_t* seed;
  Clamp<float> clamp;
  Operand mu, logvar, prior_mu, prior_logvar;

  explicit Plain(const LatentInputs& a)
      : cols(a.cols),
        seed(a.seeds),
        clamp(a.low, a.high),
        mu(a.mu, cols, kWidth),
        logvar(a.raw, cols, kWidth),
        prior_mu(a.prior_mu, cols, kWidth),
        prior_logvar(a.prior_logvar, cols, kWidth) {}

  bool serves(const Operand& x) const { return x.data && Access::serves(x, cols); }

  bool serves(const LatentInputs& a) const {
    const bool prior = kPrior ? serves(prior_mu) && serves(prior_logvar) : !a.prior();
    return is_plain(a) && a.clamped() == kClamped && serves(mu) && serves(logvar) && prior;
  }

  __device__ __forceinline__ Stream<Access::kHalf> stream(const Packs& packs) const {
    return {uint64_t(*seed), uint64_t(packs.row), uint64_t(packs.first) * kQuads};
  }

  __device__ __forceinline__ static void draw(const Stream<Access::kHalf>& stream, int pack, Values& eps) {
#pragma unroll
    for (int q = 0; q < kQuads; ++q) stream.draw(pack * kQuads + q, eps + 4 * q);
  }

  struct Runs {
    typename Access::Run mu, logvar, prior_mu, prior_logvar;
  };
  __device__ __forceinline__ Runs runs(const Packs& packs) const {
    Runs runs{Access::run(mu, packs), Access::run(logvar, packs)};
    if constexpr (kPrior)
      runs.prior_mu = Access::run(prior_mu, packs), runs.prior_logvar = Access::run(prior_logvar, packs);
    return runs;
  }

  struct LatentPack {
    Values mu, logvar, prior_mu, prior_logvar;
  };
  __device__ __forceinline__ void load(const Runs& runs, int pack, LatentPack& q) const {
    Access::load(mu, runs.mu, pack, kWidth, q.mu);
    Access::load(logvar, runs.logvar, pack, kWidth, q.logvar);
    if constexpr (kPrior) {
      Access::load(prior_mu, runs.prior_mu, pack, kWidth, q.prior_mu);
      Access::load(prior_logvar, runs.prior_logvar, pack, kWidth, q.prior_logvar);
    }
  }

  // The spread of element k, in the caller's arithmetic C.
  template <class C>
  __device__ __forceinline__ Spread<C> spread_of(const LatentPack& q, int k) const {
    const Spread<C> s = spread<Scale::kLogvar>(C(q.logvar[k]));
    if constexpr (kClamped) return clamped(s, Clamp<C>(clamp));
    return s;
  }
  template <class C>
  __device__ __forceinline__ static Relative<C> relative_to_prior(const LatentPack& q, int k, const Spread<C>& s) {
    if constexpr (kPrior) return relative(C(q.mu[k]), s.l, s.std, C(q.prior_mu[k]), C(q.prior_logvar[k]));
    return relative(C(q.mu[k]), s.l, s.std);
  }
};

template <class Access, bool kClamped, bool kPrior>
struct PlainForward : Plain<Access, kClamped, kPrior> {
  using Base = Plain<Access, kClamped, kPrior>;
  using Base::kWidth, Base::kQuads;
  using typename Base::T, typename Base::Values, typename Base::LatentPack;
  static constexpr bool kSums = true;
  Operand z;

  explicit PlainForward(const LatentForward& a) : Base(a), z(a.z, a.cols, kWidth) {}

  bool served(const LatentForward& a) const { return a.kl && Base::serves(a) && Base::serves(z); }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[kQuads]) const {
    const auto stream = this->stream(packs);
    const auto runs = this->runs(packs);
    const auto z_run = Access::run(z, packs);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      LatentPack q;
      Values e, kl;
      this->load(runs, pack, q);
      this->draw(stream, pack, e);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const Spread<T> s = this->template spread_of<T>(q, k);
        kl[k] = analytic_kl(this->relative_to_prior(q, k, s));
        e[k] = drawn(q.mu[k], s.std, e[k]);
      }
      add_quads(kl, sums);
      Access::store(z, z_run, pack, kWidth, e);
    }
  }
};

template <class Access, bool kClamped, bool kPrior>
struct PlainBackward : Plain<Access, kClamped, kPrior> {
  using Base = Plain<Access, kClamped, kPrior>;
  using Base::kWidth, Base::kQuads;
  using typename Base::T, typename Base::Values, typename Base::LatentPack;
  using C = std::conditional_t<Access::kHalf, Coarse, T>;  // arithmetic of the gradients
  static constexpr bool kSums = false;
  Operand grad_z, grad_kl, grad_mu, grad_logvar, grad_prior_mu, grad_prior_logvar;

  explicit PlainBackward(const LatentBackward& a)
      : Base(a),
        grad_z(a.grad_z, a.cols, kWidth),
        grad_kl(a.grad_kl, a.cols, kWidth),
        grad_mu(a.grad_mu, a.cols, kWidth),
        grad_logvar(a.grad_raw, a.cols, kWidth),
        grad_prior_mu(a.grad_prior_mu.elements(), a.cols, kWidth),
        grad_prior_logvar(a.grad_prior_logvar.elements(), a.cols, kWidth) {}

  bool served(const LatentBackward& a) const {
    bool all = Base::serves(a) && grad_kl.data && grad_kl.stride[2] == 0 && grad_kl.stride[3] == 0;
    for (const Operand* x : {&grad_z, &grad_mu, &grad_logvar}) all &= Base::serves(*x);
    if (kPrior) all &= Base::serves(grad_prior_mu) && Base::serves(grad_prior_logvar);
    return all;
  }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&)[kQuads]) const {
    const auto stream = this->stream(packs);
    const T gkl = load_element<T>(grad_kl, grad_kl.row_offset(packs.row));
    const auto runs = this->runs(packs);
    const auto grad_z_run = Access::run(grad_z, packs), grad_mu_run = Access::run(grad_mu, packs);
    const auto grad_logvar_run = Access::run(grad_logvar, packs);
    const auto grad_prior_mu_run = Access::run(grad_prior_mu, packs);
    const auto grad_prior_logvar_run = Access::run(grad_prior_logvar, packs);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      LatentPack q;
      Values gz, e;
      Access::load(grad_z, grad_z_run, pack, kWidth, gz);
      this->load(runs, pack, q);
      this->draw(stream, pack, e);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const Spread<C> s = this->template spread_of<C>(q, k);
        const Upstream<C> up{C(gz[k]), C(gz[k] * e[k]), C(gkl), C(0), C(0)};
        const LatentGradient<C> g = latent_gradient<true, true, false>(this->relative_to_prior(q, k, s), s.std, up);
        q.mu[k] = value(g.mu);
        q.logvar[k] = value(fused(s.dstd, g.std, s.dl * g.l));
        q.prior_mu[k] = value(g.prior_mu);
        q.prior_logvar[k] = value(g.prior_logvar);
      }
      Access::store(grad_mu, grad_mu_run, pack, kWidth, q.mu);
      Access::store(grad_logvar, grad_logvar_run, pack, kWidth, q.logvar);
      if constexpr (kPrior) {
        Access::store(grad_prior_mu, grad_prior_mu_run, pack, kWidth, q.prior_mu);
        Access::store(grad_prior_logvar, grad_prior_logvar_run, pack, kWidth, q.prior_logvar);
      }
    }
  }
};

// What all other cases share. Their variants are branches, which all threads take alike.
template <class Arithmetic>
struct General {
  using T = Arithmetic;
  using Access = Elements<T, 4>;
  static constexpr int kWidth = Access::kWidth, kQuads = Access::kQuads;
  static constexpr int kThreads = Access::kThreads, kRegisters = Access::kRegisters;
  static constexpr bool kLoop = !is_float<T>;
  int64_t rows, cols, samples;
  const int64_t* seeds;
  bool own_seeds, coarse_noise, prior, sampled, path;
  Operand mu, raw, prior_mu, prior_logvar, eps;
  Scale scale;
  T std_floor;
  Clamp<T> clamp;

  explicit General(const LatentInputs& a)
      : rows(a.rows),
        cols(a.cols),
        samples(a.samples),
        seeds(a.seeds),
        own_seeds(a.own_seeds),
        coarse_noise(has_coarse_noise(a)),
        prior(a.prior()),
        sampled(a.sampled()),
        path(a.estimator == KlEstimator::kPath),
        mu(a.mu, cols, kWidth),
        raw(a.raw, cols, kWidth),
        prior_mu(a.prior_mu, cols, kWidth),
        prior_logvar(a.prior_logvar, cols, kWidth),
        eps(a.eps, cols, kWidth),
        scale(a.scale),
        std_floor(T(a.std_floor)),
        clamp(a.low, a.high) {}

  // The same packs in another row.
  __device__ __forceinline__ static Packs at_row(Packs packs, int64_t row) {
    packs.row = row;
    return packs;
  }

  __device__ __forceinline__ static void load(const Operand& x, const Packs& packs, int pack, int n,
                                              T (&values)[kWidth]) {
    if (x.data) return Access::load(x, Access::run(x, packs), pack, n, values);
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] = T(0);
  }

  __device__ __forceinline__ static void store(const Operand& x, const Packs& packs, int pack, int n,
                                               const T (&values)[kWidth]) {
    if (x.data) Access::store(x, Access::run(x, packs), pack, n, values);
  }

  // The noise for packs of a row of mu. If each row has a seed, its samples count from 0.
  __device__ __forceinline__ void load_noise(const Packs& packs, int64_t sample, int pack, int n,
                                             T (&values)[kWidth]) const {
    if (seeds) {
      const uint64_t seed = uint64_t(seeds[own_seeds ? packs.row : 0]);
      const uint64_t subsequence = uint64_t(own_seeds ? sample : sample * rows + packs.row);
      if (coarse_noise) return Stream<true>(seed, subsequence, packs.first).draw(pack, values);
      return Stream<false>(seed, subsequence, packs.first).draw(pack, values);
    }
    load(eps, at_row(packs, sample * rows + packs.row), pack, n, values);
  }

  // A pack of q and of the prior.
  struct LatentPack {
    T mu[kWidth], l[kWidth], std[kWidth], dl[kWidth], dstd[kWidth], prior_mu[kWidth], prior_logvar[kWidth];
  };

  template <Scale kScale>
  __device__ __forceinline__ void set_spread(LatentPack& q) const {
    for_each<kLoop, kWidth>([&](int k) {
      Spread<T> s = spread<kScale>(pick(q.l, k));
      if (std_floor > T(0)) s = raised(s, std_floor);
      s = clamped(s, clamp);
      put(q.l, k, s.l), put(q.std, k, s.std), put(q.dl, k, s.dl), put(q.dstd, k, s.dstd);
    });
  }

  __device__ __forceinline__ void load_latent(const Packs& packs, int pack, int n, LatentPack& q) const {
    load(mu, packs, pack, n, q.mu);
    load(raw, packs, pack, n, q.l);
    load(prior_mu, packs, pack, n, q.prior_mu);
    load(prior_logvar, packs, pack, n, q.prior_logvar);
    switch (scale) {
      case Scale::kLogvar: return set_spread<Scale::kLogvar>(q);
      case Scale::kLogstd: return set_spread<Scale::kLogstd>(q);
      case Scale::kStd: return set_spread<Scale::kStd>(q);
      case Scale::kVariance: return set_spread<Scale::kVariance>(q);
      case Scale::kSoftplus: return set_spread<Scale::kSoftplus>(q);
    }
  }

  __device__ __forceinline__ Relative<T> relative_to_prior(const LatentPack& q, int k) const {
    const T mu = pick(q.mu, k), l = pick(q.l, k), std = pick(q.std, k);
    if (!prior) return relative(mu, l, std);
    const T m = pick(q.prior_mu, k), v = pick(q.prior_logvar, k);
    return relative(mu, l, std, m, v);
  }
};

// Runs over the rows of mu, with all their samples; if the KL is sampled, over the rows of z.
template <class Arithmetic>
struct Forward : General<Arithmetic> {
  using Base = General<Arithmetic>;
  using Base::kWidth, Base::kQuads, Base::kLoop;
  using typename Base::Access, typename Base::T, typename Base::LatentPack;
  static constexpr bool kSums = true;
  Operand z, kl_elements;

  explicit Forward(const LatentForward& a)
      : Base(a), z(a.z, a.cols, kWidth), kl_elements(a.kl_elements, a.cols, kWidth) {}

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[kQuads]) const {
    const int64_t first = this->sampled ? packs.row / this->rows : 0;
    const Packs of_mu = this->at_row(packs, packs.row - first * this->rows);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      const int n = Access::count(packs, pack, this->cols);
      T eps[kWidth], kl[kWidth];
      LatentPack q;
      this->load_latent(of_mu, pack, n, q);
      this->load_noise(of_mu, first, pack, n, eps);
      for_each<kLoop, kWidth>([&](int k) {
        const Relative<T> relative = this->relative_to_prior(q, k);
        put(kl, k, this->sampled ? sampled_kl(relative, pick(eps, k)) : analytic_kl(relative));
      });
#pragma unroll
      for (int k = 0; k < kWidth; ++k) kl[k] = k < n ? kl[k] : T(0);
      add_quads(kl, sums);
      this->store(kl_elements, packs, pack, n, kl);
      store_z(packs, pack, n, q, eps);
      for (int64_t sample = 1; sample < this->samples && !this->sampled; ++sample) {
        this->load_noise(of_mu, sample, pack, n, eps);
        store_z(this->at_row(packs, sample * this->rows + packs.row), pack, n, q, eps);
      }
    }
  }

  __device__ __forceinline__ void store_z(const Packs& packs, int pack, int n, const LatentPack& q,
                                          const T (&eps)[kWidth]) const {
    T values[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k) values[k] = drawn(q.mu[k], q.std[k], eps[k]);
    this->store(z, packs, pack, n, values);
  }
};

// Runs over the rows of mu. Stores the gradients that are as large as mu or z, and hands those of the prior to `add`.
template <class Arithmetic>
struct Backward : General<Arithmetic> {
  using Base = General<Arithmetic>;
  using Base::kWidth, Base::kLoop;
  using typename Base::Access, typename Base::T, typename Base::LatentPack;
  Operand grad_z, grad_kl, grad_mu, grad_raw, grad_eps;
  bool noisy;  // true if a gradient depends on the noise

  explicit Backward(const LatentBackward& a)
      : Base(a),
        grad_z(a.grad_z, a.cols, kWidth),
        grad_kl(a.grad_kl, a.cols, kWidth),
        grad_mu(a.grad_mu, a.cols, kWidth),
        grad_raw(a.grad_raw, a.cols, kWidth),
        grad_eps(a.grad_eps, a.cols, kWidth),
        noisy((a.sampled() && a.grad_kl.data) || (a.grad_z.data && a.grad_raw.data)) {}

  // Upstream gradients, summed over the samples.
  struct Sums {
    T z[kWidth] = {}, z_eps[kWidth] = {}, kl[kWidth] = {}, kl_eps[kWidth] = {}, kl_eps2[kWidth] = {};
  };

  __device__ __forceinline__ void load_sums(const Packs& packs, int pack, int n, Sums& sums) const {
    if (!this->sampled) this->load(grad_kl, packs, pack, n, sums.kl);
    for (int64_t sample = 0; sample < this->samples; ++sample) {
      const Packs of_z = this->at_row(packs, sample * this->rows + packs.row);
      T gz[kWidth], gkl[kWidth] = {}, eps[kWidth] = {};
      this->load(grad_z, of_z, pack, n, gz);
      if (this->sampled) this->load(grad_kl, of_z, pack, n, gkl);
      if (noisy) this->load_noise(packs, sample, pack, n, eps);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        sums.z[k] += gz[k];
        sums.z_eps[k] = fused(gz[k], eps[k], sums.z_eps[k]);
        if (this->sampled) {
          const T gkl_eps = gkl[k] * eps[k];
          sums.kl[k] += gkl[k];
          sums.kl_eps[k] += gkl_eps;
          sums.kl_eps2[k] = fused(gkl_eps, eps[k], sums.kl_eps2[k]);
        }
      }
    }
  }

  // With a sampled KL, a missing gradient of z counts as zero: the KL has terms of the same kind.
  __device__ __forceinline__ LatentGradient<T> gradient(const Relative<T>& q, T std, const Upstream<T>& up) const {
    if (!grad_kl.data) return latent_gradient<true, false, false>(q, std, up);
    if (this->sampled) return latent_gradient<true, true, true>(q, std, up, this->path);
    if (grad_z.data) return latent_gradient<true, true, false>(q, std, up);
    return latent_gradient<false, true, false>(q, std, up);
  }

  // The gradient to raw, in the same cases.
  __device__ __forceinline__ T by_raw(const Relative<T>& q, T dl, T dstd, const LatentGradient<T>& g, T kl) const {
    if (!grad_kl.data) return gradient_of_raw<true, false, false>(q, dl, dstd, g, kl, false);
    if (this->sampled) return gradient_of_raw<true, true, true>(q, dl, dstd, g, kl, this->path);
    if (grad_z.data) return gradient_of_raw<true, true, false>(q, dl, dstd, g, kl, false);
    return gradient_of_raw<false, true, false>(q, dl, dstd, g, kl, false);
  }

  template <class Add>
  __device__ __forceinline__ void operator()(const Packs& packs, const Add& add) const {
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      const int n = Access::count(packs, pack, this->cols);
      LatentPack q;
      T to_m[kWidth], to_v[kWidth];
      {
        Sums sums;
        T to_mu[kWidth], to_raw[kWidth];
        load_sums(packs, pack, n, sums);
        this->load_latent(packs, pack, n, q);
        for_each<kLoop, kWidth>([&](int k) {
          const Upstream<T> up{pick(sums.z, k), pick(sums.z_eps, k), pick(sums.kl, k), pick(sums.kl_eps, k),
                               pick(sums.kl_eps2, k)};
          const Relative<T> relative = this->relative_to_prior(q, k);
          const LatentGradient<T> g = gradient(relative, pick(q.std, k), up);
          put(to_mu, k, g.mu), put(to_raw, k, by_raw(relative, pick(q.dl, k), pick(q.dstd, k), g, up.kl));
          put(to_m, k, g.prior_mu), put(to_v, k, g.prior_logvar);
        });
        this->store(grad_mu, packs, pack, n, to_mu);
        this->store(grad_raw, packs, pack, n, to_raw);
      }
      add(pack, n, to_m, to_v);
      if (grad_eps.data) store_grad_eps(packs, pack, n, q);
    }
  }

  __device__ __forceinline__ void store_grad_eps(const Packs& packs, int pack, int n, const LatentPack& q) const {
    for (int64_t sample = 0; sample < this->samples; ++sample) {
      const Packs of_z = this->at_row(packs, sample * this->rows + packs.row);
      T gz[kWidth], gkl[kWidth], eps[kWidth];
      this->load(grad_z, of_z, pack, n, gz);
      const bool of_kl = this->sampled && grad_kl.data;
      if (of_kl) this->load(grad_kl, of_z, pack, n, gkl), this->load(this->eps, of_z, pack, n, eps);
      for_each<kLoop, kWidth>([&](int k) {
        T g = grad_z.data ? pick(gz, k) * pick(q.std, k) : T(0);
        if (of_kl) g += sampled_kl_gradient_eps(this->relative_to_prior(q, k), pick(eps, k), pick(gkl, k));
        put(gz, k, g);
      });
      this->store(grad_eps, of_z, pack, n, gz);
    }
  }
};

template <class Arithmetic>
struct RowBackward : Backward<Arithmetic> {
  using Base = Backward<Arithmetic>;
  using Base::kWidth;
  using typename Base::T;
  static constexpr bool kSums = false;
  Operand grad_prior_mu, grad_prior_logvar;

  explicit RowBackward(const LatentBackward& a)
      : Base(a),
        grad_prior_mu(a.grad_prior_mu.elements(), a.cols, kWidth),
        grad_prior_logvar(a.grad_prior_logvar.elements(), a.cols, kWidth) {}

  __device__ __forceinline__ void operator()(const Packs& packs, T (&)[Base::kQuads]) const {
    Base::operator()(packs, [&](int pack, int n, const T(&to_m)[kWidth], const T(&to_v)[kWidth]) {
      this->store(grad_prior_mu, packs, pack, n, to_m);
      this->store(grad_prior_logvar, packs, pack, n, to_v);
    });
  }
};

// For a tensor of the prior that all rows share.
template <class Arithmetic>
struct ColumnBackward : RowBackward<Arithmetic> {
  using Base = RowBackward<Arithmetic>;
  using Base::kWidth;
  using typename Base::T;
  static constexpr int kSums = 2;
  bool summed[kSums];

  explicit ColumnBackward(const LatentBackward& a)
      : Base(a), summed{a.grad_prior_mu.is_sum(), a.grad_prior_logvar.is_sum()} {}

  __device__ __forceinline__ bool wanted(int i) const { return summed[i]; }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[kSums][kWidth]) const {
    Backward<Arithmetic>::operator()(packs, [&](int pack, int n, const T(&to_m)[kWidth], const T(&to_v)[kWidth]) {
      this->store(this->grad_prior_mu, packs, pack, n, to_m);
      this->store(this->grad_prior_logvar, packs, pack, n, to_v);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        sums[0][k] += k < n ? to_m[k] : T(0);
        sums[1][k] += k < n ? to_v[k] : T(0);
      }
    });
  }
};

constexpr const char* kForward = "vae_kernels_cuda::latent_forward";
constexpr const char* kBackward = "vae_kernels_cuda::latent_backward";

template <class T>
void general_forward(const LatentForward& a, const Queue& queue) {
  const RowGrid grid(a.sampled() ? a.samples * a.rows : a.rows, a.cols);
  launch_rows(kForward, Forward<T>(a), grid, static_cast<T*>(a.kl), queue);
}

template <class T>
void general_backward(const LatentBackward& a, const Queue& queue) {
  if (a.grad_prior_mu.is_sum() || a.grad_prior_logvar.is_sum()) {
    const Gradient* const sums[] = {&a.grad_prior_mu, &a.grad_prior_logvar};
    launch_columns(kBackward, ColumnBackward<T>(a), a.rows, a.cols, sums, queue);
  } else {
    launch_rows(kBackward, RowBackward<T>(a), RowGrid(a.rows, a.cols), static_cast<T*>(nullptr), queue);
  }
}

template <class Body, class Arguments>
bool launch_plain(const char* op, const Arguments& a, float* kl, const Queue& queue) {
  const Body body(a);
  if (!body.served(a)) return false;
  launch_rows(op, body, RowGrid(a.rows, a.cols), kl, queue);
  return true;
}

// Launches the plain kernel that serves the call; returns false if there is none.
template <template <class, bool, bool> class Body, class Access, class Arguments>
bool plain(const char* op, const Arguments& a, float* kl, const Queue& queue) {
  return launch_plain<Body<Access, false, false>>(op, a, kl, queue) ||
         launch_plain<Body<Access, true, false>>(op, a, kl, queue) ||
         launch_plain<Body<Access, false, true>>(op, a, kl, queue);
}
template <template <class, bool, bool> class Body, class Arguments>
bool plain(const char* op, const Arguments& a, float* kl, const Queue& queue) {
  return plain<Body, Vectors<float>>(op, a, kl, queue) || plain<Body, Vectors<BFloat16>>(op, a, kl, queue) ||
         plain<Body, Vectors<Float16>>(op, a, kl, queue);
}

}  // namespace

void latent_forward(const LatentForward& a, const Queue& queue) {
  if (a.arithmetic == Type::kFloat64) return general_forward<double>(a, queue);
  if (!plain<PlainForward>(kForward, a, static_cast<float*>(a.kl), queue)) general_forward<float>(a, queue);
}

void latent_backward(const LatentBackward& a, const Queue& queue) {
  if (a.arithmetic == Type::kFloat64) return general_backward<double>(a, queue);
  if (!plain<PlainBackward>(kBackward, a, nullptr, queue)) general_backward<float>(a, queue);
}

}  // namespace vk::cuda
