"""The baselines of each op: the code that is in most VAE repositories, and `torch.distributions`.

All functions return sums per sample, `(B,)`. The code is taken from `pytorch/examples/vae` and PyTorch-VAE for the
latent step and the Bernoulli, from the σ-VAE code of Rybkin et al. 2021 for the Gaussian, from diffusers for packed
moments, and from scvi-tools for counts.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, NegativeBinomial, Normal, kl_divergence

from .cases import SAMPLE_COUNTS


def _per_sample(elements: Tensor) -> Tensor:
    return elements.sum(dim=tuple(range(1, elements.dim())))


def latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    eps = torch.randn_like(std)
    z = mu + eps * std
    kl = -0.5 * _per_sample(1 + logvar - mu.pow(2) - logvar.exp())
    return z, kl


def latent_packed(moments: Tensor) -> tuple[Tensor, Tensor]:
    mu, logvar = torch.chunk(moments, 2, dim=1)
    return latent(mu, logvar)


def latent_prior(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
    kl = 0.5 * (prior_logvar - logvar - 1 + (logvar.exp() + (mu - prior_mu) ** 2) / prior_logvar.exp())
    return z, _per_sample(kl)


def by_levels(level: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., tuple[Tensor, ...]]:
    """A function of all levels' inputs, four per level, that returns all levels' outputs."""

    def levels(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for i in range(0, len(inputs), 4) for t in level(*inputs[i : i + 4]))

    return levels


def latent_samples(count: int, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    eps = torch.randn(count, *mu.shape, dtype=mu.dtype, device=mu.device)
    z = mu + eps * torch.exp(0.5 * logvar)
    log_q = -0.5 * (math.log(2 * math.pi) + logvar + eps**2).sum(-1)
    log_p = -0.5 * (math.log(2 * math.pi) + z**2).sum(-1)
    return z, log_q - log_p


def bernoulli_samples(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (-F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none").sum(-1),)


def bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (-_per_sample(F.binary_cross_entropy_with_logits(logits, x, reduction="none")),)


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor) -> tuple[Tensor]:
    return (_per_sample(-0.5 * (logvar + (x - mean) ** 2 / logvar.exp() + math.log(2 * math.pi))),)


def gaussian_fixed(mean: Tensor, x: Tensor) -> tuple[Tensor]:
    return (-0.5 * _per_sample((x - mean) ** 2) - 0.5 * math.log(2 * math.pi) * mean[0].numel(),)


def negative_binomial(mu: Tensor, x: Tensor, theta: Tensor) -> tuple[Tensor]:
    """`log_nb_positive`, after broadcasting mu and theta to one shape, as the distribution that calls it does."""
    mu, theta = torch.broadcast_tensors(mu, theta)
    log_total = torch.log(theta + mu + 1e-8)
    log_prob = (
        theta * (torch.log(theta + 1e-8) - log_total)
        + x * (torch.log(mu + 1e-8) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )
    return (_per_sample(log_prob),)


def categorical(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    loss = F.cross_entropy(logits.flatten(0, -2), x.flatten(), reduction="none")
    return (-_per_sample(loss.view(x.shape)),)


EAGER = {
    "latent": latent,
    "latent-packed": latent_packed,
    "latent-prior": latent_prior,
    "latent-hierarchy": by_levels(latent_prior),
    **{f"latent-samples-{count}": partial(latent_samples, count) for count in SAMPLE_COUNTS},
    "bernoulli-samples": bernoulli_samples,
    "bernoulli": bernoulli,
    "gaussian": gaussian,
    "gaussian-fixed": gaussian_fixed,
    "gaussian-scalar": gaussian,
    "gaussian-column": gaussian,
    "negative-binomial": negative_binomial,
    "categorical": categorical,
}


def distributions_latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    q = Normal(mu, torch.exp(0.5 * logvar))
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    return q.rsample(), _per_sample(kl_divergence(q, prior))


def distributions_latent_packed(moments: Tensor) -> tuple[Tensor, Tensor]:
    return distributions_latent(*torch.chunk(moments, 2, dim=1))


def distributions_latent_prior(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor
) -> tuple[Tensor, Tensor]:
    q, p = Normal(mu, torch.exp(0.5 * logvar)), Normal(prior_mu, torch.exp(0.5 * prior_logvar))
    return q.rsample(), _per_sample(kl_divergence(q, p))


def distributions_latent_samples(count: int, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    q = Normal(mu, torch.exp(0.5 * logvar))
    prior = Normal(torch.zeros_like(mu), torch.ones_like(mu))
    z = q.rsample((count,))
    return z, (q.log_prob(z) - prior.log_prob(z)).sum(-1)


def distributions_bernoulli_samples(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1),)


def distributions_bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    # Grey values are not in the support, which is checked by default.
    return (_per_sample(Bernoulli(logits=logits, validate_args=False).log_prob(x)),)


def distributions_gaussian(mean: Tensor, x: Tensor, logvar: Tensor) -> tuple[Tensor]:
    return (_per_sample(Normal(mean, torch.exp(0.5 * logvar)).log_prob(x)),)


def distributions_gaussian_fixed(mean: Tensor, x: Tensor) -> tuple[Tensor]:
    return (_per_sample(Normal(mean, torch.ones_like(mean)).log_prob(x)),)


def distributions_negative_binomial(mu: Tensor, x: Tensor, theta: Tensor) -> tuple[Tensor]:
    logits = torch.log(mu + 1e-8) - torch.log(theta + 1e-8)
    return (_per_sample(NegativeBinomial(theta, logits=logits).log_prob(x)),)


def distributions_categorical(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (_per_sample(Categorical(logits=logits).log_prob(x)),)


DISTRIBUTIONS = {
    "latent": distributions_latent,
    "latent-packed": distributions_latent_packed,
    "latent-prior": distributions_latent_prior,
    "latent-hierarchy": by_levels(distributions_latent_prior),
    **{f"latent-samples-{count}": partial(distributions_latent_samples, count) for count in SAMPLE_COUNTS},
    "bernoulli-samples": distributions_bernoulli_samples,
    "bernoulli": distributions_bernoulli,
    "gaussian": distributions_gaussian,
    "gaussian-fixed": distributions_gaussian_fixed,
    "gaussian-scalar": distributions_gaussian,
    "gaussian-column": distributions_gaussian,
    "negative-binomial": distributions_negative_binomial,
    "categorical": distributions_categorical,
}
