#include "../likelihood.h"

#include <cstring>
#include <optional>

#include "likelihood.h"
#include "tiles.h"

namespace vk::cpu {
namespace {

template <class Family, class T>
struct Forward {
  static constexpr int kArguments = Family::kArguments;
  const LikelihoodForward& a;
  Grid grid{a.rows, a.cols, 1, false};
  RowSums<T> log_prob{grid, static_cast<T*>(a.log_prob)};

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      T buffer[kArguments][kTile], values[kTile + kLanes];
      const T* in[kArguments];
      for (int j = 0; j < kArguments; ++j) in[j] = load<Isa>(a.arguments[j], tile, buffer[j]);
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        T v[kArguments];
        for (int j = 0; j < kArguments; ++j) v[j] = in[j][k];
        values[k] = Family::log_prob(v);
      }
      log_prob.template add<Isa>(tile, task, values);
    });
  }
};

template <class Family, class T>
struct Backward {
  static constexpr int kArguments = Family::kArguments;
  const LikelihoodBackward& a;
  Grid grid;
  std::optional<ElementSum<T>> total[kArguments];
  std::optional<ColumnSums<T>> columns[kArguments];

  explicit Backward(const LikelihoodBackward& a) : a(a), grid(a.rows, a.cols, 1, sums_columns(a)) {
    for (int j = 0; j < kArguments; ++j) {
      if (a.sums[j] == 1) total[j].emplace(grid);
      if (a.sums[j] > 1) columns[j].emplace(grid);
    }
  }

  static bool sums_columns(const LikelihoodBackward& a) {
    return std::any_of(a.sums, a.sums + kArguments, [](int64_t n) { return n > 1; });
  }

  template <class Isa>
  VK_INLINE void task(int64_t i) const {
    grid.visit_tiles(i, [&](const Tile& tile, int64_t task) __attribute__((always_inline)) {
      T buffer[kArguments][kTile], gradient_buffer[kArguments][kTile + kLanes], grad_buffer[kTile];
      const T* in[kArguments];
      T* out[kArguments];
      const T* grad = load<Isa>(a.grad, tile, grad_buffer);
      for (int j = 0; j < kArguments; ++j) {
        in[j] = load<Isa>(a.arguments[j], tile, buffer[j]);
        const bool elementwise = a.gradients[j].data && !total[j] && !columns[j];
        out[j] = elementwise ? target(a.gradients[j], tile, gradient_buffer[j]) : gradient_buffer[j];
      }
      const int n = tile.size();
#pragma GCC ivdep
      for (int k = 0; k < n; ++k) {
        T v[kArguments], g[kArguments];
        for (int j = 0; j < kArguments; ++j) v[j] = in[j][k];
        Family::gradient(v, g);
        for (int j = 0; j < kArguments; ++j) out[j][k] = grad[k] * g[j];
      }
      for (int j = 0; j < kArguments; ++j) {
        if (total[j]) {
          total[j]->template add<Isa>(tile, task, out[j]);
        } else if (columns[j]) {
          columns[j]->add(tile, task, out[j]);
        } else if (a.gradients[j].data) {
          store<Isa>(a.gradients[j], tile, out[j], gradient_buffer[j]);
        }
      }
    });
  }

  void finish() const {
    for (int j = 0; j < kArguments; ++j) {
      if (total[j]) write(a.gradients[j], 0, total[j]->finish());
      if (columns[j]) finish_columns(j);
    }
  }

  void finish_columns(int j) const {
    const std::vector<double> sums = columns[j]->finish();
    std::vector<Total> cells(a.sums[j]);
    for (int64_t col = 0; col < a.cols; ++col) cells[a.cells[j][col]].add(sums[col]);
    for (int64_t cell = 0; cell < a.sums[j]; ++cell) write(a.gradients[j], cell, cells[cell].value());
  }

  static void write(const View& view, int64_t at, double value) {
    with_type(view.type, [&](auto* null) { narrow(value, static_cast<decltype(null)>(view.data) + at); });
  }
};

template <class Family, class T>
void forward(const LikelihoodForward& a, ParallelFor parallel) {
  const Forward<Family, T> kernel{a};
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
  kernel.log_prob.finish();
}

template <class Family, class T>
void backward(const LikelihoodBackward& a, ParallelFor parallel) {
  const Backward<Family, T> kernel{a};
  run_tasks(parallel, kernel, kernel.grid.tasks(), kernel.grid.grain());
  kernel.finish();
}

}  // namespace

int family_arguments(const char* family) {
#define X(FAMILY)                                                                                                      \
  if (std::strcmp(family, FAMILY::kName) == 0) return FAMILY::kArguments;
  VK_FAMILIES(X)
#undef X
  return 0;
}

void likelihood_forward(const LikelihoodForward& a, ParallelFor parallel) {
#define X(FAMILY)                                                                                                      \
  if (std::strcmp(a.family, FAMILY::kName) == 0) {                                                                     \
    a.arithmetic == Type::kFloat64 ? forward<FAMILY, double>(a, parallel) : forward<FAMILY, float>(a, parallel);       \
  }
  VK_FAMILIES(X)
#undef X
}

void likelihood_backward(const LikelihoodBackward& a, ParallelFor parallel) {
#define X(FAMILY)                                                                                                      \
  if (std::strcmp(a.family, FAMILY::kName) == 0) {                                                                     \
    a.arithmetic == Type::kFloat64 ? backward<FAMILY, double>(a, parallel) : backward<FAMILY, float>(a, parallel);     \
  }
  VK_FAMILIES(X)
#undef X
}

}  // namespace vk::cpu
