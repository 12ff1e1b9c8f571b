"""Families of likelihoods: for each the log-probability of an element and its derivatives."""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .gamma import (
    STEPS_FLOAT32,
    STEPS_FLOAT64,
    digamma_tail,
    gamma_tail,
    gamma_terms,
    product_lifted,
    slope_difference,
)
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
from .tile import HELD


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
def _is_zero(x):
    """True if a zero-inflated distribution takes the count x for a zero."""
    return x < 1e-8


@triton.jit
def _zero_inflated_log_prob(zero, l, z):
    """`log(σ(z) + σ(−z) e^l)` where `zero`, `log σ(−z) + l` elsewhere. ZeroInflation in csrc/formulas/likelihood.h
    derives this."""
    b = tl.where(z == float("-inf"), float("inf"), l - z)
    unit_z = exp_minus_abs(z)
    direct = (l > -1.0) | (z > 0.0)
    t = tl.where(direct, sigmoid(-z, unit_z) * expm1_negative(l), exp_minus_abs(b) - unit_z)
    t = tl.where(zero, t, unit_z)
    below = tl.where(zero, tl.where(direct, 1.0, 1.0 + unit_z), 1.0)
    log_p = log_ratio((below + t) / below, t / below)[0]
    of_zero = tl.where(direct, log_p, log_p + tl.where(b > 0, l, z))
    return tl.where(zero, of_zero, (l - tl.where(z > 0, z, 0.0)) - log_p)


@triton.jit
def _zero_inflated_grad(zero, l, z):
    """The gradients to l and z."""
    b = tl.where(z == float("-inf"), float("inf"), l - z)
    unit_z = exp_minus_abs(z)
    unit_b = exp_minus_abs(tl.where(z > 0.0, l, b)) * tl.where(z > 0.0, unit_z, 1.0)
    undefined = tl.where(z == z, 0.0, float("nan"))
    dropped = sigmoid(-z, unit_z) * sigmoid(-b, unit_b) * -expm1_negative(l)
    to_z = tl.where(zero, dropped, -sigmoid(z, unit_z))
    return tl.where(zero, sigmoid(b, unit_b), 1.0) + undefined, to_z + undefined


@triton.jit
def zero_inflated_negative_binomial_log_prob(mu, x, theta, zero_logits):
    """`log(σ(z) + σ(−z) NB(0))` where x < ε, `log σ(−z) + log NB(x)` elsewhere, z = zero_logits."""
    zero = _is_zero(x)
    x = tl.where(zero, 0.0, x)
    return _zero_inflated_log_prob(zero, negative_binomial_log_prob(mu, x, theta), zero_logits + x * 0.0)


@triton.jit
def zero_inflated_negative_binomial_grad(mu, x, theta, zero_logits):
    zero = _is_zero(x)
    x = tl.where(zero, 0.0, x)
    to_mu, to_x, to_theta, l = _negative_binomial_grad(mu, x, theta)
    weight, to_logits = _zero_inflated_grad(zero, l, zero_logits + _undefined(mu, x, theta))
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
def zero_inflated_poisson_log_prob(log_rate, x, zero_logits):
    """`log(σ(a) + σ(−a) e^−r)` where x < ε, `log σ(−a) + x l − r − log Γ(x+1)` elsewhere.

    a = zero_logits, r = e^l, l = log_rate.
    """
    zero = _is_zero(x)
    x = tl.where(zero, 0.0, x)
    return _zero_inflated_log_prob(zero, poisson_log_prob(log_rate, x), zero_logits + x * 0.0)


@triton.jit
def zero_inflated_poisson_grad(log_rate, x, zero_logits):
    zero = _is_zero(x)
    x = tl.where(zero, 0.0, x)
    # For a zero, the logarithm of its probability is −r, and so is the derivative to log_rate.
    to_log_rate, to_x = poisson_grad(log_rate, x)
    weight, to_logits = _zero_inflated_grad(zero, to_log_rate, zero_logits + ((x - x) + (log_rate - log_rate)))
    # The rate may be infinite.
    to_log_rate = tl.where(weight == 0.0, 0.0, weight * to_log_rate)
    return to_log_rate, tl.where(zero, 0.0, weight * to_x), to_logits


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
    "zero_inflated_poisson": Family(zero_inflated_poisson_log_prob, zero_inflated_poisson_grad, held=8),
}
