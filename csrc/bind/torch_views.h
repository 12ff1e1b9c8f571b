// From tensors of torch's stable ABI to shapes and views, and memory for results.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../call.h"

namespace vk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Type type_of_tensor(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case ScalarType::Double: return Type::kFloat64;
    case ScalarType::Float: return Type::kFloat32;
    case ScalarType::BFloat16: return Type::kBFloat16;
    case ScalarType::Half: return Type::kFloat16;
    case ScalarType::Bool:
    case ScalarType::Byte: return Type::kUInt8;
    case ScalarType::Char: return Type::kInt8;
    case ScalarType::Short: return Type::kInt16;
    case ScalarType::Int: return Type::kInt32;
    case ScalarType::Long: return Type::kInt64;
    default: STD_TORCH_CHECK(false, "unsupported dtype");
  }
}

inline Shape shape_of(const Tensor& tensor) {
  Shape shape;
  for (const int64_t n : tensor.sizes()) shape.sizes.push_back(n);
  for (const int64_t n : tensor.strides()) shape.strides.push_back(n);
  return shape;
}

inline Tensor empty_strided(const Shape& shape, int32_t dtype, const Tensor& device_of) {
  int32_t device_type, device_index;
  AtenTensorHandle result;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(device_of.get(), &device_type));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(device_of.get(), &device_index));
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(shape.dims(), shape.sizes.begin(), shape.strides.begin(), dtype,
                                                  device_type, device_index, &result));
  return Tensor(result);
}

inline int32_t dtype_of(const Tensor& tensor) {
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(tensor.get(), &dtype));
  return dtype;
}

// A view of the first or second half of a tensor along `dim`.
inline Tensor half(const Tensor& tensor, int64_t dim, int index) {
  Shape shape = shape_of(tensor);
  STD_TORCH_CHECK(dim >= 0 && dim < shape.dims() && shape.sizes[int(dim)] % 2 == 0,
                  "packed moments must have an even size along packed_dim, got ", dim);
  shape.sizes[int(dim)] /= 2;
  AtenTensorHandle part;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      tensor.get(), shape.dims(), shape.sizes.begin(), shape.strides.begin(),
      /*offset_increment=*/index * shape.sizes[int(dim)] * shape.strides[int(dim)], &part));
  return Tensor(part);
}

// The row form in which one call sees all its tensors: that of torch.empty_like(first).
class Rows {
 public:
  Type arithmetic = Type::kFloat32;
  int64_t rows = 1, cols = 1;

  Rows(const Tensor& first, int64_t batch_dims)
      : first_(first), shape_(dense_like(shape_of(first))), batch_dims_(int(batch_dims)) {
    STD_TORCH_CHECK(batch_dims >= 0 && batch_dims <= shape_.dims(), "batch_dims must be between 0 and ", shape_.dims(),
                    ", got ", batch_dims);
    columns_ = column_order(shape_, batch_dims_);
    rows = product(shape_.sizes, 0, batch_dims_);
    cols = product(shape_.sizes, batch_dims_, shape_.dims());
  }

  // The row form of `count` such tensors, one behind the other.
  Rows samples(int64_t count) const {
    Rows all = *this;
    Shape& shape = all.shape_;
    shape = {};
    shape.sizes.push_back(count);
    shape.strides.push_back(std::max<int64_t>(rows * cols, 1));
    for (int d = 0; d < shape_.dims(); ++d) {
      shape.sizes.push_back(shape_.sizes[d]);
      shape.strides.push_back(shape_.strides[d]);
    }
    all.batch_dims_ += 1;
    all.columns_ = column_order(shape, all.batch_dims_);
    all.rows *= count;
    return all;
  }

  // The view of a tensor whose dtype counts for the arithmetic's type: float64 if one such tensor is float64.
  View argument(const Tensor& tensor) {
    if (tensor.scalar_type() == ScalarType::Double) arithmetic = Type::kFloat64;
    return view(tensor);
  }

