#include "positions.h"

namespace vk::cuda {
namespace {

// The normalizers of each thread, (tasks, lanes, quads of a pack), if a group has several blocks.
template <class Access>
__global__ void __launch_bounds__(Positions<Access>::kMostThreads, Positions<Access>::kBlocks)
    gather_kernel(const __grid_constant__ Positions<Access> all, Normalizer<typename Access::T>* lanes) {
  const int64_t task = all.groups.task(), row = all.grid.parts == 1 ? task : task / all.grid.parts;
  Normalizer<typename Access::T> found[Access::kQuads];
  all.gather(row, int(task - row * all.grid.parts), found);
#pragma unroll
  for (int q = 0; q < Access::kQuads; ++q) {
    lanes[(task * all.groups.threads + all.groups.lane()) * Access::kQuads + q] = found[q];
  }
}

// The normalizer of each part of each position, from the logits or from the normalizers of each thread; if there is
// only one part, the log-probability instead.
template <class Access>
__global__ void __launch_bounds__(Positions<Access>::kMostThreads, Positions<Access>::kBlocks)
    normalize_kernel(const __grid_constant__ Positions<Access> all, const Normalizer<typename Access::T>* lanes,
                     Normalizer<typename Access::T>* parts, typename Access::T* log_probs) {
  const int64_t task = all.groups.task(), row = all.grid.parts == 1 ? task : task / all.grid.parts;
  Normalizer<typename Access::T> found[Access::kQuads];
  if (lanes) {
#pragma unroll
    for (int q = 0; q < Access::kQuads; ++q) {
      found[q] = lanes[(task * all.groups.threads + all.groups.lane()) * Access::kQuads + q];
    }
  } else {
    all.gather(row, int(task - row * all.grid.parts), found);
  }
  const Normalizer<typename Access::T> n = all.join(found);
  if (all.groups.lane() != 0 || row >= all.positions) return;
  if (parts) {
    parts[task] = n;
  } else {
    log_probs[row] = log_prob(n, all.logit(row, all.class_of(row)));
  }
}

// Merges the parts of each position into its normalizer or its log-probability.
template <class T>
__global__ void __launch_bounds__(kBlockQuads)
    merge_kernel(const __grid_constant__ Classes<T> all, const Normalizer<T>* parts, int count,
                 Normalizer<T>* normalizers, T* log_probs) {
  const int64_t row = int64_t(blockIdx.x) * kBlockQuads + int(threadIdx.x);
  if (row >= all.positions) return;
  Normalizer<T> n;
  for (int part = 0; part < count; ++part) n.merge(parts[row * count + part]);
  if (normalizers) {
    normalizers[row] = n;
  } else {
    log_probs[row] = log_prob(n, all.logit(row, all.class_of(row)));
  }
}

// Stores the gradients of the parts [begin, end) of a position with the normalizer n.
template <class Access, class T = typename Access::T>
__device__ __forceinline__ void store_gradients(const Positions<Access>& all, const Operand& grad,
                                                const Operand& grad_logits, int64_t row, int begin, int end,
                                                const Normalizer<T>& n) {
  constexpr int kWidth = Access::kWidth, kAhead = 2;  // 4 would need too many registers
  const int64_t x = all.class_of(row);
  const T upstream = load_element<T>(grad, grad.row_offset(row));
  const T scale = all.is_class(x) ? -upstream / n.total() : T(NAN);
  const T of_x = upstream * one_minus_prob(n, all.logit(row, x));
  for (int part = begin; part < end; ++part) {
    const Packs packs = all.packs(row, part);
    const auto run = Access::run(all.logits, packs), grad_run = Access::run(grad_logits, packs);
    for (int pack = packs.begin; pack < packs.end; pack += kAhead * packs.step) {
      T values[kAhead][kWidth];
      all.load(packs, run, pack, values);
      all.template for_packs<kAhead>(packs, pack, [&](int i, int at, int count) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[i][k] = scale * exp_minus(n.largest - values[i][k]);
        const int64_t k = x - (packs.first + at) * kWidth;
        if (uint64_t(k) < uint64_t(kWidth)) put(values[i], int(k), of_x);
        Access::store(grad_logits, grad_run, at, count, values[i]);
      });
    }
  }
}

// A group computes the normalizer of a position and reads the logits again, from a cache.
template <class Access>
__global__ void __launch_bounds__(Positions<Access>::kMostThreads, Positions<Access>::kBlocks)
    gradient_kernel(const __grid_constant__ Positions<Access> all, const __grid_constant__ Operand grad,
                    const __grid_constant__ Operand grad_logits) {
  const int64_t row = all.groups.task();
  const Normalizer<typename Access::T> n = all.normalize(row);
  if (row < all.positions) store_gradients(all, grad, grad_logits, row, 0, all.grid.parts, n);
}

// A group has one part of a position with a known normalizer.
template <class Access>
__global__ void __launch_bounds__(Positions<Access>::kMostThreads, Positions<Access>::kBlocks)
    part_gradient_kernel(const __grid_constant__ Positions<Access> all, const __grid_constant__ Operand grad,
                         const __grid_constant__ Operand grad_logits, const Normalizer<typename Access::T>* known) {
  const int64_t task = all.groups.task(), row = task / all.grid.parts;
  const int part = int(task - row * all.grid.parts);
  if (row < all.positions) store_gradients(all, grad, grad_logits, row, part, part + 1, known[row]);
}

constexpr const char* kForward = "vae_kernels_cuda::categorical_forward";
constexpr const char* kBackward = "vae_kernels_cuda::categorical_backward";

// Computes the normalizers of all parts of all positions, or, if there is only one part, their log-probabilities.
template <class Access, class T = typename Access::T>
void launch_normalize(const char* op, const Positions<Access>& all, Normalizer<T>* parts, T* log_probs,
                      const Queue& queue) {
  const int64_t tasks = all.positions * all.grid.parts;
  const Positions<Access> filling = all.filling(tasks), joined = filling.joined();
  Normalizer<T>* lanes = nullptr;
  if (filling.groups.blocks > 1) {
    lanes = static_cast<Normalizer<T>*>(queue.scratch(tasks * all.grid.lanes * sizeof(Normalizer<T>)));
    launch(op, gather_kernel<Access>, filling.blocks(tasks), filling.threads(), queue, filling, lanes);
  }
  launch(op, normalize_kernel<Access>, joined.blocks(tasks), joined.threads(), queue, joined, lanes, parts, log_probs);
}

// Computes the normalizers of all positions, or their log-probabilities.
template <class Access, class T = typename Access::T>
void launch_merged(const char* op, const Positions<Access>& all, Normalizer<T>* normalizers, T* log_probs,
                   const Queue& queue) {
  if (all.grid.parts == 1) return launch_normalize(op, all, normalizers, log_probs, queue);
  const int64_t tasks = all.positions * all.grid.parts;
  auto* parts = static_cast<Normalizer<T>*>(queue.scratch(tasks * sizeof(Normalizer<T>)));
  launch_normalize(op, all, parts, static_cast<T*>(nullptr), queue);
  const int64_t blocks = (all.positions + kBlockQuads - 1) / kBlockQuads;
  launch(op, merge_kernel<T>, blocks, kBlockQuads, queue, all, parts, all.grid.parts, normalizers, log_probs);
}

template <class Access>
bool forward(const CategoricalForward& a, const Queue& queue) {
  using T = typename Access::T;
  const Positions<Access> all(a);
  if (!Access::serves(all.logits, a.classes)) return false;
  auto* sums = static_cast<T*>(a.log_prob);
  const bool summed = a.positions != a.samples;
  T* log_probs = summed ? static_cast<T*>(queue.scratch(a.positions * sizeof(T))) : sums;
  launch_merged(kForward, all, static_cast<Normalizer<T>*>(nullptr), log_probs, queue);
  if (summed && a.samples > 0) {
    sum_axis<T>(kForward, log_probs, a.samples, a.positions / a.samples, 1, sums, type_of<T>, queue);
  }
  return true;
}

// With many positions, a block takes all classes of one, so that it finds them in a cache when it reads them again.
// With few positions, that would be too few blocks.
template <class Access>
bool backward(const CategoricalBackward& a, const Queue& queue) {
  using T = typename Access::T;
  const Positions<Access> all(a);
  const Operand grad(a.grad, 1, 4), grad_logits(a.grad_logits, a.classes, Access::kWidth);
  if (!Access::serves(all.logits, a.classes) || !Access::serves(grad_logits, a.classes)) return false;
  const int64_t tasks = a.positions * all.grid.parts;
  const Positions<Access> filling = all.filling(tasks), narrow = all.narrow(a.positions);
  if (a.positions < kMany && filling.blocks(tasks) > narrow.blocks(a.positions)) {
    auto* known = static_cast<Normalizer<T>*>(queue.scratch(a.positions * sizeof(Normalizer<T>)));
    launch_merged(kBackward, all, known, static_cast<T*>(nullptr), queue);
    launch(kBackward, part_gradient_kernel<Access>, filling.blocks(tasks), filling.threads(), queue, filling, grad,
           grad_logits, known);
  } else {
    launch(kBackward, gradient_kernel<Access>, narrow.blocks(a.positions), narrow.threads(), queue, narrow, grad,
           grad_logits);
  }
  return true;
}

}  // namespace

void categorical_forward(const CategoricalForward& a, const Queue& queue) {
  if (a.arithmetic == Type::kFloat64) return void(forward<Elements<double, 4>>(a, queue));
  forward<Vectors<float>>(a, queue) || forward<Vectors<BFloat16>>(a, queue) || forward<Vectors<Float16>>(a, queue) ||
      forward<Elements<float, 8>>(a, queue);
}

void categorical_backward(const CategoricalBackward& a, const Queue& queue) {
  if (a.arithmetic == Type::kFloat64) return void(backward<Elements<double, 4>>(a, queue));
  backward<Vectors<float>>(a, queue) || backward<Vectors<BFloat16>>(a, queue) || backward<Vectors<Float16>>(a, queue) ||
      backward<Elements<float, 8>>(a, queue);
}

}  // namespace vk::cuda
