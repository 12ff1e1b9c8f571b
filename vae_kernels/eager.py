"""The formulas in eager PyTorch: the oracle of the tests, and the fallback on devices without a kernel.

They are differentiable to any order, and under every functorch transform.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import symbols
from .options import LatentOptions, Scale
from .rows import compute_dtype, row_shape


def sum_columns(elements: Tensor, batch_dims: int) -> Tensor:
    """Sum over all dims after the first `batch_dims`, in row form: torch sums tensors of at most 64 dims."""
    if elements.dim() == batch_dims:
        return elements
    return elements.reshape(row_shape(elements, batch_dims)).sum(1).reshape(elements.shape[:batch_dims])


# Other devices have no float64 (MPS, some XPUs), or may have none.
FLOAT64_DEVICES = ("cpu", "cuda", "meta")


def has_float64(tensor: Tensor) -> bool:
    """True if the tensor's device has float64. Otherwise `eager` and `noise` use longer float32 formulas."""
    return tensor.device.type in FLOAT64_DEVICES


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if has_float64(tensor) else tensor


def exp_minus_1_minus(l: Tensor) -> Tensor:
    """`eˡ − 1 − l` without cancellation near 0.

    float32 is computed in float64. For float64 input, and on devices without float64, it is the Taylor series where
    |l| ≤ ½, which needs many more passes over memory.
    """
    if l.dtype == torch.float32 and has_float64(l):
        wide = _wide(l)
        return (torch.expm1(wide) - wide).float()
    terms = 14 if l.dtype == torch.float64 else 7
    small = l.abs() <= 0.5
    inside = torch.where(small, l, 0)
    series = torch.full_like(l, 1 / math.factorial(terms + 1))
    for n in range(terms, 1, -1):
        series = series * inside + 1 / math.factorial(n)
    return torch.where(small, series * inside * inside, torch.expm1(l) - l)


def std_and_logvar(raw: Tensor, options: LatentOptions) -> tuple[Tensor, Tensor]:
    """Standard deviation and log-variance from `raw`. Where the log-variance is clamped, neither has a derivative."""
    logvar = _unclamped(raw, options)[1]
    clamps = [(outside, symbols.tensor(bound, logvar)) for outside, bound in _outside(logvar, options)]
    for outside, _ in clamps:
        raw = torch.where(outside, 1, raw)  # an infinite derivative times 0 would be NaN
    std, logvar = _unclamped(raw, options)
    for outside, bound in clamps:
        std, logvar = torch.where(outside, torch.exp(bound / 2).to(std.dtype), std), torch.where(outside, bound, logvar)
    return std, logvar


def settled(raw: Tensor, options: LatentOptions) -> tuple[Tensor, LatentOptions]:
    """Apply floor and bounds in advance, for compiled code in which they change from call to call.

    Returns `raw` with its log-variance between the bounds, in the dtype of the arithmetic, and the remaining options.
    With a floor, or with softplus, `_TO_RAW` has no inverse: the result is then the log-variance itself.
    """
    raw = raw.to(compute_dtype(raw))
    if options.std_floor is not None or options.scale == Scale.softplus:
        logvar = std_and_logvar(raw, options)[1].to(raw.dtype)
        return logvar, options._replace(scale=None, std_floor=None, low=None, high=None)
    logvar = _unclamped(raw, options)[1]
    for outside, bound in _outside(logvar, options):
        raw = torch.where(outside, _TO_RAW[options.scale or 0](symbols.tensor(bound, logvar)).to(raw.dtype), raw)
    return raw, options._replace(low=None, high=None)


def _outside(logvar: Tensor, options: LatentOptions) -> list[tuple[Tensor, float]]:
    """For each bound: the elements whose log-variance lies outside of it, and the bound."""
    low, high = options.low, options.high
    below = [] if low is None else [(logvar < low, low)]
    return below if high is None else [*below, (logvar > high, high)]


