// Elementary functions as templates over float and double without branches, for host and device.
//
// Three lines above each function state its types, its largest error in ulp of the result's type, measured against
// float64 (float) or 40 digits (double), and the range that it is meant for. Compiled without contraction, every
// operation is one IEEE operation and fma is written out, so every instruction set gives the same bits.
#pragma once

#include <type_traits>

#include "special.h"

namespace vk {

template <class T>
constexpr bool is_float = sizeof(T) == 4;

template <class To, class From>
VK_INLINE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

VK_INLINE float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
VK_INLINE double fused(double a, double b, double c) { return ::fma(a, b, c); }
VK_INLINE float absolute(float x) { return ::fabsf(x); }
VK_INLINE double absolute(double x) { return ::fabs(x); }
VK_INLINE float larger(float a, float b) { return ::fmaxf(a, b); }  // NaN is ignored
VK_INLINE double larger(double a, double b) { return ::fmax(a, b); }

// c0 + x c1 + x^2 c2 + …
template <class T>
VK_INLINE T polynomial(T, T c0) {
  return c0;
}
template <class T, class... Higher>
VK_INLINE T polynomial(T x, T c0, Higher... higher) {
  return fused(x, polynomial(x, T(higher)...), c0);
}

// p 2^n in two steps, so that results near overflow and subnormal results are right. `low` holds n + 2 bias in its low
// bits; two left shifts make the exponent fields of both steps from it, without additions. No higher bit of `low` may
// survive these shifts.
template <class T>
constexpr int kExponentBias = is_float<T> ? 127 : 1023;
template <class T>
constexpr int kMantissaBits = is_float<T> ? 23 : 52;

template <class T, class Integer>
VK_INLINE T scale(T p, Integer low) {
  using Bits = std::make_unsigned_t<Integer>;
  constexpr int kBits = kMantissaBits<T>;
  const Bits biased = Bits(low), half = biased << (kBits - 1) & ~Bits(0) << kBits;
  return p * bits_as<T>(half) * bits_as<T>((biased << kBits) - half);
}

// a / b. On a GPU, correct rounding of a quotient or a root costs a dozen instructions and a branch, so float uses
// approximations.
// Types: float, double.
// Largest error: 0.5 ulp; 2 ulp for float on a GPU.
// Range: 1 <= b <= 3.
template <class T>
VK_INLINE T divide(T a, T b) {
#ifdef VK_SPECIAL_FUNCTIONS
  if constexpr (is_float<T>) return a * special::reciprocal(b);
#endif
  return a / b;
}
// The square root of x.
// Types: float, double.
// Largest error: 0.5 ulp; 1 ulp for float on a GPU.
// Range: every x.
VK_INLINE float root(float x) {
#ifdef __CUDA_ARCH__
  asm("sqrt.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return ::sqrtf(x);
#endif
}
VK_INLINE double root(double x) { return ::sqrt(x); }
// The square root of x.
// Types: float, double.
// Largest error: 0.5 ulp; 1 ulp for float on a GPU.
// Range: x = 0 and normal x.
VK_INLINE float root_of_normal(float x) {
#ifdef __CUDA_ARCH__
  return special::root(x);
#else
  return ::sqrtf(x);
#endif
}
VK_INLINE double root_of_normal(double x) { return ::sqrt(x); }

// 1 / x, also where the result is subnormal.
// Types: float, double.
// Largest error: 1 ulp.
// Range: x >= 2^-124.
template <class T>
VK_INLINE T reciprocal(T x) {
#ifdef VK_SPECIAL_FUNCTIONS
  if constexpr (is_float<T>) {
    const float quarter = 0.25f * x, approximate = special::reciprocal(quarter);
    return 0.25f * fused(approximate, fused(-quarter, approximate, 1.0f), approximate);
  }
#endif
  return T(1) / x;
}

// e^x for |x| <= ln 2 / 2.
VK_INLINE float exp_reduced(float x) {
  const float q =
      polynomial(x, 0.5f, 0.16666577756404877f, 0.04166685417294502f, 0.008363146334886551f, 0.001390126533806324f);
  return fused(x * x, q, x) + 1.0f;
}
VK_INLINE double exp_reduced(double x) {
  const double q = polynomial(x, 0.5000000000000001, 0.16666666666666644, 0.041666666666624316, 0.00833333333335609,
                              0.0013888888917135444, 0.0001984126978501219, 2.4801521400230647e-05,
                              2.755735510816021e-06, 2.762004507102383e-07, 2.506832045586098e-08);
  return fused(x * x, q, x) + 1.0;
}

// x - n ln 2, with ln 2 in two parts
VK_INLINE float minus_log2s(float x, float n) {
  return fused(n, 1.904654323e-9f, fused(n, -0.693147182464599609375f, x));
}
VK_INLINE double minus_log2s(double x, double n) {
  return fused(n, -2.3190468138462996e-17, fused(n, -0.6931471805599453, x));
}

// Constants that the exponentials share. Adding kRound = 1.5 2^(mantissa bits) to x / ln 2 rounds it to an integer,
// which lies in the low bits. Callers add an even bias to kRound, so that ties go where they go without a bias.
template <class T>
struct ExpRange {
  using Integer = std::conditional_t<is_float<T>, int32_t, int64_t>;
  static constexpr T kLeast = is_float<T> ? T(-104) : T(-746);
  static constexpr T kRound = is_float<T> ? T(12582912) : T(6755399441055744.0);
  static constexpr T kLargest = is_float<T> ? T(129) : T(1025);  // an n for which e^x is infinite
};

// e^x = 2^n e^(x - n ln 2), n = round(x / ln 2). The upper clamp is a comparison of n as an integer; where it acts,
// x - n ln 2 is large and positive. Two comparisons of x would make gcc build a tree of conditions, of ten
// instructions. On a GPU, float uses CUDA's expf: 8 instructions, 1 ulp (CUDA C++ Programming Guide).
// Types: float, double.
// Largest error: 1.1 ulp, measured where e^x is normal.
// Range: every x.
template <class T>
VK_INLINE T exp(T x) {
#ifdef __CUDA_ARCH__
  if constexpr (is_float<T>) return ::expf(x);
#endif
  using Integer = typename ExpRange<T>::Integer;
  constexpr T kRound = ExpRange<T>::kRound + T(2 * kExponentBias<T>);
  const Integer end = bits_as<Integer>(kRound + ExpRange<T>::kLargest);
  x = x < ExpRange<T>::kLeast ? ExpRange<T>::kLeast : x;
  const Integer shifted = bits_as<Integer>(fused(x, T(1.4426950408889634), kRound));
  const Integer biased = shifted < end ? shifted : end;
  return scale(exp_reduced(minus_log2s(x, bits_as<T>(biased) - kRound)), biased);
}

// e^(x/2), bit for bit exp(x/2). On a GPU, float uses the steps of expf with the factor 1/2 in its constants.
// Types: float, double.
// Largest error: that of exp.
// Range: every x.
template <class T>
VK_INLINE T exp_half(T x) {
#ifdef __CUDA_ARCH__
  if constexpr (is_float<T>) {
    float shifted, power;
    asm("fma.rn.sat.f32 %0, %1, 0f3B3B989D, 0f3F000000;" : "=f"(shifted) : "f"(x));  // x / (504 ln 2) + 1/2, in [0, 1]
    asm("fma.rm.f32 %0, %0, 0f437C0000, 0f4B400001;" : "+f"(shifted));
    const float n = shifted - 12583039.0f,
                reduced = fused(x, 9.629815016750331e-09f, fused(x, 0.7213475108146667f, -n));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(reduced));
    return bits_as<float>(bits_as<uint32_t>(shifted) << 23) * power;
  }
#endif
  return exp(T(0.5) * x);
}

// e^-x, bit for bit exp(-x). As n <= 0, the scaling is 2^(n + kLift), which keeps the result normal, and then the
// constant 2^-kLift.
// Types: float, double.
// Largest error: that of exp.
// Range: x >= 0.
template <class T>
VK_INLINE T exp_minus(T x) {
#ifdef __CUDA_ARCH__
  if constexpr (is_float<T>) return ::expf(-x);
#endif
  constexpr int kLift = is_float<T> ? 65 : 129;
  constexpr T kDown = is_float<T> ? T(0x1p-65) : T(0x1p-129);
  using Bits = std::make_unsigned_t<typename ExpRange<T>::Integer>;
  constexpr T kRound = ExpRange<T>::kRound + T(kExponentBias<T> + kLift);
  const T minus = -x;
  x = minus < ExpRange<T>::kLeast ? ExpRange<T>::kLeast : minus;
  const T shifted = fused(x, T(1.4426950408889634), kRound);
  const T p = exp_reduced(minus_log2s(x, shifted - kRound));
  return p * bits_as<T>(bits_as<Bits>(shifted) << kMantissaBits<T>) * kDown;
}

// d e^t as (d 2^h) (p 2^k), e^t = p 2^h 2^k: no step over- or underflows before the result does, and d = 0 gives 0 for
// every t but NaN. The clamps keep both powers of two normal and p finite. They only change results far beyond the
// type's range, and leave less than 2^-123 where a result should be 0.
// Types: float, double.
// Largest error: 2 ulp where d is 0 or normal.
// Range: every t.
template <class T>
VK_INLINE T times_exp(T d, T t) {
  using Integer = typename ExpRange<T>::Integer;
  using Bits = std::make_unsigned_t<Integer>;
  constexpr int kBits = kMantissaBits<T>;
  constexpr T kLeast = is_float<T> ? T(-174) : T(-1416);  // powers of two -251 and -2043, half in each factor
  constexpr T kRound = ExpRange<T>::kRound + T(2 * kExponentBias<T>);
  constexpr T kFinite = is_float<T> ? T(3.40282347e+38) : T(1.7976931348623157e+308);
  const Integer end = bits_as<Integer>(kRound + T(2 * kExponentBias<T>));
  t = t < kLeast ? kLeast : t;
  const Integer shifted = bits_as<Integer>(fused(t, T(1.4426950408889634), kRound));
  const Integer clamped = shifted < end ? shifted : end;
  const Bits biased = Bits(clamped), half = biased << (kBits - 1) & ~Bits(0) << kBits;
  const T p = exp_reduced(minus_log2s(t, bits_as<T>(clamped) - kRound)), e = p * bits_as<T>((biased << kBits) - half);
  return d * bits_as<T>(half) * (e > kFinite ? kFinite : e);
}

// -2 ln x, x = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)).
// Types: float.
// Largest error: 1.5 ulp, also next to x = 1.
// Range: normal x in (0, 1].
VK_INLINE float minus_2_log_unit(float x) {
  const int32_t bits = bits_as<int32_t>(x);
  const int32_t exponent = (bits - 0x3f3504f3) >> 23;
  const float f = bits_as<float>(uint32_t(bits) - (uint32_t(exponent) << 23)) - 1.0f;
  const float n = float(exponent);
  const float p = polynomial(f, -0.6666666269302368f, 0.5000060796737671f, -0.4000239968299866f, 0.3328316509723663f,
                             -0.284199595451355f, 0.25978606939315796f, -0.2531086802482605f, 0.15947550535202026f);
  const float f2 = f * f;
  const float low = fused(n, 4.24388880e-4f, fused(f2 * f, p, f2));
  return fused(n, -1.38671875f, fused(f, -2.0f, low));
}

// ln(1 + u). For float a polynomial, which is faster than a division; for double 2 atanh(s), s = u / (2 + u).
// Types: float, double.
// Largest error: 1.5 ulp.
// Range: 0 <= u <= 1.
VK_INLINE float log1p_unit(float u) {
  const float p = polynomial(u, -0.4999999701976776f, 0.3333286643028259f, -0.24987022578716278f, 0.19857944548130035f,
                             -0.15862227976322174f, 0.11592414975166321f, -0.06711215525865555f, 0.02543865516781807f,
                             -0.00451911985874176f);
  return fused(u * u, p, u);
}
VK_INLINE double log1p_unit(double u) {
  const double s = u / (2.0 + u);
  const double t = s * s;
  const double q = polynomial(t, 0.3333333333333333, 0.20000000000007406, 0.14285714283526338, 0.1111111136131441,
                              0.09090894597322358, 0.07692788180410721, 0.06657023912707619, 0.06000966262357152,
                              0.043983021447871536, 0.08086163695705709);
  // 2 s is exactly u - u s, and rounding takes little from the leading term in that form.
  return fused(-s, u, u) + 2.0 * s * (t * q);
}

// factor (e^l - 1 - l); `factor` is a power of two.
// Types: float, double.
// Largest error: 3 ulp.
// Range: |l| <= 3/2.
template <class T>
VK_INLINE T exp_minus_1_minus_near_0(T l, T factor = T(1)) {
  const auto times = [&](auto... c) { return polynomial(l, factor * T(c)...); };
  T p;
  if constexpr (is_float<T>) {
    p = times(0.5f, 0.166666641831398f, 0.04166668653488159f, 0.008333463221788406f, 0.0013888550456613302f,
              0.00019819945737253875f, 2.481590854586102e-05f, 2.8835620469180867e-06f, 2.790293365251273e-07f);
  } else {
    p = times(0.5, 0.16666666666666669, 0.04166666666666683, 0.008333333333333129, 0.0013888888888873188,
              0.00019841269841364912, 2.480158730728174e-05, 2.7557319204925724e-06, 2.7557318213945135e-07,
              2.5052110267121737e-08, 2.0876853952281936e-09, 1.6058953619852038e-10, 1.1465604841783501e-11,
              7.6486653519521e-13, 4.920823329096354e-14, 2.835736691392937e-15);
  }
  return p * (l * l);
}

// e^l - 1 - l, without cancellation near 0; `e` is e^l.
// Types: float, double.
// Largest error: 3 ulp for |l| <= 3/2, 4 ulp elsewhere.
// Range: every l.
template <class T>
VK_INLINE T exp_minus_1_minus(T l, T e) {
  const T near = exp_minus_1_minus_near_0(l);  // outside the condition: inside, it becomes a branch
  return absolute(l) <= T(1.5) ? near : (e - T(1)) - l;
}

// e^l - 1 from exp_minus_1_minus: where both are needed, a second polynomial would cost more. `e` is e^l.
// Types: float, double.
// Largest error: 2.5 ulp for |l| <= 3/2; elsewhere 2.5 ulp of the larger of |e^l - 1| and 1.
// Range: every l.
template <class T>
VK_INLINE T exp_minus_1_by_excess(T l, T e) {
  const T k = exp_minus_1_minus(l, e);  // outside the condition: inside, it becomes a branch
  return absolute(l) <= T(1.5) ? l + k : e - T(1);
}

// (e^l - 1 - l) / 2; `e` is e^l. On a GPU the factor 1/2 is in the constants.
// Types: float, double.
// Largest error: that of exp_minus_1_minus; not measured on a GPU.
// Range: every l.
template <class T>
VK_INLINE T half_exp_minus_1_minus(T l, T e) {
#ifdef __CUDA_ARCH__
  const T near = exp_minus_1_minus_near_0(l, T(0.5)), far = fused(T(-0.5), l, fused(T(0.5), e, T(-0.5)));
  return absolute(l) <= T(1.5) ? near : far;
#else
  return T(0.5) * exp_minus_1_minus(l, e);
#endif
}

// ln(a b) and ln(a b) - f, where f is a b - 1. Next to a b = 1 the logarithm is ln(1 + f), so an f that is more
// accurate than the rounded a b gives a more accurate logarithm. a b = 2^n (1 + g), 1 + g in [sqrt(1/2), sqrt(2));
// ln(1 + g) = g - h + s (h + s^2 p(s^2)), h = g^2 / 2, s = g / (2 + g).
// Types: float, double.
// Largest error: `value` 1 ulp of the logarithm of the rounded a b; `beyond` 4 ulp, measured for |f| <= 1/4.
// Range: every a and b, also where a b leaves the range of normal numbers.
template <class T>
struct Logarithm {
  T value, beyond;
};
template <class T>
VK_INLINE Logarithm<T> log_product(T a, T b, T f) {
  constexpr T kLift = is_float<T> ? T(0x1p96) : T(0x1p600);
  constexpr T kLifted = is_float<T> ? T(192) : T(1200);
  const T product = a * b;
  const bool tiny = product < (is_float<T> ? T(1.17549435e-38) : T(2.2250738585072014e-308));
  const T normal = tiny ? (a * kLift) * (b * kLift) : product;
  T n, reduced;
  if constexpr (is_float<T>) {
    const uint32_t bits = bits_as<uint32_t>(normal);
    const int32_t exponent = int32_t((bits + (0x3f800000u - 0x3f3504f3u)) >> 23) - 127;
    n = float(exponent);
    reduced = bits_as<float>(bits - (uint32_t(exponent) << 23));
  } else {
    const uint64_t bits = bits_as<uint64_t>(normal);
    const uint64_t biased = (bits + (0x3ff0000000000000u - 0x3fe6a09e667f3bcdu)) >> 52;
    n = bits_as<double>(biased | 0x4330000000000000u) - 4503599627371519.0;  // 2^52 + 1023
    reduced = bits_as<double>(bits - ((biased - 1023u) << 52));
  }
  n = tiny ? n - kLifted : n;
  const bool is_near = n == T(0);
  const T g = is_near ? f : reduced - T(1);
  const T h = T(0.5) * g * g, s = divide(g, T(2) + g), z = s * s;
  T p, high, low;
  if constexpr (is_float<T>) {
    p = polynomial(z, 0.6666666655449709f, 0.40000121839806124f, 0.28550820815960665f, 0.23330467216303835f);
    high = 0.693359375f, low = -2.12194440e-4f;
  } else {
    p = polynomial(z, 0.666666666666667, 0.39999999999899505, 0.28571428625975487, 0.2222221113479508,
                   0.18182889125261723, 0.15331721600556042, 0.14616449685043406);
    high = 6.93147180369123816490e-01, low = 1.90821492927058770002e-10;
  }
  const T tail = fused(s, fused(z, p, h), -h);
  const T finite = fused(n, high, g + fused(n, low, tail));
  const T value = normal > T(0) ? (product < T(INFINITY) ? finite : product) : normal == T(0) ? -T(INFINITY) : T(NAN);
  return {value, is_near ? tail : value - f};
}

// log_product; on a GPU, the special-function unit gives the float logarithm where 1 + f is not in (1/2, 2).
// Types: float, double.
// Largest error: that of log_product; 4 ulp for float on a GPU.
// Range: every a and b, also where a b leaves the range of normal numbers.
template <class T>
VK_INLINE Logarithm<T> coarse_log_product(T a, T b, T f) {
#ifdef VK_SPECIAL_FUNCTIONS
  if constexpr (is_float<T>) {
    const float product = a * b, lift = product < 1.17549435e-38f ? 0x1p96f : 1.0f;
    const float log2 = special::log2((a * lift) * (b * lift)),
                far = (lift > 1.0f ? log2 - 192.0f : log2) * 0.6931471805599453f;
    const float h = 0.5f * f * f, s = divide(f, 2.0f + f), z = s * s;
    const float p = polynomial(z, 0.6666641235351562f, 0.4002169966697693f, 0.27999141812324524f, 0.2802445888519287f);
    const float tail = fused(s, fused(z, p, h), -h), near = f + tail;
    const bool is_near = absolute(product - 1.25f) < 0.75f;
    return {is_near ? near : far, is_near ? tail : far - f};
  }
#endif
  return log_product(a, b, f);
}

// ln x and ln x - f, f = x - 1: log_product of one number.
// Types: float, double.
// Largest error: `value` 1 ulp; `beyond` 4 ulp, measured for |f| <= 1/4.
// Range: every x.
template <class T>
VK_INLINE Logarithm<T> log_ratio(T x, T f) {
  return log_product(x, T(1), f);
}

// ln x.
// Types: float, double.
// Largest error: 1 ulp.
// Range: every x.
template <class T>
VK_INLINE T log(T x) {
  return log_ratio(x, x - T(1)).value;
}

// e^l - 1; `e` is e^l.
// Types: float, double.
// Largest error: 2 ulp for |l| <= 1; elsewhere 2 ulp of the larger of |e^l - 1| and 1.
// Range: every l.
template <class T>
VK_INLINE T exp_minus_1(T l, T e) {
  return absolute(l) <= T(1) ? l + exp_minus_1_minus_near_0(l) : e - T(1);
}

// 1 / (1 + e^-y); `u` is e^-|y|.
// Types: float, double.
// Largest error: 2.5 ulp, measured where the result is normal.
// Range: every y.
template <class T>
VK_INLINE T sigmoid(T y, T u) {
  return divide(y > T(0) ? T(1) : u, T(1) + u);
}

// ln(1 + e^y); `u` is e^-|y|.
// Types: float, double.
// Largest error: 2 ulp, measured where the result is normal.
// Range: every y.
template <class T>
VK_INLINE T softplus(T y, T u) {
  return (y > T(0) ? y : T(0)) + log1p_unit(u);
}

// Sine and cosine of (w + 1/2) 2^-32 turns. The upper two bits, quarters of a turn, are taken off as an integer,
// exactly.
// Types: float.
// Largest error: 3 ulp each.
// Range: every w.
VK_INLINE void sincos_turns(uint32_t w, float& sine, float& cosine) {
  const uint32_t quadrant = w + 0x20000000u;                          // the quadrant is in the upper two bits
  const float x = float(int32_t(4 * w + 2)) * 3.65729529994141e-10f;  // pi 2^-33
  const float t = x * x;
  const float s = fused(x * t, polynomial(t, -0.166666641831398f, 0.008332745172083378f, -0.00019587361020967364f), x);
  const float c = fused(t * t, polynomial(t, 0.0416666641831398f, -0.0013888301327824593f, 2.4547607608838007e-05f),
                        fused(t, -0.5f, 1.0f));
  uint32_t odd = quadrant & 0x40000000u;
#ifdef __CUDA_ARCH__  // without this, the compiler takes two more instructions to isolate the bit
  asm("" : "+r"(odd));
#endif
  const bool swap = odd != 0;
  sine = bits_as<float>(bits_as<uint32_t>(swap ? c : s) ^ (quadrant & 0x80000000u));
  cosine = bits_as<float>(bits_as<uint32_t>(swap ? s : c) ^ ((quadrant + 0x40000000u) & 0x80000000u));
}

}  // namespace vk
