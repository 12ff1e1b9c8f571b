"""Logarithms and what the gamma function is made of, with the arithmetic of `math.py`; csrc/math.h has the same for C++.

Bounds are in units in the last place (ulp), in float32 as in float64.
"""

import triton
import triton.language as tl

from .math import exp, polynomial

# By how much `gamma_terms` shifts small arguments.
STEPS_FLOAT64 = tl.constexpr(8)
STEPS_FLOAT32 = tl.constexpr(2)


@triton.jit
def _log_parts(r):
    """r = 2^n m, m in [√½, √2): n and m; r positive and not denormal."""
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
    """log(a b), also where the product underflows, and log(a b) − f with it, where f is a b − 1 and may be known better
    than a b next to 1; error below 2 and 4 ulp."""
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
    """log r and log r − f, f = r − 1: likewise."""
    return log_product(r, 1.0, f)


@triton.jit
def log(x):
    """log x for every x, error below 2 ulp."""
    return log_ratio(x, x - 1.0)[0]


@triton.jit
def expm1_negative(x):
    """e^x − 1 for x <= 0; error below 4 ulp where x >= -1, 1 ulp of 1 below."""
    inside = tl.maximum(x, -1.0)
    if x.dtype == tl.float64:
        # Its Taylor series; the first term left out is below 1e-18 of the sum.
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
def gamma_terms(a, DTYPE: tl.constexpr):
    """What log Γ(a) and its derivative are made of, a >= 0 (NaN elsewhere), by Stirling's series at z = a, or a + n for a < n: z − a, z,
    1/z, a (a + 1) … (a + n − 1) and its logarithmic derivative, and z^n, each 1 or 0 where nothing is shifted, and what the
    rounding of z took from it. See csrc/math.h."""
    STEPS: tl.constexpr = STEPS_FLOAT64 if tl.float64 == DTYPE else STEPS_FLOAT32
    ends = a * (a + (STEPS - 1))
    product = ends
    slope = a * 0.0 + 1.0
    for k in tl.static_range(1, STEPS // 2):
        pair = ends + k * (STEPS - 1 - k)
        slope = slope * pair + product
        product = product * pair
    large = a >= STEPS
    shift = tl.where(large, a * 0.0, a * 0.0 + STEPS)
    z = a + shift
    power = z * z
    if STEPS == 8:
        power = power * power
        power = power * power
    return (
        shift, z, tl.where(a >= 0.0, 1.0 / z, float("nan")), tl.where(large, 1.0, product),
        tl.where(large, 0.0, slope * (2.0 * a + (STEPS - 1)) / product), tl.where(large, 1.0, power),
        tl.where(large, 0.0, a - (z - shift)),
    )  # fmt: skip


@triton.jit
def product_lifted(terms, DTYPE: tl.constexpr):
    """a (a + 1) … (a + n − 1) e^n, near z^n, from `gamma_terms`; 1 where nothing is shifted."""
    LIFT: tl.constexpr = 2980.9579870417283 if tl.float64 == DTYPE else 7.38905609893065
    return tl.where(terms[0] > 0.0, terms[3] * LIFT, 1.0)


@triton.jit
def gamma_tail(terms):
    """`lgamma_tail`, with what the rest of log Γ(a) loses where z is rounded."""
    return lgamma_tail(terms[2]) + terms[6] * (1.0 - 0.5 * terms[2])


@triton.jit
def slope_difference(a, b, difference, DTYPE: tl.constexpr):
    """What the sums of 1/(a + k) over the steps of a and of b differ by, the latter less the former; `difference` is
    a − b. Nothing cancels: error below 5 ulp."""
    STEPS: tl.constexpr = STEPS_FLOAT64 if tl.float64 == DTYPE else STEPS_FLOAT32
    total = a * 0.0
    for k in tl.static_range(0, STEPS):
        total += 1.0 / (b + k) / (a + k)
    return difference * total


@triton.jit
def lgamma_tail(u):
    """log Γ(z) − ((z − ½) log z − z + ½ log 2π), u = 1/z at most 1/2, in float64 1/8; error below 1 ulp of 1."""
    y = u * u
    if u.dtype == tl.float64:
        p = polynomial(y, (
            0.08333333333333333, -0.002777777777773988, 0.0007936507897524059, -0.0005952365845057049,
            0.0008414700852503147, -0.001890382993887715, 0.005065905360156132,
        ))  # fmt: skip
    else:
        p = polynomial(y, (0.08333332178671254, -0.0027762802492264666, 0.0007615399684259511, -0.00034972389564190425))
    return u * p


@triton.jit
def digamma_tail(u):
    """ψ(z) − log z, u = 1/z at most 1/2, in float64 1/8; error below 1 ulp of 1."""
    y = u * u
    if u.dtype == tl.float64:
        p = polynomial(y, (
            0.08333333333333333, -0.008333333333331664, 0.003968253965999701, -0.004166665501516725,
            0.007575459920369176, -0.02105106090804774, 0.08002337465397756, -0.29942537062673501,
        ))  # fmt: skip
    else:
        p = polynomial(y, (
            0.08333332453745723, -0.00833155071868131, 0.003907189544334103, -0.003369202911177285,
            0.0024051080762988396,
        ))  # fmt: skip
    return u * (-0.5 - u * p)