def _unclamped(raw: Tensor, options: LatentOptions) -> tuple[Tensor, Tensor]:
    """Standard deviation with the floor added, and its log-variance.

    A result is float64 unless it is `raw`, twice `raw`, or one exponential or root of `raw`.
    """
    from_raw = _FROM_RAW[options.scale or 0]
    if options.std_floor is None:
        return from_raw(raw)
    wide = _wide(raw)
    std = from_raw(wide)[0]
    floored = std + symbols.tensor(options.std_floor, raw).to(std.dtype)
    more = floored > std  # elsewhere the sum may be 0 or infinite, and its logarithm infinite
    unfloored = from_raw(torch.where(more, 1, wide))[1]
    return floored, torch.where(more, 2 * torch.log(torch.where(more, floored, 1)), unfloored)


def _softplus(raw: Tensor) -> tuple[Tensor, Tensor]:
    """`s = ln(1 + eʳ)` and `ln s²`, r = raw. For r < −20, `ln s² = 2r − eʳ + 5/12 e²ʳ` to all digits."""
    wide = _wide(raw)
    positive, tiny = wide > 0, wide < -20
    # `where`, not `abs`: see `bernoulli`.
    std = F.softplus(torch.where(positive, -wide, wide)) + torch.where(positive, wide, 0)
    u = torch.exp(torch.where(tiny, wide, -20))
    logvar = torch.where(tiny, 2 * wide - u * (1 - 5 / 12 * u), 2 * torch.log(torch.where(tiny, 1, std)))
    return std, logvar


# A log-variance that is computed with `log` is float64, because a rounding error of float32 would spoil exp(logvar).
_FROM_RAW = {
    Scale.logvar: lambda raw: (torch.exp(0.5 * raw), raw),
    Scale.logstd: lambda raw: (torch.exp(raw), 2 * raw),
    Scale.std: lambda raw: (raw, 2 * torch.log(_wide(raw))),
    Scale.variance: lambda raw: (torch.sqrt(raw), torch.log(_wide(raw))),
    Scale.softplus: _softplus,
}


# The inverse: raw from a log-variance.
_TO_RAW = {
    Scale.logvar: lambda logvar: logvar,
    Scale.logstd: lambda logvar: logvar / 2,
    Scale.std: lambda logvar: torch.exp(logvar / 2),
    Scale.variance: torch.exp,
}


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    eps: Tensor,
    options: LatentOptions,
) -> tuple[Tensor, Tensor]:
    """`z = mu + std·eps` and the KL divergence from q to the prior."""
    dtype = compute_dtype(*(t for t in (mu, logvar, prior_mu, prior_logvar) if t is not None))
    m, e = mu.to(dtype), eps.to(dtype)
    std, l = std_and_logvar(logvar.to(dtype), options)
    z = m + std * e
    prior = [None if t is None else t.to(dtype) for t in (prior_mu, prior_logvar)]
    batch_dims = options.batch_dims
    if not options.sampled:
        elements = analytic_kl(m, l, *prior)
    else:
        batch_dims += options.num_samples is not None
        if options.path:
            e, m, std, l = _path_eps(m, std, l, e), m.detach(), std.detach(), l.detach()
        elements = sampled_kl(m, std, l, e, *prior)
    kl = sum_columns(elements, batch_dims) if options.summed else elements
    return z.to(mu.dtype), kl.to(dtype)


def _path_eps(mu: Tensor, std: Tensor, logvar: Tensor, eps: Tensor) -> Tensor:
    """eps as `(z − mu) / std` with mu and std fixed: the parameters of q have a gradient through z only.

    This z is not the one that the caller gets, so the caller's hooks do not act on it. Where std underflows, the
    derivatives are computed from its logarithm.
    """
    least = torch.finfo(std.dtype).tiny
    lost = std.detach() < least
    path = mu + torch.where(lost, 0, std * eps)
    through_z = (path - path.detach()) / std.detach().clamp(min=least * torch.finfo(std.dtype).eps)
    by_log = eps * _one_with_slope(torch.where(lost, 0.5 * logvar, 0)).to(eps.dtype)
    return torch.where(lost, by_log, eps.detach()) + through_z


