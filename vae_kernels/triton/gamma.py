"""Parts of the gamma function, with the arithmetic of `math.py`. csrc/gamma.h has the same functions for C++.

The lines "Types", "Largest error" and "Range" have the meaning that `math.py` describes.
"""

import triton
import triton.language as tl

from .math import polynomial

# The number of steps n by which `gamma_terms` shifts an argument below n.
STEPS_FLOAT64 = tl.constexpr(8)
STEPS_FLOAT32 = tl.constexpr(2)


@triton.jit
def gamma_terms(a, DTYPE: tl.constexpr):
    """The terms of log Γ(a) and its derivative, with Stirling's series at z = a, or at z = a + n if a < n.

    They are z − a, z, 1/z, the product a (a + 1) … (a + n − 1), its logarithmic derivative, z^n, and the rounding error
    of z. If a is not shifted, the product and the power are 1, and the derivative and the error are 0. csrc/gamma.h
    derives this.

    Types: float32 (n = 2), float64 (n = 8).
    Largest error: logarithmic derivative 3 ulp (float64: 9 ulp), z^n 3 ulp (float64: 15 ulp).
    Range: 1e-6 <= a <= 1e5. NaN for a < 0.
    """
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
    """a (a + 1) … (a + n − 1) e^n, which is near z^n, from `gamma_terms`; 1 if a is not shifted."""
    LIFT: tl.constexpr = 2980.9579870417283 if tl.float64 == DTYPE else 7.38905609893065
    return tl.where(terms[0] > 0.0, terms[3] * LIFT, 1.0)


@triton.jit
def gamma_tail(terms):
    """`lgamma_tail` of `gamma_terms`, plus the correction of log Γ(a) for the rounding error of z."""
    return lgamma_tail(terms[2]) + terms[6] * (1.0 - 0.5 * terms[2])


@triton.jit
def slope_difference(a, b, difference, DTYPE: tl.constexpr):
    """Σ 1/(b + k) − Σ 1/(a + k), k from 0 to n − 1, without cancellation; `difference` is a − b.

    Types: float32 (n = 2), float64 (n = 8).
    Largest error: 5 ulp, measured for b = 1.5.
    Range: 1e-6 <= a <= 1e5.
    """
    STEPS: tl.constexpr = STEPS_FLOAT64 if tl.float64 == DTYPE else STEPS_FLOAT32
    total = a * 0.0
    for k in tl.static_range(0, STEPS):
        total += 1.0 / (b + k) / (a + k)
    return difference * total


@triton.jit
def lgamma_tail(u):
    """log Γ(z) − ((z − ½) log z − z + ½ log 2π), u = 1/z.

    Types: float32, float64.
    Largest error: 1 ulp of 1.
    Range: 1e-8 <= u <= 1/2 (float64: 1/8).
    """
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
    """ψ(z) − log z, u = 1/z.

    Types: float32, float64.
    Largest error: 1 ulp of 1.
    Range: 1e-8 <= u <= 1/2 (float64: 1/8).
    """
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
