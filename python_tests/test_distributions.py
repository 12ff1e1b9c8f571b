"""torch.distributions in float64 as the second, independent source: values by its formulas, gradients by autograd.

For the narrower types: of float64 results it is no judge, having errors of its own of as many ulp (test_accuracy.py is)."""

import math
from typing import NamedTuple

import pytest
import torch
from error_rule import SLACK_ULP, results, yardstick
from hypothesis import HealthCheck, assume, given, settings, strategies
from samples import LAYOUTS, OPS, SAMPLES, Sample
from torch import Tensor, distributions
from torch.distributions import Bernoulli, Normal, kl_divergence


def latent(mu: Tensor, logvar: Tensor, eps: Tensor) -> dict[str, Tensor]:
    posterior = Normal(mu, torch.exp(logvar / 2))
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return {"z": posterior.loc + posterior.scale * eps, "kl": kl_divergence(posterior, prior)}


def bernoulli(logits: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"log_px": Bernoulli(logits=logits, validate_args=False).log_prob(x)}


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor) -> dict[str, Tensor]:
    return {"log_px": Normal(mean, torch.exp(logvar / 2)).log_prob(x)}


def laplace(loc: Tensor, x: Tensor, log_scale: Tensor) -> dict[str, Tensor]:
    return {"log_px": distributions.Laplace(loc, torch.exp(log_scale)).log_prob(x)}


def bernoulli_probs(probs: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"log_px": Bernoulli(probs=probs, validate_args=False).log_prob(x)}


def negative_binomial(mu: Tensor, x: Tensor, theta: Tensor) -> dict[str, Tensor]:
    """The two rates of scvi-tools' formula add up to 1 + eps/e instead of 1."""
    logits = torch.log(mu + 1e-8) - torch.log(theta + 1e-8)
    log_prob = distributions.NegativeBinomial(theta, logits=logits, validate_args=False).log_prob(x)
    return {"log_px": log_prob + (x + theta) * torch.log1p(1e-8 / (mu + theta + 1e-8))}


def zero_inflated_negative_binomial(mu: Tensor, x: Tensor, theta: Tensor, zero_logits: Tensor) -> dict[str, Tensor]:
    dropped = Bernoulli(logits=zero_logits)
    counted = dropped.log_prob(torch.zeros_like(x)) + negative_binomial(mu, x, theta)["log_px"]
    zero = torch.logaddexp(dropped.log_prob(torch.ones_like(x)), counted)
    return {"log_px": torch.where(x == 0, zero, counted)}


def poisson(log_rate: Tensor, x: Tensor) -> dict[str, Tensor]:
    return poisson_rate(torch.exp(log_rate), x)


def poisson_rate(rate: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"log_px": distributions.Poisson(rate, validate_args=False).log_prob(x)}


# The others have no accurate formula there: torch's ContinuousBernoulli cancels around 1/2, and a difference of two
# cdfs keeps few digits.
DISTRIBUTIONS = {
    f.__name__: f
    for f in (
        latent,
        bernoulli,
        gaussian,
        laplace,
        bernoulli_probs,
        negative_binomial,
        zero_inflated_negative_binomial,
        poisson,
        poisson_rate,
    )
}


class Expected(NamedTuple):
    """A true result, and the magnitude of its terms: of those of a sum that broadcasting asks for, the sum of them."""

    value: Tensor
    magnitude: Tensor


