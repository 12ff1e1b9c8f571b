"""Distributions of independent elements with the interface of `torch.distributions`. Kernels compute `log_prob` and KL.

>>> import torch
>>> from torch.distributions import kl_divergence
>>> from vae_kernels.distributions import DiagonalNormal, IndependentBernoulli
>>> q, p = DiagonalNormal(torch.zeros(4, 20), torch.zeros(4, 20)), DiagonalNormal.standard(20)
>>> z = q.rsample()
>>> kl_divergence(q, p).shape, IndependentBernoulli(z).log_prob((z > 0).float()).shape
(torch.Size([4]), torch.Size([4]))

Each class corresponds to `torch.distributions.Independent(..., event_dims)`. `vae_kernels.distributions.pyro` has the
same classes for Pyro.
"""

from . import kl  # noqa: F401  registers the divergences
from .base import IndependentElements
from .counts import IndependentNegativeBinomial, IndependentZeroInflatedNegativeBinomial
from .likelihoods import IndependentBernoulli, IndependentCategorical, IndependentLaplace
from .normal import DiagonalNormal

__all__ = [
    "DiagonalNormal",
    "IndependentBernoulli",
    "IndependentCategorical",
    "IndependentElements",
    "IndependentLaplace",
    "IndependentNegativeBinomial",
    "IndependentZeroInflatedNegativeBinomial",
]
