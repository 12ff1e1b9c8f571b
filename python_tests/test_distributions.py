"""torch.distributions in float64 as the second, independent source: values by its formulas, gradients by autograd."""

from typing import NamedTuple

import pytest
import torch
from error_rule import SLACK_ULP, plain_results, results
from samples import OPS, SAMPLES, Sample
from torch import Tensor
from torch.distributions import Bernoulli, Normal, kl_divergence

import vae_kernels as vk


def latent(mu: Tensor, logvar: Tensor, eps: Tensor) -> dict[str, Tensor]:
    posterior = Normal(mu, torch.exp(logvar / 2))
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return {"z": posterior.loc + posterior.scale * eps, "kl": kl_divergence(posterior, prior)}


def bernoulli(logits: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"log_px": Bernoulli(logits=logits, validate_args=False).log_prob(x)}


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor) -> dict[str, Tensor]:
    return {"log_px": Normal(mean, torch.exp(logvar / 2)).log_prob(x)}


DISTRIBUTIONS = {"latent": latent, "bernoulli": bernoulli, "gaussian": gaussian}


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
        name: o if name == "z" else o.reshape(*o.shape[: sample.batch_dims], -1).sum(-1)
        for name, o in DISTRIBUTIONS[sample.op](**leaves).items()
    }
    upstream = [g.double() for g in sample.upstream({name: outputs[name] for name in found}).values()]
    gradients = torch.autograd.grad(list(found.values()), list(wanted.values()), upstream)
    expected = {name: Expected(o, o.abs()) for name, o in found.items()}
    for name, gradient in zip(wanted, gradients, strict=True):
        shape = tensors[name].shape
        expected[f"grad {name}"] = Expected(gradient.sum_to_size(shape), gradient.abs().sum_to_size(shape))
    return expected


def error(got: Tensor, want: Expected) -> float:
    """The largest error, in ulp of the result's dtype at the largest magnitude."""
    unit = torch.finfo(got.dtype).eps * 2 ** want.magnitude.max().log2().floor()
    return ((got.double() - want.value).abs().max() / unit).item()


@pytest.mark.parametrize("sample", [s for s in SAMPLES if s.values == "random"], ids=str)
def test_error_rule(backend: str, sample: Sample) -> None:
    got = results(sample, sample.call)
    with vk.use_backend("eager"):
        yardstick = plain_results(sample) if backend == "eager" else results(sample, sample.call)
    want = true_results(sample, {name: got[name] for name in OPS[sample.op].outputs})
    assert set(got) == set(want)
    for name, value in got.items():
        mine, allowed = error(value, want[name]), 2 * error(yardstick[name], want[name]) + SLACK_ULP
        assert mine <= allowed, f"{name}: {mine:.4g} ulp off, {allowed:.4g} allowed"
