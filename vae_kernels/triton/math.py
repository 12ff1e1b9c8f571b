"""Elementary functions of the kernels, the same arithmetic on every GPU and under the interpreter.

Built from additions, multiplications and bit patterns: no libdevice (slow paths, absent from the interpreter) and no
approximate instruction, whose error would depend on the chip. Bounds are in units in the last place (ulp) of float32,
over the whole range named. float64 goes to Triton's own exp and log, which are accurate there.

`l` is a log-variance. Polynomials are minimax fits to the function named beside them.
"""

import triton
import triton.language as tl


@triton.jit
def _nearest_power_of_2(x):
    """n = x / ln 2 rounded, as the float n + 1.5 * 2^23, whose low bits are those of the integer n; x in [-104, 89]."""
    return x * 1.4426950408889634 + 12582912.0


@triton.jit
def _expm1_terms(x, shifted):
    """For r = x - n ln 2, |r| <= ½: r, and e^r - 1 - r (error below 1 ulp)."""
    n = shifted - 12582912.0
    # The first part of ln 2 has 15 bits: its product with n is exact.
    r = (x - n * 0.693145751953125) - n * 1.4286068203094172e-06
    # (e^r - 1 - r) / r², within 3e-8
    q = r * 0.0001986335152 + 0.0013975331
    q = q * r + 0.008333480077
    q = q * r + 0.04166599935
    q = q * r + 0.1666666543
    q = q * r + 0.5
    return r, r * r * q


@triton.jit
def _times_power_of_2(p, shifted):
    """(1 + p) 2^n. Two factors, so that neither overflows and denormal results are right."""
    bits = shifted.to(tl.int32, bitcast=True)
    half = bits >> 1
    first = ((half << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    second = (((bits - half) << 23) + 0x3F800000).to(tl.float32, bitcast=True)
    return (p * first + first) * second


@triton.jit
def _within_range(x):
    """Beyond these bounds e^x is 0 or infinite in float32. NaN stays NaN."""
    x = tl.maximum(x, -104.0, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, 89.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp(x):
    """e^x, error below 1 ulp, denormal results included."""
    if x.dtype == tl.float64:
        return tl.exp(x)
    else:
        x = _within_range(x)
        shifted = _nearest_power_of_2(x)
        r, excess = _expm1_terms(x, shifted)
        return _times_power_of_2(r + excess, shifted)


@triton.jit
def log1p_unit(u):
    """log(1 + u) for u in [0, 1], error below 2 ulp."""
    if u.dtype == tl.float64:
        # Kahan: the rounding error of 1 + u cancels in the quotient.
        w = 1.0 + u
        return tl.where(w == 1.0, u, tl.log(w) * (u / tl.where(w == 1.0, 1.0, w - 1.0)))
    else:
        # 1 + u, or half of it, is 1 + f with |f| <= 1/3.
        halve = u > 0.3333333333333333
        f = tl.where(halve, u * 0.5 - 0.5, u)
        # (log(1 + f) - f) / f²
        q = f * 0.1402636637 - 0.1538853817
        q = q * f + 0.1399580566
        q = q * f - 0.1641596106
        q = q * f + 0.2001116872
        q = q * f - 0.2500781888
        q = q * f + 0.3333319814
        q = q * f - 0.4999993608
        log = f * f * q + f
        return tl.where(halve, log + 0.6931471805599453, log)


@triton.jit
def minus_2_log(u):
    """-2 log u for a float32 u in [2^-33, 1], error below 2 ulp."""
    bits = u.to(tl.int32, bitcast=True)
    # u = 2^n (1 + f), f in [-1/3, 1/3): 0x3F2AAAAB is 2/3, and exponent is n * 2^23.
    exponent = (bits - 0x3F2AAAAB) & -0x800000
    g = (bits - exponent).to(tl.float32, bitcast=True) * -2.0 + 2.0
    # In g = -2f: (-2 log(1 + f) - g) / g²
    q = g * 0.0005479049363 + 0.001202229544
    q = q * g + 0.002186844634
    q = q * g + 0.005129987831
    q = q * g + 0.01250698045
    q = q * g + 0.0312597736
    q = q * g + 0.08333299535
    q = q * g + 0.2499996804
    return exponent.to(tl.float32) * -1.6525917e-07 + (g * g * q + g)


@triton.jit
def sin_cos_turns(word):
    """Sine and cosine of (word + ½) 2^-32 turns, word a uint32, error below 2 ulp each.

    The two top bits, rounded, are the quadrant; the others, as a signed integer, the angle from its axis: exact.
    """
    # In halves of a quadrant, so in [-1, 1]: the angle is x pi / 4.
    x = ((word << 2) | 2).to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10
    t = x * x
    # (sin(x pi/4) - x pi/4) / x³ and (cos(x pi/4) - 1 + ½ (x pi/4)²) / x⁴
    s = (t * -3.597892390e-05 + 0.002490049277) * t - 0.08074545538
    # pi / 4 in two parts, the larger one times x in the last, fused operation: one rounding instead of two.
    s = x * 0.7853981852531433 + x * (s * t - 2.1855695e-08)
    c = (t * 3.537512454e-06 - 0.0003259549676) * t + 0.01585433626
    c = (c * t - 0.3084251375) * t + 1.0
    quadrant = word + 0x20000000
    odd = (quadrant & 0x40000000) != 0
    sine, cosine = tl.where(odd, c, s), tl.where(odd, s, c)
    sine = sine.to(tl.uint32, bitcast=True) ^ (quadrant & 0x80000000)
    cosine = cosine.to(tl.uint32, bitcast=True) ^ ((quadrant + 0x40000000) & 0x80000000)
    return sine.to(tl.float32, bitcast=True), cosine.to(tl.float32, bitcast=True)


@triton.jit
def _excess_series(l):
    """e^l - 1 - l in float64 for |l| <= 1: its Taylor series, the first term left out is below 1e-19 of it."""
    term = l * l * 0.5
    total = term
    for n in tl.static_range(3, 20):
        term = term * l * (1.0 / n)
        total += term
    return total


@triton.jit
def _std_terms(l):
    """e^(l/2), and, right where |l| <= 1, which is the last: e^(l/2) - 1 and e^(l/2) - 1 - l/2."""
    small = tl.abs(l) <= 1.0
    half = _within_range(l * 0.5)
    shifted = tl.where(small, 12582912.0, _nearest_power_of_2(half))
    r, excess = _expm1_terms(half, shifted)
    p = r + excess
    return _times_power_of_2(p, shifted), p, excess, small


@triton.jit
def std_and_excess(l):
    """e^(l/2), and e^l - 1 - l without cancellation (error below 8 ulp)."""
    if l.dtype == tl.float64:
        small = tl.abs(l) <= 1.0
        return tl.exp(l * 0.5), tl.where(small, _excess_series(tl.where(small, l, 0.0)), tl.exp(l) - 1.0 - l)
    else:
        std, p, excess, small = _std_terms(l)
        # (1 + p)² - 1 - l = p² + 2 (p - l/2): all terms are positive.
        return std, tl.where(small, p * p + 2.0 * excess, (std * std - 1.0) - l)


@triton.jit
def std_and_expm1(l):
    """e^(l/2), and e^l - 1 without cancellation (error below 4 ulp)."""
    if l.dtype == tl.float64:
        small = tl.abs(l) <= 1.0
        return tl.exp(l * 0.5), tl.where(small, l + _excess_series(tl.where(small, l, 0.0)), tl.exp(l) - 1.0)
    else:
        std, p, excess, small = _std_terms(l)
        return std, tl.where(small, p * (p + 2.0), std * std - 1.0)
