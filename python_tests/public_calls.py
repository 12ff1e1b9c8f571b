"""Calls of all public functions that compute, each as a function of two tensors."""

from collections.abc import Callable

import torch
from samples import DEVICE, I64, OPS, U8
from torch import Tensor

import vae_kernels as vk

Call = Callable[..., Tensor | tuple[Tensor, ...]]


def counts(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), device=DEVICE).reshape(shape).remainder(2).to(dtype)


def latent(packed: bool = False, **given: object) -> Call:
    if packed:
        return lambda mu, raw: vk.reparameterize_kl_packed(torch.cat((mu, raw), 1), **given)
    return lambda mu, raw: vk.reparameterize_kl(mu, raw, **given)


def objective(function: Call) -> Call:
    """A function of log p(x|z) and the KL of three samples."""
    return lambda a, b: function(a.reshape(3, -1), b.reshape(3, -1))


# Functions of two tensors of shape (6, 5). The second, where it holds counts, has its own dtype.
CALLS: dict[str, Call] = {
    "latent": latent(),
    "latent_seed": latent(seed=3),
    "latent_seeds": latent(seed=torch.arange(6, device=DEVICE)),
    "latent_samples": latent(seed=3, num_samples=2, kl_estimator="monte_carlo"),
    "latent_drawn_samples": latent(num_samples=2, kl_estimator="path", kl_reduction="none"),
    "latent_packed": latent(packed=True, seed=3, logvar_clamp=(-1, 0.5)),
    "latent_logstd": latent(seed=3, scale="logstd", logvar_clamp=(-1, 0.5)),
    "latent_std": lambda mu, raw: vk.reparameterize_kl(mu, raw.exp(), seed=3, scale="std", logvar_clamp=(-1, 0.5)),
    "latent_variance": lambda mu, raw: vk.reparameterize_kl(
        mu, raw.exp(), seed=3, scale="variance", prior_mu=mu[:1], prior_logvar=raw[:1]
    ),
    "latent_softplus": latent(seed=3, scale="softplus", std_floor=1e-4, logvar_clamp=(-1, 0.5)),
    "categorical": lambda logits, _: vk.categorical_log_likelihood(logits, counts(6, dtype=I64)),
    "categorical_no_class": lambda logits, _: vk.categorical_log_likelihood(logits, counts(6, dtype=I64) * 9),
    "multinomial": lambda logits, x: vk.multinomial_log_likelihood(logits, x.exp()),
    "multinomial_bytes": lambda logits, _: vk.multinomial_log_likelihood(logits, counts(6, 5, dtype=U8)),
    "bernoulli_bytes": lambda logits, _: vk.bernoulli_log_likelihood(logits, counts(6, 5, dtype=U8)),
    "bernoulli_probs_bytes": lambda p, _: vk.bernoulli_probs_log_likelihood(p.sigmoid(), counts(6, 5, dtype=U8)),
    "gaussian_number": lambda mean, x: vk.gaussian_log_likelihood(mean, x, 0.3),
    "gaussian_default": lambda mean, x: vk.gaussian_log_likelihood(mean, x),
    "laplace_number": lambda loc, x: vk.laplace_log_likelihood(loc, x, 0.3),
    "negative_binomial_number": lambda mu, _: vk.negative_binomial_log_likelihood(
        mu.exp(), counts(6, 5, dtype=I64), 2.5
    ),
    "zero_inflated_numbers": lambda mu, _: vk.zero_inflated_negative_binomial_log_likelihood(
        mu.exp(), counts(6, 5, dtype=I64), 2.5, 0.3
    ),
    "zero_inflated_number_before_a_tensor": lambda mu, z: vk.zero_inflated_negative_binomial_log_likelihood(
        mu.exp(), counts(6, 5, dtype=I64), 2.5, z
    ),
    "discretized_logistic_number": lambda mean, x: vk.discretized_logistic_log_likelihood(
        mean, x.tanh(), -1.3, bins=16
    ),
    "elbo": objective(lambda log_px, kl: vk.elbo(log_px, kl, beta=0.3, dataset_size=7)),
    "elbo_capacity": objective(lambda log_px, kl: vk.elbo(log_px, kl, capacity=0.1, capacity_per="batch")),
    "elbo_free_bits": lambda log_px, kl: vk.elbo(log_px[:, 0], kl, free_bits=0.3),
    "importance_weighted": objective(lambda log_px, kl: vk.importance_weighted_elbo(log_px, kl)),
    "dreg": objective(
        lambda log_px, kl: vk.importance_weighted_elbo(log_px, kl, z=log_px[..., None] * 0.7, gradient="dreg")
    ),
    "score_function": objective(
        lambda log_px, kl: vk.score_function_elbo(log_px, kl, log_px * 0.3, baseline=0.1, beta=0.3)
    ),
    "evaluation": lambda mu, raw: (vk.kl_per_dimension(raw), *vk.aggregate_posterior(mu, raw), vk.active_units(mu)),
    "bits": lambda log_px, _: vk.bits_per_dimension(log_px, 3, bin_width=1 / 255),
}
# Each family with tensors alone, its arguments made from the two in a range that suits it.
CALLS |= {
    name: lambda a, b, op=op: op.call(*((a.sigmoid(), b.sigmoid(), a.exp(), b)[: len(op.arguments)]), batch_dims=1)
    for name, op in OPS.items()
    if op.outputs == ("log_px",)
}
