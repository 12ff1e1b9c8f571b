"""Elementary functions of the kernels, with the same arithmetic on every GPU and in the interpreter.

They use additions, multiplications and bit patterns. They do not use libdevice, which has slow paths and is not in the
interpreter, nor approximate instructions, whose errors depend on the chip. float64 uses Triton's own exp and log.

Three lines of a docstring state the accuracy. "Types" are the dtypes of the arguments. "Largest error" is in units in
the last place (ulp) of the result; "ulp of 1" means of 1 where the result is smaller. "Range" has the arguments for
which python_tests/triton_functions_under_interpreter.py measures the error.

`l` is a log-variance. A comment beside each polynomial names the function that it fits (minimax).
"""

import triton
import triton.language as tl


@triton.jit
def polynomial(x, coefficients):
    """c₀ + x c₁ + x² c₂ + …, by Horner's rule."""
    n: tl.constexpr = len(coefficients)
    value = x * coefficients[n - 1] + coefficients[n - 2]
    for i in tl.static_range(n - 2):
        value = value * x + coefficients[n - 3 - i]
    return value


@triton.jit
def _exp_reduced(x, n):
    """e^(x - n ln 2), where n is the integer nearest to x / ln 2, |n| <= 151."""
    # The first part of ln 2 has 15 bits, so that its product with n is exact.
    r = (x - n * 0.693145751953125) - n * 1.4286068203094172e-06
    # (e^r - 1 - r) / r², |r| <= ½ ln 2
    return polynomial(r, (1.0, 1.0, 0.4999999337, 0.1666651953, 0.04166840112, 0.008368850965, 0.001381431781))


@triton.jit
def _times_power_of_2(y, shifted):
    """y 2^n for y near 1 and n in [-151, 129], which is in the low bits of `shifted`.

    Two factors are used, because 2^n itself can be out of range, and so that denormal results are correct.
    """
    bits = shifted.to(tl.int32, bitcast=True)
    half = bits >> 1
    y = (y.to(tl.int32, bitcast=True) + (half << 23)).to(tl.float32, bitcast=True)
    return y * (((bits - half) << 23) + 0x3F800000).to(tl.float32, bitcast=True)


@triton.jit
def _between(x, low: tl.constexpr, high: tl.constexpr):
    """x, clamped to [low, high]. NaN stays NaN."""
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp(x):
    """e^x.

    Types: float32, float64.
    Largest error: 1.2 ulp, also for denormal results of float32.
    Range: -104 <= x <= 88.72 (float64: -700 <= x <= 709).
    """
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        # Outside of these bounds the result is 0 or infinite.
        x = _between(x, -104.0, 89.0)
        # Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits.
        shifted = x * 1.4426950408889634 + 12582912.0
        return _times_power_of_2(_exp_reduced(x, shifted - 12582912.0), shifted)


