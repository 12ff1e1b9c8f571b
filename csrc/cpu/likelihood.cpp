#include "../formulas/likelihood.h"

#include <utility>

#include "gradients.h"
#include "kernels.h"
#include "tiles.h"

namespace vk::cpu {
namespace {

// Arguments that are one number each, read once per call.
template <class T>
struct Numbers {
  T value[kMaxArguments] = {};

  template <class Arguments>
  Numbers(const Arguments& a, int first, int count) {
    if (a.rows == 0 || a.cols == 0) return;
    for (int j = first; j < count; ++j) gather(a.arguments[j], Tile{0, 0, 1, 1}, &value[j]);
  }
};

// True if all parameters behind x are one number each.
template <class Family, class Arguments>
bool are_numbers(const Arguments& a) {
  const auto is_number = [](const View& view) {
    return std::all_of(view.stride, view.stride + 4, [](int64_t stride) { return stride == 0; });
  };
  return std::all_of(a.arguments + 2, a.arguments + Family::kArguments, is_number);
}

template <class Family, class T, bool kNumbers, class S>
struct Forward {
  static constexpr bool kAvx512 = is_float<T>;
  static constexpr int kArguments = Family::kArguments, kTensors = kNumbers ? 2 : kArguments - Family::kConstants;
  const LikelihoodForward& a;
  Grid grid{a.rows, a.cols, false};
  RowSums<T> log_prob{grid, static_cast<T*>(a.log_prob)};
  Numbers<T> numbers{a, kTensors, kArguments};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      S buffer[kTensors][buffered<T, S>];
      T values[kTile + kLanes];
      const S* in[kTensors];
      for (int j = 0; j < kTensors; ++j) in[j] = load_as<T>(a.arguments[j], tile, buffer[j]);
      T number[kArguments];
      for (int j = kTensors; j < kArguments; ++j) number[j] = numbers.value[j];
      T* const out = a.log_prob ? values : target(a.elements, tile, values);
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        T v[kArguments];
        for (int j = 0; j < kArguments; ++j) v[j] = j < kTensors ? widen<T>(in[j][k]) : number[j];
        out[k] = vk::log_prob<Family>(v);
      }
      if (a.log_prob) {
        log_prob.template add<Isa>(tile, task, out);
      } else {
        store(a.elements, tile, out, values);
      }
    });
  }

  void finish() const {
    if (a.log_prob) log_prob.finish();
  }

  static bool fits(const LikelihoodForward& a) { return std::all_of(a.arguments, a.arguments + kTensors, is_dense<S>); }
};

// The gradients that a loop computes; the others cost it nothing.
enum class Find { kFirst, kAllButX, kAll };

// With Find::kFirst, the parameters behind x are numbers.
template <class Family, class T, Find kFind, class S>
struct Backward {
  static constexpr bool kAvx512 = is_float<T>;
  static constexpr int kArguments = Family::kArguments;
  static constexpr int kTensors = kFind == Find::kFirst ? 2 : kArguments - Family::kConstants;
  static constexpr bool finds(int j) {
    return j == 0 || (j == 1 ? kFind == Find::kAll : kFind != Find::kFirst && j < kTensors);
  }

  const LikelihoodBackward& a;
  Grid grid;
  Numbers<T> numbers;
  GradientWriter<T> gradients[kTensors];

  explicit Backward(const LikelihoodBackward& a) : Backward(a, std::make_index_sequence<kTensors>()) {}
  template <size_t... j>
  Backward(const LikelihoodBackward& a, std::index_sequence<j...>)
      : a(a),
        grid(a.rows, a.cols, (by_column(a.gradients[j]) || ...)),
        numbers(a, kTensors, kArguments),
        gradients{{a.gradients[j], grid}...} {}

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      S buffer[kTensors][buffered<T, S>], gradient_buffer[kTensors][buffered<T, S>];
      T grad_buffer[kTile];
      const S* in[kTensors];
      S* out[kTensors];
      const T* grad = load(a.grad, tile, grad_buffer);
      for (int j = 0; j < kTensors; ++j) {
        in[j] = load_as<T>(a.arguments[j], tile, buffer[j]);
        out[j] = gradients[j].target(tile, gradient_buffer[j]);
      }
      T number[kArguments];
      for (int j = kTensors; j < kArguments; ++j) number[j] = numbers.value[j];
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        T v[kArguments], g[kArguments];
        for (int j = 0; j < kArguments; ++j) v[j] = j < kTensors ? widen<T>(in[j][k]) : number[j];
        vk::gradient<Family>(v, g);
        for (int j = 0; j < kTensors; ++j) {
          if (finds(j)) narrow(grad[k] * g[j], out[j] + k);
        }
      }
      if constexpr (std::is_same_v<S, T>) {
        for (int j = 0; j < kTensors; ++j) {
          if (finds(j)) gradients[j].template write<Isa>(tile, task, out[j], gradient_buffer[j]);
        }
      }
    });
  }

  static bool fits(const LikelihoodBackward& a) {
    for (int j = 0; j < kTensors; ++j) {
      if (!is_dense<S>(a.arguments[j]) || (finds(j) && !(a.gradients[j].view.data && is_dense<S>(a.gradients[j].view))))
        return false;
    }
    return true;
  }

  void finish() const {
    for (const GradientWriter<T>& gradient : gradients) gradient.finish();
  }
};

