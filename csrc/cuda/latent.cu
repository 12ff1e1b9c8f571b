#include "latent.h"

#include "../latent.h"
#include "../philox.h"
#include "access.h"
#include "rows.h"

namespace vk::cuda {
namespace {

// The noise of a pack: column c of row r has lane c % 4 of the counter (c / 4, r).
template <class T, int kWidth>
__device__ __forceinline__ void noise(uint64_t seed, int64_t row, int64_t pack, T (&eps)[kWidth]) {
#pragma unroll
  for (int q = 0; q < kWidth / 4; ++q) {
    uint64_t words[4];
    float lanes[4];
    philox<OneCounter>(seed, uint64_t(pack) * (kWidth / 4) + q, uint64_t(row), words);
    normals(uint32_t(words[0]), uint32_t(words[1]), uint32_t(words[2]), uint32_t(words[3]), lanes);
#pragma unroll
    for (int k = 0; k < 4; ++k) eps[4 * q + k] = T(lanes[k]);
  }
}

template <class Access>
struct Forward {
  using T = typename Access::T;
  static constexpr int kWidth = Access::kWidth;
  static constexpr bool kSums = true;
  int64_t cols;
  const int64_t* seed;
  Operand mu, logvar, eps, z;

  Forward(const LatentForward& a)
      : cols(a.cols),
        seed(a.seed),
        mu(operand(a.mu, cols, kWidth)),
        logvar(operand(a.logvar, cols, kWidth)),
        eps(operand(a.eps, cols, kWidth)),
        z(operand(a.z, cols, kWidth)) {}

  bool vectors() const {
    return !eps.data && Access::serves(mu, cols) && Access::serves(logvar, cols) && Access::serves(z, cols);
  }

  __device__ __forceinline__ T operator()(int64_t row, int64_t first, int64_t end, int step) const {
    const uint64_t key = eps.data ? 0 : uint64_t(*seed);
    T sum = 0;
    for (int64_t pack = first; pack < end; pack += step) {
      const int n = Access::count(pack, cols);
      T m[kWidth], l[kWidth], e[kWidth], out[kWidth];
      Access::load(mu, row, pack, n, m);
      Access::load(logvar, row, pack, n, l);
      if (Access::kAny && eps.data) {
        Access::load(eps, row, pack, n, e);
      } else {
        noise(key, row, pack, e);
      }
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const Latent<T> r = latent(m[k], l[k], e[k]);
        out[k] = r.z;
        sum += k < n ? r.kl : T(0);
      }
      Access::store(z, row, pack, n, out);
    }
    return sum;
  }
};

template <class Access>
void forward(const LatentForward& a, const Queue& queue) {
  const Forward<Access> body(a);
  using T = typename Access::T;
  launch_rows("latent_forward", body, RowGrid(a.rows, a.cols, Access::kWidth), static_cast<T*>(a.kl), queue);
}

}  // namespace

void latent_forward(const LatentForward& a, const Queue& queue) {
  forward<Vectors<BFloat16>>(a, queue);
  forward<Vectors<float>>(a, queue);
  forward<Elements<float, 8>>(a, queue);
}

}  // namespace vk::cuda