def analytic_kl(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """`½ (u² + e^d − 1 − d)`, `u = (mu − prior_mu) e^(−prior_logvar/2)`, `d = logvar − prior_logvar`."""
    fixed = None if prior_logvar is None else prior_logvar.detach()
    u, _ = _relative_to_prior(mu, logvar, prior_mu, fixed)
    square = 0.5 * u * u if prior_logvar is None else 0.5 * u * u * _one_with_slope(-prior_logvar)
    return square + 0.5 * exp_minus_1_minus(logvar if prior_logvar is None else logvar - prior_logvar)


def sampled_kl(
    mu: Tensor, std: Tensor, logvar: Tensor, eps: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> Tensor:
    """`log q(z) − log p(z)` at `z = mu + std·eps`, as `½ (u² + 2 u r eps + (e^d − 1) eps² − d)`.

    u and d are those of `analytic_kl`, and `r = std e^(−prior_logvar/2)`. In this form nothing cancels if q is near p.
    """
    u, d = _relative_to_prior(mu, logvar, prior_mu, prior_logvar)
    r = std if prior_logvar is None else times_exp(std, -0.5 * prior_logvar)
    return 0.5 * (u * u + 2 * u * r * eps + torch.expm1(d) * eps * eps - d)


def _relative_to_prior(mu, logvar, prior_mu, prior_logvar) -> tuple[Tensor, Tensor]:
    """`u = (mu − prior_mu) e^(−prior_logvar/2)` and `d = logvar − prior_logvar`."""
    u = mu if prior_mu is None else mu - prior_mu
    if prior_logvar is None:
        return u, logvar
    return times_exp(u, -0.5 * prior_logvar), logvar - prior_logvar


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """`x·a − softplus(a)`, as `(x − [a > 0])·a − log1p(e^−|a|)`. For x in [0, 1] both terms have the same sign."""
    positive = logits > 0
    # `where`, not `abs`: the derivative at 0 must not vanish.
    return torch.where(positive, x - 1, x) * logits - F.softplus(torch.where(positive, -logits, logits))


def times_exp(d: Tensor, t: Tensor) -> Tensor:
    """`d eᵗ`, correct even if only eᵗ over- or underflows. For d = 0 it is 0, with derivatives 0 to t."""
    fixed = t.detach()
    half = torch.exp(0.5 * torch.where((d == 0) & (fixed > _log_max(t)), 0, fixed))
    return d * half * half * _one_with_slope(t)


def _one_with_slope(t: Tensor) -> Tensor:
    """1, with the derivatives of eᵗ. As a factor it gives a product `y e^t` derivatives no larger than the product."""
    fixed = t.detach()
    return torch.exp(torch.where(fixed.isfinite(), t - fixed, 0))


def _log_max(t: Tensor) -> float:
    return math.log(torch.finfo(t.dtype).max)


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor) -> Tensor:
    """`−½ (l + y² + ln 2π)`, y = (x − mean) e^(−l/2), l = logvar."""
    y = times_exp(x - mean, -0.5 * logvar.detach())
    return -0.5 * y * y * _one_with_slope(-logvar) - 0.5 * (logvar + math.log(2 * math.pi))


def laplace(loc: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """`−|x − loc| e^−s − s − ln 2`, s = log_scale. e^−s is applied in two steps: x − loc may be subnormal."""
    half = torch.where(x == loc, 0, -0.5 * log_scale.detach())  # else 0 · ∞ in a derivative
    distance = times_exp(times_exp(torch.abs(x - loc), half), half) * _one_with_slope(-log_scale)
    return -(distance + log_scale + math.log(2))


# cₙ = B₂ₙ / (2n (2n)!), with ln(sinh(a/2) / (a/2)) = Σₙ cₙ a²ⁿ.
LOG_SINHC = (
    *(1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600),
    *(-691 / 15692092416000, 1 / 1046139494400, -3617 / 170729965486080000, 43867 / 91963695909076992000),
    -174611 / 16057153253965824000000,
)


def continuous_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """`x·a − ln((eᵃ − 1)/a)`.

    Where |a| ≤ 1 it is `(x − ½)·a` less the series `LOG_SINHC`, elsewhere `(x − [a > 0])·a − ln((1 − e^−|a|)/|a|)`.
    """
    small = logits.abs() <= 1
    inside, outside = torch.where(small, logits, 0), torch.where(small, 2, logits)
    square = inside * inside
    series = torch.zeros_like(square)
    for c in reversed(LOG_SINHC):
        series = (series + c) * square
    near = (x - 0.5) * inside - series
    size = outside.abs()
    log_norm = torch.log(-torch.expm1(-size)) - torch.log(size)
    far = torch.where(outside > 0, x - 1, x) * outside - log_norm
    return torch.where(small, near, far)


# The bounds of `binary_cross_entropy`: the least logarithm, and the least p (1 − p) by which its gradient divides.
LEAST_LOG, LEAST_VARIANCE = -100, 1e-12


def bernoulli_probs(probs: Tensor, x: Tensor) -> Tensor:
    """`x ln p + (1 − x) ln(1 − p)` with the clamps of `binary_cross_entropy`; NaN for p outside [0, 1].

    Where p (1 − p) < 1e-12, each logarithm gets the derivative of a parabola, so that the derivative of the sum is
    `(x − p) / 1e-12`, as in `binary_cross_entropy`.
    """
    inside = (probs >= 0) & (probs <= 1)
    p = torch.where(inside, probs, 0.5)
    exact = p * (1 - p) >= LEAST_VARIANCE
    between = torch.where(exact, p, 0.5)

    def floored(log: Tensor, log_at_end: Tensor, parabola: Tensor) -> Tensor:
        slope = parabola / LEAST_VARIANCE
        return torch.where(exact, log, log_at_end.detach().clamp(min=LEAST_LOG) + (slope - slope.detach()))

    one = floored(torch.log(between), torch.log(p), -0.5 * (1 - p) ** 2)
    zero = floored(torch.log1p(-between), torch.log1p(-p), -0.5 * p * p)
    outside = torch.where(inside, 0, probs) + torch.where(inside, 0, x)
    return torch.where(inside, x * one + (1 - x) * zero, outside * math.nan)


# The ε of scvi-tools. It keeps logarithms and gradients finite at mu = 0, which a softmax decoder reaches.
COUNT_EPS = 1e-8

# The least z for which Stirling's series is used, and its coefficients of z⁻¹, z⁻³, …
STIRLING = {
    torch.float32: (2, (0.08333332178671254, -0.0027762802492264666, 0.0007615399684259511, -0.00034972389564190425)),
    torch.float64: (
        8,
        (
            *(0.08333333333333333, -0.002777777777773988, 0.0007936507897524059, -0.0005952365845057049),
            *(0.0008414700852503147, -0.001890382993887715, 0.005065905360156132),
        ),
    ),
}


def lgamma_tail(z: Tensor) -> Tensor:
    """`ln Γ(z) − ((z − ½) ln z − z + ½ ln 2π)`, the error of Stirling's formula; NaN for z < 0."""
    least, coefficients = STIRLING[z.dtype]
    large = z >= least
    inverse = 1 / torch.where(large, z, least)
    square, series = inverse * inverse, torch.zeros_like(z)
    for c in reversed(coefficients):
        series = series * square + c
    small = torch.where(large, 1, z)
    direct = torch.lgamma(small) - ((small - 0.5) * torch.log(small) - small + 0.5 * math.log(2 * math.pi))
    return torch.where(large, series * inverse, direct)


def _log_product(a: Tensor, b: Tensor, log: Tensor, minus_1: Tensor) -> Tensor:
    """`ln(a b)` from `minus_1` = a b − 1 and from `log`, a sum of several logarithms.

    Where |a b − 1| < ½ it is `log1p(minus_1)`. Elsewhere it is one logarithm of the product, if that is between 1e-30
    and 1e30, and otherwise `log`. The derivatives are those of `log1p(minus_1)` or of `log`.
    """
    near, product = minus_1.abs() < 0.5, (a * b).detach()
    usual = (product > 1e-30) & (product < 1e30)
    far = torch.where(usual, log + (torch.log(product) - log).detach(), log)
    return torch.where(near, torch.log1p(torch.where(near, minus_1, 0)), far)


def negative_binomial(mu: Tensor, x: Tensor, theta: Tensor) -> Tensor:
    """`ln Γ(x+θ) − ln Γ(θ) − ln Γ(x+1) + θ ln(g/e) + x ln(m/e)`, m = mu + ε, g = θ + ε, e = mu + g.

    With Stirling's formula for c = x + θ, θ and b = x + 1 this is `x ln(m c/(e b)) + θ ln(c g/(θ e)) + ½ ln(θ/(c b)) +
    1 − ½ ln 2π`, plus the tails of Stirling's formula. In this form large terms do not cancel. A ratio near 1 is
    computed as 1 plus its difference from 1. In the factors of the ratios a large x is scaled down.
    """
    m, g, c, b = mu + COUNT_EPS, theta + COUNT_EPS, x + theta, x + 1
    e = mu + g
    down, up = (torch.where(x > 2.0**60, torch.full_like(x, factor), 1) for factor in (2.0**-60, 2.0**60))
    log_c, log_theta, log_b, log_e = torch.log(c), torch.log(theta), torch.log(b), torch.log(e)
    # θ (m − b) / (e b) − m / (e b), in an order in which neither it nor its derivatives over- or underflow.
    above = (m > b) & (m > theta)
    of_theta = theta / b * (torch.where(above, m - b, 0) / e) + theta / e * (torch.where(above, 0, m - b) / b)
    counts = _log_product(
        m / (b * down), c * down / e, F.logsigmoid(torch.log(m) - log_theta) + log_c - log_b, of_theta - m / e / b
    )
    # Quotients by a small θ overflow, except where x = 0, whose quotient is 0.
    small = (theta < 1e-4) & (x != 0)
    excess = (x - mu) + COUNT_EPS * x / torch.where(small, 1, theta)
    near = (excess.abs() < 0.5 * e) & ~small
    excess = torch.where(near, excess, 0)
    minus_1 = excess / e
    beyond = torch.where(minus_1.abs() < 1e-30, 0, torch.log1p(minus_1) - minus_1)
    logs = log_c - log_theta + torch.log(g) - log_e
    far = _log_product(torch.where(small, 0, c * down / theta), g / e * up, logs, torch.ones_like(logs))
    dispersion = torch.where(near, theta / e * excess + theta * beyond, theta * far)
    return x * counts + (dispersion + _stirling_terms(x, theta)) + (mu - mu)  # NaN where mu is infinite


def _stirling_terms(x: Tensor, theta: Tensor) -> Tensor:
    """`½ ln(θ/(c b)) + 1 − ½ ln 2π` plus the tails of Stirling's formula, c = x + θ, b = x + 1.

    At x = 0 the value is 0, but its derivative to x is not.
    """
    # θ and t get autograd nodes of their own: where x is 0, their parts of the derivative to θ then cancel exactly.
    theta = theta.view_as(theta)
    t, c, b = theta.view_as(theta), x + theta, x + 1
    tails = [lgamma_tail(z) for z in (t, c, b)]
    logs = [0.5 * torch.log(z) for z in (t, c, b)]
    terms = (logs[0] - tails[0]) - (logs[1] - tails[1]) - (logs[2] + tails[2]) + (1 - 0.5 * math.log(2 * math.pi))
    # The value uses the logarithm of the quotient t / c, which is more accurate than a difference of two logarithms.
    usual = t > 1e-30 * c
    quotient = torch.where(usual, 0.5 * torch.log(torch.where(usual, t / c, 1)), logs[0] - logs[1])
    value = (quotient - logs[2]) + ((tails[1] - tails[0] - tails[2]) + (1 - 0.5 * math.log(2 * math.pi)))
    return terms + (torch.where(x == 0, 0, value) - terms).detach()


def zero_inflated_negative_binomial(mu: Tensor, x: Tensor, theta: Tensor, zero_logits: Tensor) -> Tensor:
    """`ln(σ(z) + σ(−z) NB(0))` where x < ε, `ln(σ(−z) NB(x))` elsewhere, z = zero_logits."""
    zero = x < COUNT_EPS
    log_p = negative_binomial(mu, torch.where(zero, 0, x), theta)
    return _zero_inflated(zero, log_p, log_p, zero_logits)


def _zero_inflated(zero: Tensor, l: Tensor, log_p: Tensor, z: Tensor) -> Tensor:
    """`ln(σ(z) + σ(−z) eˡ)` where `zero`, `ln σ(−z) + log_p` elsewhere."""
    small = l > -1
    direct = small | (z > 0)
    less = torch.where(small, torch.expm1(torch.where(small, l, 0)), torch.exp(torch.where(small, 0, l)) - 1)
    of_direct = torch.log1p(torch.where(direct, torch.exp(F.logsigmoid(-z)) * less, 0))
    # ln((1 + e^b) / (1 + e^−z)), with the larger term of each sum taken out. `where`, not `abs`: see `bernoulli`.
    b = torch.where(z == -math.inf, math.inf, l - z)
    above, unit = b > 0, torch.log1p(torch.exp(torch.where(b > 0, -b, b)))
    otherwise = unit + torch.where(above, l - torch.log1p(torch.exp(torch.where(above, z, 0))), F.logsigmoid(z))
    return torch.where(zero, torch.where(direct, of_direct, otherwise), F.logsigmoid(-z) + log_p)


def poisson_rate(rate: Tensor, x: Tensor) -> Tensor:
    """`x ln r − r − ln Γ(x+1)`, r = rate."""
    return _poisson(rate, torch.log(torch.where((x == 0) & (rate == 0), 1, rate)), x) + _undefined(rate, x)


def poisson(log_rate: Tensor, x: Tensor) -> Tensor:
    """`x l − eˡ − ln Γ(x+1)`, l = log_rate. Where eˡ is infinite, only the derivatives of x l are included."""
    over = log_rate > _log_max(log_rate)
    l, n = torch.where(over, log_rate, 0), torch.where(over, x, 0)
    tangent = n.detach() * (l - l.detach()) + l.detach() * (n - n.detach())
    overflowed = tangent - torch.exp(l) - torch.lgamma(n + 1)
    return torch.where(over, overflowed, _poisson(torch.exp(torch.where(over, 0, log_rate)), log_rate, x)) + _undefined(
        log_rate, x
    )


def zero_inflated_poisson(log_rate: Tensor, x: Tensor, zero_logits: Tensor) -> Tensor:
    """`ln(σ(a) + σ(−a) e^−r)` where x < ε, `ln σ(−a) + x l − r − ln Γ(x+1)` elsewhere.

    a = zero_logits, r = eˡ, l = log_rate. Where r is infinite, l has no derivative if x is a zero, except for a = −∞.
    """
    zero = x < COUNT_EPS
    count = torch.where(zero, 0, x)
    # An infinite rate is a constant for a zero, because its derivative times 0 would be NaN.
    over = (log_rate > _log_max(log_rate)) & ~(zero & (zero_logits == -math.inf))
    log_zero = torch.where(over, -math.inf, -torch.exp(torch.where(over, 0, log_rate))) + _undefined(log_rate, count)
    return _zero_inflated(zero, log_zero, poisson(torch.where(zero, 0, log_rate), count), zero_logits)


def _undefined(a: Tensor, x: Tensor) -> Tensor:
    """0, or NaN where an argument is not finite; its derivatives are 0 or NaN too."""
    return ((a - a) + (x - x)).detach() * (a + x)


def _poisson(rate: Tensor, log_rate: Tensor, x: Tensor) -> Tensor:
    """`x ln r − r − ln Γ(x+1)`, accurate for large counts and rates.

    For x ≥ 8 it is `x (ln(r/x) − (r − x)/x) − ½ ln(2πx)` less the tail of Stirling's formula. Where f = (r − x)/x is
    small, ln(1 + f) − f is computed as `2 atanh(s) − 2s − f s` with s = f/(2 + f).
    """
    large = x >= 8
    n = torch.where(large, x, 8)
    near = (rate - n).abs() < 0.25 * n
    f = torch.where(near, rate - n, 0) / n
    s = f / (2 + f)
    square, series = s * s, torch.zeros_like(s)
    for k in reversed(range(3, 21, 2)):
        series = series * square + 1 / k
    far = n * torch.where(near, 0, log_rate - torch.log(n)) - torch.where(near, 0, rate - n)
    of_large = torch.where(near, n * (2 * s * square * series - f * s), far)
    of_large = of_large - 0.5 * torch.log(2 * math.pi * n) - lgamma_tail(n)
    small = torch.where(large, 1, x)
    of_small = small * log_rate - rate - torch.lgamma(small + 1)
    return torch.where(large, of_large, of_small)


def discretized_logistic(mean: Tensor, x: Tensor, log_scale: Tensor, bins: Tensor) -> Tensor:
    """`ln(σ(p) − σ(q))`, p, q = (x − mean ± h) e^−s, h = 1/(bins − 1).

    In the first bin it is `ln σ(p)`, in the last `ln σ(−q)`.
    """
    half = 1 / (bins - 1)
    first, last = x < half - 1, x > 1 - half

    def scaled(d: Tensor, unused: Tensor) -> Tensor:
        """y = `d e^−s`, or a constant where it is unused or e^−y is 0: derivatives could be 0·∞ there."""
        most = 1.2 * _log_max(d)
        constant = unused | (times_exp(d, -log_scale) > most)
        return torch.where(constant, most, times_exp(torch.where(constant, 1, d), torch.where(constant, 0, -log_scale)))

    upper, lower = F.logsigmoid(scaled(x - mean + half, last)), F.logsigmoid(scaled(mean - x + half, first))
    width = scaled(2 * half, first | last)
    tiny = width < 1e-30
    inside = torch.where(tiny, torch.log(2 * half) - log_scale, torch.log(-torch.expm1(-torch.where(tiny, 1, width))))
    return torch.where(first, upper, torch.where(last, lower, upper + lower + inside))


def categorical(logits: Tensor, x: Tensor) -> Tensor:
    """`l_x − ln Σ eˡ`, l = logits, with the sum over the classes in the last dim; NaN where x is no valid class."""
    x = x.long()
    is_class = (x >= 0) & (x < logits.shape[-1])
    log_p = F.log_softmax(logits, dim=-1).gather(-1, torch.where(is_class, x, 0)[..., None])[..., 0]
    return log_p * torch.where(is_class, torch.ones_like(log_p), math.nan)


def multinomial(logits: Tensor, x: Tensor, coefficient: bool) -> Tensor:
    """`Σ xₖ ln pₖ`, p = softmax(logits), over the classes in the last dim, + `ln Γ(N+1) − Σ ln Γ(xₖ+1)`, N = Σ xₖ, if
    `coefficient`."""
    log_p = F.log_softmax(logits, dim=-1)
    log_p = torch.where((x == 0) & (log_p == -math.inf), 0, log_p)
    log_px = (x * log_p).sum(-1)
    if not coefficient:
        return log_px
    return log_px + (torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1))


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: tuple[Tensor | None, ...],
    needs: Sequence[bool],
    upstream: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """Gradients of `function(*inputs)`, with None for an input that needs none. They are differentiable if gradients
    are enabled.

    `upstream` holds the gradient of each output, with None for an unused output.
    """
    # Views separate the inputs from the graph that computed them. If one input was computed from another, a gradient
    # must not flow from one into the other.
    with torch.enable_grad():
        aliases = [t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)]
        outputs = function(*aliases)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # An output may depend on no input that needs a gradient, as the KL does if only eps needs one.
    used = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None and o.requires_grad]
    wanted = [t for t, need in zip(aliases, needs, strict=True) if need]
    if used:
        outputs, upstream = zip(*used, strict=True)
        create_graph = torch.is_grad_enabled()
        found = torch.autograd.grad(outputs, wanted, upstream, create_graph=create_graph, materialize_grads=True)
    else:
        found = [torch.zeros_like(t) for t in wanted]
    found = iter(found)
    return [next(found) if need else None for need in needs]
