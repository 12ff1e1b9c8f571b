"""Likelihoods at arguments as far as their types go, element by element, against mpmath with as many digits as that needs.

People's own formulas overflow or cancel there, so the rule is a bound of its own: 16 ulp, at the magnitude of the terms.
`VAE_KERNELS_FUZZ_SECONDS=3600 python -m pytest python_tests/test_extremes.py -k fuzz` draws anew for that long.
"""

import itertools
import os
import time
import zlib
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import BACKENDS, BF16, DEVICE, F16, F32, F64, OPS
from torch import Tensor

import vae_kernels as vk

BOUND_ULP = 16
SECONDS = float(os.environ.get("VAE_KERNELS_FUZZ_SECONDS", "10"))
DTYPES = (F64, F32, BF16, F16)

# The largest exponents of 2 that are drawn: where two numbers are added up, their sum is one of the type too.
MOST = {F64: 1021, F32: 125, BF16: 125, F16: 13}
LEAST = {F64: -1018, F32: -126, BF16: -126, F16: -14}
# Magnitudes below count as this: next to the least numbers of the arithmetic intermediate results are subnormal.
SMALLEST = {F64: -1002, F32: -106, BF16: -106, F16: -14}
# Enough for the digits that cancel between the largest numbers of the arithmetic's type.
DIGITS = {F64: 700, F32: 140}


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    return F64 if dtype == F64 else F32


class Draw:
    """Values of one argument: ordinary ones, and with exponents over the whole range of a type."""

    def __init__(self, generator: torch.Generator, count: int, dtype: torch.dtype) -> None:
        self.generator, self.count, self.dtype = generator, count, dtype

    def uniform(self, low: float, high: float) -> Tensor:
        return torch.rand(self.count, generator=self.generator, dtype=F64) * (high - low) + low

    def among(self, *values: float) -> Tensor:
        return torch.tensor(values, dtype=F64)[torch.randint(len(values), (self.count,), generator=self.generator)]

    def exponents(self, least: float, most: float) -> Tensor:
        """Log-uniform, positive."""
        return 2 ** self.uniform(max(least, LEAST[self.dtype]), min(most, MOST[self.dtype]))

    def mixture(self, *drawn: Tensor) -> Tensor:
        return torch.stack(drawn)[torch.randint(len(drawn), (self.count,), generator=self.generator), range(self.count)]

    def positive(self, extreme: bool) -> Tensor:
        return self.exponents(-2000, 2000) if extreme else self.exponents(-5, 5)

    def not_negative(self, extreme: bool) -> Tensor:
        return self.mixture(self.positive(extreme), self.positive(extreme), self.positive(extreme), self.among(0))

    def real(self, extreme: bool) -> Tensor:
        return self.not_negative(extreme) * self.among(-1, 1)

    def unit(self, extreme: bool) -> Tensor:
        """Next to both ends of [0, 1]."""
        tiny = self.exponents(-2000, 0)
        return self.mixture(tiny, 1 - tiny, self.among(0, 1)) if extreme else self.uniform(0, 1)

    def log(self, extreme: bool) -> Tensor:
        """A logarithm: on the scale on which its exponential stays within the type, and far beyond."""
        far = MOST[arithmetic(self.dtype)] * 2
        return self.mixture(self.real(True), self.uniform(-far, far)) if extreme else self.uniform(-4, 4)

    def count_(self, extreme: bool) -> Tensor:
        """Up to 1e30, for float64 1e301: a hundred million times as much is the gradient to mu = 0."""
        small = self.among(0, 0, 1, 2, 3, 17, 100)
        most = min(1000 if self.dtype == F64 else 100, MOST[self.dtype])
        return self.mixture(small, torch.round(self.exponents(0, most))) if extreme else small

    def pixel(self, extreme: bool) -> Tensor:
        return self.among(0, 1, 254, 255) / 127.5 - 1 if extreme else torch.round(self.uniform(0, 255)) / 127.5 - 1


