// Runs the CPU kernels alone over awkward sizes and strides; built with sanitizers, which abort at the first fault.
// Every buffer is exactly as large as its view needs, so that one element too far is a fault. Prints a digest of all
// memory: whatever compiler, instruction set or processor runs this, it is the same.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "../csrc/cpu/kernels.h"
#include "../csrc/dtypes.h"

namespace {

using vk::Dims;
using vk::Shape;
using vk::size_of;
using vk::Type;
using vk::View;

void serial(int64_t begin, int64_t end, int64_t, void (*f)(int64_t, int64_t, void*), void* context) {
  f(begin, end, context);
}

std::mt19937 generator(1);

// FNV-1a.
uint64_t digest = 0xcbf29ce484222325;
void add_to_digest(const void* data, size_t bytes) {
  for (size_t i = 0; i < bytes; ++i) digest = (digest ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3;
}

// A (rows, outer, inner) tensor whose rows or inner pieces may lie apart, or be one and the same.
struct Layout {
  int64_t row_gap, outer_gap, inner_stride;
  bool expanded;
};

struct Memory {
  std::vector<std::vector<char>> blocks;

  ~Memory() {
    for (const auto& block : blocks) add_to_digest(block.data(), block.size());
  }

  View view(Type type, int64_t rows, int64_t outer, int64_t inner, Layout layout) {
    Shape shape;
    const int64_t piece = inner * layout.inner_stride + layout.outer_gap;
    const int64_t strides[3] = {layout.expanded ? 0 : outer * piece + layout.row_gap, piece, layout.inner_stride};
    const int64_t sizes[3] = {rows, outer, inner};
    int64_t last = 0;
    for (int d = 0; d < 3; ++d) {
      shape.sizes.push_back(sizes[d]);
      shape.strides.push_back(strides[d]);
      last += (sizes[d] - 1) * strides[d];
    }
    Dims columns;
    columns.push_back(1);
    columns.push_back(2);
    View view;
    if (!vk::make_view(shape, 1, columns, &view)) std::abort();
    const bool empty = rows * outer * inner == 0;
    blocks.emplace_back(empty ? 0 : (last + 1) * size_of(type));
    fill(type, blocks.back());
    view.data = blocks.back().data();
    view.type = type;
    return view;
  }

  static void fill(Type type, std::vector<char>& block) {
    for (size_t i = 0; i < block.size(); i += size_of(type)) {
      const float value = float(int32_t(generator()) >> 8) * 0x1p-22f;  // from -2 to 2, the same everywhere
      const double wide = value;
      const uint16_t half = uint16_t(vk::bits_as<uint32_t>(value) >> 16);
      switch (type) {
        case Type::kUInt8: block[i] = char(value > 0); break;
        case Type::kFloat64: memcpy(&block[i], &wide, sizeof wide); break;
        case Type::kFloat32: memcpy(&block[i], &value, sizeof value); break;
        default: memcpy(&block[i], &half, sizeof half);
      }
    }
  }
};

template <class T>
void check_sums(const std::vector<T>& sums) {
  for (const T sum : sums) {
    if (!std::isfinite(sum)) {
      std::fprintf(stderr, "a sum is not finite\n");
      std::abort();
    }
  }
  add_to_digest(sums.data(), sums.size() * sizeof(T));
}

template <class T>
void run(Type arithmetic, Type type, Type target, int64_t rows, int64_t outer, int64_t inner, Layout layout) {
  const Layout dense{0, 0, 1, false};
  Memory memory;
  std::vector<T> sums(rows, T(NAN));
  const int64_t cols = outer * inner;

  vk::LatentForward f{};
  const int64_t seed = 7;
  f.arithmetic = arithmetic, f.rows = rows, f.cols = cols, f.samples = 1, f.seeds = &seed;
  f.scale = vk::Scale::kLogvar, f.estimator = vk::KlEstimator::kAnalytic, f.low = -INFINITY, f.high = INFINITY;
  f.mu = memory.view(type, rows, outer, inner, layout);
  f.raw = memory.view(type, rows, outer, inner, layout);
  f.z = memory.view(type, rows, outer, inner, dense);
  f.kl = sums.data();
  vk::cpu::latent_forward(f, serial);
  check_sums(sums);

  vk::LatentBackward b{};
  static_cast<vk::LatentInputs&>(b) = f;
  b.grad_z = memory.view(type, rows, outer, inner, layout);
  b.grad_kl = f.mu, b.grad_kl.data = sums.data(), b.grad_kl.type = arithmetic, b.grad_kl.dense = false;
  b.grad_kl.row_inner = 1, b.grad_kl.stride[0] = 1, b.grad_kl.stride[2] = b.grad_kl.stride[3] = 0;
  b.grad_mu = memory.view(type, rows, outer, inner, dense);
  b.grad_raw = memory.view(type, rows, outer, inner, layout.expanded ? dense : layout);
  vk::cpu::latent_backward(b, serial);

  for (const bool broadcast : {false, true}) {
    const int family = broadcast ? 1 : 0;  // Gaussian or Bernoulli
    const int arguments = broadcast ? 3 : 2;
    vk::LikelihoodForward lf{};
    lf.family = family, lf.arithmetic = arithmetic, lf.rows = rows, lf.cols = cols;
    vk::LikelihoodBackward lb{};
    lb.family = family, lb.arithmetic = arithmetic, lb.rows = rows, lb.cols = cols;
    lf.arguments[0] = memory.view(type, rows, outer, inner, layout);
    lf.arguments[1] = memory.view(target, rows, outer, inner, layout);
    lf.log_prob = sums.data();
    for (int i = 0; i < 2; ++i) {
      lb.gradients[i].view = memory.view(i == 0 ? type : Type::kFloat32, rows, outer, inner, dense);
    }
    if (arguments == 3) {  // one per outer index, the same for all rows
      lf.arguments[2] = memory.view(type, 1, outer, 1, dense);
      lf.arguments[2].stride[0] = lf.arguments[2].stride[1] = 0;
      lf.arguments[2].col_inner = std::max<int64_t>(inner, 1), lf.arguments[2].stride[2] = 1;
      lf.arguments[2].stride[3] = 0, lf.arguments[2].dense = false;
      lb.gradients[2].view = memory.view(type, 1, outer, 1, dense);
      lb.gradients[2].summed = true;
      lb.gradients[2].columns = {{outer, true}, {inner, false}};
    }
    vk::cpu::likelihood_forward(lf, serial);
    check_sums(sums);
    lb.grad = b.grad_kl;
    for (int i = 0; i < arguments; ++i) lb.arguments[i] = lf.arguments[i];
    vk::cpu::likelihood_backward(lb, serial);
    lb.gradients[1].view.data = nullptr;  // the usual case: nobody differentiates x
    vk::cpu::likelihood_backward(lb, serial);
  }
}

template <class T>
void run_categorical(Type arithmetic, Type type, int64_t positions, int64_t classes, Layout layout) {
  Memory memory;
  std::vector<int64_t> x(positions);
  for (int64_t i = 0; i < positions; ++i) x[i] = (i * 7) % classes;
  std::vector<T> grad(positions, T(1));
  std::vector<T> sum(1, T(NAN));

  vk::CategoricalForward f{};
  f.arithmetic = arithmetic, f.positions = positions, f.classes = classes, f.samples = 1;
  f.logits = memory.view(type, positions, 1, classes, layout);
  f.x.data = x.data(), f.x.type = Type::kInt64, f.x.stride[0] = 1;
  f.log_prob = sum.data();
  vk::cpu::categorical_forward(f, serial);
  check_sums(sum);

  if (positions > 0) x.back() = classes;  // none
  vk::CategoricalBackward b{};
  b.arithmetic = arithmetic, b.positions = positions, b.classes = classes;
  b.logits = f.logits, b.x = f.x;
  b.grad.data = grad.data(), b.grad.type = arithmetic, b.grad.stride[0] = 1;
  b.grad_logits = memory.view(type, positions, 1, classes, layout.expanded ? Layout{0, 0, 1, false} : layout);
  vk::cpu::categorical_backward(b, serial);
}

void make_positive(std::vector<char>& floats) {
  for (size_t i = sizeof(float) - 1; i < floats.size(); i += sizeof(float)) floats[i] &= 0x7f;
}

template <class T>
void run_multinomial(Type arithmetic, Type type, Type target, int64_t positions, int64_t classes, Layout layout) {
  const Layout dense{0, 0, 1, false};
  Memory memory;
  std::vector<T> grad(positions, T(1));
  std::vector<T> sum(1, T(NAN));

  vk::MultinomialForward f{};
  f.arithmetic = arithmetic, f.positions = positions, f.classes = classes, f.samples = 1;
  f.logits = memory.view(type, positions, 1, classes, layout);
  f.x = memory.view(target, positions, 1, classes, layout);
  if (target == Type::kFloat32) make_positive(memory.blocks.back());
  f.coefficient = true;
  f.log_prob = sum.data();
  vk::cpu::multinomial_forward(f, serial);
  check_sums(sum);

  vk::MultinomialBackward b{};
  static_cast<vk::MultinomialInputs&>(b) = f;
  b.grad.data = grad.data(), b.grad.type = arithmetic, b.grad.stride[0] = 1;
  b.grad_logits = memory.view(type, positions, 1, classes, layout.expanded ? dense : layout);
  if (target != Type::kUInt8) b.grad_x = memory.view(target, positions, 1, classes, dense);
  vk::cpu::multinomial_backward(b, serial);
}

}  // namespace

int main() {
  const int64_t sizes[][3] = {{1, 1, 1},   {3, 1, 5},    {7, 4, 5},    {128, 1, 20}, {51, 1, 21},
                              {5, 3, 341}, {2, 1, 1025}, {40, 2, 700}, {1, 3, 7001}, {2, 1, 16385},
                              {0, 2, 3},   {3, 0, 4},    {33, 1, 1023}};
  const Layout layouts[] = {{0, 0, 1, false}, {3, 0, 1, false}, {0, 2, 1, false},
                            {1, 1, 2, false}, {0, 0, 1, true},  {0, 0, 0, true}};
  for (const auto& [rows, outer, inner] : sizes) {
    for (const Layout layout : layouts) {
      run<float>(Type::kFloat32, Type::kFloat32, Type::kFloat32, rows, outer, inner, layout);
      run<float>(Type::kFloat32, Type::kBFloat16, Type::kUInt8, rows, outer, inner, layout);
      run<float>(Type::kFloat32, Type::kBFloat16, Type::kFloat32, rows, outer, inner, layout);
      run<double>(Type::kFloat64, Type::kFloat64, Type::kFloat32, rows, outer, inner, layout);
    }
  }
  for (const int64_t classes : {1, 2, 17, 33, 100, 256, 1023, 1024, 2500}) {
    for (const int64_t positions : {0, 1, 16, 19}) {
      for (const Layout layout : layouts) {
        run_categorical<float>(Type::kFloat32, Type::kFloat32, positions, classes, layout);
        run_categorical<float>(Type::kFloat32, Type::kBFloat16, positions, classes, layout);
        run_categorical<double>(Type::kFloat64, Type::kFloat64, positions, classes, layout);
        run_multinomial<float>(Type::kFloat32, Type::kFloat32, Type::kFloat32, positions, classes, layout);
        run_multinomial<float>(Type::kFloat32, Type::kBFloat16, Type::kUInt8, positions, classes, layout);
        run_multinomial<double>(Type::kFloat64, Type::kFloat64, Type::kFloat32, positions, classes, layout);
      }
    }
  }
  std::printf("clean %016llx\n", static_cast<unsigned long long>(digest));
}
