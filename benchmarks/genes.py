"""A VAE of gene counts with the architecture of scvi-tools, to measure the negative binomial within a training step.

Lopez et al. 2018: the encoder reads log(1 + x). The decoder ends in a softmax over the genes, multiplied by the total
count of the cell (its library size). Each gene has its own dispersion.
"""

import torch
from torch import Tensor, nn

import vae_kernels as vk

from . import snippets


def hidden_layer(inputs: int, outputs: int) -> nn.Sequential:
    # The normalisation has the settings of scvi-tools.
    return nn.Sequential(nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs, eps=1e-3, momentum=0.01), nn.ReLU())


class CountsVAE(nn.Module):
    """One hidden layer in the encoder and one in the decoder."""

    def __init__(self, genes: int, hidden: int, latent_dim: int) -> None:
        super().__init__()
        self.encoder = hidden_layer(genes, hidden)
        self.moments = nn.Linear(hidden, 2 * latent_dim)
        self.decoder = nn.Sequential(hidden_layer(latent_dim, hidden), nn.Linear(hidden, genes), nn.Softmax(dim=-1))
        self.log_theta = nn.Parameter(torch.randn(genes))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.moments(self.encoder(torch.log1p(x))).chunk(2, dim=-1)
        return mu, logvar

    def decode(self, z: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and inverse dispersion of the counts."""
        return x.sum(-1, keepdim=True) * self.decoder(z), self.log_theta.exp()


def counts(shape: tuple[int, ...]) -> Tensor:
    """Random counts. The sequencing depth of cells varies, and most genes are rare: three quarters are zeros."""
    depth, genes = torch.exp(0.3 * torch.randn(shape[0], 1)), torch.exp(1.5 * torch.randn(shape[1]) - 2)
    return torch.poisson(depth * genes)


def kernel_terms(model: CountsVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    z, kl = vk.reparameterize_kl(*model.encode(x))
    mu, theta = model.decode(z, x)
    return vk.negative_binomial_log_likelihood(mu, x, theta), kl


def eager_terms(model: CountsVAE, x: Tensor) -> tuple[Tensor, Tensor]:
    z, kl = snippets.latent(*model.encode(x))
    mu, theta = model.decode(z, x)
    return snippets.negative_binomial(mu, x, theta)[0], kl
