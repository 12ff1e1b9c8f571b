#include <algorithm>

#include "../formulas/likelihood.h"
#include "columns.h"
#include "dispatch.h"
#include "rows.h"

namespace vk::cuda {
namespace {

template <class Family>
constexpr bool kHeavy = Family::kCost == Cost::kHeavy;

template <class Family, class Access>
struct Traits {
  using T = typename Access::T;
  static constexpr int kCount = Family::kArguments;
  static constexpr int kWidth = Access::kWidth, kQuads = Access::kQuads, kThreads = Access::kThreads;
  static constexpr int kRegisters = kHeavy<Family> ? Access::kHeavyRegisters : Access::kRegisters;
  static constexpr bool kLoop = Access::kAny && (kHeavy<Family> || !is_float<T>);
};

// True for families so short that a parameter which is one number is worth kernels of its own: terms of the number
// alone are computed once.
template <class Family, class Access>
constexpr bool kSingles = Family::kCost == Cost::kShort && Family::kArguments == 3 && !Access::kAny;

// The arguments of a family as a kernel reads them: the decoder's output and x by packs, a parameter by packs or as one
// number, with kSingle always as one number.
template <class Family, class Access, bool kSingle>
struct Arguments : Traits<Family, Access> {
  using typename Traits<Family, Access>::T;
  using Traits<Family, Access>::kWidth, Traits<Family, Access>::kCount;
  int64_t cols;
  Operand tensors[kCount];
  bool single[kCount] = {};
  double numbers[kCount];

  template <class A>
  explicit Arguments(const A& a) : cols(a.cols) {
    for (int j = 0; j < kCount; ++j) {
      tensors[j] = Operand(a.arguments[j], cols, kWidth);
      numbers[j] = a.numbers[j];
      single[j] = j >= 2;
      for (const int64_t stride : a.arguments[j].stride) single[j] &= stride == 0;
    }
  }

  bool served() const {
    bool all = true;
    for (int j = 0; j < kCount; ++j) all &= single[j] || (!(kSingle && j >= 2) && Access::serves(tensors[j], cols));
    return all;
  }

  struct Run {
    typename Access::Run tensors[kCount];
    T single[kCount];
  };
  __device__ __forceinline__ Run run(const Packs& packs) const {
    Run run;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      if (!(kSingle && j >= 2)) run.tensors[j] = Access::run(tensors[j], packs);
      run.single[j] = T(numbers[j]);
      if (j >= 2 && single[j] && tensors[j].data) run.single[j] = load_element<T>(tensors[j], 0);
    }
    return run;
  }

  __device__ __forceinline__ void load(const Run& run, int pack, int n, T (&values)[kCount][kWidth]) const {
    Access::load(tensors[0], run.tensors[0], pack, n, values[0]);
    Access::template load<true>(tensors[1], run.tensors[1], pack, n, values[1]);
#pragma unroll
    for (int j = 2; j < kCount; ++j) {
      if (kSingle || single[j]) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) values[j][k] = run.single[j];
      } else {
        Access::load(tensors[j], run.tensors[j], pack, n, values[j]);
      }
    }
  }

  // The arguments of one element.
  __device__ __forceinline__ static void pick(const T (&values)[kCount][kWidth], int k, T (&of_one)[kCount]) {
#pragma unroll
    for (int j = 0; j < kCount; ++j) of_one[j] = cuda::pick(values[j], k);
  }
};

template <class Family, class Access, bool kSingle = false>
struct Forward : Traits<Family, Access> {
  using typename Traits<Family, Access>::T;
  using Traits<Family, Access>::kWidth, Traits<Family, Access>::kQuads, Traits<Family, Access>::kCount;
  static constexpr bool kSums = true;
  Arguments<Family, Access, kSingle> arguments;
  Operand elements;  // if they are wanted; only kernels with kAny serve them

