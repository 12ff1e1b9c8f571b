"""Cases of the latent step in all its forms: learned priors, many samples, sampled KL, other scales, clamps, packed
moments, layouts.

True values and gradients come from torch.distributions in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial

import torch
from cases import Case
from error_rule import Expected
from samples import BF16, DEVICE, F16, F32, F64, LAYOUTS
from torch import Tensor
from torch.distributions import Normal, kl_divergence

import vae_kernels as vk

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


@dataclass(frozen=True)
class LatentCase(Case):
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
        changed = {f.name: value for f in fields(self) if (value := getattr(self, f.name)) != f.default}
        return "-".join(f"{name}={_short(value)}" for name, value in changed.items()) or "plain"

    @property
    def z_shape(self) -> tuple[int, ...]:
        return self.shape if self.num_samples is None else (self.num_samples, *self.shape)

    @property
    def sum_dtype(self) -> torch.dtype:
        return F64 if F64 in self.dtypes[:4] else F32

    @property
    def output_dtypes(self) -> dict[str, torch.dtype]:
        return {"z": self.dtypes[0], "kl": self.sum_dtype}

    @property
    def settings(self) -> dict[str, object]:
        """The options that are not the defaults."""
        names = ("num_samples", "kl_estimator", "kl_reduction", "scale", "std_floor", "batch_dims")
        given = {
            f.name: value for f in fields(self) if f.name in names and (value := getattr(self, f.name)) != f.default
        }
        return given if self.clamp is None else given | {"logvar_clamp": self.clamp}

    @property
    def function(self) -> Callable[..., tuple[Tensor, Tensor]]:
        if self.packed_dim is not None:
            return partial(vk.reparameterize_kl_packed, dim=self.packed_dim, **self.settings)
        return partial(vk.reparameterize_kl, **self.settings)

    def make(self) -> dict[str, Tensor]:
        """`mu` and `raw`, or `moments` that hold both; `prior_mu`, `prior_logvar`, where given; `eps`."""
        generator = self.generator()

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

    def call(
        self, tensors: dict[str, Tensor], function: Callable[..., tuple[Tensor, Tensor]] | None = None
    ) -> dict[str, Tensor]:
        """Takes `eps` where it is among the tensors; otherwise the function draws the noise."""
        moments = [t for name, t in tensors.items() if name in ("mu", "raw", "moments")]
        others = {name: t for name, t in tensors.items() if name.startswith("prior") or name == "eps"}
        return self.named((function or self.function)(*moments, **others))

    def moments(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns `mu` and `raw`."""
        if "moments" in tensors:
            return tensors["moments"].chunk(2, self.packed_dim)
        return tensors["mu"], tensors["raw"]

    def logvar(self, raw: Tensor) -> Tensor:
        """The log-variance before it is clamped."""
        logvar = LOGVARS[self.scale](raw)
        return 2 * torch.log(torch.exp(logvar / 2) + self.std_floor) if self.std_floor else logvar

    def plain(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by torch.distributions."""
        mu, raw = self.moments(tensors)
        logvar = self.logvar(raw)
        if self.clamp is not None:
            low, high = self.clamp
            # The derivative of Tensor.clamp at a bound depends on the version of torch.
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
        return {"z": z, "kl": self._reduced(elements)}

    def plain_results(self) -> dict[str, Tensor]:
        """All is computed in the dtype of the sums. Nothing is rounded to a narrower one."""
        return self.results(
            self.plain, {name: t.detach().to(self.sum_dtype).requires_grad_() for name, t in self.make().items()}
        )

    def yardstick(self, backend: str) -> dict[str, Tensor]:
        """Eager takes the logarithm of a standard deviation in float64, which people do not. Where it does, the
        yardstick is what people write."""
        in_float64 = self.std_floor or self.scale not in ("logvar", "logstd")
        return super().yardstick("eager" if in_float64 else backend)

    def expected(self, of_eager: bool = False) -> dict[str, Expected]:
        return self.expected_of(self.make())

    def expected_of(self, tensors: dict[str, Tensor]) -> dict[str, Expected]:
        """The true results for these tensors in place of the case's own."""
        wide = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
        magnitudes = self._magnitudes(wide)
        return {
            name: Expected.in_float64(value, magnitudes[name]) for name, value in self.results(self.plain, wide).items()
        }

    @property
    def _kept(self) -> int:
        """How many dims a summed KL has."""
        return self.batch_dims + (self.num_samples is not None and self.kl_estimator != "analytic")

    def _reduced(self, elements: Tensor) -> Tensor:
        if self.kl_reduction == "none" or elements.dim() <= self._kept:
            return elements
        return elements.flatten(self._kept).sum(-1)

    def _magnitudes(self, t: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scale on which the rounding errors of each result are counted: the sum of its terms' absolute values. `t`
        holds float64 tensors."""
        upstream = self.upstream(self.plain(t))
        t = {name: x.detach() for name, x in t.items()}
        mu, raw = self.moments(t)
        l, base = self.logvar(raw), torch.exp(LOGVARS[self.scale](raw) / 2)
        inside = torch.ones_like(l)
        if self.clamp is not None:
            inside = ((l >= self.clamp[0]) & (l <= self.clamp[1])).double()
            l = l.clamp(*self.clamp)
        s, eps = torch.exp(l / 2), t["eps"]
        m, v = t.get("prior_mu", torch.zeros((), dtype=F64)), t.get("prior_logvar", torch.zeros((), dtype=F64))
        w, d = torch.exp(-v / 2), l - v
        u, r, expm1 = (mu - m) * w, s * w, torch.expm1(d)
        gz, gkl = (g.abs() for g in upstream.values())
        sampled = self.kl_estimator != "analytic"
        full = self.z_shape if sampled else self.shape
        if self.kl_reduction == "sum":
            gkl = gkl.reshape(*full[: self._kept], *(1 for _ in full[self._kept :]))

        def over_samples(terms: Tensor) -> Tensor:
            return torch.broadcast_to(terms, self.z_shape).sum(0) if self.num_samples is not None else terms

        by_mu, by_std, by_eps = over_samples(gz), over_samples(gz * eps.abs()), gz * s
        if sampled:
            elements = (u**2 + (expm1 * eps**2).abs() + d.abs()) / 2 + (u * r * eps).abs()
            by_z = (u * w).abs() + ((expm1 / s if self.kl_estimator == "path" else r * w) * eps).abs()
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
        by_raw = inside * (by_std + by_l * 2 / s) * dstd[self.scale]
        found = {"z": mu.abs() + s * eps.abs(), "kl": self._reduced(elements), "grad eps": by_eps}
        for name, terms in (("prior_mu", by_m), ("prior_logvar", by_v)):
            if name in t:
                found[f"grad {name}"] = torch.broadcast_to(terms, self.shape).sum_to_size(t[name].shape)
        if "moments" in t:
            return found | {"grad moments": torch.cat((by_mu, by_raw), self.packed_dim)}
        return found | {"grad mu": by_mu, "grad raw": by_raw}


def _short(value: object) -> str:
    text = "_".join(map(_short, value)) if isinstance(value, tuple) else str(value)
    return text.removeprefix("torch.").replace("float", "f")


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
    LatentCase(prior=prior, kl_estimator=estimator, num_samples=count)
    for prior in ((None, None), *PRIORS)
    for estimator in ("analytic", *SAMPLED)
    for count in (None, 3)
]
CASES += [
    LatentCase(scale=scale, clamp=clamp, prior=prior, kl_estimator=estimator, dtypes=(dtype,) * 5)
    for scale in SPREADS
    for clamp in (None, (-1.0, 0.25))
    for prior in ((None, None), PRIORS[0])
    for estimator in ("analytic", *SAMPLED)
    for dtype in ((F32, BF16) if estimator == "analytic" else (F32,))
]
CASES += [
    LatentCase(scale=scale, std_floor=0.125, clamp=clamp, prior=PRIORS[0], kl_estimator=estimator)
    for scale in SPREADS
    for clamp in (None, (-1.0, 0.25))
    for estimator in ("analytic", *SAMPLED)
]
CASES += [
    LatentCase(prior=prior, kl_estimator=estimator, collapsed=True)
    for prior in ((None, None), PRIORS[0], PRIORS[1])
    for estimator in ("analytic", *SAMPLED)
]
CASES += [
    LatentCase(
        kl_reduction="none", kl_estimator=estimator, num_samples=count, prior=prior, layout=layout, shape=(2, 3, 4, 5)
    )
    for estimator in ("analytic", "monte_carlo")
    for count in (None, 2)
    for prior in ((None, None), ((2, 3, 4, 5), (3, 1, 1)))
    for layout in ("contiguous", "channels_last")
]
CASES += [
    LatentCase(
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
    LatentCase(shape, prior=(shape, prior), kl_estimator=estimator, num_samples=count, batch_dims=batch_dims)
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
    LatentCase((2, 3, 4, 5), prior=((2, 3, 4, 5), (4, 5)), layout=layout, num_samples=count, batch_dims=batch_dims)
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
    LatentCase(prior=PRIORS[1], kl_estimator=estimator, dtypes=dtypes)
    for estimator in ("analytic", "monte_carlo")
    for dtypes in (
        *((dtype,) * 5 for dtype in (BF16, F16)),
        (BF16, F32, F32, F32, F32),
        (F32, BF16, BF16, F32, BF16),
        (F32, F32, F64, F32, F32),
    )
]
CASES += [
    LatentCase((2, 3, 4, 5), packed_dim=1, scale="softplus", std_floor=1e-4, num_samples=count, dtypes=(dtype,) * 5)
    for count in (None, 2)
    for dtype in (F32, BF16, F16)
]
