"""Reconstruction terms: `log p(x)`, summed per sample. Each family has two functions; all share two kernels."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import families, ops
from ..options import LikelihoodOptions
from ..rows import column_dims, compute_dtype, sum_to_size
from .gamma import STEPS_FLOAT32, STEPS_FLOAT64, digamma_tail, gamma_tail, gamma_terms, product_lifted, slope_difference
from .launch import Launch, SplitLaunch, planned, signature
from .layout import dense, from_dense, layout
from .math import (
    exp,
    exp_minus_abs,
    expm1_negative,
    log,
    log1p_unit,
    log_product,
    log_ratio,
    polynomial,
    sigmoid,
    softplus,
    times_exp,
)
from .parameters import SumOfPartials, float32_parts, load_parameter, number, store_partial
from .tile import (
    HELD,
    add_compensated,
    block_index,
    chunk_index,
    chunks_per_program,
    compensated,
    finer,
    geometry,
    is_split,
    load,
    offsets,
    per_row_offsets,
    row_blocks_per_program,
    store,
    tile,
    widened,
)


@triton.jit
def bernoulli_log_prob(logits, x):
    """`x·a − softplus(a)`, as `(x − [a > 0])·a − log(1 + e^−|a|)`, whose terms do not cancel for x in [0, 1]."""
    a = logits
    return tl.where(a > 0, x - 1.0, x) * a - log1p_unit(exp_minus_abs(a))


@triton.jit
def bernoulli_grad(logits, x):
    """The gradients: `x − sigmoid(a)` to a, and `a` to x."""
    a = logits
    u = exp_minus_abs(a)
    # sigmoid(-|a|)
    tail = u / (1.0 + u)
    return tl.where(a > 0, (x - 1.0) + tail, x - tail), a


@triton.jit
def gaussian_log_prob(mean, x, logvar):
    """`−½ (l + y² + ln 2π)`, y = (x − mean) e^(−l/2), l = logvar."""
    y = times_exp(x - mean, -0.5 * logvar)
    return (-0.5 * y) * y - 0.5 * (logvar + 1.8378770664093453)


@triton.jit
def gaussian_grad(mean, x, logvar):
    """The gradients: `(x − mean) e^−l` to mean, its negative to x, and `½ (y² − 1)` to l."""
    half = -0.5 * logvar
    y = times_exp(x - mean, half)
    weighted = times_exp(y, half)
    return weighted, -weighted, (0.5 * y) * y - 0.5


@triton.jit
def _laplace_scaled(d, s):
    """`d e^−s`, in two steps, because d = x − loc may be subnormal."""
    return times_exp(times_exp(d, -0.5 * s), -0.5 * s)


@triton.jit
def laplace_log_prob(loc, x, log_scale):
    """`−|x − loc| e^−s − s − ln 2`, s = log_scale."""
    return -((_laplace_scaled(tl.abs(x - loc), log_scale) + log_scale) + 0.6931471805599453)


@triton.jit
def laplace_grad(loc, x, log_scale):
    """The gradients: `sign(x − loc) e^−s` to loc, its negative to x, and `|x − loc| e^−s − 1` to s."""
    difference = x - loc
    rate = _laplace_scaled(tl.full(x.shape, 1.0, x.dtype), log_scale)
    signed = tl.where(difference > 0, rate, tl.where(difference < 0, -rate, 0.0))
    return signed, -signed, _laplace_scaled(tl.abs(difference), log_scale) - 1.0


@triton.jit
def continuous_bernoulli_log_prob(logits, x):
    """`x·a − log((e^a − 1)/a)`: for |a| ≤ 2 `(x − ½)·a − a² p(a²)`, else `(x − [a > 0])·a − log((1 − e^−|a|)/|a|)`."""
    a = logits
    size = tl.abs(a)
    y = a * a
    # log(sinh(a/2) / (a/2)) / a²
    if x.dtype == tl.float64:
        p = polynomial(y, (
            0.041666666666666664, -0.00034722222222220624, 5.511463844664847e-06, -1.0333994666461168e-07,
            2.0876750027486815e-09, -4.403426126342947e-11, 9.555163766073461e-13, -2.1048763241763512e-14,
            4.466450757756472e-16, -6.972042082143168e-18,
        ))  # fmt: skip
    else:
        p = polynomial(y, (
            0.04166666659526108, -0.0003472213281091202, 5.509659380392218e-06, -1.0205134121730446e-07,
            1.702779136817845e-09,
        ))  # fmt: skip
    far = tl.where(a > 0, x - 1.0, x) * a - log((1.0 - exp_minus_abs(a)) / size)
    return tl.where(size <= 2.0, (x - 0.5) * a - p * y, far)


@triton.jit
def continuous_bernoulli_grad(logits, x):
    """The gradients: `x − ½ − (coth(a/2)/2 − 1/a)` to a, and `a` to x."""
    a = logits
    size = tl.abs(a)
    u = exp_minus_abs(a)
    y = a * a
    # (coth(a/2)/2 - 1/a) / a
    if x.dtype == tl.float64:
        p = polynomial(y, (
            0.08333333333333333, -0.0013888888888888885, 3.306878306877968e-05, -8.267195767037382e-07,
            2.087675694949121e-08, -5.28418958886776e-10, 1.338248644725405e-11, -3.3893786760928355e-13,
            8.573861074517476e-15, -2.1418775817833587e-16, 4.929715344504075e-18, -7.765969416069672e-20,
        ))  # fmt: skip
    else:
        p = polynomial(y, (
            0.08333333250542785, -0.0013888785191038882, 3.304782282007058e-05, -8.117004179946352e-07,
            1.6356871898348408e-08,
        ))  # fmt: skip
    # (a - a) is NaN for an infinite a.
    tail = (1.0 / size - u / (1.0 - u)) + (a - a)
    far = tl.where(a > 0, (x - 1.0) + tail, x - tail)
    return tl.where(size <= 2.0, (x - 0.5) - a * p, far), a


@triton.jit
def bernoulli_probs_log_prob(probs, x):
    """`x log p + (1 − x) log(1 − p)`, with each logarithm clamped to at least −100."""
    p = probs
    one = log(p)
    zero = log_ratio(1.0 - p, -p)[0]
    return x * tl.where(one < -100.0, -100.0, one) + (1.0 - x) * tl.where(zero < -100.0, -100.0, zero)


@triton.jit
def bernoulli_probs_grad(probs, x):
    """The gradients: `(x − p) / max(p (1 − p), 1e-12)` to p, and `log p − log(1 − p)` to x.

    The gradient to p is NaN for p outside [0, 1]. A logarithm is clamped to −100 only if the other one is 0, so that the
    gradient to x is the difference, clamped to ±100.
    """
    p = probs
    variance = p * (1.0 - p)
    floored = tl.where(variance < 1e-12, 1e-12, variance)
    logit = log_ratio(p / (1.0 - p), (2.0 * p - 1.0) / (1.0 - p))[0]
    logit = tl.where(logit < -100.0, -100.0, tl.where(logit > 100.0, 100.0, logit))
    return tl.where((p >= 0) & (p <= 1), (x - p) / floored, float("nan")), logit


@triton.jit
def _negative_binomial_terms(mu, x, theta):
    """The terms that value and gradients share. NegativeBinomialTerms in csrc/formulas/likelihood.h derives them.

    They are the `gamma_terms` of c, t and b, 1/e, the factors that scale a large x down and up, and, for
    q = c g / (t e), log q, log q − (q − 1), e (q − 1) and θ log q.
    """
    c = gamma_terms(x + theta, x.dtype)
    t = gamma_terms(theta, x.dtype)
    b = gamma_terms(x + 1.0, x.dtype)
    LARGE: tl.constexpr = 3.273390607896142e150 if x.dtype == tl.float64 else 1.152921504606847e18
    down, up = tl.where(x > LARGE, 1.0 / LARGE, 1.0), tl.where(x > LARGE, LARGE, 1.0)
    inverse_e = 1.0 / (mu + (theta + 1e-8))
    shifts = c[0] - t[0]
    excess = 1e-8 * t[2] * (x + shifts) - (t[0] * t[2]) * mu
    excess = (theta * t[2]) * ((x - mu) + shifts) + excess
    minus_1 = excess * inverse_e
    # The ratio is 1 plus the difference, if the difference is small.
    exact = tl.abs(minus_1) < 0.5
    up_to_1 = tl.where(exact, 1.0, (theta + 1e-8) * t[2] * up)
    dispersion, beyond = log_product(up_to_1, tl.where(exact, 1.0 + minus_1, (c[1] * down) * inverse_e), minus_1)
    # This is accurate even if the difference from 1 underflows.
    near = tl.abs(minus_1) < 0.25
    term = theta * tl.where(near, beyond, dispersion) + tl.where(near, excess * (theta * inverse_e), 0.0)
    return c, t, b, inverse_e, down, up, dispersion, beyond, excess, term


@triton.jit
def _log_counts(mu, theta, inverse_e, down, up, z_c, z_b, inverse_b, shifts):
    """log(m z_c / (e z_b)), m = mu + ε. `shifts` is (z_c − x − θ) − (z_b − x − 1)."""
    m = mu + 1e-8
    minus_1 = (m * inverse_e) * ((shifts - 1.0) * inverse_b)
    minus_1 = (theta * inverse_e) * (((mu - z_b) + 1e-8) * inverse_b) + minus_1
    return log_product(m * (inverse_b * up), (z_c * down) * inverse_e, minus_1)[0]


@triton.jit
def negative_binomial_log_prob(mu, x, theta):
    """`log Γ(x+θ) − log Γ(θ) − log Γ(x+1) + θ log((θ+ε)/e) + x log((mu+ε)/e)`, e = mu + θ + ε."""
    c, t, b, inverse_e, down, up, _, _, _, term = _negative_binomial_terms(mu, x, theta)
    value = x * _log_counts(mu, theta, inverse_e, down, up, c[1], b[1], b[2], c[0] - b[0]) + term
    above = product_lifted(t, x.dtype) * product_lifted(b, x.dtype) * c[5]
    products = above / (product_lifted(c, x.dtype) * t[5] * b[5])
    roots = tl.sqrt(t[1] * (c[2] * up) * (b[2] * up)) * down
    # 1 - log(2π)/2
    tails = (gamma_tail(c) - gamma_tail(t) - gamma_tail(b)) + 0.08106146679532726
    stirling_terms = log_product(roots, products, roots * products - 1.0)[0] + tails
    return value + tl.where(x == 0.0, 0.0, stirling_terms) + _undefined(mu, x, theta)


@triton.jit
def _undefined(mu, x, theta):
    """0, or NaN where an argument is not finite."""
    return ((mu - mu) + (x - x)) + (theta - theta)


@triton.jit
def _negative_binomial_grad(mu, x, theta):
    """The gradients to mu, x and theta, and θ log(c (θ + ε) / (t e)), which is log NB(0) at x = 0."""
    c, t, _, inverse_e, down, up, dispersion, beyond, excess, term = _negative_binomial_terms(mu, x, theta)
    inverse_m = 1.0 / (mu + 1e-8)
    # θ (x − m) / (m e), in an order that multiplies large factors by small ones.
    relative = ((x - mu) - 1e-8) * down * inverse_m
    less, rate = tl.where(theta < 1.0, theta, 1.0), tl.where(theta < 1.0, 1.0, theta) * inverse_e * up
    to_mu = tl.where(inverse_e < 1.0, (relative * rate) * less, (relative * less) * rate)
    # Both digammas are shifted, or none is, so that the terms of the shift do not cancel in a sum.
    of_c, of_b = x + theta, x + 1.0
    STEPS: tl.constexpr = STEPS_FLOAT64 if x.dtype == tl.float64 else STEPS_FLOAT32
    large = (of_c >= STEPS) & (of_b >= STEPS)
    slopes = tl.where(large, 0.0, slope_difference(of_c, of_b, theta - 1.0, x.dtype))
    z_c, z_b = tl.where(large, of_c, of_c + STEPS), tl.where(large, of_b, of_b + STEPS)
    inverse_b = 1.0 / z_b
    logarithm = _log_counts(mu, theta, inverse_e, down, up, z_c, z_b, inverse_b, 0.0)
    to_x = slopes + (logarithm + (digamma_tail(1.0 / z_c) - digamma_tail(inverse_b)))
    # If c and t have the same shift, the logarithm cancels (m − x) / e to first order.
    of_eps = 1e-8 / (theta + 1e-8)
    remainder = of_eps * (excess * inverse_e) - (t[0] * t[2]) * (x * inverse_e)
    difference = ((mu - x) + 1e-8) * inverse_e - of_eps
    steps, tails = t[4] - c[4], digamma_tail(c[2]) - digamma_tail(t[2])
    alike = c[0] == t[0]
    to_theta = (steps + tl.where(alike, remainder, difference)) + (tl.where(alike, beyond, dispersion) + tails)
    return to_mu, to_x, to_theta, term


@triton.jit
def negative_binomial_grad(mu, x, theta):
    to_mu, to_x, to_theta, _ = _negative_binomial_grad(mu, x, theta)
    undefined = _undefined(mu, x, theta)
    return to_mu + undefined, to_x + undefined, to_theta + undefined


@triton.jit
def zero_inflated_negative_binomial_log_prob(mu, x, theta, zero_logits):
    """`log(σ(z) + σ(−z) NB(0))` where x < ε, `log σ(−z) + log NB(x)` elsewhere, z = zero_logits."""
    zero = x < 1e-8
    x = tl.where(zero, 0.0, x)
    l = negative_binomial_log_prob(mu, x, theta)
    z = zero_logits + x * 0.0
    b = l - z
    unit_z, unit_b = exp_minus_abs(z), exp_minus_abs(b)
    small = zero & (l > -1.0)
    t = tl.where(small, sigmoid(-z, unit_z) * expm1_negative(l), tl.where(zero, unit_b - unit_z, unit_z))
    below = tl.where(zero & (l <= -1.0), 1.0 + unit_z, 1.0)
    log_p = log_ratio((below + t) / below, t / below)[0]
    of_zero = tl.where(small, log_p, log_p + tl.where(b > 0, l, tl.where(z > 0, 0.0, z)))
    return tl.where(zero, of_zero, (l - tl.where(z > 0, z, 0.0)) - log_p)


@triton.jit
def zero_inflated_negative_binomial_grad(mu, x, theta, zero_logits):
    zero = x < 1e-8
    x = tl.where(zero, 0.0, x)
    to_mu, to_x, to_theta, l = _negative_binomial_grad(mu, x, theta)
    z = tl.where(_undefined(mu, x, theta) == 0.0, zero_logits, float("nan"))
    b = l - z
    unit_z, unit_b = exp_minus_abs(z), exp_minus_abs(b)
    undefined = tl.where(z == z, 0.0, float("nan"))
    weight = tl.where(zero, sigmoid(b, unit_b), 1.0) + undefined
    dropped = sigmoid(-z, unit_z) * sigmoid(-b, unit_b) * -expm1_negative(l)
    to_logits = tl.where(zero, dropped, -sigmoid(z, unit_z)) + undefined
    return weight * to_mu, tl.where(zero, 0.0, weight * to_x), weight * to_theta, to_logits


@triton.jit
def _poisson_terms(rate, base, offset, x):
    """The terms that value and gradients share. PoissonTerms in csrc/formulas/likelihood.h derives them.

    r = rate has the logarithm log(base) + offset. The terms are `step`, which is 0 for a large x and else 1, the
    `gamma_terms` of x + step, log(r/z), and log(r/z) − (r/z − 1).
    """
    STEPS: tl.constexpr = STEPS_FLOAT64 if x.dtype == tl.float64 else STEPS_FLOAT32
    step = tl.where(x < STEPS, x * 0.0 + 1.0, x * 0.0)
    a = gamma_terms(x + step, x.dtype)
    value, beyond = log_product(base, a[2], (rate - a[1]) * a[2])
    return step, a, value + offset, beyond + offset


@triton.jit
def _poisson_log_prob(rate, base, offset, x):
    step, a, _, beyond = _poisson_terms(rate, base, offset, x)
    # log(2π)/2
    constants = (log(tl.sqrt(a[2]) * (product_lifted(a, x.dtype) / a[5])) - gamma_tail(a)) + (step - 0.9189385332046727)
    value = (constants - rate * ((step + a[0]) * a[2])) + x * beyond
    return tl.where((x == 0.0) | (rate == float("inf")), -rate, value) + (x - x)


@triton.jit
def _poisson_grad_x(rate, base, offset, x):
    """log r − ψ(x+1). The terms of the recurrence are added one by one, the largest last: it cancels log r."""
    step, a, log_rate, _ = _poisson_terms(rate, base, offset, x)
    STEPS: tl.constexpr = STEPS_FLOAT64 if x.dtype == tl.float64 else STEPS_FLOAT32
    slopes = x * 0.0
    for k in tl.static_range(1, STEPS):
        slopes += 1.0 / ((x + step) + (STEPS - k))
    tail = digamma_tail(a[2]) + tl.where(step == 0.0, a[2], 0.0)
    others = (log_rate + tl.where(a[0] > 0.0, slopes, 0.0)) - tail
    return others + tl.where(a[0] > 0.0, 1.0 / (x + step), 0.0)


@triton.jit
def poisson_rate_log_prob(rate, x):
    """`x log r − r − log Γ(x+1)`."""
    return _poisson_log_prob(rate, rate, 0.0, x) + (rate - rate)


@triton.jit
def poisson_rate_grad(rate, x):
    undefined = (x - x) + (rate - rate)
    to_rate = tl.where(x == 0.0, -1.0, (x - rate) / rate)
    return to_rate + undefined, _poisson_grad_x(rate, rate, 0.0, x) + undefined


@triton.jit
def _rate(log_rate):
    """The rate, base and offset, with log_rate = log(base) + offset. base is constant near the ends of the range."""
    if log_rate.dtype == tl.float64:
        LOW: tl.constexpr = -600.0
        HIGH: tl.constexpr = 709.0
        EXP_LOW: tl.constexpr = 2.650396553004311e-261
        EXP_HIGH: tl.constexpr = 8.218407461554972e307
    else:
        LOW: tl.constexpr = -60.0
        HIGH: tl.constexpr = 88.0
        EXP_LOW: tl.constexpr = 8.756510762696521e-27
        EXP_HIGH: tl.constexpr = 1.6516362549940018e38
    l = log_rate
    rate = exp(l)
    base = tl.where(l < LOW, EXP_LOW, tl.where(l > HIGH, EXP_HIGH, rate))
    return rate, base, tl.where(l < LOW, l - LOW, tl.where(l > HIGH, l - HIGH, 0.0))


@triton.jit
def poisson_log_prob(log_rate, x):
    """`x l − e^l − log Γ(x+1)`, l = log_rate."""
    rate, base, offset = _rate(log_rate)
    return _poisson_log_prob(rate, base, offset, x) + (log_rate - log_rate)


@triton.jit
def poisson_grad(log_rate, x):
    rate, base, offset = _rate(log_rate)
    undefined = (x - x) + (log_rate - log_rate)
    return (x - rate) + undefined, _poisson_grad_x(rate, base, offset, x) + undefined


@triton.jit
def _bin(mean, x, log_scale, bins):
    """The bin of x: its half width h, (x − mean ± h)/s, 2h/s, and whether it is the first and the last bin."""
    half = 1.0 / (bins - 1.0)
    difference, s = x - mean, log_scale
    p, q = times_exp(difference + half, -s), times_exp(difference - half, -s)
    return half, p, q, times_exp(2.0 * half + x * 0.0, -s), x < half - 1.0, x > 1.0 - half


@triton.jit
def discretized_logistic_log_prob(mean, x, log_scale, bins):
    """`log σ(p) + log σ(−q) + log(1 − e^(q − p))`, p, q = (x − mean ± h)/s.

    In the first bin it is `log σ(p)`, in the last `log σ(−q)`.
    """
    half, p, q, width, first, last = _bin(mean, x, log_scale, bins)
    upper, lower = -softplus(-p, exp_minus_abs(p)), -softplus(q, exp_minus_abs(q))
    inside = log_ratio(-expm1_negative(-width), -exp_minus_abs(width))[0]
    # For a tiny width it is log(2h) − log s.
    inside = tl.where(width < 1e-30, log(2.0 * half + x * 0.0) - log_scale, inside)
    return tl.where(first, upper, tl.where(last, lower, (upper + lower) + inside))


@triton.jit
def discretized_logistic_grad(mean, x, log_scale, bins):
    _, p, q, width, first, last = _bin(mean, x, log_scale, bins)
    upper = tl.where(last, 0.0, sigmoid(-p, exp_minus_abs(p)))
    lower = tl.where(first, 0.0, sigmoid(q, exp_minus_abs(q)))
    # Where e^-|y| is 0, y is bounded, because 0 · ∞ is NaN. An open end contributes nothing.
    END: tl.constexpr = 746.0 if x.dtype == tl.float64 else 104.0
    p, q = tl.where(last, 0.0, tl.where(p > END, END, p)), tl.where(first, 0.0, tl.where(q < -END, -END, q))
    unit = exp_minus_abs(width)
    inside = tl.where(width > END, END, width) * unit / -expm1_negative(-width)
    inside = tl.where(first | last, 0.0, tl.where(width > 0.0, inside, 1.0))
    to_mean = times_exp(lower, -log_scale) - times_exp(upper, -log_scale)
    return to_mean, -to_mean, -(p * upper - q * lower + inside)


class Family(NamedTuple):
    """`log_prob`, `grad` with the gradients to all arguments in order, and the number of elements that a thread can
    hold without running out of registers."""

    log_prob: Any
    grad: Any
    held: int = HELD


# The order is that of `families.FAMILIES`.
FAMILIES = {
    "bernoulli": Family(bernoulli_log_prob, bernoulli_grad),
    "gaussian": Family(gaussian_log_prob, gaussian_grad),
    "laplace": Family(laplace_log_prob, laplace_grad),
    "continuous_bernoulli": Family(continuous_bernoulli_log_prob, continuous_bernoulli_grad),
    "bernoulli_probs": Family(bernoulli_probs_log_prob, bernoulli_probs_grad),
    "negative_binomial": Family(negative_binomial_log_prob, negative_binomial_grad, held=8),
    "zero_inflated_negative_binomial": Family(
        zero_inflated_negative_binomial_log_prob, zero_inflated_negative_binomial_grad, held=8
    ),
    "discretized_logistic": Family(discretized_logistic_log_prob, discretized_logistic_grad, held=8),
    "poisson": Family(poisson_log_prob, poisson_grad, held=8),
    "poisson_rate": Family(poisson_rate_log_prob, poisson_rate_grad, held=8),
}
_FAMILIES = tuple(FAMILIES.values())
_ARGUMENTS = tuple(family.arguments for family in families.FAMILIES.values())


def _family(options: LikelihoodOptions) -> Family:
    return _FAMILIES[options.family]


@triton.jit
def _arguments(inputs, numbers, strides, r, c, mask, inner_rows, inner_cols, VEC: tl.constexpr, DTYPE: tl.constexpr):
    """The family's arguments: the decoder's output, x, and a tuple of the parameters.

    They are elements [R, C]. A number, or a parameter with one element, is a single value.
    """
    first = load(inputs[0] + offsets(r, c, strides[0], inner_rows, inner_cols, VEC), mask, DTYPE)
    params = ()
    for i in tl.static_range(2, len(inputs)):
        if len(numbers[i]) == 0:
            value = load_parameter(inputs[i], strides[i], r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        else:
            value = number(numbers[i], DTYPE)
        params = params + (value,)
    x = load(inputs[1] + offsets(r, c, strides[1], inner_rows, inner_cols, VEC), mask, DTYPE)
    return first, x, params


@triton.jit(do_not_specialize=["rows", "cols", "inner_rows", "inner_cols", "chunks", "chunks_per_program"])
def likelihood_forward_kernel(
    inputs, numbers, out, strides, out_strides,
    rows, cols, inner_rows, inner_cols, chunks, chunks_per_program,
    LOG_PROB: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute log-probabilities for `chunks_per_program` chunks of a block of rows.

    The sums over the chunks are stored in out [rows], or if SPLIT the sum of each chunk in out [chunks, rows]. With
    out_strides nothing is summed, and out has all elements.
    """
    DTYPE: tl.constexpr = out.dtype.element_ty
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    begin = chunk_index(WIDE) * chunks_per_program
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    r = row[:, None]
    total = tl.zeros([BLOCK_ROWS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS], DTYPE)
    for chunk in range(begin, tl.minimum(begin + chunks_per_program, chunks)):
        c = chunk * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        first, x, params = _arguments(inputs, numbers, strides, r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        log_prob = LOG_PROB(first, x, *params)
        if len(out_strides) > 0:
            store(out + offsets(r, c, out_strides, inner_rows, inner_cols, VEC), log_prob, mask)
        else:
            if not EVEN:
                log_prob = tl.where(mask, log_prob, 0.0)
            term = tl.sum(log_prob, 1)
            if SPLIT:
                store(out + chunk * rows + row, term, row < rows)
            else:
                total, lost = add_compensated(total, lost, term)
    if not SPLIT and len(out_strides) == 0:
        store(out + row, compensated(total, lost), row < rows)


@triton.jit(do_not_specialize=["rows", "cols", "inner_rows", "inner_cols", "row_blocks", "blocks_per_program"])
def likelihood_backward_kernel(
    inputs, numbers, grad, outs, sum_outs, strides, grad_strides, out_strides,
    rows, cols, inner_rows, inner_cols, row_blocks, blocks_per_program,
    GRAD: tl.constexpr, OF_ELEMENTS: tl.constexpr,
    STORED: tl.constexpr, SUMMED: tl.constexpr, DTYPE: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a chunk of columns in `blocks_per_program` blocks of rows.

    The upstream gradient has one element per row, or if OF_ELEMENTS one per element. The gradients of the inputs STORED
    are stored in outs. Those of the inputs SUMMED are summed over the program's rows, into sum_outs: see
    `store_partial`.
    """
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    group = block_index(WIDE)
    first_col = chunk_index(WIDE) * BLOCK_COLS
    c = first_col + tl.arange(0, BLOCK_COLS)[None, :]
    sums = ()
    for _ in tl.static_range(len(SUMMED)):
        sums = sums + (tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE),)
    begin = group * blocks_per_program
    for block in range(begin, tl.minimum(begin + blocks_per_program, row_blocks)):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        r = row[:, None]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        first, x, params = _arguments(inputs, numbers, strides, r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        if OF_ELEMENTS:
            g = load(grad + offsets(r, c, grad_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        else:
            g = load(grad + per_row_offsets(row, grad_strides, inner_rows), row < rows, DTYPE)[:, None]
        grads = GRAD(first, x, *params)
        at = offsets(r, c, out_strides, inner_rows, inner_cols, VEC)
        for i in tl.static_range(len(STORED)):
            store(outs[i] + at, g * grads[STORED[i]], mask)
        more = ()
        for i in tl.static_range(len(SUMMED)):
            value = g * grads[SUMMED[i]]
            if not EVEN:
                value = tl.where(mask, value, 0.0)
            more = more + (sums[i] + value,)
        sums = more
    there = begin < row_blocks
    for i in tl.static_range(len(SUMMED)):
        store_partial(sum_outs[i], sums[i], strides[SUMMED[i]], group, first_col, cols, there, VEC, BLOCK_COLS)


def likelihood_forward(
    first: Tensor, x: Tensor, parameter0: Tensor | None, parameter1: Tensor | None, *options: float
) -> Tensor:
    """The sums, or all elements, as the schema in `vae_kernels.ops` describes them."""
    out = ops.likelihood_forward(first, x, parameter0, parameter1, *options)
    if first.numel() == 0:
        return out.zero_()
    options = LikelihoodOptions(*options)
    inputs, numbers = _as_family_takes((first, x, parameter0, parameter1), options)
    plan = planned(("likelihood_forward", _key(inputs, options)), lambda: _plan_forward(inputs, options))
    plan(*_launched(inputs, numbers), out)
    return out


def _as_family_takes(
    inputs: tuple[Tensor | None, ...], options: LikelihoodOptions
) -> tuple[tuple[Tensor | None, ...], tuple[float | None, ...]]:
    """For each argument of the family: its tensor or None, and its number or None."""
    count = len(_ARGUMENTS[options.family])
    return inputs[:count], (None, None, options.number0, options.number1)[:count]


def _key(inputs: tuple[Tensor | None, ...], options: LikelihoodOptions) -> Hashable:
    """The key of a plan: everything that it depends on."""
    return (options.family, options.batch_dims, options.reduction, inputs[0].get_device(), *map(signature, inputs))


def _launched(inputs: tuple[Tensor | None, ...], numbers: tuple[float | None, ...]) -> tuple[tuple, tuple]:
    """The arguments of the kernels: tensors, and numbers as parts. The tensor of a number is not read."""
    tensors = tuple(inputs[0] if t is None else t for t in inputs)
    return tensors, tuple(float32_parts(n) if t is None else () for t, n in zip(inputs, numbers, strict=True))


def _plan_forward(inputs: Sequence[Tensor | None], options: LikelihoodOptions) -> Callable[..., None]:
    full, elements, family = inputs[0], _elements(inputs), _family(options)
    there = [t for t in inputs if t is not None]
    order = column_dims(full, options.batch_dims)
    results = () if options.summed else (torch.empty_like(full, device="meta"),)
    form = layout([*elements.values(), *results], options.batch_dims, order)
    if form is None:
        return partial(_forward_through_copies, options, order, [t is not None for t in inputs])
    shape = tile(form.rows, form.cols * form.vec, compute_dtype(*there), there, family.held)
    if not options.summed:
        shape = finer(shape, form.cols * form.vec, there)
    chunks = chunks_per_program(shape) if options.summed else 1
    split = options.summed and is_split(shape, chunks)
    launch = Launch(
        likelihood_forward_kernel,
        shape.grid(triton.cdiv(shape.chunks, chunks)),
        full.get_device(),
        strides=_strides(form.strides[: len(elements)], elements, len(inputs)),
        out_strides=() if options.summed else form.strides[-1],
        chunks=shape.chunks,
        chunks_per_program=chunks,
        LOG_PROB=family.log_prob,
        SPLIT=split,
        **geometry(form, shape),
    )
    return SplitLaunch(launch, full.get_device(), form.rows, shape.chunks) if split else launch


def likelihood_backward(
    grad: Tensor,
    first: Tensor,
    x: Tensor,
    parameter0: Tensor | None,
    parameter1: Tensor | None,
    *options_and_needs: float,
) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, as the schema in `vae_kernels.ops` describes them."""
    *options, needs = options_and_needs
    grads = ops.likelihood_backward(grad, first, x, parameter0, parameter1, *options_and_needs)
    if first.numel() == 0:
        for g in grads:
            if g is not None:
                g.zero_()
        return grads
    if not needs:
        return grads
    options = LikelihoodOptions(*options)
    inputs, numbers = _as_family_takes((first, x, parameter0, parameter1), options)
    key = ("likelihood_backward", signature(grad), needs, _key(inputs, options))
    plan = planned(key, lambda: _plan_backward(grad, inputs, options, needs))
    plan(*_launched(inputs, numbers), grad, grads)
    return grads


def _plan_backward(
    grad: Tensor, inputs: Sequence[Tensor | None], options: LikelihoodOptions, needs: int
) -> Callable[..., None]:
    full, elements, family = inputs[0], _elements(inputs), _family(options)
    there = [t for t in inputs if t is not None]
    order = column_dims(full, options.batch_dims)
    out = torch.empty_like(full, device="meta")
    upstream = ([], (grad,)) if options.summed else ([grad], ())
    form = layout([out, *upstream[0], *elements.values()], options.batch_dims, order, upstream[1])
    if form is None:
        return partial(_backward_through_copies, options, order, [t is not None for t in inputs], needs)
    dtype = compute_dtype(*there)
    shape = tile(form.rows, form.cols * form.vec, dtype, there, family.held)
    needed = [i for i in range(len(inputs)) if needs >> i & 1]
    stored = tuple(i for i in needed if inputs[i].shape == full.shape)
    summed = tuple(i for i in needed if inputs[i].shape != full.shape)
    if not summed:
        shape = finer(shape, form.cols * form.vec, there)
    blocks = row_blocks_per_program(shape) if summed else 1
    groups = triton.cdiv(shape.row_blocks, blocks)
    launch = Launch(
        likelihood_backward_kernel,
        shape.grid(shape.chunks, blocks),
        full.get_device(),
        strides=_strides(form.strides[-len(elements) :], elements, len(inputs)),
        grad_strides=form.per_row_strides[0] if options.summed else form.strides[1],
        out_strides=form.strides[0],
        row_blocks=shape.row_blocks,
        blocks_per_program=blocks,
        GRAD=family.grad,
        OF_ELEMENTS=not options.summed,
        STORED=stored,
        SUMMED=summed,
        DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
        **geometry(form, shape),
    )
    counts = {i: groups * shape.chunks if _is_one(inputs[i], full) else groups for i in summed}
    sums = {i: SumOfPartials(full, inputs[i], dtype, options.batch_dims, order, counts[i]) for i in summed}
    return _Backward(launch, stored, sums)


class _Backward:
    """Launch the kernel. Then sum each gradient that has fewer elements than the first tensor."""

    def __init__(self, launch: Launch, stored: tuple[int, ...], sums: "dict[int, SumOfPartials]") -> None:
        self._launch, self._stored, self._sums = launch, stored, sums

    def __call__(self, tensors: tuple, numbers: tuple, grad: Tensor, grads: tuple[Tensor | None, ...]) -> None:
        partials = tuple(s.empty_partials() for s in self._sums.values())
        self._launch(tensors, numbers, grad, tuple(grads[i] for i in self._stored), partials)
        for (i, total), partial_sums in zip(self._sums.items(), partials, strict=True):
            total(partial_sums, grads[i])


def _is_one(tensor: Tensor | None, full: Tensor) -> bool:
    return tensor is not None and tensor.numel() == 1 and tensor.shape != full.shape


def _elements(inputs: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """The tensors with more than one element, expanded to the shape of the first, by their index."""
    full = inputs[0]
    return {i: t.expand_as(full) for i, t in enumerate(inputs) if t is not None and not _is_one(t, full)}


def _strides(
    of_elements: Sequence[tuple[int, ...]], elements: dict[int, Tensor], count: int
) -> tuple[tuple[int, ...], ...]:
    """The strides of all arguments; an empty tuple for a number or one element."""
    strides = dict(zip(elements, of_elements, strict=True))
    return tuple(strides.get(i, ()) for i in range(count))


def _dense_inputs(inputs: Sequence[Tensor | None], batch_dims: int, order: Sequence[int]) -> list[Tensor | None]:
    """Copies of the op's tensors with the columns in `order`. A shared parameter gets the shape of a row."""
    full = inputs[0]
    copies = [None] * 4
    for i, t in enumerate(inputs):
        if t is None:
            continue
        if _is_one(t, full):
            copies[i] = t.reshape(1)
        elif t.shape == full.shape:
            copies[i] = dense(t, batch_dims, order)
        else:
            row = t.expand_as(full)[(0,) * batch_dims]
            copies[i] = dense(row, 0, [d - batch_dims for d in order])
    return copies


def _with_numbers(options: LikelihoodOptions, numbers: tuple[tuple[float, ...], ...]) -> LikelihoodOptions:
    """The options with the numbers of this call, which may differ from those of the plan."""
    values = [sum(reversed(parts)) if parts else None for parts in numbers[2:]]
    return options._replace(**dict(zip(("number0", "number1"), values, strict=False)))


def _forward_through_copies(options: LikelihoodOptions, order, there, tensors, numbers, out) -> None:
    inputs = [t if is_there else None for t, is_there in zip(tensors, there, strict=True)]
    options = _with_numbers(options, numbers)
    found = likelihood_forward(*_dense_inputs(inputs, options.batch_dims, order), *options)
    out.copy_(found) if options.summed else from_dense(found, out, options.batch_dims, order)


def _backward_through_copies(options: LikelihoodOptions, order, there, needs, tensors, numbers, grad, grads) -> None:
    inputs = [t if is_there else None for t, is_there in zip(tensors, there, strict=True)]
    options = _with_numbers(options, numbers)
    copies = _dense_inputs(inputs, options.batch_dims, order)
    grad = grad.contiguous() if options.summed else dense(grad, options.batch_dims, order)
    found = likelihood_backward(grad, *copies, *options, needs)
    for parameter, result, dense_grad in zip(inputs, grads, found, strict=False):
        if result is None:
            continue
        if parameter.shape == inputs[0].shape:
            from_dense(dense_grad, result, options.batch_dims, order)
        elif parameter.numel() == 1:
            result.copy_(dense_grad.view(result.shape))
        else:
            in_order = dense_grad.permute([order.index(d) for d in sorted(order)])
            own = result.shape[max(result.dim() - len(order), 0) :]
            result.copy_(sum_to_size(in_order, own).view(result.shape))