  explicit Forward(const LikelihoodForward& a) : arguments(a), elements(a.elements, a.cols, kWidth) {}
  bool served() const { return arguments.served() && (Access::kAny || !elements.data); }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[kQuads]) const {
    const auto run = arguments.run(packs);
    const auto elements_run = Access::run(elements, packs);
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      const int n = Access::count(packs, pack, arguments.cols);
      T values[kCount][kWidth];
      arguments.load(run, pack, n, values);
      for_each<Forward::kLoop, kWidth>([&](int k) {
        T v[kCount];
        arguments.pick(values, k, v);
        put(values[0], k, vk::log_prob<Family>(v));
      });
#pragma unroll
      for (int k = 0; k < kWidth; ++k) values[0][k] = k < n ? values[0][k] : T(0);
      add_quads(values[0], sums);
      if constexpr (Access::kAny) {
        if (elements.data) Access::store(elements, elements_run, pack, n, values[0]);
      }
    }
  }
};

// Computes the gradients of packs. Those as large as the decoder's output are stored; others, if any, are handed to
// `add`.
template <class Family, class Access, bool kSingle = false>
struct Backward : Traits<Family, Access> {
  using typename Traits<Family, Access>::T;
  using Traits<Family, Access>::kWidth, Traits<Family, Access>::kCount;
  Arguments<Family, Access, kSingle> arguments;
  Operand grad;
  bool grad_of_elements;  // true if they differ along a row
  Operand gradients[kCount];
  bool summed[kCount];

  explicit Backward(const LikelihoodBackward& a)
      : arguments(a),
        grad(a.grad, a.cols, kWidth),
        grad_of_elements(a.grad_of_elements && (a.cols == 0 || grad.stride[2] != 0 || grad.stride[3] != 0)) {
    for (int j = 0; j < kCount; ++j) {
      gradients[j] = Operand(a.gradients[j].elements(), a.cols, kWidth);
      summed[j] = a.gradients[j].is_sum();
    }
  }

  bool any_summed() const {
    return std::any_of(summed, summed + kCount, [](bool s) { return s; });
  }

  bool served() const {
    bool all = arguments.served() && (Access::kAny || !grad_of_elements);
    for (int j = 0; j < kCount; ++j) {
      all &= !gradients[j].data || (!(kSingle && j >= 2) && Access::serves(gradients[j], arguments.cols));
    }
    return all;
  }

  template <bool kAdds, class Add>
  __device__ __forceinline__ void each_pack(const Packs& packs, const Add& add) const {
    const auto run = arguments.run(packs);
    typename Access::Run gradient_run[kCount];
#pragma unroll
    for (int j = 0; j < kCount; ++j) gradient_run[j] = Access::run(gradients[j], packs);
    const auto grad_run = Access::run(grad, packs);
    const T of_row = grad_of_elements ? T(0) : load_element<T>(grad, grad.row_offset(packs.row));
    for (int pack = packs.begin; pack < packs.end; pack += packs.step) {
      const int n = Access::count(packs, pack, arguments.cols);
      T values[kCount][kWidth], upstream[kWidth];
      arguments.load(run, pack, n, values);
#pragma unroll
      for (int k = 0; k < kWidth; ++k) upstream[k] = of_row;
      if constexpr (Access::kAny) {
        if (grad_of_elements) Access::load(grad, grad_run, pack, n, upstream);
      }
      for_each<Backward::kLoop, kWidth>([&](int k) {
        T v[kCount], g[kCount];
        arguments.pick(values, k, v);
        vk::gradient<Family>(v, g);
        const T up = pick(upstream, k);
#pragma unroll
        for (int j = 0; j < kCount; ++j) put(values[j], k, k < n ? up * g[j] : T(0));
      });
#pragma unroll
      for (int j = 0; j < kCount; ++j) {
        if ((kAdds && summed[j]) || (kSingle && j >= 2)) {
          add(j, values[j]);
        } else if (gradients[j].data) {
          Access::store(gradients[j], gradient_run[j], pack, n, values[j]);
        }
      }
    }
  }
};

template <class Family, class Access>
struct RowBackward : Backward<Family, Access> {
  using T = typename Access::T;
  static constexpr bool kSums = false;
  using Backward<Family, Access>::Backward;

  __device__ __forceinline__ void operator()(const Packs& packs, T (&)[Access::kQuads]) const {
    this->template each_pack<false>(packs, [](int, const auto&) {});
  }
};

