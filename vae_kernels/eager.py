"""The same mathematics in plain PyTorch: the oracle of the tests, and the fallback on every device without a kernel.

Differentiable to any order, and under every functorch transform.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import symbols
from .rows import row_shape


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of arithmetic and sums: float64 if any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sum_columns(elements: Tensor, batch_dims: int) -> Tensor:
    """Sum over the dims behind the first `batch_dims`. In row form: torch sums tensors of 64 dims at most."""
    if elements.dim() == batch_dims:
        return elements
    return elements.reshape(row_shape(elements, batch_dims)).sum(1).reshape(elements.shape[:batch_dims])


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.device.type == "mps" else tensor.double()


def exp_minus_1_minus(l: Tensor) -> Tensor:
    """`eˡ − 1 − l` without the loss near 0: in float64, or for float64 itself and on devices without it by the Taylor
    series where |l| ≤ ½, which costs many more passes."""
    if l.dtype == torch.float32 and l.device.type != "mps":
        wide = _wide(l)
        return (torch.expm1(wide) - wide).float()
    terms = 14 if l.dtype == torch.float64 else 7
    small = l.abs() <= 0.5
    inside = torch.where(small, l, 0)
    series = torch.full_like(l, 1 / math.factorial(terms + 1))
    for n in range(terms, 1, -1):
        series = series * inside + 1 / math.factorial(n)
    return torch.where(small, series * inside * inside, torch.expm1(l) - l)


def std_and_logvar(raw: Tensor, scale: str, low: float | None, high: float | None) -> tuple[Tensor, Tensor]:
    """Standard deviation and log-variance from what the caller has: `logvar`, `logstd`, `std` or `variance`. Where a
    bound takes the log-variance, neither has a derivative."""
    logvar = SCALES[scale](raw)[1]
    clamps = [(outside, symbols.tensor(bound, logvar)) for outside, bound in _outside(logvar, low, high)]
    for outside, _ in clamps:
        raw = torch.where(outside, 1, raw)  # a derivative that is not finite there would not vanish
    std, logvar = SCALES[scale](raw)
    for outside, bound in clamps:
        std, logvar = torch.where(outside, torch.exp(bound / 2).to(std.dtype), std), torch.where(outside, bound, logvar)
    return std, logvar


def clamped(raw: Tensor, scale: str, low: float | None, high: float | None) -> Tensor:
    """`raw` with its log-variance between the bounds, in the dtype of the arithmetic."""
    raw = raw.to(compute_dtype(raw))
    logvar = SCALES[scale](raw)[1]
    for outside, bound in _outside(logvar, low, high):
        raw = torch.where(outside, _RAW[scale](symbols.tensor(bound, logvar)).to(raw.dtype), raw)
    return raw


def _outside(logvar: Tensor, low: float | None, high: float | None) -> list[tuple[Tensor, float]]:
    """Where a bound takes the log-variance, for each bound."""
    below = [] if low is None else [(logvar < low, low)]
    return below if high is None else [*below, (logvar > high, high)]


# Of a standard deviation given as such the logarithm is taken in float64: rounded, it would spoil e^logvar.
SCALES = {
    "logvar": lambda raw: (torch.exp(0.5 * raw), raw),
    "logstd": lambda raw: (torch.exp(raw), 2 * raw),
    "std": lambda raw: (raw, 2 * torch.log(_wide(raw))),
    "variance": lambda raw: (torch.sqrt(raw), torch.log(_wide(raw))),
}


# The other way: what has a given log-variance.
_RAW = {
    "logvar": lambda logvar: logvar,
    "logstd": lambda logvar: logvar / 2,
    "std": lambda logvar: torch.exp(logvar / 2),
    "variance": torch.exp,
}


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    eps: Tensor,
    batch_dims: int,
    num_samples: int | None = None,
    scale: str = "logvar",
    low: float | None = None,
    high: float | None = None,
    kl_estimator: str = "analytic",
    kl_reduction: str = "sum",
) -> tuple[Tensor, Tensor]:
    """`z = mu + std·eps` and the KL divergence to the prior, analytic or as the estimator says, per sample or element."""
    dtype = compute_dtype(*(t for t in (mu, logvar, prior_mu, prior_logvar) if t is not None))
    m, e = mu.to(dtype), eps.to(dtype)
    std, l = std_and_logvar(logvar.to(dtype), scale, low, high)
    z = m + std * e
    prior = [None if t is None else t.to(dtype) for t in (prior_mu, prior_logvar)]
    if kl_estimator == "analytic":
        elements = analytic_kl(m, l, *prior)
    else:
        batch_dims += num_samples is not None
        if kl_estimator == "path":
            # eps as (z − mu) / std at fixed mu and std: q's parameters count through z alone, a z that no hook sees.
            path, m, std, l = m + std * e, m.detach(), std.detach(), l.detach()
            e = e.detach() + (path - path.detach()) / std
        elements = sampled_kl(m, std, l, e, *prior)
    kl = elements if kl_reduction == "none" else sum_columns(elements, batch_dims)
    return z.to(mu.dtype), kl.to(dtype)


def analytic_kl(mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """`½ (u² + e^d − 1 − d)`, `u = (mu − prior_mu) e^(−prior_logvar/2)`, `d = logvar − prior_logvar`."""
    u, d, _ = _relative_to_prior(mu, logvar, prior_mu, prior_logvar)
    return 0.5 * (u * u + exp_minus_1_minus(d))


def sampled_kl(
    mu: Tensor, std: Tensor, logvar: Tensor, eps: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> Tensor:
    """`log q(z) − log p(z)` at `z = mu + std·eps`: `½ (u² + 2 u r eps + (e^d − 1) eps² − d)`, `r = std e^(−prior_logvar/2)`;
    where q is near the prior nothing cancels."""
    u, d, w = _relative_to_prior(mu, logvar, prior_mu, prior_logvar)
    r = std if w is None else std * w
    return 0.5 * (u * u + 2 * u * r * eps + torch.expm1(d) * eps * eps - d)


def _relative_to_prior(mu, logvar, prior_mu, prior_logvar) -> tuple[Tensor, Tensor, Tensor | None]:
    """u, d, and `w = e^(−prior_logvar/2)` or None."""
    u = mu if prior_mu is None else mu - prior_mu
    if prior_logvar is None:
        return u, logvar, None
    w = torch.exp(-0.5 * prior_logvar)
    return u * w, logvar - prior_logvar, w


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """`x·a − softplus(a)`, as `(x − [a > 0])·a − log1p(e^−|a|)`: for x in [0, 1] the terms have one sign."""
    positive = logits > 0
    # `where`, not `abs`: the derivative at 0 must not vanish.
    return torch.where(positive, x - 1, x) * logits - F.softplus(torch.where(positive, -logits, logits))


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor | float) -> Tensor:
    """`−½ (logvar + (x − mean)² e^−logvar + ln 2π)`."""
    precision = torch.exp(-logvar) if isinstance(logvar, Tensor) else math.exp(-logvar)
    return -0.5 * (logvar + (x - mean) ** 2 * precision + math.log(2 * math.pi))


def laplace(loc: Tensor, x: Tensor, log_scale: Tensor) -> Tensor:
    """`−|x − loc| e^−s − s − ln 2`, s = log_scale."""
    return -(torch.abs(x - loc) * torch.exp(-log_scale) + log_scale + math.log(2))


# B₂ₙ / (2n (2n)!): ln(sinh(a/2) / (a/2)) = Σ of them times a²ⁿ.
LOG_SINHC = (
    *(1 / 24, -1 / 2880, 1 / 181440, -1 / 9676800, 1 / 479001600),
    *(-691 / 15692092416000, 1 / 1046139494400, -3617 / 170729965486080000, 43867 / 91963695909076992000),
    -174611 / 16057153253965824000000,
)


def continuous_bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """`x·a − ln((eᵃ − 1)/a)`: where |a| ≤ 1 by the series of its even part, elsewhere `(x − [a > 0])·a − ln((1 −
    e^−|a|)/|a|)`."""
    small = logits.abs() <= 1
    inside, outside = torch.where(small, logits, 0), torch.where(small, 2, logits)
    square = inside * inside
    series = torch.zeros_like(square)
    for c in reversed(LOG_SINHC):
        series = (series + c) * square
    near = (x - 0.5) * inside - series
    far = torch.where(outside > 0, x - 1, x) * outside - torch.log(-torch.expm1(-outside.abs()) / outside.abs())
    return torch.where(small, near, far)


def bernoulli_probs(probs: Tensor, x: Tensor) -> Tensor:
    """`x ln p + (1 − x) ln(1 − p)` by `binary_cross_entropy` and its clamps; NaN where it refuses p, outside [0, 1]."""
    inside = (probs >= 0) & (probs <= 1)
    p = torch.where(inside, probs, 0.5)
    one, zero = (-F.binary_cross_entropy(p, torch.full_like(p, target), reduction="none") for target in (1, 0))
    outside = torch.where(inside, 0, probs) + torch.where(inside, 0, x)
    return torch.where(inside, x * one + (1 - x) * zero, outside * math.nan)


# scvi-tools' constant: it keeps logarithms and gradients finite at mu = 0, which a softmax decoder reaches.
COUNT_EPS = 1e-8


def negative_binomial(mu: Tensor, x: Tensor, theta: Tensor) -> Tensor:
    """`ln Γ(x+θ) − ln Γ(θ) − ln Γ(x+1) + θ ln((θ+ε)/e) + x ln((mu+ε)/e)`, e = mu + θ + ε."""
    log_total = torch.log(theta + mu + COUNT_EPS)
    rates = theta * (torch.log(theta + COUNT_EPS) - log_total) + x * (torch.log(mu + COUNT_EPS) - log_total)
    return rates + torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)


def zero_inflated_negative_binomial(mu: Tensor, x: Tensor, theta: Tensor, zero_logits: Tensor) -> Tensor:
    """`ln(σ(z) + σ(−z) NB(x))` where x = 0, `ln(σ(−z) NB(x))` elsewhere, z = zero_logits."""
    dropped, kept = F.logsigmoid(zero_logits), F.logsigmoid(-zero_logits) + negative_binomial(mu, x, theta)
    # logaddexp, but for its derivative, which is 0 where a part of e^−89 overflows in it.
    either = torch.where(kept > dropped, kept + F.softplus(dropped - kept), dropped + F.softplus(kept - dropped))
    return torch.where(x < COUNT_EPS, either, kept)


def discretized_logistic(mean: Tensor, x: Tensor, log_scale: Tensor, bins: Tensor) -> Tensor:
    """`ln(σ(p) − σ(q))`, p, q = (x − mean ± h) e^−s, h = 1/(bins − 1); `ln σ(p)` in the first bin, `ln σ(−q)` in the
    last."""
    half = 1 / (bins - 1)
    rate = torch.exp(-log_scale)
    upper, lower = (x - mean + half) * rate, (x - mean - half) * rate
    first, last = x < half - 1, x > 1 - half
    inside = torch.log(-torch.expm1(-2 * half * rate))
    log_upper, log_lower = F.logsigmoid(upper), F.logsigmoid(-lower)
    return torch.where(first, log_upper, torch.where(last, log_lower, log_upper + log_lower + inside))


def categorical(logits: Tensor, x: Tensor) -> Tensor:
    """`l_x − ln Σ eˡ`, the sum over the classes in the last dim; NaN where x is none of them."""
    x = x.long()
    is_class = (x >= 0) & (x < logits.shape[-1])
    log_p = F.log_softmax(logits, dim=-1).gather(-1, torch.where(is_class, x, 0)[..., None])[..., 0]
    return log_p * torch.where(is_class, 1.0, math.nan)


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    needs: Sequence[bool],
    upstream: tuple[Tensor | None, ...],
) -> list[Tensor]:
    """Gradients of `function(*inputs)` for the inputs that need one, differentiable in their turn under `create_graph`.

    `upstream` holds the gradient of each output, None for one that nothing used.
    """
    # Views stand between the inputs and whatever made them: if one input was computed from another, its gradient must
    # not contain the other's.
    with torch.enable_grad():
        aliases = [t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)]
        outputs = function(*aliases)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # An output that depends on no input that needs a gradient (the KL on eps alone) contributes nothing.
    used = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None and o.requires_grad]
    wanted = [t for t, need in zip(aliases, needs, strict=True) if need]
    if not used:
        return [torch.zeros_like(t) for t in wanted]
    return list(
        torch.autograd.grad(
            [o for o, _ in used],
            wanted,
            [g for _, g in used],
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
    )
