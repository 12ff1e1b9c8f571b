"""The latent step in all its forms: learned priors, many samples, sampled KL, other scales, clamps, packed moments, layouts.

Values and gradients come from torch.distributions in float64; the error rule measures against it.
"""

import math
import zlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
import reference
import torch
from error_rule import SLACK_ULP
from samples import BF16, DEVICE, F16, F32, F64, LAYOUTS
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import vae_kernels as vk
from vae_kernels import noise

FLOATS = (F32, BF16, F16, F64)
SPREADS = {  # from a log-variance
    "logvar": lambda l: l,
    "logstd": lambda l: l / 2,
    "std": lambda l: torch.exp(l / 2),
    "variance": torch.exp,
    "softplus": lambda l: torch.log(torch.expm1(torch.exp(l / 2))),
}
LOGVARS = {
    "logvar": lambda r: r,
    "logstd": lambda r: 2 * r,
    "std": lambda r: 2 * torch.log(r),
    "variance": torch.log,
    "softplus": lambda r: 2 * torch.log(torch.logaddexp(r, torch.zeros_like(r))),
}


class Case(NamedTuple):
    """One call. `prior` holds the shapes of the prior's two tensors, None for one that is not given."""

    shape: tuple[int, ...] = (3, 37)
    batch_dims: int = 1
    prior: tuple[tuple[int, ...] | None, tuple[int, ...] | None] = (None, None)
    num_samples: int | None = None
    kl_estimator: str = "analytic"
    kl_reduction: str = "sum"
    scale: str = "logvar"
    std_floor: float = 0.0
    clamp: tuple[float, float] | None = None
    packed_dim: int | None = None
    layout: str = "contiguous"
    dtypes: tuple[torch.dtype, ...] = (F32,) * 5  # of mu, the spread, the prior's two, eps
    collapsed: bool = False

    def __str__(self) -> str:
        changed = {k: v for k, v in self._asdict().items() if v != self._field_defaults[k]}
        parts = (f"{k}={_short(v)}" for k, v in changed.items())
        return "-".join(parts) or "plain"

    @property
    def z_shape(self) -> tuple[int, ...]:
        return self.shape if self.num_samples is None else (self.num_samples, *self.shape)

    @property
    def settings(self) -> dict[str, object]:
        names = ("num_samples", "kl_estimator", "kl_reduction", "scale", "std_floor", "batch_dims")
        given = {name: getattr(self, name) for name in names if getattr(self, name) != self._field_defaults[name]}
        return given if self.clamp is None else given | {"logvar_clamp": self.clamp}

    def make(self) -> dict[str, Tensor]:
        """`mu` and `raw`, or `moments` that hold both; `prior_mu`, `prior_logvar`, where given; `eps`."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def draw(shape: tuple[int, ...], scale: float, shift: float = 0.0) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=F64) * scale + shift

        spread = 1e-3 if self.collapsed else 1.0
        raw = SPREADS[self.scale](draw(self.shape, spread, 0 if self.collapsed else -0.5))
        values = {"mu": draw(self.shape, spread), "raw": raw}
        for name, shape, shift in zip(("prior_mu", "prior_logvar"), self.prior, (0.0, 0.3), strict=True):
            values[name] = None if shape is None else draw(shape, spread, 0 if self.collapsed else shift)
        values["eps"] = draw(self.z_shape, 1)
        tensors = {
            name: LAYOUTS[self._layout(name)](t.to(dtype).to(DEVICE))
            for (name, t), dtype in zip(values.items(), self.dtypes, strict=True)
            if t is not None
        }
        if self.packed_dim is not None:
            moments = torch.cat((tensors.pop("mu"), tensors.pop("raw")), self.packed_dim)
            tensors = {"moments": LAYOUTS[self.layout](moments)} | tensors
        return {name: t.detach().requires_grad_() for name, t in tensors.items()}

    def _layout(self, name: str) -> str:
        expanded = self.layout.startswith("expanded") and name == "eps"
        whole = name in ("mu", "raw", "eps")
        return self.layout if whole and not expanded and self.packed_dim is None else "contiguous"

    def call(self, tensors: dict[str, Tensor], settings: dict[str, object] | None = None) -> tuple[Tensor, Tensor]:
        """`settings` are the case's own; the compiler of torch 2.10 does not read them from a named tuple."""
        settings = self.settings if settings is None else settings
        given = {name: t for name, t in tensors.items() if name.startswith("prior") or name == "eps"}
        if self.packed_dim is not None:
            return vk.reparameterize_kl_packed(tensors["moments"], dim=self.packed_dim, **given, **settings)
        return vk.reparameterize_kl(tensors["mu"], tensors["raw"], **given, **settings)

    def logvar(self, raw: Tensor) -> Tensor:
        """Before it is clamped."""
        logvar = LOGVARS[self.scale](raw)
        return 2 * torch.log(torch.exp(logvar / 2) + self.std_floor) if self.std_floor else logvar

    def people(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """What people write with torch.distributions, in the dtypes of the tensors."""
        mu, raw = tensors["moments"].chunk(2, self.packed_dim) if "moments" in tensors else _pair(tensors)
        logvar = self.logvar(raw)
        if self.clamp is not None:
            low, high = self.clamp
            # Tensor.clamp has the derivative 1 or 0 at a bound, as the version of torch has it.
            logvar = torch.where(logvar < low, low, torch.where(logvar > high, high, logvar))
        std = torch.exp(logvar / 2)
        zero = torch.zeros((), dtype=mu.dtype, device=DEVICE)
        m, v = tensors.get("prior_mu", zero), tensors.get("prior_logvar", zero)
        z = mu + std * tensors["eps"]
        q, p = Normal(mu, std, validate_args=False), Normal(m, torch.exp(v / 2), validate_args=False)
        if self.kl_estimator == "analytic":
            elements = kl_divergence(q, p).expand(self.shape)
        else:
            fixed = Normal(mu.detach(), std.detach(), validate_args=False) if self.kl_estimator == "path" else q
            elements = fixed.log_prob(z) - p.log_prob(z)
        keep = self.batch_dims + (self.num_samples is not None and self.kl_estimator != "analytic")
        return z, elements if self.kl_reduction == "none" else elements.flatten(keep).sum(
            -1
        ) if elements.dim() > keep else elements

    def upstream(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()) + 1)
        z, kl = self.people({name: t.double() for name, t in self.make().items()})
        sums = F64 if F64 in self.dtypes[:4] else F32
        dtypes = (self.dtypes[0], sums)
        return tuple(
            torch.randn(o.shape, generator=generator, dtype=F64).to(d).to(DEVICE)
            for o, d in zip((z, kl), dtypes, strict=True)
        )