def true_results(sample: Sample, outputs: dict[str, Tensor]) -> dict[str, Expected]:
    """Outputs and gradients in float64, under the upstream gradients that `outputs` got."""
    tensors = sample.make()
    leaves = {name: t.detach().double().expand(sample.shapes[0]).clone() for name, t in tensors.items()}
    wanted = {name: leaves[name].requires_grad_() for name, t in tensors.items() if t.requires_grad}
    found = {
        name: o if name == "z" else o.unsqueeze(-1).flatten(sample.keep).sum(-1)
        for name, o in DISTRIBUTIONS[sample.op](**leaves).items()
    }
    upstream = [g.double() for g in sample.upstream({name: outputs[name] for name in found}).values()]
    gradients = torch.autograd.grad(list(found.values()), list(wanted.values()), upstream)
    expected = {name: Expected(o, o.abs()) for name, o in found.items()}
    if "z" in found:
        mu, z = leaves["mu"].detach(), found["z"].detach()
        expected["z"] = Expected(z, mu.abs() + (z - mu).abs())
    for name, gradient in zip(wanted, gradients, strict=True):
        shape = tensors[name].shape
        expected[f"grad {name}"] = Expected(gradient.sum_to_size(shape), gradient.abs().sum_to_size(shape))
    return expected


def error(got: Tensor, want: Expected) -> float:
    """The largest error, in ulp of the result's dtype at the largest magnitude."""
    assert got.shape == want.value.shape
    if not got.numel():
        return 0.0
    info = torch.finfo(got.dtype)
    unit = info.eps * 2 ** want.magnitude.max().clamp_min(info.tiny).log2().floor()
    return ((got.double() - want.value).abs().max() / unit).item()


def check_error_rule(backend: str, sample: Sample) -> None:
    got = results(sample, sample.call)
    of_others = yardstick(sample, backend)
    want = true_results(sample, {name: got[name] for name in OPS[sample.op].outputs})
    assert set(got) == set(want)
    if backend == "eager" and "theta" in OPS[sample.op].arguments:
        # Gradients that are the difference of parts, on whose magnitude test_accuracy counts eager's errors.
        got = {name: got[name] for name in OPS[sample.op].outputs}
    for name, value in got.items():
        mine, allowed = error(value, want[name]), 2 * error(of_others[name], want[name]) + SLACK_ULP
        assert mine <= allowed, f"{name}: {mine:.4g} ulp off, {allowed:.4g} allowed"


JUDGED = [s for s in SAMPLES if s.values == "random" and s.op in DISTRIBUTIONS and torch.float64 not in s.dtypes]


@pytest.mark.parametrize("sample", JUDGED, ids=str)
def test_error_rule(backend: str, sample: Sample) -> None:
    check_error_rule(backend, sample)


@strategies.composite
def any_sample(draw: strategies.DrawFn) -> Sample:
    """Any shape of up to five dims, any layout and narrower dtype of each argument, any broadcasting of the parameter. But
    for families whose terms cancel: in a single element, float64 is no judge of them."""
    op = OPS[name := draw(strategies.sampled_from(("bernoulli", "gaussian", "latent")))]
    shape = tuple(draw(strategies.lists(strategies.sampled_from((1, 2, 3, 5, 0, 4, 33, 130)), max_size=5)))
    assume(math.prod(shape) <= 50_000)
    layouts = [layout for layout, dims in LAYOUT_DIMS.items() if len(shape) in dims]
    kept = tuple(draw(strategies.sampled_from((size, 1))) for size in shape)
    parameter = kept[draw(strategies.integers(0, len(kept))) :] if name != "latent" else shape
    others = len(op.arguments) - 2
    return Sample(
        name,
        "random",
        draw(strategies.sampled_from([dtypes for dtypes in op.dtypes if torch.float64 not in dtypes])),
        (shape, shape, *(parameter,) * others),
        (*draw(strategies.tuples(*(strategies.sampled_from(layouts),) * 2)), *("contiguous",) * others),
        draw(strategies.integers(0, len(shape))),
    )


LAYOUT_DIMS = {layout: range(1, 6) for layout in LAYOUTS} | {
    "contiguous": range(6),
    "offset": range(6),
    "channels_last": (4, 5),
    "chunk_of_channels": range(2, 6),
}


@given(sample=any_sample())
@settings(
    max_examples=400, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_input(backend: str, sample: Sample) -> None:
    check_error_rule(backend, sample)
