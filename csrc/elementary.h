// Elementary functions as branch-free templates over float and double, for host and device.
//
// Each states the range it is meant for and its error there in ulp of the result's type, measured against float64
// (float) or 40 digits (double). Compiled without contraction, every operation is one IEEE operation and fma is
// written out, so the same bits come out of every instruction set.
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
VK_INLINE float larger(float a, float b) { return ::fmaxf(a, b); }  // NaN does not count
VK_INLINE double larger(double a, double b) { return ::fmax(a, b); }

// c0 + x c1 + x^2 c2 + …
template <class T>
VK_INLINE T polynomial(T, T c0) {
  return c0;
}
template <class T, class... Rest>
VK_INLINE T polynomial(T x, T c0, Rest... rest) {
  return fused(x, polynomial(x, T(rest)...), c0);
}

// p 2^n in two steps, so that results next to overflow and subnormal ones are right. `low` holds n + 2 bias in its low
// bits, with nothing above them that two shifts leave: the exponent fields of both steps come from it without
// additions.
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

// a / b for 1 <= b <= 3, the square root of x, and that of an x that is 0 or normal. On a GPU, where the right rounding
// costs a dozen instructions and a branch, approximations: 2 ulp and 1 ulp.
template <class T>
VK_INLINE T divide(T a, T b) {
#ifdef VK_SPECIAL_FUNCTIONS
  if constexpr (is_float<T>) return a * special::reciprocal(b);
#endif
  return a / b;
}
VK_INLINE float root(float x) {
#ifdef __CUDA_ARCH__
  asm("sqrt.approx.f32 %0, %0;" : "+f"(x));
  return x;
#else
  return ::sqrtf(x);
#endif
}
VK_INLINE double root(double x) { return ::sqrt(x); }
VK_INLINE float root_of_normal(float x) {
#ifdef __CUDA_ARCH__
  return special::root(x);
#else
  return ::sqrtf(x);
#endif
}
VK_INLINE double root_of_normal(double x) { return ::sqrt(x); }

// 1 / x for x >= 2^-124, also where that is subnormal; 1 ulp.
template <class T>
VK_INLINE T reciprocal(T x) {
#ifdef VK_SPECIAL_FUNCTIONS
  if constexpr (is_float<T>) {
    const float quarter = 0.25f * x, r = special::reciprocal(quarter);
    return 0.25f * fused(r, fused(-quarter, r, 1.0f), r);
  }
#endif
  return T(1) / x;
}

// e^r for |r| <= ln 2 / 2.
VK_INLINE float exp_reduced(float r) {
  const float q =
      polynomial(r, 0.5f, 0.16666577756404877f, 0.04166685417294502f, 0.008363146334886551f, 0.001390126533806324f);
  return fused(r * r, q, r) + 1.0f;
}
VK_INLINE double exp_reduced(double r) {
  const double q = polynomial(r, 0.5000000000000001, 0.16666666666666644, 0.041666666666624316, 0.00833333333335609,
                              0.0013888888917135444, 0.0001984126978501219, 2.4801521400230647e-05,
                              2.755735510816021e-06, 2.762004507102383e-07, 2.506832045586098e-08);
  return fused(r * r, q, r) + 1.0;
}

// x - n ln 2
VK_INLINE float minus_log2s(float x, float n) {
  return fused(n, 1.904654323e-9f, fused(n, -0.693147182464599609375f, x));
}
VK_INLINE double minus_log2s(double x, double n) {
  return fused(n, -2.3190468138462996e-17, fused(n, -0.6931471805599453, x));
}

// What exponentials have in common: x's lower end, where e^x is 0, and the summand that rounds x / ln 2 to an integer
// and leaves it in the low bits, 1.5 2^(mantissa bits) and an even bias (so that ties go where they go without it).
template <class T>
struct ExpRange {
  using Integer = std::conditional_t<is_float<T>, int32_t, int64_t>;
  static constexpr T kLeast = is_float<T> ? T(-104) : T(-746);
  static constexpr T kRound = is_float<T> ? T(12582912) : T(6755399441055744.0);
  static constexpr T kLargest = is_float<T> ? T(129) : T(1025);  // in powers of two, where e^x is infinite
};

// e^x for every x; 1 ulp. n = round(x / ln 2). The upper clamp is one of n, as an integer: where it acts, what is left
// of x is large and positive. Two comparisons of x would become a tree of conditions in gcc's hands, of ten
// instructions. A GPU's own takes 8 instructions and has the same bound (CUDA C++ Programming Guide, expf).
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

