"""The check of every contender's results, before it is timed.

Expected values are computed in float64, by formulas that share no code with the package. The *magnitude* of an element
is the sum of the absolute values of its terms. Rounding errors are measured relative to it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .cases import DTYPES, HIERARCHY, OPS, PRIOR_INPUTS, SAMPLE_COUNTS, Case

# The error of a kernel, in every element, is at most twice that of eager in the same dtype, plus 4 ulp.
SLACK_ULP = 4

# Baselines must compute the same function, but they lose digits in small elements. Their errors are therefore measured
# in eps of the largest magnitude in the tensor. The limit is the probabilistic bound `λ √n` for a sum of n terms in any
# order, with about ten operations per term (Higham & Mary 2019, "A new approach to probabilistic rounding error
# analysis"; for λ = 5 the bound fails with a probability below 10⁻⁵).
LAMBDA = 5
OPERATIONS = 10

# The number of elements that are checked at a time. On a CPU the float64 temporaries fit into the cache. A GPU waits at
# the end of each chunk, and about 30 temporaries of 128 MiB fit into its memory.
_CHUNK = {"cpu": 2**16, "cuda": 2**24}

Terms = dict[str, tuple[Tensor, ...]]


def _latent(t: dict[str, Tensor]) -> Terms:
    """The noise is that of the contender: `½ gz exp(l/2) eps = ½ gz (z − mu)`."""
    mu, l, z, gz, gkl = t["mu"], t["logvar"], t["z"], t["grad_z"], t["grad_kl"]
    return {
        "kl": (mu**2 / 2, (l.expm1() - l) / 2),
        "grad_mu": (gz, gkl * mu),
        "grad_logvar": (gz * z / 2, -gz * mu / 2, gkl * l.expm1() / 2),
    }


def _latent_packed(t: dict[str, Tensor]) -> Terms:
    mu, logvar = t["moments"].chunk(2, dim=1)
    halves = _latent({"mu": mu, "logvar": logvar, **t})
    none = torch.zeros_like(mu)
    moments = zip((*halves["grad_mu"], none), halves["grad_logvar"], strict=True)
    return {"kl": halves["kl"], "grad_moments": tuple(torch.cat(pair, dim=1) for pair in moments)}


def _latent_prior(t: dict[str, Tensor]) -> Terms:
    mu, l, m, v = (t[name] for name in PRIOR_INPUTS)
    z, gz, gkl = t["z"], t["grad_z"], t["grad_kl"]
    d, u = l - v, (mu - m) * torch.exp(-v)
    return {
        "kl": (u * (mu - m) / 2, (d.expm1() - d) / 2),
        "grad_mu": (gz, gkl * u),
        "grad_logvar": (gz * z / 2, -gz * mu / 2, gkl * d.expm1() / 2),
        "grad_prior_mu": (-gkl * u,),
        "grad_prior_logvar": (-gkl * d.expm1() / 2, -gkl * u * (mu - m) / 2),
    }


def _latent_hierarchy(t: dict[str, Tensor]) -> Terms:
    found = {}
    for level in range(len(HIERARCHY)):
        names = (*PRIOR_INPUTS, "z", "grad_z", "grad_kl")
        of_level = _latent_prior({name: t[f"{name}_{level}"] for name in names})
        found |= {f"{name}_{level}": terms for name, terms in of_level.items()}
    return found


def _latent_samples(t: dict[str, Tensor]) -> Terms:
    mu, l, z, gz, gkl = t["mu"], t["logvar"], t["z"], t["grad_z"], t["grad_kl"]
    noise = z - mu  # std·eps
    return {
        "kl": (z**2 / 2, -(noise**2) * torch.exp(-l) / 2, -l / 2),
        "grad_mu": (gz, gkl * z),
        "grad_logvar": (gz * z / 2, -gz * mu / 2, gkl * z * noise / 2, -gkl / 2 * torch.ones_like(z)),
    }


def _bernoulli(t: dict[str, Tensor]) -> Terms:
    a, x, g = t["logits"], t["x"], t["grad_log_px"]
    return {
        "log_px": (x * torch.nn.functional.logsigmoid(a), (1 - x) * torch.nn.functional.logsigmoid(-a)),
        "grad_logits": (g * x, -g * torch.sigmoid(a)),
    }


def _gaussian(t: dict[str, Tensor]) -> Terms:
    mean, x, g = t["mean"], t["x"], t["grad_log_px"]
    logvar = t.get("logvar", torch.zeros((), dtype=mean.dtype, device=mean.device))
    weighted = (x - mean) * torch.exp(-logvar)
    square = (x - mean) * weighted
    return {
        "log_px": (-logvar / 2 * torch.ones_like(x), -square / 2, torch.full_like(x, -math.log(2 * math.pi) / 2)),
        "grad_mean": (g * weighted,),
        "grad_logvar": (g * square / 2, -g / 2 * torch.ones_like(x)),
    }


def _negative_binomial(t: dict[str, Tensor]) -> Terms:
    mu, x, theta, g = t["mu"], t["x"], t["theta"], t["grad_log_px"]
    rate, total = mu + 1e-8, mu + theta + 1e-8
    log_rate, log_dispersion = torch.log(rate / total), torch.log((theta + 1e-8) / total)
    return {
        "log_px": (
            theta * log_dispersion,
            x * log_rate,
            torch.lgamma(x + theta),
            -torch.lgamma(theta),
            -torch.lgamma(x + 1),
        ),
        "grad_mu": (g * x / rate, -g * (x + theta) / total),
        "grad_theta": (
            g * log_dispersion,
            g * (theta / (theta + 1e-8) - (x + theta) / total),
            g * (torch.digamma(x + theta) - torch.digamma(theta)),
        ),
    }


def _categorical(t: dict[str, Tensor]) -> Terms:
    log_p = torch.log_softmax(t["logits"], dim=-1)
    is_x = torch.nn.functional.one_hot(t["x"].squeeze(-1).long(), log_p.shape[-1])
    return {
        "log_px": (log_p * is_x,),
        "grad_logits": (t["grad_log_px"] * is_x, -t["grad_log_px"] * log_p.exp()),
    }


_TERMS: dict[str, Callable[[dict[str, Tensor]], Terms]] = {
    "latent": _latent,
    "latent-packed": _latent_packed,
    "latent-prior": _latent_prior,
    "latent-hierarchy": _latent_hierarchy,
    **{f"latent-samples-{count}": _latent_samples for count in SAMPLE_COUNTS},
    "bernoulli-samples": _bernoulli,
    "bernoulli": _bernoulli,
    "gaussian": _gaussian,
    "gaussian-fixed": _gaussian,
    "gaussian-scalar": _gaussian,
    "gaussian-column": _gaussian,
    "negative-binomial": _negative_binomial,
    "categorical": _categorical,
}


def results(case: Case, outputs: tuple[Tensor, ...], gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    """Outputs and gradients by name."""
    op = OPS[case.op]
    names = (*op.outputs, *(f"grad_{name}" for name in op.differentiated))
    return dict(zip(names, (t.detach() for t in (*outputs, *gradients)), strict=True))


@dataclass
class Error:
    """The largest error of a result: in ulp of each element's magnitude, and in eps of the largest magnitude."""

    ulp: float = 0.0
    difference: float = 0.0
    magnitude: float = 0.0
    eps: float = 1.0

    @property
    def normwise(self) -> float:
        return self.difference / (self.eps * self.magnitude) if self.difference else 0.0

    def include(self, got: Tensor, value: Tensor, magnitude: Tensor) -> None:
        if got.shape != value.shape:
            self.ulp = self.difference = math.inf
        if not value.numel() or self.difference == math.inf:
            return
        info = torch.finfo(got.dtype)
        exponent = torch.frexp(magnitude.clamp_min(info.tiny)).exponent
        difference = (got.double() - value).abs().nan_to_num(nan=math.inf)
        self.eps = info.eps
        self.ulp = max(
            self.ulp, (difference / torch.ldexp(torch.full_like(value, info.eps), exponent - 1)).max().item()
        )
        self.difference = max(self.difference, difference.max().item())
        self.magnitude = max(self.magnitude, magnitude.max().item())