template <class Kernel>
void run(const Kernel& kernel, ParallelFor parallel) {
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
  kernel.finish();
}

// True for a short formula in float32. Conversion and the arithmetic on numbers, which is the same for all elements,
// take much of its time, so loops without them are worth their code.
template <class Family, class T>
constexpr bool is_light = Family::kCost == Cost::kShort && is_float<T>;

// Runs the loop that converts bfloat16 itself, if there is one and it fits, else the loop over tiles in L1.
template <class Family, class T, template <class> class Kernel, class Arguments>
void run_converting(const Arguments& a, ParallelFor parallel) {
  if constexpr (is_light<Family, T>) {
    if (Kernel<BFloat16>::fits(a)) return run(Kernel<BFloat16>{a}, parallel);
  }
  run(Kernel<T>{a}, parallel);
}

template <class Family, class T, bool kNumbers>
struct Forwards {
  template <class S>
  using Kernel = Forward<Family, T, kNumbers, S>;
};

template <class Family, class T, Find kFind>
struct Backwards {
  template <class S>
  using Kernel = Backward<Family, T, kFind, S>;
};

template <class Family, class T>
void forward(const LikelihoodForward& a, ParallelFor parallel) {
  expect_writes(a.elements, a.rows * a.cols);
  if constexpr (Family::kArguments > 2 && is_light<Family, T>) {
    if (are_numbers<Family>(a)) {
      return run_converting<Family, T, Forwards<Family, T, true>::template Kernel>(a, parallel);
    }
  }
  run_converting<Family, T, Forwards<Family, T, false>::template Kernel>(a, parallel);
}

template <class Family, class T>
void backward(const LikelihoodBackward& a, ParallelFor parallel) {
  const Gradient* g = a.gradients;
  for (int j = 0; j < Family::kArguments; ++j) {
    expect_writes(g[j].elements(), a.rows * a.cols);
  }
  if constexpr (Family::kArguments == 2 || is_light<Family, T>) {
    const bool of_parameters =
        std::any_of(g + 2, g + Family::kArguments, [](const Gradient& of) { return of.view.data; });
    if (!g[1].view.data && !of_parameters && are_numbers<Family>(a)) {
      return run_converting<Family, T, Backwards<Family, T, Find::kFirst>::template Kernel>(a, parallel);
    }
  }
  if constexpr (Family::kArguments > 2) {
    if (!g[1].view.data) {
      return run_converting<Family, T, Backwards<Family, T, Find::kAllButX>::template Kernel>(a, parallel);
    }
  }
  run(Backward<Family, T, Find::kAll, T>{a}, parallel);
}

// Adds views of the arguments that are numbers; they live as long as `numbers`.
template <class Arguments>
Arguments completed(Arguments a, const double* numbers) {
  for (int j = 0; j < kMaxArguments; ++j) {
    View& view = a.arguments[j];
    if (view.data) continue;
    view.data = const_cast<double*>(numbers + j);
    view.type = Type::kFloat64;
    view.col_inner = std::max<int64_t>(a.cols, 1);
  }
  return a;
}

}  // namespace

void likelihood_forward(const LikelihoodForward& arguments, ParallelFor parallel) {
  const LikelihoodForward a = completed(arguments, arguments.numbers);
  with_family(a.family, [&](auto family) {
    using Family = decltype(family);
    a.arithmetic == Type::kFloat64 ? forward<Family, double>(a, parallel) : forward<Family, float>(a, parallel);
  });
}

void likelihood_backward(const LikelihoodBackward& arguments, ParallelFor parallel) {
  const LikelihoodBackward a = completed(arguments, arguments.numbers);
  with_family(a.family, [&](auto family) {
    using Family = decltype(family);
    a.arithmetic == Type::kFloat64 ? backward<Family, double>(a, parallel) : backward<Family, float>(a, parallel);
  });
}

}  // namespace vk::cpu
