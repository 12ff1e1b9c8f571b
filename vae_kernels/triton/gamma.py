"""What the gamma function is made of, with the arithmetic of `math.py`; csrc/gamma.h has the same for C++.

Bounds are in units in the last place (ulp), in float32 as in float64.
"""

import triton
import triton.language as tl

from .math import polynomial

# By how much `gamma_terms` shifts small arguments.
STEPS_FLOAT64 = tl.constexpr(8)
STEPS_FLOAT32 = tl.constexpr(2)


@triton.jit
def gamma_terms(a, DTYPE: tl.constexpr):
    """What log Γ(a) and its derivative are made of, a >= 0 (NaN elsewhere), by Stirling's series at z = a, or a + n for a < n: z − a, z,
    1/z, a (a + 1) … (a + n − 1) and its logarithmic derivative, and z^n, each 1 or 0 where nothing is shifted, and what the
    rounding of z took from it. See csrc/gamma.h."""
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