def errors(case: Case, tensors: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, Error]:
    """The errors of each result.

    `z` has no expected value. Its error is 0 if `(z − mu) / std` has mean 0 and variance 1 within five standard errors,
    and infinite otherwise.
    """
    op, full = OPS[case.op], case.shape
    upstream = case.upstream([got[name] for name in op.outputs])
    sources = {name: t.detach() for name, t in tensors.items()} | {n: got[n] for n in op.outputs if n[0] == "z"}
    sources |= dict(zip((f"grad_{name}" for name in op.outputs), upstream, strict=True))
    shared = op.shared
    found = {name: Error() for name in got}
    totals: dict[str, tuple[Tensor, Tensor]] = {}
    device = next(iter(tensors.values())).device.type
    step = max(1, _CHUNK[device] // max(1, math.prod(full[1:])))
    for start in range(0, full[0], step):
        rows = slice(start, start + step)
        part = {name: t.double() if name in shared else _aligned(t[rows], len(full)) for name, t in sources.items()}
        for name, terms in _TERMS[case.op](part).items():
            value, magnitude = sum(terms), sum(t.abs() for t in terms)
            if name in op.outputs:
                value, magnitude = (v.sum(dim=tuple(range(op.batch_dims, v.dim()))) for v in (value, magnitude))
            if name.removeprefix("grad_") in shared:
                value, magnitude = (
                    v.sum_to_size(tensors[name.removeprefix("grad_")].shape) for v in (value, magnitude)
                )
                before = totals.get(name, (0, 0))
                totals[name] = (before[0] + value, before[1] + magnitude)
            elif name in got:
                found[name].include(got[name][rows], value, magnitude)
    for name, total in totals.items():
        found[name].include(got[name], *total)
    for name in op.outputs:
        if name[0] == "z" and not _is_normal(case, tensors, name.removeprefix("z"), got[name]):
            found[name] = Error(ulp=math.inf, difference=math.inf, magnitude=1.0)
    return found


def verdict(case: Case, got: dict[str, Tensor], found: dict[str, Error], eager: dict[str, Error] | None) -> str:
    """An empty string if the errors are allowed, else the reason. `eager` has the errors that limit a kernel's; None
    for a baseline."""
    for name, error in found.items():
        if eager is None:
            off, allowed, unit = error.normwise, baseline_bound(case, name, got[name].dtype), "eps"
        else:
            off, allowed, unit = error.ulp, 2 * eager[name].ulp + SLACK_ULP, "ulp"
        if not off <= allowed:
            return f"wrong {name}: {off:.3g} {unit} off, {allowed:.3g} allowed"
    return ""


def baseline_bound(case: Case, name: str, dtype: torch.dtype) -> float:
    """The bound in eps of the result's dtype, for arithmetic in the case's dtype."""
    shape = OPS[case.op].inputs(case.shape).get(name.removeprefix("grad_"), case.shape)
    if name.partition("_")[0] == "kl" or name == "log_px":
        terms = math.prod(OPS[case.op].inputs(case.shape).get("x", case.shape)[1:])
    else:
        terms = max(1, math.prod(case.shape) // max(1, math.prod(shape)))
    unit = torch.finfo(DTYPES[case.dtype]).eps / torch.finfo(dtype).eps
    return LAMBDA * (math.sqrt(terms) + OPERATIONS) * max(unit, 1.0)


def _aligned(tensor: Tensor, dims: int) -> Tensor:
    """The tensor in float64, with dims of size 1 appended, so that values per sample broadcast."""
    return tensor.double().reshape(tensor.shape + (1,) * (dims - tensor.dim()))


def _is_normal(case: Case, tensors: dict[str, Tensor], level: str, z: Tensor) -> bool:
    packed = case.op == "latent-packed"
    mu, logvar = tensors["moments"].chunk(2, dim=1) if packed else (tensors[f"{n}{level}"] for n in ("mu", "logvar"))
    eps = (z - mu.detach()).float() * torch.exp(-0.5 * logvar.detach().float())
    n = eps.numel()
    rounding = torch.finfo(z.dtype).eps
    mean, second = eps.mean().item(), eps.square().mean().item()
    return abs(mean) <= 5 / math.sqrt(n) + rounding and abs(second - 1) <= _variance_margin(n) + rounding


def _variance_margin(n: int) -> float:
    """A deviation of χ²ₙ/n that is as improbable as five standard deviations (Laurent & Massart 2000, lemma 1)."""
    x = 15.0  # e⁻¹⁵ = 3e-7
    return 2 * math.sqrt(x / n) + 2 * x / n
