"""torch.distributions in float64 as the second, independent source: values by its formulas, gradients by autograd.

It serves for the narrower types only: in ulp of float64 its own errors are as large as those of the results."""

import torch
from error_rule import Expected, check
from samples import OPS, Sample
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
    return _zero_inflated(negative_binomial(mu, x, theta)["log_px"], x, zero_logits)


def _zero_inflated(log_p: Tensor, x: Tensor, zero_logits: Tensor) -> dict[str, Tensor]:
    dropped = Bernoulli(logits=zero_logits)
    counted = dropped.log_prob(torch.zeros_like(x)) + log_p
    zero = torch.logaddexp(dropped.log_prob(torch.ones_like(x)), counted)
    return {"log_px": torch.where(x == 0, zero, counted)}


def poisson(log_rate: Tensor, x: Tensor) -> dict[str, Tensor]:
    return poisson_rate(torch.exp(log_rate), x)


def poisson_rate(rate: Tensor, x: Tensor) -> dict[str, Tensor]:
    return {"log_px": distributions.Poisson(rate, validate_args=False).log_prob(x)}


def zero_inflated_poisson(log_rate: Tensor, x: Tensor, zero_logits: Tensor) -> dict[str, Tensor]:
    return _zero_inflated(poisson(log_rate, x)["log_px"], x, zero_logits)


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
        zero_inflated_poisson,
    )
}


def expected(sample: Sample) -> dict[str, Expected]:
    """The outputs and gradients. They count on the scale of the largest element, because a formula of
    torch.distributions may cancel in a small one."""
    tensors = sample.make()
    leaves = {name: t.detach().double().expand(sample.shapes[0]).clone() for name, t in tensors.items()}
    wanted = {name: leaves[name].requires_grad_() for name, t in tensors.items() if t.requires_grad}
    outputs = {
        name: o if name == "z" else o.unsqueeze(-1).flatten(sample.keep).sum(-1)
        for name, o in DISTRIBUTIONS[sample.op](**leaves).items()
    }
    upstream = sample.upstream(outputs)
    gradients = torch.autograd.grad(list(outputs.values()), list(wanted.values()), list(upstream.values()))
    found = {name: Expected.at_largest(o, o.abs()) for name, o in outputs.items()}
    if "z" in outputs:
        mu, z = leaves["mu"], outputs["z"]
        found["z"] = Expected.at_largest(z, mu.abs() + (z - mu).abs())
    for name, gradient in zip(wanted, gradients, strict=True):
        shape = tensors[name].shape
        found[f"grad {name}"] = Expected.at_largest(gradient.sum_to_size(shape), gradient.abs().sum_to_size(shape))
    return found


def check_error_rule(sample: Sample, backend: str) -> None:
    """Checks the results of `backend`, which must be in use."""
    got, want = sample.results(), expected(sample)
    assert set(got) == set(want)
    if backend == "eager" and "theta" in OPS[sample.op].arguments:
        # Eager's gradients are differences of large parts, on whose scale test_accuracy.py counts their errors.
        got = {name: got[name] for name in sample.output_dtypes}
    check(got, sample.yardstick(backend), {name: want[name] for name in got})
