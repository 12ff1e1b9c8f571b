// The row form of strided memory: rows are the first `batch_dims` dims, flattened; columns the others, flattened in a
// given order. Also the strides that torch.empty_like gives, which fix that order.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <vector>

#include "math.h"

namespace vk {

enum class Type { kFloat64, kFloat32, kBFloat16, kFloat16, kUInt8, kInt8, kInt16, kInt32, kInt64 };

// Sizes and strides of a tensor, in elements.
struct Shape {
  std::vector<int64_t> sizes, strides;
  int64_t dims() const { return int64_t(sizes.size()); }
};

// The element (row, col) lies at
// (row / row_inner) stride[0] + (row % row_inner) stride[1] + (col / col_inner) stride[2] + (col % col_inner) stride[3].
// That covers, without a copy, a slice of any dim of a dense tensor, channels_last, and broadcasting (stride 0).
struct View {
  void* data = nullptr;
  Type type = Type::kFloat32;
  int64_t row_inner = 1, col_inner = 1;
  int64_t stride[4] = {0, 0, 0, 0};
  bool dense = false;  // element (row, col) lies at row cols + col

  VK_INLINE int64_t row_offset(int64_t row) const {
    return row_inner == 1 ? row * stride[0] : (row / row_inner) * stride[0] + (row % row_inner) * stride[1];
  }
  VK_INLINE int64_t col_offset(int64_t col) const { return (col / col_inner) * stride[2] + (col % col_inner) * stride[3]; }
};

// The strides of torch.empty_like(tensor): its own if it is dense and without overlap, else channels_last or contiguous.
inline std::vector<int64_t> dense_strides(const Shape& tensor) {
  const int64_t dims = tensor.dims();
  std::vector<int64_t> order(dims), strides(dims);
  for (int64_t d = 0; d < dims; ++d) order[d] = d;
  const auto fill = [&] {  // order: fastest first
    int64_t next = 1;
    for (const int64_t d : order) {
      strides[d] = next;
      next *= std::max<int64_t>(tensor.sizes[d], 1);
    }
  };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return (tensor.sizes[a] == 1 ? 0 : tensor.strides[a]) < (tensor.sizes[b] == 1 ? 0 : tensor.strides[b]);
  });
  fill();
  bool dense = true;
  for (int64_t d = 0; d < dims; ++d) dense &= tensor.sizes[d] == 1 || strides[d] == tensor.strides[d];
  if (dense) return tensor.strides;

  for (int64_t i = 0; i < dims; ++i) order[i] = dims - 1 - i;
  if (dims == 4 || dims == 5) {
    std::vector<int64_t> last{1};
    for (int64_t d = dims - 1; d > 1; --d) last.push_back(d);
    last.push_back(0);
    int64_t least = 0;
    bool channels_last = tensor.strides[1] != 0;
    for (const int64_t d : last) {
      channels_last &= tensor.sizes[d] != 0 && tensor.strides[d] >= least && !(d == 0 && least == tensor.strides[1]);
      least = tensor.strides[d] * std::max<int64_t>(tensor.sizes[d], 1);
    }
    if (channels_last) order = last;
  }
  fill();
  return strides;
}

// The dims from `batch_dims` on that have more than one element, slowest first.
inline std::vector<int64_t> column_order(const Shape& dense, int64_t batch_dims) {
  std::vector<int64_t> order;
  for (int64_t d = batch_dims; d < dense.dims(); ++d) {
    if (dense.sizes[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return dense.strides[a] > dense.strides[b]; });
  return order;
}

// Merges the dims in `order` (slowest first) into at most two levels; false where that cannot be done.
inline bool merge_dims(const Shape& shape, const std::vector<int64_t>& order, int64_t* outer_stride, int64_t* inner_size,
                       int64_t* inner_stride) {
  int levels = 0;
  int64_t size[2] = {1, 1}, stride[2] = {0, 0};  // level 0 is the faster one
  for (auto d = order.rbegin(); d != order.rend(); ++d) {
    const int64_t n = shape.sizes[*d], s = shape.strides[*d];
    if (n == 1) continue;
    if (levels > 0 && s == stride[levels - 1] * size[levels - 1]) {
      size[levels - 1] *= n;
    } else if (levels < 2) {
      size[levels] = n;
      stride[levels++] = s;
    } else {
      return false;
    }
  }
  if (levels < 2) {  // one level: an inner one of one element
    *outer_stride = stride[0], *inner_size = 1, *inner_stride = 0;
  } else {
    *outer_stride = stride[1], *inner_size = size[0], *inner_stride = stride[0];
  }
  return true;
}

// False where the tensor cannot be seen in that row form: copy it first.
inline bool make_view(const Shape& shape, int64_t batch_dims, const std::vector<int64_t>& columns, View* view) {
  std::vector<int64_t> batch;
  for (int64_t d = 0; d < batch_dims; ++d) batch.push_back(d);
  int64_t cols = 1;
  for (const int64_t d : columns) cols *= shape.sizes[d];
  const bool merged = merge_dims(shape, batch, &view->stride[0], &view->row_inner, &view->stride[1]) &&
                      merge_dims(shape, columns, &view->stride[2], &view->col_inner, &view->stride[3]);
  if (merged && view->col_inner == 1) {  // the columns' one level is the inner one
    view->col_inner = std::max<int64_t>(cols, 1);
    view->stride[3] = view->stride[2];
    view->stride[2] = 0;
  }
  int64_t rows = 1;
  for (int64_t d = 0; d < batch_dims; ++d) rows *= shape.sizes[d];
  view->dense = merged && view->row_inner == 1 && view->col_inner == std::max<int64_t>(cols, 1) &&
                (cols == 1 || view->stride[3] == 1) && (rows == 1 || view->stride[0] == cols);
  return merged;
}

}  // namespace vk
