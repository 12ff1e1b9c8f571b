"""A model whose log p(x) is known: z ~ N(0, I), x|z ~ N(W z + b, e^l I), with a posterior N(mu, e^logvar) of any moments.

All in float64, in formulas of their own or torch.distributions'.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.distributions import MultivariateNormal, Normal, kl_divergence

import vae_kernels as vk


@dataclass
class LinearGaussian:
    """`mu`, `logvar`: moments of q(z|x) for each x, `(B, d)`; `weight`: W, `(D, d)`, or one for each x, `(B, D, d)`."""

    mu: Tensor
    logvar: Tensor
    weight: Tensor
    bias: Tensor
    x_logvar: float

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.mu, self.logvar

    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        mean = (self.weight @ z.unsqueeze(-1)).squeeze(-1) + self.bias
        return vk.gaussian_log_likelihood(mean, x, self.x_logvar, batch_dims=z.dim() - 1)

    def terms(self, x: Tensor, seed: int, **latent) -> tuple[Tensor, Tensor, Tensor]:
        """`log_px`, `kl` and z by the package's ops."""
        z, kl = vk.reparameterize_kl(self.mu, self.logvar, seed=seed, **latent)
        return self.log_px(x, z), kl, z

    def exact_log_px(self, x: Tensor) -> Tensor:
        """log p(x): x ~ N(b, W Wᵀ + e^l I)."""
        covariance = self.weight @ self.weight.mT + np.exp(self.x_logvar) * torch.eye(len(self.bias)).double()
        return MultivariateNormal(self.bias, covariance).log_prob(x)

    def exact_elbo(self, x: Tensor) -> Tensor:
        """E_q[log p(x|z)] − KL: the square error's mean is that at mu plus Σⱼ ‖Wⱼ‖² e^logvarⱼ."""
        mean = (self.weight @ self.mu.unsqueeze(-1)).squeeze(-1) + self.bias
        spread = ((self.weight**2).sum(-2) * self.logvar.exp()).sum(-1)
        at_mean = Normal(mean, np.exp(self.x_logvar / 2)).log_prob(x).sum(-1)
        q = Normal(self.mu, (self.logvar / 2).exp())
        return at_mean - 0.5 * spread * np.exp(-self.x_logvar) - kl_divergence(q, Normal(0.0, 1.0)).sum(-1)

    def quadrature_bound(self, x: Tensor, samples: int, nodes: int = 40) -> Tensor:
        """E[ln 1/K Σ w] of a model with d = 1 by Gauss-Hermite quadrature over the K noises."""
        points, masses = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(nodes))
        masses = masses / masses.sum()
        scale = (self.logvar / 2).exp()
        z = self.mu + scale * points.view(-1, 1, 1)
        mean = (self.weight @ z.unsqueeze(-1)).squeeze(-1) + self.bias
        log_w = Normal(mean, np.exp(self.x_logvar / 2)).log_prob(x).sum(-1)
        log_w = log_w + (Normal(0.0, 1.0).log_prob(z) - Normal(self.mu, scale).log_prob(z)).sum(-1)
        log_w = [
            log_w.reshape([-1 if i == k else 1 for i in range(samples)] + [log_w.shape[1]]) for k in range(samples)
        ]
        bound = torch.logsumexp(torch.stack(torch.broadcast_tensors(*log_w)), 0) - np.log(samples)
        for _ in range(samples):
            bound = (masses.view(-1, *[1] * (bound.dim() - 1)) * bound).sum(0)
        return bound


def exact_posterior(weight: Tensor, bias: Tensor, x_logvar: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and log-variances of p(z|x) for a W whose columns are orthogonal, so that it is diagonal."""
    precision = 1 + (weight**2).sum(0) * np.exp(-x_logvar)
    return (x - bias) @ weight * np.exp(-x_logvar) / precision, -precision.log().expand(*x.shape[:-1], -1)