@triton.jit
def times_exp(d, t):
    """d e^t. Two powers of two are used, so that no step over- or underflows before the result does.

    Types: float32, float64.
    Largest error: 2 ulp (float64: 4 ulp) where the result is normal.
    Range: every t, and d that is 0 or normal. For d = 0 the result is 0, unless t is NaN.
    """
    if d.dtype == tl.float64:
        half = tl.exp(_between(t, -1416.0, 1418.0) * 0.5)
        return (d * half) * half
    else:
        t = _between(t, -174.0, 176.0)
        # As in `exp`, with n in [-251, 254], so that both powers are normal.
        shifted = t * 1.4426950408889634 + 12582912.0
        p = _exp_reduced(t, shifted - 12582912.0)
        bits = shifted.to(tl.int32, bitcast=True)
        half = bits >> 1
        p *= (((bits - half) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
        return d * ((half << 23) + 0x3F800000).to(tl.float32, bitcast=True) * p


@triton.jit
def exp_minus_abs(x):
    """e^-|x|, with one step less than `exp`, because n is not positive.

    Types: float32, float64.
    Largest error: 1.2 ulp (float64: 4 ulp), also for denormal results of float32.
    Range: |x| <= 104 (float64: 700).
    """
    if x.dtype == tl.float64:
        return tl.exp(-tl.abs(x))
    else:
        x = tl.maximum(-tl.abs(x), -104.0, propagate_nan=tl.PropagateNan.ALL)
        # As in `exp`, but with n + 64 in the low bits, and a factor 2^-64 at the end.
        shifted = x * 1.4426950408889634 + 12582976.0
        y = _exp_reduced(x, shifted - 12582976.0).to(tl.int32, bitcast=True)
        y += shifted.to(tl.int32, bitcast=True) << 23
        return y.to(tl.float32, bitcast=True) * 5.421010862427522e-20


@triton.jit
def log1p_unit(u):
    """log(1 + u).

    Types: float32, float64.
    Largest error: 2 ulp (float64: 4 ulp).
    Range: 0 <= u <= 1.
    """
    if u.dtype == tl.float64:
        # Kahan's formula: the rounding error of 1 + u cancels in the quotient.
        w = 1.0 + u
        return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    else:
        # (log(1 + u) - u) / u²
        q = polynomial(u, (
            -0.4999993276, 0.333305113, -0.249585873, 0.1969540005, -0.1535539521, 0.1068055414, -0.05766443472,
            0.02020458178, -0.003318472229,
        ))  # fmt: skip
        return u * u * q + u


@triton.jit
def sigmoid(y, u):
    """1 / (1 + e^-y), with u = e^-|y|.

    Types: float32, float64.
    Largest error: 2.5 ulp where the result is normal.
    Range: every y.
    """
    return tl.where(y > 0, 1.0, u) / (1.0 + u)


@triton.jit
def softplus(y, u):
    """log(1 + e^y), with u = e^-|y|.

    Types: float32, float64.
    Largest error: 3 ulp (float64: 4 ulp) where the result is normal.
    Range: every y.
    """
    return tl.where(y > 0, y, 0.0) + log1p_unit(u)


@triton.jit
def _log_parts(r):
    """n and m with r = 2^n m and m in [√½, √2), for r positive and not denormal."""
    if r.dtype == tl.float64:
        bits = r.to(tl.int64, bitcast=True)
        n = (bits + 0x00095F619980C433) >> 52
        m = (bits - ((n - 1023) << 52)).to(tl.float64, bitcast=True)
        return (n - 1023).to(tl.float64), m
    else:
        bits = r.to(tl.int32, bitcast=True)
        n = (bits + 0x004AFB0D) >> 23
        return (n - 127).to(tl.float32), (bits - ((n - 127) << 23)).to(tl.float32, bitcast=True)


@triton.jit
def log_product(a, b, f):
    """log(a b), and log(a b) − f with f = a b − 1. The caller computes f, which near a b = 1 can be more accurate than
    a b.

    Types: float32, float64.
    Largest error: log(a b) 2 ulp, log(a b) − f 4 ulp; measured for b = 1.
    Range: every a b, even if the product underflows. log(a b) − f is measured for 1e-9 <= |f| <= 0.25.
    """
    r = a * b
    if r.dtype == tl.float64:
        LIFT: tl.constexpr = 4.149515568880993e180
        LIFTED: tl.constexpr = 1200.0
        tiny = r < 2.2250738585072014e-308
    else:
        LIFT: tl.constexpr = 7.922816251426434e28
        LIFTED: tl.constexpr = 192.0
        tiny = r < 1.1754943508222875e-38
    normal = tl.where(tiny, (a * LIFT) * (b * LIFT), r)
    n, m = _log_parts(normal)
    near = (n == 0.0) & (r > 0.5)
    g = tl.where(near, f, m - 1.0)
    s = g / (2.0 + g)
    z = s * s
    if r.dtype == tl.float64:
        p = polynomial(z, (
            0.666666666666667, 0.39999999999899505, 0.28571428625975487, 0.2222221113479508, 0.18182889125261723,
            0.15331721600556042, 0.14616449685043406,
        ))  # fmt: skip
    else:
        p = polynomial(z, (0.6666666655449709, 0.40000121839806124, 0.28550820815960665, 0.23330467216303835))
    h = 0.5 * g * g
    # log(1 + g) - g
    tail = s * (z * p + h) - h
    n = tl.where(tiny, n - LIFTED, n)
    if r.dtype == tl.float64:
        value = n * 6.93147180369123816490e-01 + (g + (n * 1.90821492927058770002e-10 + tail))
    else:
        value = n * 0.693359375 + (g + (n * -2.12194440e-4 + tail))
    value = tl.where(r < float("inf"), value, r)
    value = tl.where(normal > 0.0, value, tl.where(normal == 0.0, float("-inf"), float("nan")))
    return value, tl.where(near, tail, value - f)


@triton.jit
def log_ratio(r, f):
    """log r, and log r − f with f = r − 1.

    Types: float32, float64.
    Largest error: log r 2 ulp, log r − f 4 ulp.
    Range: every r. log r − f is measured for 1e-9 <= |f| <= 0.25.
    """
    return log_product(r, 1.0, f)


@triton.jit
def log(x):
    """log x.

    Types: float32, float64.
    Largest error: 2 ulp.
    Range: every x, also denormal. NaN for x < 0, −∞ for 0.
    """
    return log_ratio(x, x - 1.0)[0]


@triton.jit
def expm1_negative(x):
    """e^x − 1.

    Types: float32, float64.
    Largest error: 4 ulp for x >= -1, 1 ulp of 1 for x < -1.
    Range: -80 <= x <= 0 (float64: -700), and -∞.
    """
    inside = tl.maximum(x, -1.0)
    if x.dtype == tl.float64:
        # The Taylor series; the first omitted term is below 1e-18 of the sum.
        excess = inside * inside * 0.5
        term = excess
        for n in tl.static_range(3, 20):
            term = term * inside * (1.0 / n)
            excess += term
    else:
        # (e^x - 1 - x) / x²
        q = polynomial(inside, (
            0.5, 0.166666641831398, 0.04166668653488159, 0.008333463221788406, 0.0013888550456613302,
            0.00019819945737253875, 2.481590854586102e-05, 2.8835620469180867e-06, 2.790293365251273e-07,
        ))  # fmt: skip
        excess = q * (inside * inside)
    return tl.where(x >= -1.0, x + excess, exp(x) - 1.0)


@triton.jit
def minus_2_log(u):
    """-2 log u.

    Types: float32.
    Largest error: 2 ulp.
    Range: 2^-33 <= u <= 1.
    """
    bits = u.to(tl.int32, bitcast=True)
    # u = 2^n (1 + f) with f in [-1/3, 1/3). 0x3F2AAAAB is 2/3, and exponent is n * 2^23.
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    g = (bits - exponent).to(tl.float32, bitcast=True) * -2.0 + 2.0
    # With g = -2f: (-2 log(1 + f) - g) / g²
    q = polynomial(g, (
        0.2499996804, 0.08333299535, 0.0312597736, 0.01250698045, 0.005129987831, 0.002186844634, 0.001202229544,
        0.0005479049363,
    ))  # fmt: skip
    return exponent.to(tl.float32) * -1.6525917e-07 + (g * g * q + g)


@triton.jit
def sin_cos_turns(word):
    """Sine and cosine of (word + ½) 2^-32 turns.

    The two top bits, rounded, are the quadrant. The other bits, as a signed integer, are the angle from its axis,
    exactly.

    Types: uint32, with float32 results.
    Largest error: 3 ulp.
    Range: every word.
    """
    # x is in halves of a quadrant, in [-1, 1]: the angle is x pi / 4.
    x = ((word << 2) | 2).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10
    t = x * x
    # (sin(x pi/4) - x pi/4) / x³ and (cos(x pi/4) - 1 + ½ (x pi/4)²) / x⁴
    s = polynomial(t, (-0.08074545538, 0.002490049277, -3.597892390e-05))
    # pi / 4 in two parts. The larger one is multiplied in the last, fused operation: one rounding instead of two.
    s = x * 0.7853981852531433 + x * (s * t - 2.1855695e-08)
    c = polynomial(t, (1.0, -0.3084251375, 0.01585433626, -0.0003259549676, 3.537512454e-06))
    quadrant = tl.add(word, 0x20000000, sanitize_overflow=False)
    odd = (quadrant & 0x40000000) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    sine = sine.to(tl.uint32, bitcast=True) ^ (quadrant & 0x80000000)
    next_quadrant = tl.add(quadrant, 0x40000000, sanitize_overflow=False)
    cosine = cosine.to(tl.uint32, bitcast=True) ^ (next_quadrant & 0x80000000)
    return sine.to(tl.float32, bitcast=True), cosine.to(tl.float32, bitcast=True)


@triton.jit
def _excess_series(l):
    """e^l - 1 - l in float64 for |l| <= 1, by the Taylor series. The first omitted term is below 1e-19 of the sum."""
    term = l * l * 0.5
    total = term
    for n in tl.static_range(3, 20):
        term = term * l * (1.0 / n)
        total += term
    return total


@triton.jit
def _half_terms(r):
    """e^(r/2) - 1 and e^(r/2) - 1 - r/2 for -1 <= r <= 2."""
    # (e^(r/2) - 1 - r/2) / r², within 2e-8
    q = polynomial(r, (
        0.125, 0.02083332972, 0.002604178868, 0.0002604325787, 2.166980372e-05, 1.542778959e-06, 1.177049351e-07,
    ))  # fmt: skip
    excess = r * r * q
    return r * 0.5 + excess, excess


@triton.jit
def _is_small(l):
    """-1 <= l <= 2. Outside, e^l - 1 - l is so large that it can be computed from e^l."""
    return tl.abs(l - 0.5) <= 1.5


@triton.jit
def _std_terms(l):
    """e^(l/2), e^(l/2) - 1, e^(l/2) - 1 - l/2, and whether -1 <= l <= 2: only then the second and third are correct."""
    small = _is_small(l)
    # l = 2 (n ln 2 + r / 2), with n = 0 where small.
    l = _between(l, -208.0, 178.0)
    shifted = tl.where(small, 12582912.0, l * 0.7213475204444817 + 12582912.0)
    n = shifted - 12582912.0
    r = (l - n * 1.38629150390625) - n * 2.8572136406188345e-06
    p, excess = _half_terms(r)
    return _times_power_of_2(1.0 + p, shifted), p, excess, small


@triton.jit
def std_and_excess(l):
    """e^(l/2), and e^l - 1 - l without cancellation.

    Types: float32, float64.
    Largest error: e^(l/2) 1 ulp, e^l - 1 - l 4 ulp.
    Range: e^(l/2) -208 <= l <= 177.4 (float64: -1400 <= l <= 1418),
        e^l - 1 - l -200 <= l <= 88.7 (float64: -3 <= l <= 3).
    """
    if l.dtype == tl.float64:
        return tl.exp(l * 0.5), excess_from(l, tl.exp(l))
    else:
        std, p, excess, small = _std_terms(l)
        # (1 + p)² - 1 - l = p² + 2 (p - l/2): all terms are positive.
        return std, tl.where(small, p * p + 2.0 * excess, (std * std - 1.0) - l)


@triton.jit
def std_and_expm1(l):
    """e^(l/2), and e^l - 1 without cancellation.

    Types: float32, float64.
    Largest error: e^(l/2) 1 ulp, e^l - 1 4 ulp.
    Range: e^(l/2) -208 <= l <= 177.4 (float64: -1400 <= l <= 1418),
        e^l - 1 -200 <= l <= 88.7 (float64: -3 <= l <= 3).
    """
    if l.dtype == tl.float64:
        return tl.exp(l * 0.5), expm1_from(l, tl.exp(l))
    else:
        std, p, excess, small = _std_terms(l)
        return std, tl.where(small, p * (p + 2.0), std * std - 1.0)


@triton.jit
def excess_from(l, e):
    """e^l - 1 - l without cancellation, with e = e^l.

    Types: float32, float64.
    Largest error: 4 ulp.
    Range: -3 <= l <= 3.
    """
    if l.dtype == tl.float64:
        small = tl.abs(l) <= 1.0
        return tl.where(small, _excess_series(tl.where(small, l, 0.0)), e - 1.0 - l)
    else:
        small = _is_small(l)
        p, excess = _half_terms(tl.where(small, l, 0.0))
        return tl.where(small, p * p + 2.0 * excess, (e - 1.0) - l)


@triton.jit
def expm1_from(l, e):
    """e^l - 1 without cancellation, with e = e^l.

    Types: float32, float64.
    Largest error: 4 ulp.
    Range: -3 <= l <= 3.
    """
    if l.dtype == tl.float64:
        small = tl.abs(l) <= 1.0
        return tl.where(small, l + _excess_series(tl.where(small, l, 0.0)), e - 1.0)
    else:
        small = _is_small(l)
        p, _ = _half_terms(tl.where(small, l, 0.0))
        return tl.where(small, p * (p + 2.0), e - 1.0)
