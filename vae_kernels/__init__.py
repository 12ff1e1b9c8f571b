"""Fused kernels for the loss of a variational autoencoder.

>>> import torch, vae_kernels as vk
>>> mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
>>> z, kl = vk.reparameterize_kl(mu, logvar)
>>> z.shape, kl.shape
(torch.Size([4, 20]), torch.Size([4]))
"""

from . import patch
from .backends import backends, use_backend
from .categorical import categorical_log_likelihood
from .checks import check_values
from .evaluation import (
    active_units,
    aggregate_posterior,
    bits_per_dimension,
    kl_per_dimension,
    log_marginal_likelihood,
)
from .latent import reparameterize_kl, reparameterize_kl_packed
from .likelihood import (
    bernoulli_log_likelihood,
    bernoulli_probs_log_likelihood,
    continuous_bernoulli_log_likelihood,
    discretized_logistic_log_likelihood,
    gaussian_log_likelihood,
    laplace_log_likelihood,
    negative_binomial_log_likelihood,
    negative_binomial_mixture_log_likelihood,
    poisson_log_likelihood,
    poisson_rate_log_likelihood,
    zero_inflated_negative_binomial_log_likelihood,
    zero_inflated_poisson_log_likelihood,
)
from .multinomial import multinomial_log_likelihood
from .objectives import elbo, importance_weighted_elbo, score_function_elbo
from .schedules import cyclical_schedule, linear_schedule

__version__ = "0.1.0"

__all__ = [
    "active_units",
    "aggregate_posterior",
    "backends",
    "bernoulli_log_likelihood",
    "bernoulli_probs_log_likelihood",
    "bits_per_dimension",
    "categorical_log_likelihood",
    "check_values",
    "continuous_bernoulli_log_likelihood",
    "cyclical_schedule",
    "discretized_logistic_log_likelihood",
    "elbo",
    "gaussian_log_likelihood",
    "importance_weighted_elbo",
    "kl_per_dimension",
    "laplace_log_likelihood",
    "linear_schedule",
    "log_marginal_likelihood",
    "multinomial_log_likelihood",
    "negative_binomial_log_likelihood",
    "negative_binomial_mixture_log_likelihood",
    "patch",
    "poisson_log_likelihood",
    "poisson_rate_log_likelihood",
    "reparameterize_kl",
    "reparameterize_kl_packed",
    "score_function_elbo",
    "use_backend",
    "zero_inflated_negative_binomial_log_likelihood",
    "zero_inflated_poisson_log_likelihood",
]