// e^(x/2), bit for bit exp(x/2). On a GPU expf with the half in its constants.
template <class T>
VK_INLINE T exp_half(T x) {
#ifdef __CUDA_ARCH__
  if constexpr (is_float<T>) {
    float shifted, power;
    asm("fma.rn.sat.f32 %0, %1, 0f3B3B989D, 0f3F000000;" : "=f"(shifted) : "f"(x));  // + 1/2, up to 1, 252 for x / ln 2
    asm("fma.rm.f32 %0, %0, 0f437C0000, 0f4B400001;" : "+f"(shifted));
    const float n = shifted - 12583039.0f, r = fused(x, 9.629815016750331e-09f, fused(x, 0.7213475108146667f, -n));
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(r));
    return bits_as<float>(bits_as<uint32_t>(shifted) << 23) * power;
  }
#endif
  return exp(T(0.5) * x);
}

// e^-x for x >= 0, bit for bit exp(-x): there n is not positive, and one power of two brings the result next to where
// it belongs, another, the same for all, the rest of the way.
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

// d e^t; 1.5 ulp where d is 0 or normal. (d 2^h) (p 2^r), e^t = p 2^h 2^r: no step over- or underflows before the
// result does, and d = 0 gives 0 for every t but NaN. The clamps keep both powers of two normal and p finite; what they
// change of the result is far beyond the type's range, or below 2^-123 where it should be 0.
template <class T>
VK_INLINE T times_exp(T d, T t) {
  using Integer = typename ExpRange<T>::Integer;
  using Bits = std::make_unsigned_t<Integer>;
  constexpr int kBits = kMantissaBits<T>;
  constexpr T kLeast = is_float<T> ? T(-174) : T(-1416);  // in powers of two -251 and -2043, half for each
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

// -2 ln x for normal x in (0, 1]; 1.5 ulp, relative also next to 1. x = 2^n (1 + f), 1 + f in [sqrt(1/2), sqrt(2)).
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

// ln(1 + u) for u in [0, 1]; 1.5 ulp. For float a polynomial, which is faster than a division; for double 2 atanh(s),
// s = u / (2 + u).
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
  // 2 s is u - u s exactly; what rounding takes from the leading term is small in that form.
  return fused(-s, u, u) + 2.0 * s * (t * q);
}

// e^l - 1 - l for |l| <= 3/2, times a power of two; 3 ulp.
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

// e^l - 1 - l for every l, without cancellation near 0; 3 ulp where |l| <= 3/2, 4 ulp elsewhere. `e` is e^l.
template <class T>
VK_INLINE T exp_minus_1_minus(T l, T e) {
  const T near = exp_minus_1_minus_near_0(l);  // outside the condition: inside it makes a branch of it
  return absolute(l) <= T(1.5) ? near : (e - T(1)) - l;
}

// e^l - 1 from it: where both are needed a second polynomial would cost more.
template <class T>
VK_INLINE T exp_minus_1_by_excess(T l, T e) {
  const T k = exp_minus_1_minus(l, e);  // outside the condition: inside it makes a branch of it
  return absolute(l) <= T(1.5) ? l + k : e - T(1);
}

// Half of e^l - 1 - l. On a GPU the half is in the constants.
template <class T>
VK_INLINE T half_exp_minus_1_minus(T l, T e) {
#ifdef __CUDA_ARCH__
  const T near = exp_minus_1_minus_near_0(l, T(0.5)), far = fused(T(-0.5), l, fused(T(0.5), e, T(-0.5)));
  return absolute(l) <= T(1.5) ? near : far;
#else
  return T(0.5) * exp_minus_1_minus(l, e);
#endif
}

