#include "../formulas/multinomial.h"
#include "positions.h"

namespace vk::cuda {
namespace {

// Calls f(packs, pack, n) for all packs of a thread, one after the other; n is the number of classes in the pack.
template <class Access, class F>
__device__ __forceinline__ void for_packs(const Positions<Access>& all, int64_t row, const F& f) {
  if (row >= all.positions) return;
  for (int part = 0; part < all.grid.parts; ++part) {
    const Packs packs = all.packs(row, part);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      f(packs, pack, Access::count(packs, pack, all.classes));
    }
  }
}

// A pack of a tensor. Where there is no class, counts are 0.
template <bool kIntegers, class Access, class T, int kWidth>
__device__ __forceinline__ void load(const Operand& x, const Packs& packs, int pack, int n, T (&values)[kWidth]) {
  Access::template load<kIntegers>(x, Access::run(x, packs), pack, n, values);
}

// The sum over all threads of a group, from one sum for each quad of a pack.
template <class Access, class T = typename Access::T>
__device__ __forceinline__ T group_total(const Positions<Access>& all, const T (&sums)[Access::kQuads]) {
  T sum = T(0);
#pragma unroll
  for (int q = 0; q < Access::kQuads; ++q) sum += sums[q];
  return all.groups.template fold<Positions<Access>::kMostThreads>(sum, [](T a, T b) { return a + b; });
}

// The log-probability of each position. A group reads its logits again, from a cache, when it knows the largest one.
template <class Access>
__global__ void __launch_bounds__(Positions<Access>::kMostThreads)
    multinomial_log_prob_kernel(const __grid_constant__ Positions<Access> all, bool coefficient,
                                typename Access::T* log_probs) {
  using T = typename Access::T;
  const int64_t row = all.groups.task();
  const Normalizer<T> normalizer = all.normalize(row);
  T counts[Access::kQuads] = {}, weighted[Access::kQuads] = {}, factorials[Access::kQuads] = {};
  for_packs(all, row, [&](const Packs& packs, int pack, int n) {
    T logits[Access::kWidth], x[Access::kWidth];
    load<false, Access>(all.logits, packs, pack, n, logits);
    load<true, Access>(all.x, packs, pack, n, x);
#pragma unroll
    for (int k = 0; k < Access::kWidth; ++k) {
      counts[k / 4] += x[k];
      weighted[k / 4] += weighted_logit(logits[k], x[k], normalizer.largest);
    }
    if (!coefficient) return;
#pragma unroll
    for (int k = 0; k < Access::kWidth; ++k) {  // where there are many classes, most counts are 0 or 1
      if (x[k] != T(0) && x[k] != T(1)) factorials[k / 4] += log_factorial(x[k]);
    }
  });
  const T count = group_total(all, counts), of_logits = group_total(all, weighted);
  const T of_coefficient = group_total(all, factorials);
  if (all.groups.lane() != 0 || row >= all.positions) return;
  const T log_p = multinomial_log_prob(normalizer, count, of_logits);
  log_probs[row] = coefficient ? log_p + (log_factorial(count) - of_coefficient) : log_p;
}

// The gradients of each position. A group reads logits and counts again, from a cache, when it knows their sums.
template <class Access>
__global__ void __launch_bounds__(Positions<Access>::kMostThreads)
    multinomial_gradient_kernel(const __grid_constant__ Positions<Access> all, bool coefficient,
                                const __grid_constant__ Operand grad, const __grid_constant__ Operand grad_logits,
                                const __grid_constant__ Operand grad_x) {
  using T = typename Access::T;
  const int64_t row = all.groups.task();
  const Normalizer<T> normalizer = all.normalize(row);
  T counts[Access::kQuads] = {};
  for_packs(all, row, [&](const Packs& packs, int pack, int n) {
    T x[Access::kWidth];
    load<true, Access>(all.x, packs, pack, n, x);
#pragma unroll
    for (int k = 0; k < Access::kWidth; ++k) counts[k / 4] += x[k];
  });
  const T count = group_total(all, counts);
  if (row >= all.positions) return;
  const MultinomialGradient<T> g(normalizer, count, load_element<T>(grad, grad.row_offset(row)));
  const T slope = log_factorial_slope(count);
  for_packs(all, row, [&](const Packs& packs, int pack, int n) {
    T logits[Access::kWidth], x[Access::kWidth], values[Access::kWidth];
    load<false, Access>(all.logits, packs, pack, n, logits);
    load<true, Access>(all.x, packs, pack, n, x);
    if (grad_logits.data) {
#pragma unroll
      for (int k = 0; k < Access::kWidth; ++k) {
        values[k] = g.to_logit(logits[k], exp_minus(normalizer.largest - logits[k]), x[k]);
      }
      Access::store(grad_logits, Access::run(grad_logits, packs), pack, n, values);
    }
    if (grad_x.data) {
#pragma unroll
      for (int k = 0; k < Access::kWidth; ++k) {
        values[k] = coefficient ? g.to_x(logits[k], x[k], slope) : g.to_x(logits[k], x[k]);
      }
      Access::store(grad_x, Access::run(grad_x, packs), pack, n, values);
    }
  });
}

constexpr const char* kForward = "vae_kernels_cuda::multinomial_forward";
constexpr const char* kBackward = "vae_kernels_cuda::multinomial_backward";

// The logits and counts, if they can be accessed in this way.
template <class Access>
bool serves(const Positions<Access>& all) {
  return Access::serves(all.logits, all.classes) && Access::serves(all.x, all.classes);
}

template <class Access>
bool forward(const MultinomialForward& a, const Queue& queue) {
  using T = typename Access::T;
  const Positions<Access> all = Positions<Access>(a).narrow(a.positions);
  if (!serves(all)) return false;
  auto* sums = static_cast<T*>(a.log_prob);
  const bool summed = a.positions != a.samples;
  T* log_probs = summed ? static_cast<T*>(queue.scratch(a.positions * sizeof(T))) : sums;
  launch(kForward, multinomial_log_prob_kernel<Access>, all.blocks(a.positions), all.threads(), queue, all,
         a.coefficient, log_probs);
  if (summed && a.samples > 0) {
    sum_axis<T>(kForward, log_probs, a.samples, a.positions / a.samples, 1, sums, type_of<T>, queue);
  }
  return true;
}

template <class Access>
bool backward(const MultinomialBackward& a, const Queue& queue) {
  const Positions<Access> all = Positions<Access>(a).narrow(a.positions);
  const Operand grad(a.grad, 1, 4);
  const Operand grad_logits(a.grad_logits, a.classes, Access::kWidth), grad_x(a.grad_x, a.classes, Access::kWidth);
  for (const Operand* gradient : {&grad_logits, &grad_x}) {
    if (gradient->data && !Access::serves(*gradient, a.classes)) return false;
  }
  if (!serves(all)) return false;
  launch(kBackward, multinomial_gradient_kernel<Access>, all.blocks(a.positions), all.threads(), queue, all,
         a.coefficient, grad, grad_logits, grad_x);
  return true;
}

}  // namespace

void multinomial_forward(const MultinomialForward& a, const Queue& queue) {
  if (a.arithmetic == Type::kFloat64) return void(forward<Elements<double, 4>>(a, queue));
  forward<Vectors<float>>(a, queue) || forward<Vectors<BFloat16>>(a, queue) || forward<Vectors<Float16>>(a, queue) ||
      forward<Elements<float, 8>>(a, queue);
}

void multinomial_backward(const MultinomialBackward& a, const Queue& queue) {
  if (a.arithmetic == Type::kFloat64) return void(backward<Elements<double, 4>>(a, queue));
  backward<Vectors<float>>(a, queue) || backward<Vectors<BFloat16>>(a, queue) || backward<Vectors<Float16>>(a, queue) ||
      backward<Elements<float, 8>>(a, queue);
}

}  // namespace vk::cuda
