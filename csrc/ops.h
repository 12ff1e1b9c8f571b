// What the bindings of every device share: tensors of torch's stable ABI to shapes and views, and results' memory.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <initializer_list>
#include <optional>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "dtypes.h"
#include "glibc.h"
#include "latent.h"
#include "likelihood.h"
#include "rows.h"

namespace vk {

// A name, as an op's argument.
struct Name {
  std::string text;
};

}  // namespace vk

// torch 2.13's own conversion to std::string never frees it.
HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)
template <>
struct ToImpl<vk::Name> {
  static vk::Name call(StableIValue value, uint64_t, bool) {
    const StringHandle handle = to<StringHandle>(value);
    size_t length;
    const char* data;
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    vk::Name name{std::string(data, length)};
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return name;
  }
};
HIDDEN_NAMESPACE_END(torch, stable, detail)

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

// The first or second half of a tensor along `dim`: a view of it.
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

// The row form in which one call sees all its tensors. It is that of the tensor that torch.empty_like(first) would
// give.
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

  // The view of a tensor whose dtype counts for that of the arithmetic.
  View argument(const Tensor& tensor) {
    if (tensor.scalar_type() == ScalarType::Double) arithmetic = Type::kFloat64;
    return view(tensor);
  }

  // A view of a tensor that broadcasts to the call's shape. Only where the row form cannot express its strides it is
  // copied; the copy lives as long as this object.
  View view(const Tensor& tensor) {
    const Shape shape = broadcast(shape_of(tensor));
    View view;
    if (make_view(shape, batch_dims_, columns_, &view)) {
      view.data = const_cast<void*>(tensor.const_data_ptr());
      view.type = type_of_tensor(tensor);
      return view;
    }
    // What is the same for all rows stays so: one row is copied.
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

  // A view of a tensor of the call's leading dims: one value per row.
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

  // A view of memory made for this call, of its shape. Where the row form cannot express it (channels_last with its
  // channels among the batch dims), it is written elsewhere, and finish() brings it there.
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

  void finish() {
    for (auto& [tensor, written] : outputs_) torch::stable::copy_(tensor, written);
  }

  const Shape& shape() const { return shape_; }
  const Dims& columns() const { return columns_; }  // the dims that make the columns, slowest first
  bool same_shape(const Tensor& tensor) const { return same_sizes(shape_of(tensor), shape_); }

  // Which element of a tensor that broadcasts to the call's shape, and is the same for all rows, belongs to each
  // column.
  std::vector<int64_t> column_offsets_of(const Tensor& tensor) const {
    return column_offsets(broadcast(shape_of(tensor)), columns_);
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

  // Memory for a gradient of `input`: of its own shape, or if that is the call's shape of the call's layout.
  Tensor empty_gradient(const Tensor& input) const {
    Shape shape = shape_of(input);
    if (same_sizes(shape, shape_)) return empty_like_first(dtype_of(input));
    make_contiguous(&shape);
    return empty_strided(shape, dtype_of(input), first_);
  }

 private:
  int32_t arithmetic_dtype() const {
    return arithmetic == Type::kFloat64 ? aoti_torch_dtype_float64() : aoti_torch_dtype_float32();
  }

  // The call's sizes, laid out as the row form itself.
  Shape row_form() const {
    Dims order;
    for (int i = columns_.count() - 1; i >= 0; --i) order.push_back(columns_[i]);
    for (int d = batch_dims_ - 1; d >= 0; --d) order.push_back(d);
    Shape shape = shape_;
    std::fill(shape.strides.begin(), shape.strides.end(), 1);  // dims of one element are in no order
    fill_strides(&shape, order);
    return shape;
  }

  // Stride 0 where the tensor has one element, in the call's sizes.
  Shape broadcast(const Shape& from) const {
    if (same_sizes(from, shape_)) return from;
    const int missing = shape_.dims() - from.dims();
    Shape to = shape_;
    std::fill(to.strides.begin(), to.strides.end(), 0);
    if (product(from.sizes, 0, from.dims()) == 1) return to;  // whatever its dims
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
  std::vector<std::pair<Tensor, Tensor>> outputs_;  // and where they are written
};

// A call of the latent step, but for its results: its arguments checked, in row form. `Inputs` is what the kernels of a
// device take.
template <class Inputs>
class LatentCall {
 public:
  Inputs& a;
  const Tensor mean, raw;  // raw: what `scale` says
  const bool packed, sampled;
  Rows rows, z_rows;

  LatentCall(Inputs& a, const Tensor& mu, const std::optional<Tensor>& logvar, const std::optional<Tensor>& prior_mu,
             const std::optional<Tensor>& prior_logvar, const std::optional<Tensor>& eps, int64_t batch_dims,
             int64_t packed_dim, std::optional<int64_t> num_samples, const Name& scale, std::optional<double> low,
             std::optional<double> high, const Name& kl_estimator)
      : a(a),
        mean(logvar ? mu : half(mu, packed_dim, 0)),
        raw(logvar ? *logvar : half(mu, packed_dim, 1)),
        packed(!logvar),
        sampled(kl_estimator.text != "analytic"),
        rows(mean, batch_dims),
        z_rows(num_samples ? rows.samples(*num_samples) : rows),
        packed_dim_(packed_dim) {
    a.scale = Scale(index_of(scale, {"logvar", "logstd", "std", "variance"}));
    a.estimator = KlEstimator(index_of(kl_estimator, {"analytic", "monte_carlo", "path"}));
    a.low = low.value_or(-INFINITY);
    a.high = high.value_or(INFINITY);
    a.mu = rows.argument(mean);
    a.raw = rows.argument(raw);
    if (prior_mu) a.prior_mu = rows.argument(*prior_mu);
    if (prior_logvar) a.prior_logvar = rows.argument(*prior_logvar);
    if (eps) a.eps = z_rows.view(*eps);
    a.arithmetic = z_rows.arithmetic = rows.arithmetic;
    a.rows = rows.rows, a.cols = rows.cols;
    a.samples = num_samples.value_or(1);
  }

  // One seed, or one for each row; alive as long as this object.
  const int64_t* seeds(const std::optional<Tensor>& seed, const std::optional<Tensor>& eps) {
    if (eps) return nullptr;
    STD_TORCH_CHECK(seed && seed->scalar_type() == ScalarType::Long,
                    "seed must be an int64 tensor where no eps is given");
    STD_TORCH_CHECK(seed->numel() == 1 || seed->numel() == rows.rows, "seed must have one element, or one for each of ",
                    rows.rows, " samples, got ", seed->numel());
    a.own_seeds = seed->numel() != 1;
    seed_ = a.own_seeds ? torch::stable::contiguous(*seed) : *seed;
    return seed_->const_data_ptr<int64_t>();
  }

  // Memory for what the forward kernels write.
  std::tuple<Tensor, Tensor> results(const Name& kl_reduction) {
    const Tensor z = z_rows.empty_like_first(dtype_of(mean));
    a.z = z_rows.output(z);
    if (kl_reduction.text != "none") {
      const Tensor kl = kl_rows().empty_sums();
      a.kl = kl.mutable_data_ptr();
      return {z, kl};
    }
    const Tensor kl = kl_rows().empty_elements();
    a.kl_elements = kl_rows().output(kl);
    return {z, kl};
  }

  void set_upstream(const std::optional<Tensor>& grad_z, const std::optional<Tensor>& grad_kl,
                    const Name& kl_reduction) {
    if (grad_z) a.grad_z = z_rows.view(*grad_z);
    if (grad_kl) a.grad_kl = kl_reduction.text == "none" ? kl_rows().view(*grad_kl) : kl_rows().row_view(*grad_kl);
  }

  // The gradients of mu and of what was passed for its spread, in one tensor if they came in one.
  void add_gradients(const Tensor& mu, const std::vector<bool>& needs, std::vector<Tensor>* gradients, View* to_mu,
                     View* to_raw) {
    if (packed && needs.at(0)) {
      gradients->push_back(empty_strided(dense_like(shape_of(mu)), dtype_of(mu), mu));
      *to_mu = rows.output(half(gradients->back(), packed_dim_, 0));
      *to_raw = rows.output(half(gradients->back(), packed_dim_, 1));
    }
    if (!packed && needs.at(0)) *to_mu = add_gradient(rows, mean, gradients);
    if (!packed && needs.at(1)) *to_raw = add_gradient(rows, raw, gradients);
  }

  static View add_gradient(Rows& rows, const Tensor& input, std::vector<Tensor>* gradients) {
    gradients->push_back(rows.empty_gradient(input));
    return rows.output(gradients->back());
  }

  void finish() {
    rows.finish();
    z_rows.finish();
  }

 private:
  // Of the rows that the KL has.
  Rows& kl_rows() { return sampled ? z_rows : rows; }

  static int index_of(const Name& name, std::initializer_list<const char*> names) {
    const auto found = std::find(names.begin(), names.end(), name.text);
    STD_TORCH_CHECK(found != names.end(), "no scale or estimator is named ", name.text);
    return int(found - names.begin());
  }

  const int64_t packed_dim_;
  std::optional<Tensor> seed_;
};

// Whether an op was given what a family takes: `inputs` tensors, then `constants` numbers.
inline void check_family(const std::string& family, size_t inputs, size_t constants) {
  const FamilyArguments wanted = arguments_of(family.c_str());
  STD_TORCH_CHECK(wanted.count > 0, "no family is named ", family);
  STD_TORCH_CHECK(inputs + constants == size_t(wanted.count), family, " takes ", wanted.count, " arguments, got ",
                  inputs + constants);
  STD_TORCH_CHECK(constants >= size_t(wanted.constants), family, " needs ", wanted.constants,
                  " of its arguments in constants, as numbers, got ", constants, " there and ", inputs, " tensors");
}

// The commonest latent steps, as ops of few arguments: each costs host time on its way here.
template <auto kLatentForward>
std::tuple<Tensor, Tensor> latent_plain_forward(const Tensor& mu, const Tensor& logvar, const Tensor& seed,
                                                int64_t batch_dims) {
  return kLatentForward(mu, logvar, {}, {}, seed, {}, batch_dims, 0, {}, {"logvar"}, {}, {}, {"analytic"}, {"sum"});
}
template <auto kLatentBackward>
std::tuple<Tensor, Tensor> latent_plain_backward(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& mu,
                                                 const Tensor& logvar, const Tensor& seed, int64_t batch_dims) {
  const std::vector<Tensor> gradients =
      kLatentBackward(grad_z, grad_kl, mu, logvar, {}, {}, seed, {}, {true, true, false, false, false}, batch_dims, 0,
                      {}, {"logvar"}, {}, {}, {"analytic"}, {"sum"});
  return {gradients[0], gradients[1]};
}
template <auto kLatentForward>
std::tuple<Tensor, Tensor> latent_prior_forward(const Tensor& mu, const Tensor& logvar, const Tensor& prior_mu,
                                                const Tensor& prior_logvar, const Tensor& seed, int64_t batch_dims) {
  return kLatentForward(mu, logvar, prior_mu, prior_logvar, seed, {}, batch_dims, 0, {}, {"logvar"}, {}, {},
                        {"analytic"}, {"sum"});
}
template <auto kLatentBackward>
std::tuple<Tensor, Tensor, Tensor, Tensor> latent_prior_backward(const Tensor& grad_z, const Tensor& grad_kl,
                                                                 const Tensor& mu, const Tensor& logvar,
                                                                 const Tensor& prior_mu, const Tensor& prior_logvar,
                                                                 const Tensor& seed, int64_t batch_dims) {
  const std::vector<Tensor> gradients =
      kLatentBackward(grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed, {}, {true, true, true, true, false},
                      batch_dims, 0, {}, {"logvar"}, {}, {}, {"analytic"}, {"sum"});
  return {gradients[0], gradients[1], gradients[2], gradients[3]};
}
template <auto kLatentForward>
std::tuple<Tensor, Tensor> latent_packed_forward(const Tensor& moments, const Tensor& seed, int64_t batch_dims,
                                                 int64_t dim, std::optional<double> low, std::optional<double> high) {
  return kLatentForward(moments, {}, {}, {}, seed, {}, batch_dims, dim, {}, {"logvar"}, low, high, {"analytic"},
                        {"sum"});
}
template <auto kLatentBackward>
Tensor latent_packed_backward(const Tensor& grad_z, const Tensor& grad_kl, const Tensor& moments, const Tensor& seed,
                              int64_t batch_dims, int64_t dim, std::optional<double> low, std::optional<double> high) {
  const std::vector<Tensor> gradients =
      kLatentBackward(grad_z, grad_kl, moments, {}, {}, {}, seed, {}, {true, false, false, false, false}, batch_dims,
                      dim, {}, {"logvar"}, low, high, {"analytic"}, {"sum"});
  return gradients[0];
}

// The likelihood of families that have no parameters behind x, or one; the gradient of x is not wanted: likewise.
template <auto kLikelihoodForward>
Tensor likelihood_pair_forward(const Name& family, const Tensor& first, const Tensor& x, int64_t batch_dims) {
  return kLikelihoodForward(family, {first, x}, {}, batch_dims);
}
template <auto kLikelihoodBackward>
Tensor likelihood_pair_backward(const Name& family, const Tensor& grad, const Tensor& first, const Tensor& x,
                                int64_t batch_dims) {
  return kLikelihoodBackward(family, grad, {first, x}, {}, batch_dims, {true, false})[0];
}

template <auto kLikelihoodForward>
Tensor likelihood_triple_forward(const Name& family, const Tensor& first, const Tensor& x, const Tensor& parameter,
                                 int64_t batch_dims) {
  return kLikelihoodForward(family, {first, x, parameter}, {}, batch_dims);
}
template <auto kLikelihoodBackward>
std::tuple<Tensor, Tensor> likelihood_triple_backward(const Name& family, const Tensor& grad, const Tensor& first,
                                                      const Tensor& x, const Tensor& parameter, int64_t batch_dims) {
  const std::vector<Tensor> gradients =
      kLikelihoodBackward(family, grad, {first, x, parameter}, {}, batch_dims, {true, false, true});
  return {gradients[0], gradients[1]};
}

// A call of the categorical likelihood, but for its results. Logits are (positions, classes) to the kernels; the
// positions are the elements of x.
class CategoricalCall {
 public:
  Rows rows, samples;

  template <class Inputs>
  CategoricalCall(Inputs& a, const Tensor& logits, const Tensor& x, int64_t batch_dims)
      : rows(logits, logits.dim() - 1), samples(logits, batch_dims) {
    STD_TORCH_CHECK(rows.cols > 0, "logits must have at least one class");
    STD_TORCH_CHECK(x.dim() == logits.dim() - 1 && x.numel() == rows.rows, "x must have one element for each position");
    bool integers = false;
    with_integer_type(type_of_tensor(x), [&](auto*) { integers = true; });
    STD_TORCH_CHECK(integers, "x must be an integer or bool tensor");
    a.logits = rows.argument(logits);
    a.x = rows.row_view(x);
    a.arithmetic = samples.arithmetic = rows.arithmetic;
    a.positions = rows.rows, a.classes = rows.cols;
  }

  // The gradient of a position's sample.
  View upstream(const Tensor& grad) {
    dense_grad_ = torch::stable::contiguous(grad);
    View view = samples.row_view(*dense_grad_);
    view.row_inner = samples.rows > 0 ? std::max<int64_t>(rows.rows / samples.rows, 1) : 1;
    return view;
  }

 private:
  std::optional<Tensor> dense_grad_;
};

// The ops of every kernel backend; fakes.py has the same schemas.
inline void define_ops(torch::stable::detail::StableLibrary& m) {
  m.def(
      "latent_forward(Tensor mu, Tensor? logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? seed, Tensor? eps,"
      " int batch_dims, int packed_dim, int? num_samples, str scale, float? low, float? high, str kl_estimator,"
      " str kl_reduction) -> (Tensor, Tensor)");
  m.def(
      "latent_backward(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor? logvar, Tensor? prior_mu,"
      " Tensor? prior_logvar, Tensor? seed, Tensor? eps, bool[] needs, int batch_dims, int packed_dim,"
      " int? num_samples, str scale, float? low, float? high, str kl_estimator, str kl_reduction) -> Tensor[]");
  m.def("latent_plain_forward(Tensor mu, Tensor logvar, Tensor seed, int batch_dims) -> (Tensor, Tensor)");
  m.def(
      "latent_plain_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed, int batch_dims)"
      " -> (Tensor, Tensor)");
  m.def(
      "latent_prior_forward(Tensor mu, Tensor logvar, Tensor prior_mu, Tensor prior_logvar, Tensor seed,"
      " int batch_dims) -> (Tensor, Tensor)");
  m.def(
      "latent_prior_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor prior_mu,"
      " Tensor prior_logvar, Tensor seed, int batch_dims) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "latent_packed_forward(Tensor moments, Tensor seed, int batch_dims, int dim, float? low, float? high)"
      " -> (Tensor, Tensor)");
  m.def(
      "latent_packed_backward(Tensor grad_z, Tensor grad_kl, Tensor moments, Tensor seed, int batch_dims, int dim,"
      " float? low, float? high) -> Tensor");
  m.def("likelihood_forward(str family, Tensor[] inputs, float[] constants, int batch_dims) -> Tensor");
  m.def(
      "likelihood_backward(str family, Tensor grad, Tensor[] inputs, float[] constants, int batch_dims, bool[] needs)"
      " -> Tensor[]");
  m.def("likelihood_pair_forward(str family, Tensor first, Tensor x, int batch_dims) -> Tensor");
  m.def("likelihood_pair_backward(str family, Tensor grad, Tensor first, Tensor x, int batch_dims) -> Tensor");
  m.def("likelihood_triple_forward(str family, Tensor first, Tensor x, Tensor parameter, int batch_dims) -> Tensor");
  m.def(
      "likelihood_triple_backward(str family, Tensor grad, Tensor first, Tensor x, Tensor parameter, int batch_dims)"
      " -> (Tensor, Tensor)");
  m.def("categorical_forward(Tensor logits, Tensor x, int batch_dims) -> Tensor");
  m.def("categorical_backward(Tensor grad, Tensor logits, Tensor x, int batch_dims) -> Tensor");
}

}  // namespace vk