// ln(a b) for every a and b, also where the product under- or overflows what the type holds to either side of normal
// numbers, and ln(a b) - f with it, where f is a b - 1: next to a b = 1 the logarithm is that of 1 + f, so that an f
// known better than a b itself gives a better logarithm; 1 ulp of that of the rounded a b, of `beyond` 4 ulp. a b = 2^n
// (1 + f'), 1 + f' in [sqrt(1/2), sqrt(2)); ln(1 + f') = f' - h + s (h + s^2 p(s^2)), h = f'^2 / 2, s = f' / (2 + f').
template <class T>
struct Logarithm {
  T value, beyond;
};
template <class T>
VK_INLINE Logarithm<T> log_product(T a, T b, T f) {
  constexpr T kLift = is_float<T> ? T(0x1p96) : T(0x1p600);
  constexpr T kLifted = is_float<T> ? T(192) : T(1200);
  const T r = a * b;
  const bool tiny = r < (is_float<T> ? T(1.17549435e-38) : T(2.2250738585072014e-308));
  const T normal = tiny ? (a * kLift) * (b * kLift) : r;
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
  const bool near = n == T(0);
  const T g = near ? f : reduced - T(1);
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
  const T value = normal > T(0) ? (r < T(INFINITY) ? finite : r) : normal == T(0) ? -T(INFINITY) : T(NAN);
  return {value, near ? tail : value - f};
}

// The same, on a GPU within 4 ulp: there the special-function unit has the logarithm where 1 + f is not in (1/2, 2).
template <class T>
VK_INLINE Logarithm<T> coarse_log_product(T a, T b, T f) {
#ifdef VK_SPECIAL_FUNCTIONS
  if constexpr (is_float<T>) {
    const float r = a * b, lift = r < 1.17549435e-38f ? 0x1p96f : 1.0f;
    const float log2 = special::log2((a * lift) * (b * lift)),
                far = (lift > 1.0f ? log2 - 192.0f : log2) * 0.6931471805599453f;
    const float h = 0.5f * f * f, s = divide(f, 2.0f + f), z = s * s;
    const float p = polynomial(z, 0.6666641235351562f, 0.4002169966697693f, 0.27999141812324524f, 0.2802445888519287f);
    const float tail = fused(s, fused(z, p, h), -h), near = f + tail;
    const bool is_near = absolute(r - 1.25f) < 0.75f;
    return {is_near ? near : far, is_near ? tail : far - f};
  }
#endif
  return log_product(a, b, f);
}

// ln r and ln r - f, f = r - 1: likewise.
template <class T>
VK_INLINE Logarithm<T> log_ratio(T r, T f) {
  return log_product(r, T(1), f);
}

// ln x for every x; 1 ulp.
template <class T>
VK_INLINE T log(T x) {
  return log_ratio(x, x - T(1)).value;
}

// e^l - 1 for every l; 2 ulp where |l| <= 1, elsewhere 1.5 ulp of the larger of it and 1. `e` is e^l.
template <class T>
VK_INLINE T exp_minus_1(T l, T e) {
  return absolute(l) <= T(1) ? l + exp_minus_1_minus_near_0(l) : e - T(1);
}

// 1 / (1 + e^-y); 2 ulp. `u` is e^-|y|.
template <class T>
VK_INLINE T sigmoid(T y, T u) {
  return divide(y > T(0) ? T(1) : u, T(1) + u);
}

// ln(1 + e^y); 2 ulp. `u` is e^-|y|.
template <class T>
VK_INLINE T softplus(T y, T u) {
  return (y > T(0) ? y : T(0)) + log1p_unit(u);
}

// Sine and cosine of (w + 1/2) 2^-32 turns; 1 ulp each. Quarters of a turn, the upper two bits, are taken off as an
// integer, exactly.
VK_INLINE void sincos_turns(uint32_t w, float& sine, float& cosine) {
  const uint32_t quadrant = w + 0x20000000u;                          // in its upper two bits
  const float x = float(int32_t(4 * w + 2)) * 3.65729529994141e-10f;  // pi 2^-33
  const float t = x * x;
  const float s = fused(x * t, polynomial(t, -0.166666641831398f, 0.008332745172083378f, -0.00019587361020967364f), x);
  const float c = fused(t * t, polynomial(t, 0.0416666641831398f, -0.0013888301327824593f, 2.4547607608838007e-05f),
                        fused(t, -0.5f, 1.0f));
  uint32_t odd = quadrant & 0x40000000u;
#ifdef __CUDA_ARCH__  // else two instructions more, for a bit of its own
  asm("" : "+r"(odd));
#endif
  const bool swap = odd != 0;
  sine = bits_as<float>(bits_as<uint32_t>(swap ? c : s) ^ (quadrant & 0x80000000u));
  cosine = bits_as<float>(bits_as<uint32_t>(swap ? s : c) ^ ((quadrant + 0x40000000u) & 0x80000000u));
}

}  // namespace vk
