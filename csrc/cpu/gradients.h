// Writes a gradient element by element, or summed.
#pragma once

#include <optional>
#include <vector>

#include "tiles.h"

namespace vk::cpu {

// True if a gradient is a sum for each of several columns.
inline bool by_column(const Gradient& gradient) { return gradient.is_sum() && gradient.sums() > 1; }

// For each column, the index of the sum to which it is added.
inline std::vector<int64_t> sums_of_columns(const Gradient& gradient) {
  std::vector<int64_t> cells(1, 0);
  int64_t stride = 1;
  for (auto axis = gradient.columns.rbegin(); axis != gradient.columns.rend(); ++axis) {
    const size_t inner = cells.size();
    for (int64_t k = 1; k < axis->size; ++k) {
      for (size_t j = 0; j < inner; ++j) cells.push_back(cells[j] + (axis->kept ? k * stride : 0));
    }
    if (axis->kept) stride *= axis->size;
  }
  return cells;
}

template <class T>
class GradientWriter {
 public:
  GradientWriter(const Gradient& gradient, const Grid& grid) : gradient_(gradient) {
    if (!gradient.is_sum()) return;
    if (by_column(gradient)) {
      columns_.emplace(grid);
    } else {
      total_.emplace(grid);
    }
  }

  // Where arithmetic writes a tile; `buffer` has kLanes more elements than a tile.
  template <class S>
  VK_INLINE S* target(const Tile& tile, S* buffer) const {
    return gradient_.view.data && !gradient_.summed ? cpu::target(gradient_.view, tile, buffer) : buffer;
  }

  template <class Isa>
  VK_INLINE void write(const Tile& tile, int64_t task, const T* written, const T* buffer) const {
    if (total_) {
      total_->template add<Isa>(tile, task, written);
    } else if (columns_) {
      columns_->add(tile, task, written);
    } else if (gradient_.view.data) {
      store(gradient_.view, tile, written, buffer);
    }
  }

  void finish() const {
    if (total_) put(0, total_->finish());
    if (!columns_) return;
    const std::vector<double> sums = columns_->finish();
    const std::vector<int64_t> of_column = sums_of_columns(gradient_);
    std::vector<Total> totals(gradient_.sums());
    for (size_t col = 0; col < sums.size(); ++col) totals[of_column[col]].add(sums[col]);
    for (size_t i = 0; i < totals.size(); ++i) put(int64_t(i), totals[i].value());
  }

 private:
  void put(int64_t at, double value) const {
    const View& view = gradient_.view;
    with_type(view.type, [&](auto* null) { narrow(value, static_cast<decltype(null)>(view.data) + at); });
  }

  const Gradient& gradient_;
  std::optional<ElementSum<T>> total_;
  std::optional<ColumnSums<T>> columns_;
};

}  // namespace vk::cpu
