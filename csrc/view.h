// The row form of strided memory: the first `batch_dims` dims, flattened, are the rows; the other dims, flattened in a
// fixed order, are the columns. Also the strides of torch.empty_like, which fix that order.
#pragma once

#include <stdint.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "elementary.h"

namespace vk {

enum class Type { kFloat64, kFloat32, kBFloat16, kFloat16, kUInt8, kInt8, kInt16, kInt32, kInt64 };

// A list of numbers, one for each dim. An allocation costs more than a call on small tensors, so only lists of more
// than kHere numbers are allocated.
class Dims {
 public:
  int count() const { return count_; }
  int64_t* begin() { return more_.empty() ? here_ : more_.data(); }
  int64_t* end() { return begin() + count_; }
  const int64_t* begin() const { return more_.empty() ? here_ : more_.data(); }
  const int64_t* end() const { return begin() + count_; }
  int64_t& operator[](int i) { return begin()[i]; }
  int64_t operator[](int i) const { return begin()[i]; }

  // New numbers have no value yet.
  void resize(int count) {
    if (count > kHere || !more_.empty()) {
      if (more_.empty()) more_.assign(here_, here_ + count_);
      more_.resize(size_t(count));
    }
    count_ = count;
  }
  void push_back(int64_t value) {
    resize(count_ + 1);
    begin()[count_ - 1] = value;
  }

 private:
  static constexpr int kHere = 8;
  int count_ = 0;
  int64_t here_[kHere];
  std::vector<int64_t> more_;  // all numbers, once there were more than kHere
};

// Sizes and strides of a tensor, in elements.
struct Shape {
  Dims sizes, strides;
  int dims() const { return sizes.count(); }
};

inline bool same_sizes(const Shape& a, const Shape& b) {
  return a.dims() == b.dims() && std::equal(a.sizes.begin(), a.sizes.end(), b.sizes.begin());
}

inline int64_t product(const Dims& sizes, int begin, int end) {
  int64_t n = 1;
  for (int d = begin; d < end; ++d) n *= sizes[d];
  return n;
}

// Strides of memory without gaps for the dims in `order`, fastest first.
inline void fill_strides(Shape* shape, const Dims& order) {
  int64_t next = 1;
  shape->strides.resize(shape->dims());
  for (const int64_t d : order) {
    shape->strides[int(d)] = next;
    next *= std::max<int64_t>(shape->sizes[int(d)], 1);
  }
}

inline Dims c_order(int dims) {
  Dims order;
  for (int d = dims - 1; d >= 0; --d) order.push_back(d);
  return order;
}

inline void make_contiguous(Shape* shape) { fill_strides(shape, c_order(shape->dims())); }

// The element (row, col) lies at
//   (row / row_inner) stride[0] + (row % row_inner) stride[1]
//   + (col / col_inner) stride[2] + (col % col_inner) stride[3].
// A slice of any dim of a dense tensor, channels_last, and broadcasting (stride 0) have this form without a copy.
struct View {
  void* data = nullptr;
  Type type = Type::kFloat32;
  int64_t row_inner = 1, col_inner = 1;
  int64_t stride[4] = {0, 0, 0, 0};
  bool dense = false;  // the element (row, col) lies at row * cols + col