  // A view of a tensor that broadcasts to the call's shape. The tensor is copied only if the row form cannot express
  // its strides; the copy lives as long as this object.
  View view(const Tensor& tensor) {
    const Shape shape = broadcast(shape_of(tensor));
    View view;
    if (make_view(shape, batch_dims_, columns_, &view)) {
      view.data = const_cast<void*>(tensor.const_data_ptr());
      view.type = type_of_tensor(tensor);
      return view;
    }
    // If the tensor is the same for all rows, only one row is copied.
    Shape copied = row_form();
    const bool one_row =
        std::all_of(shape.strides.begin(), shape.strides.begin() + batch_dims_, [](int64_t s) { return s == 0; });
    if (one_row) std::fill(copied.sizes.begin(), copied.sizes.begin() + batch_dims_, 1);
    AtenTensorHandle source;
    TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(tensor.get(), copied.dims(), copied.sizes.begin(),
                                                          shape.strides.begin(), /*offset_increment=*/0, &source));
    Tensor copy = empty_strided(copied, dtype_of(tensor), first_);
    torch::stable::copy_(copy, Tensor(source));
    copies_.push_back(copy);
    if (one_row) std::fill(copied.strides.begin(), copied.strides.begin() + batch_dims_, 0);
    copied.sizes = shape_.sizes;
    make_view(copied, batch_dims_, columns_, &view);
    view.data = copy.mutable_data_ptr();
    view.type = type_of_tensor(copy);
    return view;
  }

  // A view of a tensor that has only the call's batch dims: one value per row.
  View row_view(const Tensor& tensor) const {
    Shape shape = shape_of(tensor);
    STD_TORCH_CHECK(shape.dims() == batch_dims_, "a per-sample tensor must have ", batch_dims_, " dims, got ",
                    shape.dims());
    View view;
    if (!make_view(shape, batch_dims_, {}, &view)) {
      Tensor dense = torch::stable::contiguous(tensor);
      copies_.push_back(dense);
      make_view(shape_of(dense), batch_dims_, {}, &view);
      view.data = const_cast<void*>(dense.const_data_ptr());
    } else {
      view.data = const_cast<void*>(tensor.const_data_ptr());
    }
    view.type = type_of_tensor(tensor);
    view.col_inner = std::max<int64_t>(cols, 1);
    view.dense = false;
    return view;
  }

  // A view of memory that was made for this call, in the call's shape. If the row form cannot express its strides
  // (channels_last with the channels among the batch dims), the kernels write to other memory, and finish() copies it.
  View output(const Tensor& tensor) {
    View view;
    Tensor written = tensor;
    if (!make_view(shape_of(tensor), batch_dims_, columns_, &view)) {
      written = empty_strided(row_form(), dtype_of(tensor), first_);
      outputs_.emplace_back(tensor, written);
      make_view(row_form(), batch_dims_, columns_, &view);
    }
    view.data = written.mutable_data_ptr();
    view.type = type_of_tensor(tensor);
    return view;
  }

  bool same_shape(const Tensor& tensor) const { return same_sizes(shape_of(tensor), shape_); }

  void finish() {
    for (auto& [tensor, written] : outputs_) torch::stable::copy_(tensor, written);
  }

  Tensor empty_like_first(int32_t dtype) const { return empty_strided(shape_, dtype, first_); }
  Tensor empty_elements() const { return empty_like_first(arithmetic_dtype()); }

  // (batch dims), contiguous, in the arithmetic's dtype.
  Tensor empty_sums() const {
    Shape shape = shape_;
    shape.sizes.resize(batch_dims_);
    make_contiguous(&shape);
    return empty_strided(shape, arithmetic_dtype(), first_);
  }

  // Allocates the gradient of `input` in the shape of `input`, and in the call's layout if that is the call's shape.
  // Returns where the kernels write it.
  Gradient gradient(const Tensor& input, Tensor* memory) {
    Shape shape = shape_of(input);
    if (same_sizes(shape, shape_)) {
      *memory = empty_like_first(dtype_of(input));
      return {output(*memory)};
    }
    make_contiguous(&shape);
    *memory = empty_strided(shape, dtype_of(input), first_);
    return sum_into(*memory, shape);
  }

 private:
  int32_t arithmetic_dtype() const {
    return arithmetic == Type::kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }

  // The kernels write a sum in the order of the columns. If its own dims have another order, they write to other
  // memory, and finish() copies it.
  Gradient sum_into(const Tensor& memory, const Shape& shape) {
    Gradient sum;
    sum.summed = true;
    const int missing = shape_.dims() - shape.dims();
    for (int d = 0; d < batch_dims_ - missing; ++d) {
      STD_TORCH_CHECK(shape.sizes[d] == 1, "a parameter must be the same for all samples or have the call's shape");
    }
    Dims order;
    for (const int64_t dim : columns_) {
      const int d = int(dim) - missing;
      const bool kept = d >= 0 && shape.sizes[d] != 1;
      sum.columns.push_back({shape_.sizes[int(dim)], kept});
      if (kept) order.push_back(d);
    }
    std::reverse(order.begin(), order.end());
    Shape ordered = shape;
    fill_strides(&ordered, order);
    Tensor written = memory;
    if (!same_strides(shape, ordered)) {
      written = empty_strided(ordered, dtype_of(memory), first_);
      outputs_.emplace_back(memory, written);
    }
    sum.view.data = written.mutable_data_ptr();
    sum.view.type = type_of_tensor(memory);
    return sum;
  }

  // The call's sizes, with the strides of the row form itself.
  Shape row_form() const {
    Dims order;
    for (int i = columns_.count() - 1; i >= 0; --i) order.push_back(columns_[i]);
    for (int d = batch_dims_ - 1; d >= 0; --d) order.push_back(d);
    Shape shape = shape_;
    std::fill(shape.strides.begin(), shape.strides.end(), 1);  // dims of one element have no place in the order
    fill_strides(&shape, order);
    return shape;
  }

  // The strides of a tensor in the call's sizes: 0 where the tensor has one element.
  Shape broadcast(const Shape& from) const {
    if (same_sizes(from, shape_)) return from;
    const int missing = shape_.dims() - from.dims();
    Shape to = shape_;
    std::fill(to.strides.begin(), to.strides.end(), 0);
    if (product(from.sizes, 0, from.dims()) == 1) return to;  // whatever its number of dims
    STD_TORCH_CHECK(missing >= 0, "a tensor of ", from.dims(), " dims does not broadcast to one of ", shape_.dims());
    for (int d = 0; d < from.dims(); ++d) {
      const int64_t have = from.sizes[d], want = shape_.sizes[d + missing];
      STD_TORCH_CHECK(have == want || have == 1, "a dim of size ", have, " does not broadcast to size ", want);
      if (have == want) to.strides[d + missing] = from.strides[d];
    }
    return to;
  }

  const Tensor& first_;
  Shape shape_;
  int batch_dims_;
  Dims columns_;
  mutable std::vector<Tensor> copies_;
  std::vector<std::pair<Tensor, Tensor>> outputs_;  // each result, and where the kernels write it
};

}  // namespace vk