# How the arguments of each family are drawn, in their order.
ARGUMENTS = {
    "bernoulli": (Draw.real, Draw.unit),
    "gaussian": (Draw.real, Draw.real, Draw.log),
    "laplace": (Draw.real, Draw.real, Draw.log),
    "continuous_bernoulli": (Draw.real, Draw.unit),
    "bernoulli_probs": (Draw.unit, Draw.unit),
    "negative_binomial": (Draw.not_negative, Draw.count_, Draw.positive),
    "zero_inflated_negative_binomial": (Draw.not_negative, Draw.count_, Draw.positive, Draw.real),
    "discretized_logistic": (Draw.real, Draw.pixel, Draw.log),
    "poisson": (Draw.log, Draw.count_),
    "poisson_rate": (Draw.positive, Draw.count_),
    "zero_inflated_poisson": (Draw.log, Draw.count_, Draw.real),
}


def draw(op: str, dtype: torch.dtype, seed: str, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Arguments, of which each alone is extreme in some elements and several are in others; and upstream gradients."""
    source = Draw(torch.Generator().manual_seed(zlib.crc32(seed.encode())), count, dtype)
    draws = ARGUMENTS[op]
    # Rows of 0 and 1: which arguments are extreme.
    extreme = (
        torch.randint(2 ** len(draws), (count,), generator=source.generator)[:, None] >> torch.arange(len(draws))
    ) & 1
    values = {}
    for i, (name, kind) in enumerate(zip(OPS[op].arguments, draws, strict=True)):
        value = torch.where(extreme[:, i] == 1, kind(source, True), kind(source, False))
        values[name] = value.to(dtype)
    if op in ("gaussian", "laplace"):
        # Where x is what the decoder says, as on constant pixels, and next to it.
        names = list(values)
        same = torch.randint(4, (count,), generator=source.generator)
        near = values[names[0]].double() * (1 + source.exponents(-20, -1))
        values["x"] = torch.where(same == 0, values[names[0]], torch.where(same == 1, near.to(dtype), values["x"]))
    if "poisson" in op:
        # Where the rate is next to the count.
        (name, rate), (_, x), *_ = values.items()
        near = x.double().clamp(min=1) * (1 + source.exponents(-20, -1) * source.among(-1, 0, 1))
        near = near.log() if name == "log_rate" else near
        values[name] = torch.where(torch.randint(4, (count,), generator=source.generator) == 0, near.to(dtype), rate)
    # Of a size at which gradients overflow where their derivatives do.
    upstream = source.uniform(1, 2) * source.among(-1, 1)
    return values, upstream.to(arithmetic(dtype))


def found(op: str, values: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """The value of every element and its gradients, by the backend of now."""
    given = {name: v.to(DEVICE)[:, None].requires_grad_() for name, v in values.items()}
    log_px = OPS[op].call(*given.values(), batch_dims=1)
    gradients = torch.autograd.grad(log_px, list(given.values()), upstream.to(DEVICE))
    return {"log_px": log_px.detach().cpu()} | {
        f"grad {name}": g.squeeze(1).cpu() for name, g in zip(given, gradients, strict=True)
    }


def conditioning(op: str, v: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What errors are counted on besides the terms of a result: for counts the size of what it is a difference of; and a
    factor by which an exponential magnifies the error of its argument."""
    if op == "discretized_logistic":
        distance = abs(v["x"] - v["mean"])
        # And the rounding of 1/255 next to an edge of the bin.
        factor = _exponents(distance * reference._exp(-v["log_scale"])) + 1 / abs(distance * 255 - 1)
        return {f"grad {name}": (0, factor) for name in v} | {"log_px": (0, factor)}
    if op == "poisson":
        # The rate is rounded.
        rate = reference._exp(_exponents(v["log_rate"]))
        return {"log_px": (abs(v["x"] - rate), 0)}
    if op == "zero_inflated_poisson":
        zero, rate = v["x"] < 1e-8, reference._exp(_exponents(v["log_rate"]))
        # Gradients of a zero depend on exp(−rate − zero_logits), whose argument is rounded.
        weight = np.where(zero, _exponents(rate), 0)
        dropped = np.where(zero, _exponents(rate + np.where(v["zero_logits"] < 0, -v["zero_logits"], 0)), 0)
        return {
            "log_px": (np.where(zero, 0, abs(v["x"] - rate)), 0),
            "grad log_rate": (0, weight),
            "grad zero_logits": (0, dropped),
        }
    if "theta" not in v:
        return {}
    log_p = 0
    if op == "zero_inflated_negative_binomial":
        zero = {name: value for name, value in v.items() if name != "zero_logits"} | {"x": 0 * v["x"]}
        (log_p,) = reference.negative_binomial(zero, {"log_px": zero["mu"]})[0]["log_px"]
        log_p = np.where(v["x"] < 1e-8, _exponents(abs(log_p)), 0)
    return {
        # What two of its terms, which are known to an ulp each, have in common.
        "log_px": (abs(v["x"] - v["mu"]) * v["theta"] / (v["mu"] + v["theta"]), 0),
        "grad mu": (0, log_p),
        "grad x": ((abs(v["x"] - v["mu"]) + 1) / (v["x"] + 1) + mpmath.mpf(2) ** -60, log_p),
        "grad theta": ((1 + (v["theta"] < 8)) / v["theta"], log_p),  # and of their recurrences at small arguments
        "grad zero_logits": (0, log_p),
    }


# Up to where the exponential of a float32 or float64 is 0.
_exponents = np.frompyfunc(lambda v: min(v, 750), 1, 1)


def expected(op: str, values: dict[str, Tensor], upstream: Tensor) -> dict[str, tuple[list, list, list]]:
    """True results, and their magnitudes for kernels and for eager: see reference.py."""
    numbers = {name: reference.exact(v) for name, v in values.items()}
    outputs, gradients = OPS[op].reference(numbers, {"log_px": reference.exact(upstream)})
    results, sizes = {}, conditioning(op, numbers)
    for name, terms in [*outputs.items(), *((f"grad {name}", terms) for name, terms in gradients.items())]:
        parts = [term if isinstance(term, tuple) else (term,) for term in terms]
        whole = [sum(term) for term in parts]
        size, of_eager = (sum(map(abs, all_terms)) for all_terms in (whole, [p for term in parts for p in term]))
        more, factor = sizes.get(name, (0, 0))
        more = more * (1 if name == "log_px" else abs(reference.exact(upstream)))
        results[name] = (sum(whole), (size + more) * (1 + factor), (of_eager + more) * (1 + factor))
    return results


def errors(got: Tensor, true: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """In ulp of the result's type at the magnitude of its terms; infinite where one is infinite and the other is far from
    overflow, or where the result is NaN."""
    info = torch.finfo(got.dtype)
    most = mpmath.mpf(info.max)
    slack = most * BOUND_ULP * info.eps
    off = np.zeros(len(true))
    for i, (g, t, m) in enumerate(zip(got.double().tolist(), true, magnitude, strict=True)):
        if g != g:
            off[i] = np.inf
        elif abs(g) == np.inf:
            off[i] = 0 if t * g > 0 and (abs(t) > most - slack or m > most) else np.inf
        elif abs(t) > most + slack and not m > most:
            off[i] = np.inf
        else:
            exponent = max(mpmath.floor(mpmath.log(m, 2)) if m else -mpmath.inf, SMALLEST[got.dtype])
            unit = info.eps * mpmath.mpf(2) ** exponent
            off[i] = float(abs(mpmath.mpf(g) - t) / unit)
    return off


def check(op: str, formula: str, values: dict[str, Tensor], upstream: Tensor, way: Callable = found) -> None:
    """Every result of every element keeps the bound, and the worst that does not is shown. `formula`: eager's, or whose."""
    got = way(op, values, upstream)
    with mpmath.workdps(DIGITS[upstream.dtype]):
        for name, (true, of_kernels, of_eager) in expected(op, values, upstream).items():
            off = errors(got[name], true, of_eager if formula == "eager" else of_kernels)
            worst = int(np.argmax(off))
            arguments = {argument: v[worst].item() for argument, v in values.items()}
            assert off[worst] <= BOUND_ULP, (
                f"{name} of {op}({arguments}) is {got[name][worst].item()}, not {mpmath.nstr(true[worst], 17)} "
                f"({off[worst]:.3g} ulp off; {int((off > BOUND_ULP).sum())} of {len(off)} elements are)"
            )


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_arguments_go_as_far_as_their_type(backend: str, op: str, dtype: torch.dtype) -> None:
    check(op, backend, *draw(op, dtype, f"{op} {dtype}", 60 if dtype == F64 else 400))


def transformed(op: str, values: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """`found` by way of `torch.func`: each element by itself."""
    given = [v.to(DEVICE) for v in values.values()]

    def element(*arguments: Tensor) -> Tensor:
        return OPS[op].call(*arguments, batch_dims=0)

    def gradient(g: Tensor, *arguments: Tensor) -> tuple[Tensor, ...]:
        return torch.func.vjp(element, *arguments)[1](g)

    gradients = torch.func.vmap(gradient)(upstream.to(DEVICE), *given)
    found = {f"grad {name}": g.cpu() for name, g in zip(values, gradients, strict=True)}
    return {"log_px": torch.func.vmap(element)(*given).cpu()} | found


def differentiable(op: str, values: dict[str, Tensor], upstream: Tensor) -> dict[str, Tensor]:
    """`found` with gradients that can be differentiated again."""
    given = {name: v.to(DEVICE)[:, None].requires_grad_() for name, v in values.items()}
    log_px = OPS[op].call(*given.values(), batch_dims=1)
    gradients = torch.autograd.grad(log_px, list(given.values()), upstream.to(DEVICE), create_graph=True)
    found = {f"grad {name}": g.detach().squeeze(1).cpu() for name, g in zip(given, gradients, strict=True)}
    return {"log_px": log_px.detach().cpu()} | found


@pytest.mark.parametrize("way", [transformed, differentiable], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("op", ARGUMENTS)
def test_one_formula_behind_a_name(kernel: str, op: str, dtype: torch.dtype, way: Callable) -> None:
    """Where eager's formula answers for a kernel, it is as good."""
    values, upstream = draw(op, dtype, f"{op} {dtype} {way.__name__}", 30 if dtype == F64 else 200)
    check(op, "eager", values, upstream, way)


@pytest.mark.parametrize("op", ARGUMENTS)
def test_second_derivatives(backend: str, op: str) -> None:
    """No branch that is not taken makes a NaN of them: in float64, whose range the numbers of float32 do not leave."""
    values, _ = draw(op, F32, f"{op} second", 2000)
    given = [v.double().to(DEVICE).requires_grad_() for v in values.values()]
    log_px = OPS[op].call(*(v[:, None] for v in given), batch_dims=1)
    for first in torch.autograd.grad(log_px.sum(), given, create_graph=True):
        for second in torch.autograd.grad(first.sum(), given, retain_graph=True, materialize_grads=True):
            assert not second[first.isfinite()].isnan().any()


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_prior_of_any_variance(backend: str, dtype: torch.dtype) -> None:
    """The analytic KL and its gradients, where q's standard deviation is a number of the arithmetic's type, and the means
    are equal or differ by more than 1e-16."""
    count, wide = (60 if dtype == F64 else 400), arithmetic(dtype)
    source = Draw(torch.Generator().manual_seed(zlib.crc32(f"prior {dtype}".encode())), count, dtype)
    ends = 1400 if dtype == F64 else 170
    wide_range = (source.exponents(-50, 2000) * source.among(-1, 1), source.among(0))
    mu, difference = source.mixture(*wide_range), source.mixture(*wide_range)
    logvar = source.mixture(source.uniform(-ends, ends), source.uniform(-2, 2))
    prior_mu = source.mixture(mu, mu + difference, difference)
    prior_logvar = source.mixture(source.log(True), logvar, logvar + source.uniform(-1, 1))
    given = {"mu": mu, "logvar": logvar, "prior_mu": prior_mu, "prior_logvar": prior_logvar}
    given = {name: v.to(dtype).to(DEVICE)[:, None].requires_grad_() for name, v in given.items()}
    upstream = (source.uniform(1, 2) * source.among(-1, 1)).to(wide)
    mu, logvar, prior_mu, prior_logvar = given.values()
    kl = vk.reparameterize_kl(mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar, eps=torch.zeros_like(mu))[1]
    gradients = torch.autograd.grad(kl, list(given.values()), upstream.to(DEVICE))
    with mpmath.workdps(DIGITS[wide]):
        m, l, p, v = (reference.exact(t.squeeze(1)) for t in given.values())
        g, precision, d = reference.exact(upstream), reference._exp(-v), l - v
        squares, excess, expm1 = (m - p) ** 2 * precision / 2, (reference._expm1(d) - d) / 2, reference._expm1(d) / 2
        slope = g * (m - p) * precision
        true = [(squares, excess), (slope,), (g * expm1,), (-slope,), (-g * squares, -g * expm1)]
        for name, got, terms in zip(("kl", *given), (kl, *(t.squeeze(1) for t in gradients)), true, strict=True):
            magnitude = sum(map(abs, terms)) * (1 + _exponents(abs(d)))  # d is rounded before its exponential
            off = errors(got.detach().cpu(), sum(terms), magnitude)
            worst = int(np.argmax(off))
            arguments = {argument: t[worst].item() for argument, t in given.items()}
            assert off[worst] <= BOUND_ULP, f"{name} at {arguments} is {got[worst].item()}, {off[worst]:.3g} ulp off"


def softplus_terms(
    values: dict[str, Tensor], floor: float, estimator: str, formula: str
) -> dict[str, dict[str, tuple[list, np.ndarray | int]]]:
    """The terms of each result, without upstream gradients, and what errors are counted on besides them. z and its
    gradients are those of `z`, the KL's of `kl`."""
    mu, r, eps, m, v = (reference.exact(values[name]) for name in ("mu", "raw", "eps", "prior_mu", "prior_logvar"))
    log_std = np.frompyfunc(lambda r: r if r < -(10**4) else mpmath.log(_softplus(r)), 1, 1)(r)
    std, dstd = np.frompyfunc(_softplus, 1, 1)(r), reference._sigmoid(r)
    slope = np.frompyfunc(lambda r, s, d: mpmath.mpf(1) if r < -(10**4) else d / s, 3, 1)(r, std, dstd)
    if floor:
        std = std + mpmath.mpf(floor)
        log_std, slope = reference._log(std), dstd / std
    w = reference._exp(-v / 2)
    u, ratio, d = (mu - m) * w, std * w, 2 * log_std - v
    expm1 = ratio * ratio - 1
    # Of e^d, where std and d are rounded: eager takes it from d, the kernels from the square of the ratio.
    rounded = ratio * ratio * (1 + abs(v) + (abs(d) if formula == "eager" else 0))
    z = {"z": ([mu, std * eps], 0), "grad mu": ([1 + 0 * u], 0), "grad raw": ([eps * dstd], 0), "grad eps": ([std], 0)}
    if estimator == "analytic":
        kl = {
            "kl": ([u * u / 2, (expm1 - d) / 2], abs(expm1) * (1 + abs(v))),
            "grad mu": ([u * w], 0),
            "grad raw": ([slope * expm1], slope * rounded),
            "grad eps": ([0 * u], 0),
        }
    else:
        kl = {
            "kl": ([u * u / 2, u * ratio * eps, expm1 * eps * eps / 2, -d / 2], rounded * eps * eps + 1 + abs(v)),
            "grad eps": ([u * ratio, expm1 * eps], rounded * abs(eps)),
        }
        if estimator == "path":
            kl["grad mu"] = [u * w, expm1 / std * eps], rounded * abs(eps) / std
            kl["grad raw"] = [slope * u * ratio * eps, slope * expm1 * eps * eps], slope * rounded * eps * eps
        else:
            kl["grad mu"] = [u * w, ratio * w * eps], 0
            kl["grad raw"] = (
                [slope * u * ratio * eps, slope * ratio * ratio * eps * eps, -slope],
                slope * rounded * eps * eps,
            )
    return {"z": z, "kl": kl}


def _softplus(r: mpmath.mpf) -> mpmath.mpf:
    return r if r > 10**5 else mpmath.log1p(mpmath.exp(r))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("floor", [0.0, 1e-4])
@pytest.mark.parametrize("estimator", ["analytic", "monte_carlo", "path"])
def test_a_softplus_of_any_number(backend: str, estimator: str, floor: float, dtype: torch.dtype) -> None:
    """Where the exponential in it underflows or is infinite, next to the prior, and in between."""
    count, wide = (60 if dtype == F64 else 400), arithmetic(dtype)
    source = Draw(torch.Generator().manual_seed(zlib.crc32(f"softplus {dtype}".encode())), count, dtype)
    far = 800 if dtype == F64 else 110
    values = {
        "mu": source.uniform(-4, 4),
        "raw": source.mixture(
            *(source.exponents(-100, 100) * source.among(-1, 1), source.uniform(-far, far)),
            *(source.uniform(-25, 5), source.uniform(0.5, 0.6), source.among(0, -0.0)),
        ),
        # Where std underflows eager has of the path gradient to mu only the part that is eps / std.
        "eps": source.mixture(
            source.uniform(-4, 4), source.among(1e-3 if estimator == "path" and backend == "eager" else 0)
        ),
        "prior_mu": source.mixture(source.uniform(-4, 4), source.among(0)),
        "prior_logvar": source.mixture(source.uniform(-4, 4), source.among(0)),
    }
    values = {name: v.to(dtype) for name, v in values.items()}
    given = {name: v.to(DEVICE)[:, None].requires_grad_(not name.startswith("prior")) for name, v in values.items()}
    mu, raw, eps, *prior = given.values()
    z, kl = vk.reparameterize_kl(
        *(mu, raw), eps=eps, prior_mu=prior[0], prior_logvar=prior[1], scale="softplus", std_floor=floor,
        kl_estimator=estimator,
    )  # fmt: skip
    upstream = {name: (source.uniform(1, 2) * source.among(-1, 1)).to(t.dtype) for name, t in (("z", z), ("kl", kl))}
    found = {"z": z.detach().squeeze(1), "kl": kl.detach()}
    for name, output in (("z", z.squeeze(1)), ("kl", kl)):
        gradients = torch.autograd.grad(
            output, (mu, raw, eps), upstream[name].to(DEVICE), retain_graph=True, materialize_grads=True
        )
        found |= {f"{name}, grad {n}": g.squeeze(1) for n, g in zip(("mu", "raw", "eps"), gradients, strict=True)}
    with mpmath.workdps(DIGITS[wide]):
        for output, results in softplus_terms(values, floor, estimator, backend).items():
            for name, (terms, more) in results.items():
                g = reference.exact(upstream[output]) if name.startswith("grad") else 1
                got = found[f"{output}, {name}" if name.startswith("grad") else name].cpu()
                off = errors(got, g * sum(terms), abs(g) * (sum(map(abs, terms)) + more))
                worst = int(np.argmax(off))
                arguments = {argument: v[worst].item() for argument, v in values.items()}
                assert off[worst] <= BOUND_ULP, (
                    f"{name} of {output} at {arguments} is {got[worst].item()}, not "
                    f"{mpmath.nstr((g * sum(terms))[worst], 17)} ({off[worst]:.3g} ulp off)"
                )


@pytest.mark.parametrize("floor", [1e-300, 1e-40])
def test_a_floor_that_is_lost(backend: str, floor: float) -> None:
    """One that is 0 in the type is none; none leads to NaN."""
    raw = torch.tensor([-1e30, -200, -90, -1, 2, 1e10], device=DEVICE)
    found = []
    for std_floor in (0.0, floor):
        leaf = raw[:, None].clone().requires_grad_()
        settings = {"scale": "softplus", "std_floor": std_floor, "eps": torch.full_like(leaf, 0.7)}
        z, kl = vk.reparameterize_kl(torch.zeros_like(leaf), leaf, **settings)
        found.append((z, kl, *torch.autograd.grad((z, kl), leaf, (torch.ones_like(z), torch.ones_like(kl)))))
    for without, got in zip(*found, strict=True):
        assert not got.isnan().any()
        if floor == 1e-300:
            assert torch.equal(got, without)


@pytest.mark.parametrize("floor", [0.0, 1e-4])
@pytest.mark.parametrize("estimator", ["analytic", "monte_carlo", "path"])
def test_second_derivatives_of_a_softplus(backend: str, estimator: str, floor: float) -> None:
    """As finite as they are."""
    raw = torch.tensor([-1e30, -1e3, -750, -100, -20.1, -19.9, -1, 0, 1, 20, 100, 1e30], dtype=F64, device=DEVICE)
    mu, eps = torch.full_like(raw, 0.3), torch.full_like(raw, 0.7)
    raw.requires_grad_()
    settings = {"scale": "softplus", "std_floor": floor, "kl_estimator": estimator, "batch_dims": 1}
    z, kl = vk.reparameterize_kl(mu, raw, eps=eps, **settings)
    for output in (z, kl):
        (first,) = torch.autograd.grad(output.sum(), raw, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), raw, retain_graph=True)
        assert first.isfinite().all() and second.isfinite().all()


# What hypothesis draws for each argument, and shrinks: the ends of its range where a type's own are beyond the bounds.
FLOATS = {
    Draw.real: (-(2.0**125), 2.0**125),
    Draw.log: (-(2.0**125), 2.0**125),
    Draw.not_negative: (0, 2.0**125),
    Draw.positive: (2.0**-126, 2.0**125),
    Draw.unit: (0, 1),
    Draw.pixel: (-1, 1),
}


def numbers(kind: Callable) -> st.SearchStrategy[float]:
    if kind is Draw.count_:
        return st.integers(0, 2**24).map(float)
    low, high = FLOATS[kind]
    drawn = st.floats(low, high, width=32, allow_subnormal=False)
    return drawn.map(lambda v: round((v + 1) * 127.5) / 127.5 - 1) if kind is Draw.pixel else drawn


@pytest.mark.parametrize("op", ARGUMENTS)
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_any_numbers(op: str, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(*map(numbers, ARGUMENTS[op])), min_size=4, max_size=4))
    values = dict(zip(OPS[op].arguments, torch.tensor(rows, dtype=F32).T.contiguous(), strict=True))
    upstream = torch.tensor([1.0, -1.25, 1.5, -2.0])
    for backend in BACKENDS:
        with vk.use_backend(backend):
            check(op, backend, values, upstream)


def test_fuzz(backend: str) -> None:
    """Each kind of call in turn, with new arguments each time."""
    end = time.monotonic() + SECONDS
    cases = ((number, op, dtype) for number in itertools.count() for op in ARGUMENTS for dtype in DTYPES)
    for number, op, dtype in itertools.takewhile(lambda _: time.monotonic() < end, cases):
        check(op, backend, *draw(op, dtype, f"{op} {dtype} {number}", 60 if dtype == F64 else 400))