def _pair(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return tensors["mu"], tensors["raw"]


def _short(value: object) -> str:
    text = "_".join(map(_short, value)) if isinstance(value, tuple) else str(value)
    return text.removeprefix("torch.").replace("float", "f")


def results(case: Case, call: Callable, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Outputs and gradients by name under the case's upstream gradients."""
    outputs = call(tensors)
    upstream = [g.to(o.dtype) for g, o in zip(case.upstream(), outputs, strict=True)]
    gradients = torch.autograd.grad(outputs, list(tensors.values()), upstream)
    named = dict(zip(("z", "kl"), outputs, strict=True))
    return named | {f"grad {name}": g for name, g in zip(tensors, gradients, strict=True)}


def magnitudes(case: Case, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The scale on which rounding errors are counted: of each result the sum of its terms' absolute values."""
    t = {name: x.detach().double() for name, x in tensors.items()}
    mu, raw = t["moments"].chunk(2, case.packed_dim) if "moments" in t else _pair(t)
    l, base = case.logvar(raw), torch.exp(LOGVARS[case.scale](raw) / 2)
    inside = torch.ones_like(l)
    if case.clamp is not None:
        inside = ((l >= case.clamp[0]) & (l <= case.clamp[1])).double()
        l = l.clamp(*case.clamp)
    s, eps = torch.exp(l / 2), t["eps"]
    m, v = t.get("prior_mu", torch.zeros((), dtype=F64)), t.get("prior_logvar", torch.zeros((), dtype=F64))
    w, d = torch.exp(-v / 2), l - v
    u, r, expm1 = (mu - m) * w, s * w, torch.expm1(d)
    gz, gkl = (g.double().abs() for g in case.upstream())
    sampled = case.kl_estimator != "analytic"
    keep = case.batch_dims + (sampled and case.num_samples is not None)
    full = case.z_shape if sampled else case.shape
    if case.kl_reduction == "sum":
        gkl = gkl.reshape(*full[:keep], *(1 for _ in full[keep:]))

    def over_samples(terms: Tensor) -> Tensor:
        return torch.broadcast_to(terms, case.z_shape).sum(0) if case.num_samples is not None else terms

    by_mu, by_std, by_eps = over_samples(gz), over_samples(gz * eps.abs()), gz * s
    if sampled:
        elements = (u**2 + (expm1 * eps**2).abs() + d.abs()) / 2 + (u * r * eps).abs()
        by_z = (u * w).abs() + ((expm1 / s if case.kl_estimator == "path" else r * w) * eps).abs()
        by_mu = by_mu + over_samples(gkl * by_z)
        by_std = by_std + over_samples(gkl * by_z * eps.abs())
        by_l = over_samples(gkl) / 2
        by_eps = by_eps + gkl * ((u * r).abs() + (expm1 * eps).abs())
        by_m = over_samples(gkl * ((u * w).abs() + (r * w * eps).abs()))
        by_v = over_samples(gkl * (1 + (u.abs() + (r * eps).abs()) ** 2)) / 2
    else:
        elements = (u**2 + torch.expm1(d) - d) / 2
        by_mu, by_l = by_mu + gkl * (u * w).abs(), gkl * expm1.abs() / 2
        by_m, by_v = gkl * (u * w).abs(), gkl * (expm1.abs() + u**2) / 2
    dstd = {"logvar": base / 2, "logstd": base, "std": 1, "variance": 0.5 / base, "softplus": torch.sigmoid(raw)}
    by_raw = inside * (by_std + by_l * 2 / s) * dstd[case.scale]
    kl = elements if case.kl_reduction == "none" or elements.dim() == keep else elements.flatten(keep).sum(-1)
    found = {"z": mu.abs() + s * eps.abs(), "kl": kl, "grad eps": by_eps}
    for name, terms in (("prior_mu", by_m), ("prior_logvar", by_v)):
        if name in tensors:
            found[f"grad {name}"] = torch.broadcast_to(terms, case.shape).sum_to_size(tensors[name].shape)
    if "moments" in t:
        return found | {"grad moments": torch.cat((by_mu, by_raw), case.packed_dim)}
    return found | {"grad mu": by_mu, "grad raw": by_raw}


def error(got: Tensor, want: Tensor, magnitude: Tensor, dtype: torch.dtype) -> float:
    """The largest error in ulp of `dtype` at the magnitude."""
    assert got.shape == want.shape
    if not got.numel():
        return 0.0
    info = torch.finfo(dtype)
    unit = info.eps * 2.0 ** torch.floor(torch.log2(magnitude.clamp(min=info.tiny)))
    assert got.isfinite().all()
    return ((got.double() - want.double()).abs() / unit).max().item()


def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: t.detach().double().requires_grad_() for name, t in tensors.items()}


def check(case: Case, backend: str) -> None:
    tensors = case.make()
    got = results(case, case.call, tensors)
    want = results(case, case.people, widened(tensors))
    if backend != "eager" and case.scale in ("logvar", "logstd") and not case.std_floor:
        with vk.use_backend("eager"):
            yardstick = results(case, case.call, case.make())
    else:  # of other standard deviations eager takes the logarithm in float64, beyond what people have
        arithmetic = F64 if F64 in case.dtypes[:4] else F32
        yardstick = results(
            case, case.people, {k: t.detach().to(arithmetic).requires_grad_() for k, t in tensors.items()}
        )
    magnitude = magnitudes(case, tensors)
    for name, value in got.items():
        mine, eager = (error(x[name], want[name], magnitude[name], value.dtype) for x in (got, yardstick))
        assert mine <= 2 * eager + SLACK_ULP, f"{name}: {mine:.4g} ulp off, eager {eager:.4g}"


PRIORS = (
    ((3, 37), (3, 37)),
    ((37,), (37,)),
    ((1, 37), None),
    (None, (3, 37)),
    ((), (1,)),
    ((3, 1), (3, 37)),
)
SAMPLED = ("monte_carlo", "path")
CASES = [
    Case(prior=prior, kl_estimator=estimator, num_samples=count)
    for prior in ((None, None), *PRIORS)
    for estimator in ("analytic", *SAMPLED)
    for count in (None, 3)
]
CASES += [
    Case(scale=scale, clamp=clamp, prior=prior, kl_estimator=estimator, dtypes=(dtype,) * 5)
    for scale in SPREADS
    for clamp in (None, (-1.0, 0.25))
    for prior in ((None, None), PRIORS[0])
    for estimator in ("analytic", *SAMPLED)
    for dtype in ((F32, BF16) if estimator == "analytic" else (F32,))
]
CASES += [
    Case(scale=scale, std_floor=0.125, clamp=clamp, prior=PRIORS[0], kl_estimator=estimator)
    for scale in SPREADS
    for clamp in (None, (-1.0, 0.25))
    for estimator in ("analytic", *SAMPLED)
]
CASES += [
    Case(prior=prior, kl_estimator=estimator, collapsed=True)
    for prior in ((None, None), PRIORS[0], PRIORS[1])
    for estimator in ("analytic", *SAMPLED)
]
CASES += [
    Case(kl_reduction="none", kl_estimator=estimator, num_samples=count, prior=prior, layout=layout, shape=(2, 3, 4, 5))
    for estimator in ("analytic", "monte_carlo")
    for count in (None, 2)
    for prior in ((None, None), ((2, 3, 4, 5), (3, 1, 1)))
    for layout in ("contiguous", "channels_last")
]
CASES += [
    Case(
        shape, packed_dim=dim, layout=layout, clamp=clamp, batch_dims=batch_dims, num_samples=count, dtypes=(dtype,) * 5
    )
    for shape, dim, layouts in (
        ((3, 37), 1, ("contiguous", "sliced", "transposed")),
        ((3, 37, 1), -1, ("contiguous",)),
        ((2, 3, 4, 5), 1, ("contiguous", "channels_last", "boxed")),
        ((2, 3, 4, 5), -1, ("contiguous",)),
        ((2, 3, 2, 4, 5), 1, ("contiguous", "channels_last")),
        ((2, 5, 8), 2, ("contiguous", "permuted_slice")),
    )
    for layout in layouts
    for clamp, count, dtype in ((None, None, F32), ((-0.5, 0.5), None, BF16), (None, 2, F32))
    for batch_dims in ((1,) if len(shape) != 3 or dim < 0 else (1, 2))
]
CASES += [
    Case(shape, prior=(shape, prior), kl_estimator=estimator, num_samples=count, batch_dims=batch_dims)
    for shape, prior, batch_dims in (
        ((1, 1), (1, 1), 1),
        ((2, 1025), (1025,), 1),
        ((40, 20), (20,), 1),
        ((70, 600), (600,), 1),
        ((1, 20001), (20001,), 1),
        ((2, 3, 4, 5), (4, 5), 2),
        ((2, 3, 4, 5), (3, 1, 1), 1),
        ((2, 3, 4, 5), (1, 1, 1, 5), 0),
        ((6,), (6,), 1),
    )
    for estimator, count in (("analytic", None), ("monte_carlo", 2))
]
CASES += [
    Case((2, 3, 4, 5), prior=((2, 3, 4, 5), (4, 5)), layout=layout, num_samples=count, batch_dims=batch_dims)
    for layout in (
        "transposed",
        "chunk",
        "sliced",
        "permuted_slice",
        "expanded_rows",
        "channels_last",
        "chunk_of_channels",
        "boxed",
    )
    for count in (None, 2)
    for batch_dims in (1, 2)
]
CASES += [
    Case(prior=PRIORS[1], kl_estimator=estimator, dtypes=dtypes)
    for estimator in ("analytic", "monte_carlo")
    for dtypes in (
        *((dtype,) * 5 for dtype in (BF16, F16)),
        (BF16, F32, F32, F32, F32),
        (F32, BF16, BF16, F32, BF16),
        (F32, F32, F64, F32, F32),
    )
]


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 0.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("scale", [scale for scale in SPREADS if scale != "softplus"])  # that hits no bound
@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_at_a_bound_the_log_variance_has_its_gradient(
    backend: str, packed: bool, scale: str, bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    """As if it were not clamped, whatever the derivative of torch.clamp is; beyond the bound there is none."""
    unclamped = torch.tensor([0.0, -3.0, 3.0] * 8, dtype=F64).reshape(3, 8)
    raw = SPREADS[scale](unclamped).to(dtype).to(DEVICE)  # of a log-variance of 0 it is exactly 0 or 1
    mu, upstream = torch.randn(2, 3, 8).to(dtype).to(DEVICE)

    def gradient(clamp: tuple[float, float] | None) -> Tensor:
        leaf = raw.clone().requires_grad_()
        options = {"scale": scale, "logvar_clamp": clamp, "seed": 5}
        if packed:
            z, kl = vk.reparameterize_kl_packed(torch.cat((mu, leaf), 1), **options)
        else:
            z, kl = vk.reparameterize_kl(mu, leaf, **options)
        return torch.autograd.grad((z, kl), leaf, (upstream, torch.ones_like(kl)))[0]

    at_bound, clamped = (unclamped == 0).to(DEVICE), gradient(bounds)
    assert torch.equal(clamped[at_bound], gradient(None)[at_bound])
    assert clamped[at_bound].count_nonzero() > 0
    assert clamped[~at_bound].count_nonzero() == 0


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_rule(backend: str, case: Case) -> None:
    check(case, backend)


EMPTY = [
    Case(shape, num_samples=count, kl_estimator=estimator, prior=prior, packed_dim=dim)
    for shape in ((0, 4), (4, 0))
    for count, estimator in ((None, "analytic"), (2, "analytic"), (2, "path"))
    for prior in ((None, None), (shape, (shape[1],)))
    for dim in (None, 1)
]


@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(backend: str, case: Case) -> None:
    tensors = case.make()
    got = results(case, case.call, tensors)
    assert got["z"].shape == case.z_shape
    for name, value in got.items():
        assert torch.equal(value, torch.zeros_like(value)), name
    for name, tensor in tensors.items():
        assert got[f"grad {name}"].shape == tensor.shape


CASES += [
    Case((2, 3, 4, 5), packed_dim=1, scale="softplus", std_floor=1e-4, num_samples=count, dtypes=(dtype,) * 5)
    for count in (None, 2)
    for dtype in (F32, BF16, F16)
]

# What gradcheck sees: every variant that changes a formula, in float64 and small.
SMALL = [
    Case((2, 3), 1, prior, count, estimator, scale=scale, std_floor=floor, clamp=clamp, dtypes=(F64,) * 5)
    for prior, scale, floor, clamp in (
        ((None, None), "logstd", 0.0, None),
        ((None, None), "std", 0.0, (-1.0, 0.5)),
        (((2, 3), (3,)), "logvar", 0.0, None),
        (((), None), "variance", 0.0, None),
        (((2, 3), (3,)), "variance", 0.1, None),
        (((2, 3), (3,)), "softplus", 0.0, None),
        ((None, None), "softplus", 0.1, (-1.0, 0.5)),
    )
    for estimator in ("analytic", "monte_carlo")
    for count in (None, 2)
]
SMALL += [
    Case((2, 3), kl_reduction="none", kl_estimator=estimator, num_samples=2, dtypes=(F64,) * 5)
    for estimator in ("analytic", "monte_carlo")
]
SMALL += [
    Case(shape, packed_dim=dim, layout=layout, clamp=(-1.0, 0.5), dtypes=(F64,) * 5)
    for shape, dim, layout in (((2, 3), 1, "contiguous"), ((2, 3, 2, 2), 1, "channels_last"), ((2, 3, 1), -1, "sliced"))
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(backend: str, case: Case) -> None:
    tensors = case.make()

    def function(*inputs: Tensor) -> tuple[Tensor, Tensor]:
        return case.call(dict(zip(tensors, inputs, strict=True)))

    assert torch.autograd.gradcheck(function, tuple(tensors.values()), check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, tuple(tensors.values()))


def test_path_gradient_vanishes_at_the_posterior(kernel: str) -> None:
    """Where q is the prior, whatever z is drawn."""
    mu, logvar = (torch.randn(4, 7, device=DEVICE) for _ in range(2))
    q = [t.clone().requires_grad_() for t in (mu, logvar)]
    _, kl = vk.reparameterize_kl(*q, prior_mu=mu, prior_logvar=logvar, num_samples=3, kl_estimator="path")
    for gradient in torch.autograd.grad(kl.sum(), q):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_monte_carlo_has_the_analytic_mean(backend: str) -> None:
    mu, logvar, m, v = (torch.randn(2, 5, device=DEVICE) for _ in range(4))
    kl = vk.reparameterize_kl(mu, logvar, prior_mu=m, prior_logvar=v)[1]
    sampled = vk.reparameterize_kl(
        mu, logvar, prior_mu=m, prior_logvar=v, num_samples=4000, kl_estimator="monte_carlo", seed=1
    )[1]
    deviations = (sampled.mean(0) - kl) / (sampled.std(0) / 4000**0.5)
    assert (deviations.abs() < 4).all()


@pytest.mark.parametrize("shape", [(5, 7), (5, 1030), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("count", [None, 1, 3])
def test_noise_of_a_seed(backend: str, shape: tuple[int, ...], count: int | None) -> None:
    """Rows are those of z, samples first."""
    mu = torch.zeros(shape, device=DEVICE)
    z, _ = vk.reparameterize_kl(mu, mu, num_samples=count, seed=11)
    rows = (count or 1) * shape[0]
    want = torch.from_numpy(reference.normals(11, rows, math.prod(shape[1:]))).reshape(z.shape)
    torch.testing.assert_close(z.double().cpu(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, 7), (3, 1030), (3, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("count", [None, 2])
def test_a_seed_for_each_sample(backend: str, shape: tuple[int, ...], count: int | None) -> None:
    """Sample b under seed[b] alone is the same as within the batch, wherever it stands."""
    mu = torch.randn(shape, device=DEVICE)
    seeds = torch.randint(0, 2**62, shape[:1], device=DEVICE)
    z, kl = vk.reparameterize_kl(mu, 0.1 * mu, num_samples=count, seed=seeds, kl_estimator="monte_carlo")
    order = torch.randperm(shape[0], device=DEVICE)
    again, kl_again = vk.reparameterize_kl(
        mu[order], 0.1 * mu[order], num_samples=count, seed=seeds[order], kl_estimator="monte_carlo"
    )
    samples = 0 if count is None else 1
    assert torch.equal(again, z.index_select(samples, order))
    assert torch.equal(kl_again, kl.index_select(samples, order))
    for b in range(shape[0]):
        alone, _ = vk.reparameterize_kl(mu[b : b + 1], 0.1 * mu[b : b + 1], num_samples=count, seed=int(seeds[b]))
        torch.testing.assert_close(alone.select(samples, 0), z.select(samples, b), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("own", [False, True])
def test_backward_makes_the_same_noise(backend: str, count: int | None, own: bool) -> None:
    case = Case((6, 35), kl_estimator="monte_carlo", num_samples=count)
    tensors = case.make()
    eps = tensors.pop("eps")
    seed = torch.arange(6, device=DEVICE) if own else torch.tensor([3], device=DEVICE)
    eps = noise.normal_like(tensors["mu"], seed, 1, count)
    by_seed = vk.reparameterize_kl(tensors["mu"], tensors["raw"], seed=seed, **case.settings)
    by_eps = vk.reparameterize_kl(tensors["mu"], tensors["raw"], eps=eps, **case.settings)
    gradients = (torch.autograd.grad(o, list(tensors.values()), case.upstream()) for o in (by_seed, by_eps))
    for a, b in zip((*by_seed, *next(gradients)), (*by_eps, *next(gradients)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_packed_gradient_is_one_tensor(kernel: str, layout: str) -> None:
    """Of the moments' own layout, and nothing else of their size is allocated."""
    moments = LAYOUTS[layout](torch.randn(2, 8, 6, 6, device=DEVICE)).requires_grad_()
    z, kl = vk.reparameterize_kl_packed(moments, seed=1)
    gradient = torch.autograd.grad(z.sum() + kl.sum(), moments)[0]
    assert gradient.stride() == moments.stride()
    assert gradient.untyped_storage().nbytes() == moments.nbytes


def test_sides(backend: str) -> None:
    """`num_samples=1` has the leading dim, none has not; a prior given as zeros is the standard one."""
    mu, logvar = torch.randn(3, 5, device=DEVICE), torch.randn(3, 5, device=DEVICE)
    plain = vk.reparameterize_kl(mu, logvar, seed=1)
    one = vk.reparameterize_kl(mu, logvar, seed=1, num_samples=1)
    zero = vk.reparameterize_kl(mu, logvar, seed=1, prior_mu=torch.zeros(5, device=DEVICE))
    assert one[0].shape == (1, 3, 5) and one[1].shape == (3,)
    torch.testing.assert_close(one[0][0], plain[0])
    torch.testing.assert_close(one[1], plain[1])
    torch.testing.assert_close(zero[1], plain[1])


COMPILED = [
    Case(prior=PRIORS[0]),
    Case(prior=PRIORS[1], kl_estimator="path", num_samples=2),
    Case(kl_reduction="none", scale="std", clamp=(-1.0, 1.0)),
    Case((2, 3, 4, 5), packed_dim=1, layout="channels_last", dtypes=(BF16,) * 5),
    Case((2, 3, 4, 5), packed_dim=1, scale="softplus", std_floor=1e-4, num_samples=2, kl_estimator="path"),
]


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compile(backend: str, case: Case) -> None:
    tensors = case.make()
    torch._dynamo.reset()
    settings = case.settings
    compiled = torch.compile(lambda **t: case.call(t, settings), fullgraph=True, backend="aot_eager")
    got = results(case, lambda t: compiled(**t), tensors)
    want = results(case, case.call, tensors)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_opcheck(kernel: str, case: Case) -> None:
    tensors = case.make()
    tensors.pop("eps")
    with Recorder() as recorder:
        outputs = case.call({**tensors, "eps": None})
        torch.autograd.grad(outputs, list(tensors.values()), case.upstream())
    assert len(recorder.calls) == 2
    for op, arguments in recorder.calls:
        torch.library.opcheck(op, arguments)


class Recorder(TorchDispatchMode):
    """The package's ops that are called, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, arguments=(), keywords=None):
        if op.namespace.startswith("vae_kernels"):
            self.calls.append((op, tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)))
        return op(*arguments, **(keywords or {}))


def test_transforms(backend: str) -> None:
    """vmap over stacked inputs, and forward-mode derivatives, are those of the loop and of the backward pass."""
    mu, logvar, m, v = (torch.randn(4, 3, 5, device=DEVICE) for _ in range(4))
    eps = torch.randn(4, 3, 5, device=DEVICE)

    def step(mu: Tensor, logvar: Tensor, m: Tensor, v: Tensor, eps: Tensor) -> Tensor:
        return vk.reparameterize_kl(mu, logvar, prior_mu=m, prior_logvar=v, eps=eps, kl_estimator="monte_carlo")[1]

    mapped = torch.func.vmap(step)(mu, logvar, m, v, eps)
    looped = torch.stack([step(*tensors) for tensors in zip(mu, logvar, m, v, eps, strict=True)])
    torch.testing.assert_close(mapped, looped)
    gradient = torch.func.grad(lambda mu: step(mu, logvar[0], m[0], v[0], eps[0]).sum())(mu[0])
    leaf = mu[0].clone().requires_grad_()
    want = torch.autograd.grad(step(leaf, logvar[0], m[0], v[0], eps[0]).sum(), leaf)[0]
    torch.testing.assert_close(gradient, want)
