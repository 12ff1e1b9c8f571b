// Where a gradient goes: element by element into a tensor of the call's shape, or summed over what broadcasting
// repeats.
#pragma once

#include <optional>
#include <vector>

#include "tiles.h"

namespace vk::cpu {

// A gradient as an argument.
struct Gradient {
  View view;                   // without data: not wanted
  int64_t sums = 0;            // of a sum, how many elements it has, contiguous; else 0
  std::vector<int64_t> cells;  // to which of several each column is added

  bool by_column() const { return sums > 1; }
};

template <class T>
class GradientWriter {
 public:
  GradientWriter(const Gradient& gradient, const Grid& grid) : gradient_(gradient) {
    if (gradient.sums == 1) total_.emplace(grid);
    if (gradient.by_column()) columns_.emplace(grid);
  }

  // Where arithmetic writes a tile; `buffer` has kLanes elements more than a tile.
  template <class S>
  VK_INLINE S* target(const Tile& tile, S* buffer) const {
    return gradient_.view.data && gradient_.sums == 0 ? cpu::target(gradient_.view, tile, buffer) : buffer;
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
    std::vector<Total> cells(gradient_.sums);
    for (size_t col = 0; col < sums.size(); ++col) cells[gradient_.cells[col]].add(sums[col]);
    for (int64_t cell = 0; cell < gradient_.sums; ++cell) put(cell, cells[cell].value());
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