  VK_INLINE int64_t row_offset(int64_t row) const {
    return row_inner == 1 ? row * stride[0] : (row / row_inner) * stride[0] + (row % row_inner) * stride[1];
  }
  VK_INLINE int64_t col_offset(int64_t col) const {
    return (col / col_inner) * stride[2] + (col % col_inner) * stride[3];
  }
};

inline bool same_strides(const Shape& a, const Shape& b) {
  bool same = true;
  for (int d = 0; d < a.dims(); ++d) same &= a.sizes[d] == 1 || a.strides[d] == b.strides[d];
  return same;
}

// The dims of a tensor with gaps or overlaps in the order of their strides, fastest first. This is the order of torch's
// infer_dense_strides and TensorIterator: an insertion sort in which a stride of 0 compares as equal to every other
// stride.
inline Dims memory_order(const Shape& tensor) {
  Dims order = c_order(tensor.dims());
  const auto comes_after = [&](int64_t a, int64_t b) {
    const int64_t of_a = tensor.strides[int(a)], of_b = tensor.strides[int(b)];
    if (of_a == 0 || of_b == 0) return 0;
    if (of_a != of_b) return of_a > of_b ? 1 : -1;
    return tensor.sizes[int(a)] > tensor.sizes[int(b)] ? 1 : 0;
  };
  for (int i = 1; i < order.count(); ++i) {
    int at = i;
    for (int j = i - 1; j >= 0; --j) {
      const int comparison = comes_after(order[j], order[at]);
      if (comparison < 0) break;
      if (comparison > 0) {
        std::swap(order[j], order[at]);
        at = j;
      }
    }
  }
  return order;
}

// The shape of torch.empty_like(tensor): the tensor's own strides if it is dense and without overlap, else its dims in
// the same order without gaps.
inline Shape dense_like(const Shape& tensor) {
  Shape dense = tensor;
  make_contiguous(&dense);
  if (same_strides(tensor, dense)) return tensor;

  Dims order = c_order(tensor.dims());
  const auto stride = [&](int64_t d) { return tensor.sizes[int(d)] == 1 ? 0 : tensor.strides[int(d)]; };
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return stride(a) < stride(b); });
  fill_strides(&dense, order);
  if (same_strides(tensor, dense)) return tensor;

  fill_strides(&dense, memory_order(tensor));
  return dense;
}

// The dims from `batch_dims` on that have more than one element, slowest first.
inline Dims column_order(const Shape& dense, int batch_dims) {
  Dims order;
  for (int d = batch_dims; d < dense.dims(); ++d) {
    if (dense.sizes[d] != 1) order.push_back(d);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return dense.strides[int(a)] > dense.strides[int(b)]; });
  return order;
}

// Merges the dims in `order` (slowest first) into at most two levels; returns false if that is impossible.
inline bool merge_dims(const Shape& shape, const Dims& order, int64_t* outer_stride, int64_t* inner_size,
                       int64_t* inner_stride) {
  int levels = 0;
  int64_t size[2] = {1, 1}, stride[2] = {0, 0};  // level 0 is the faster one
  for (int i = order.count() - 1; i >= 0; --i) {
    const int64_t n = shape.sizes[int(order[i])], s = shape.strides[int(order[i])];
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
  const bool two = levels == 2;  // a single level is the outer one, and the inner one has one element
  *outer_stride = two ? stride[1] : stride[0];
  *inner_size = two ? std::max<int64_t>(size[0], 1) : 1;  // it is a divisor, so not 0
  *inner_stride = two ? stride[0] : 0;
  return true;
}

// Returns false if the tensor does not have this row form; then the caller must copy it first.
inline bool make_view(const Shape& shape, int batch_dims, const Dims& columns, View* view) {
  Dims batch;
  for (int d = 0; d < batch_dims; ++d) batch.push_back(d);
  const int64_t rows = product(shape.sizes, 0, batch_dims), cols = product(shape.sizes, batch_dims, shape.dims());
  const bool merged = merge_dims(shape, batch, &view->stride[0], &view->row_inner, &view->stride[1]) &&
                      merge_dims(shape, columns, &view->stride[2], &view->col_inner, &view->stride[3]);
  if (merged && view->col_inner == 1) {  // a single level of columns becomes the inner one
    view->col_inner = std::max<int64_t>(cols, 1);
    view->stride[3] = view->stride[2];
    view->stride[2] = 0;
  }
  view->dense = merged && view->row_inner == 1 && view->col_inner == std::max<int64_t>(cols, 1) &&
                (cols == 1 || view->stride[3] == 1) && (rows == 1 || view->stride[0] == cols);
  return merged;
}

}  // namespace vk