// For a parameter that is one number: its gradient, summed along the rows.
template <class Family, class Access>
struct SingleBackward : Backward<Family, Access, true> {
  using T = typename Access::T;
  static constexpr bool kSums = true;
  static constexpr int kWidth = Access::kWidth;
  using Backward<Family, Access, true>::Backward;

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[Access::kQuads]) const {
    this->template each_pack<false>(packs, [&](int, const T(&values)[kWidth]) { add_quads(values, sums); });
  }
};

// For parameters that all rows share. Of a family's arguments, only those behind x may be shared.
template <class Family, class Access>
struct ColumnBackward : Backward<Family, Access> {
  using T = typename Access::T;
  static constexpr int kSums = Family::kArguments - 2, kWidth = Access::kWidth;
  using Backward<Family, Access>::Backward;

  __device__ __forceinline__ bool wanted(int i) const { return this->summed[i + 2]; }

  __device__ __forceinline__ void operator()(const Packs& packs, T (&sums)[kSums][kWidth]) const {
    this->template each_pack<true>(packs, [&](int j, const T(&values)[kWidth]) {
#pragma unroll
      for (int i = 0; i < kSums; ++i) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) sums[i][k] += i + 2 == j ? values[k] : T(0);
      }
    });
  }
};

template <class Body>
bool launch_forward(const LikelihoodForward& a, const Queue& queue) {
  const Body body(a);
  if (!body.served()) return false;
  auto* log_prob = static_cast<typename Body::T*>(a.log_prob);
  launch_rows("vae_kernels_cuda::likelihood_forward", body, RowGrid(a.rows, a.cols), log_prob, queue);
  return true;
}

template <class Family, class Access>
bool forward(const LikelihoodForward& a, const Queue& queue) {
  if constexpr (kSingles<Family, Access>) {
    if (launch_forward<Forward<Family, Access, true>>(a, queue)) return true;
  }
  return launch_forward<Forward<Family, Access>>(a, queue);
}

constexpr const char* kBackward = "vae_kernels_cuda::likelihood_backward";

template <class Family, class Access>
bool single_backward(const LikelihoodBackward& a, const Queue& queue) {
  using T = typename Access::T;
  const SingleBackward<Family, Access> body(a);
  const Gradient& g = a.gradients[2];
  if (!body.served() || std::any_of(g.columns.begin(), g.columns.end(), [](Axis axis) { return axis.kept; }))
    return false;
  T* rows = g.is_sum() ? static_cast<T*>(queue.scratch(a.rows * sizeof(T))) : nullptr;
  launch_rows(kBackward, body, RowGrid(a.rows, a.cols), rows, queue);
  if (g.is_sum()) sum_axis<T>(kBackward, rows, 1, a.rows, 1, g.view.data, g.view.type, queue);
  return true;
}

template <class Family, class Access>
bool backward(const LikelihoodBackward& a, const Queue& queue) {
  if constexpr (kSingles<Family, Access>) {
    if (single_backward<Family, Access>(a, queue)) return true;
  }
  const RowBackward<Family, Access> body(a);
  if (!body.served()) return false;
  if constexpr (Family::kArguments > 2) {
    if (body.any_summed()) {
      const Gradient* sums[kMaxArguments];
      for (int j = 2; j < Family::kArguments; ++j) sums[j - 2] = &a.gradients[j];
      launch_columns(kBackward, ColumnBackward<Family, Access>(a), a.rows, a.cols, sums, queue);
      return true;
    }
  }
  launch_rows(kBackward, body, RowGrid(a.rows, a.cols), static_cast<typename Access::T*>(nullptr), queue);
  return true;
}

}  // namespace

void likelihood_forward(const LikelihoodForward& a, const Queue& queue) {
  with_family(a.family, [&](auto family) {
    with_access(a.arguments[0].type, a.arithmetic,
                [&](auto access) { return forward<decltype(family), decltype(access)>(a, queue); });
  });
}

void likelihood_backward(const LikelihoodBackward& a, const Queue& queue) {
  with_family(a.family, [&](auto family) {
    with_access(a.arguments[0].type, a.arithmetic,
                [&](auto access) { return backward<decltype(family), decltype(access)>(a, queue); });
  });
}

}  // namespace vk::cuda
