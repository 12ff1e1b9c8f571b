"""Evaluation of a trained model: log p(x) by importance sampling, and statistics of its latents."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import symbols
from .latent import reparameterize_kl

PROPOSALS = ("posterior", "prior")


class LatentModel(Protocol):
    """A model with a standard normal prior and a diagonal Gaussian posterior, for example `vae_kernels.models.VAE`."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`mu` and `logvar` of `q(z|x)`, each `(*batch, *latent)`."""

    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)`, of shape `(K, *batch)`, for z of shape `(K, *batch, *latent)`."""


class LogMarginalLikelihood(NamedTuple):
    """An estimate of log p(x) for each x, in nats; both tensors have the shape of the batch."""

    value: Tensor
    """`ln 1/N Σ w`. Its expectation is a lower bound of log p(x); it converges to log p(x) as `num_samples` grows."""
    standard_error: Tensor
    """The standard error of `value`, from the standard deviation of the weights; NaN for one sample. If it is large
    (above ½, say), a few weights dominate the sum, and the standard error itself is too small."""


@torch.no_grad()
def log_marginal_likelihood(
    model: LatentModel,
    x: Tensor,
    *,
    num_samples: int,
    chunk: int,
    proposal: str = "posterior",
    generator: torch.Generator | None = None,
    batch_dims: int = 1,
) -> LogMarginalLikelihood:
    """Estimate log p(x) by importance sampling, in bounded memory.

        log p(x) ≈ ln 1/N Σₙ wₙ,    wₙ = p(x|zₙ) p(zₙ) / q(zₙ|x),    zₙ ~ q(z|x)        [nats]
        standard error ≈ sd(w) / (mean(w) √N)

    Args:
        model: an object with the methods `encode(x)` and `log_px(x, z)` of `LatentModel`, and with the prior N(0, 1).
        x: data of shape `(*batch, ...)`, passed to the model.
        num_samples: N, the number of samples of z for each x.
        chunk: the number of samples that are decoded at once. Memory holds `chunk` decoder outputs for each x, for any
            N.
        proposal: the distribution of z. `"posterior"`: the encoder's q(z|x). `"prior"`: simple Monte Carlo from p(z), a
            baseline that needs about `exp(KL)` samples.
        generator: the generator of the noise's seeds, one seed for each chunk; on the device of `mu`. Default: torch's.
        batch_dims: the number of leading dims of the posterior's `mu` that belong to the batch.

    Returns:
        `LogMarginalLikelihood(value, standard_error)`, each of the batch's shape, without gradient.

    Raises:
        ValueError: `num_samples` or `chunk` is below 1, `proposal` is unknown, or `batch_dims` does not fit.

    Sources: Rezende et al. 2014, "Stochastic Backpropagation and Approximate Inference in Deep Generative Models",
    appendix E; Burda et al. 2016, "Importance Weighted Autoencoders", section 5 (N = 5000). The standard error is the
    delta method's, as in Owen 2013, "Monte Carlo theory, methods and examples", section 9.2.

    >>> import torch, vae_kernels as vk
    >>> from vae_kernels.models import MLPVAE
    >>> model, x = MLPVAE(64), torch.rand(8, 64)
    >>> value, standard_error = vk.log_marginal_likelihood(model, x, num_samples=100, chunk=50)
    >>> value.shape
    torch.Size([8])
    """
    for name, number in (("num_samples", num_samples), ("chunk", chunk)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if proposal not in PROPOSALS:
        raise ValueError(f"proposal must be one of {', '.join(PROPOSALS)}, got {proposal!r}")
    mu, logvar = model.encode(x)
    if proposal == "prior":
        # With q = p the weights are p(x|z): the same formula with a KL of 0.
        mu, logvar = torch.zeros_like(mu), torch.zeros_like(logvar)
    totals: tuple[Tensor, ...] = ()
    shift = None
    for start in range(0, num_samples, chunk):
        z, kl = reparameterize_kl(
            mu,
            logvar,
            num_samples=min(chunk, num_samples - start),
            kl_estimator="monte_carlo",
            batch_dims=batch_dims,
            generator=generator,
        )
        log_weights = model.log_px(x, z) - kl
        if shift is None:
            # Shifted near 0, the logarithms keep the digits whose difference is the standard error.
            shift = log_weights.amax(0).nan_to_num(neginf=0.0)
        log_weights -= shift
        sums = torch.logsumexp(log_weights, 0), torch.logsumexp(2 * log_weights, 0)
        totals = tuple(map(torch.logaddexp, totals, sums)) if totals else sums
    value, error = _mean_and_error(*totals, num_samples)
    return LogMarginalLikelihood(value + shift, error)


def _mean_and_error(log_sum: Tensor, log_sum_of_squares: Tensor, n: int) -> LogMarginalLikelihood:
    """`ln(S₁/n)` and `sqrt((n S₂/S₁² − 1) / (n − 1))`, with S₁ = Σ w and S₂ = Σ w²."""
    ratio = torch.expm1(math.log(n) + log_sum_of_squares - 2 * log_sum).clamp(min=0)
    error = torch.sqrt(ratio / (n - 1)) if n > 1 else torch.full_like(ratio, math.nan)
    return LogMarginalLikelihood(log_sum - math.log(n), error)


def kl_per_dimension(kl: Tensor) -> Tensor:
    """Average the KL of each latent dimension over the samples. It shows how much the model uses each dimension.

        KLⱼ = 1/N Σₙ KL(q(zⱼ|xₙ) ‖ p(zⱼ))        [nats]

    Args:
        kl: `(N, *latent)`, as the latent step returns it with `kl_reduction="none"`.

    Returns:
        Shape `(*latent)`. Its sum is the rate, the mean KL per sample.

    Raises:
        ValueError: kl has no latent dims.

    >>> import torch, vae_kernels as vk
    >>> vk.kl_per_dimension(torch.tensor([[3.0, 0.0], [5.0, 0.0]]))
    tensor([4., 0.])
    """
    if kl.dim() < 2:
        raise ValueError(f'kl must have the shape (N, *latent), with kl_reduction="none", got {tuple(kl.shape)}')
    return kl.mean(0)


def active_units(mu: Tensor, *, threshold: float = 0.01) -> Tensor:
    """Find the latent dimensions that depend on x.

        active = Var_x(E_{q(z|x)}[z]) > threshold

    Args:
        mu: posterior means of many x, `(N, *latent)`, N at least 2.
        threshold: the least variance of an active unit; the variance over samples divides by N − 1.

    Returns:
        bool, `(*latent)`; `.sum()` is the number of active units.

    Raises:
        ValueError: fewer than two samples.

    Source: Burda et al. 2016, "Importance Weighted Autoencoders", section 5.2.

    >>> import torch, vae_kernels as vk
    >>> vk.active_units(torch.tensor([[1.0, 0.01], [-1.0, 0.02]]))
    tensor([ True, False])
    """
    if mu.dim() < 1 or len(mu) < 2:
        raise ValueError(f"mu must have the shape (N, *latent) with N of at least 2, got {tuple(mu.shape)}")
    return mu.var(0) > threshold


class AggregatePosterior(NamedTuple):
    """Mean and variance of `q(z) = 1/N Σₙ q(z|xₙ)`, each `(*latent)`; near 0 and 1 if q(z) matches the prior."""

    mean: Tensor
    variance: Tensor


def aggregate_posterior(mu: Tensor, logvar: Tensor) -> AggregatePosterior:
    """Compute mean and variance of the aggregate posterior, for each latent dimension.

        mean = 1/N Σₙ muₙ,    variance = 1/N Σₙ exp(logvarₙ) + 1/N Σₙ (muₙ − mean)²

    Args:
        mu, logvar: means and log-variances of `q(z|x)` for many x, `(N, *latent)`.

    Raises:
        ValueError: shapes differ, or there is no sample.

    Source: Hoffman & Johnson 2016, "ELBO surgery", section 2, for q(z); mean and variance are those of a mixture.

    >>> import torch, vae_kernels as vk
    >>> vk.aggregate_posterior(torch.tensor([[1.0], [-1.0]]), torch.zeros(2, 1))
    AggregatePosterior(mean=tensor([0.]), variance=tensor([2.]))
    """
    if mu.shape != logvar.shape:
        raise ValueError(f"logvar must have the shape of mu, {tuple(mu.shape)}, got {tuple(logvar.shape)}")
    if mu.dim() < 1 or not len(mu):
        raise ValueError(f"mu must have the shape (N, *latent) with N of at least 1, got {tuple(mu.shape)}")
    return AggregatePosterior(mu.mean(0), logvar.exp().mean(0) + mu.var(0, correction=0))


def bits_per_dimension(log_px: Tensor, dimensions: int, *, bin_width: float = 1.0) -> Tensor:
    """Convert nats per sample to bits per element of x.

        −(log p(x) / dimensions + ln bin_width) / ln 2

    Args:
        log_px: log p(x), or a bound on it, in nats, any shape.
        dimensions: the number of elements of one x: channels · height · width.
        bin_width: if log p(x) is a *density*, the width of the steps to which x was rounded (or dequantised with
            noise), in the density's units: 1/255 for 8-bit pixels scaled to [0, 1], 2/255 for [−1, 1]. 1 for
            probabilities.

    Raises:
        ValueError: `dimensions` below 1, or `bin_width` not positive.

    Source: Theis et al. 2016, "A note on the evaluation of generative models", section 3.1.

    >>> import math, torch, vae_kernels as vk
    >>> vk.bits_per_dimension(torch.tensor(-784 * math.log(2)), 784)
    tensor(1.)
    """
    if dimensions < 1:
        raise ValueError(f"dimensions must be at least 1, got {dimensions}")
    if not bin_width > 0:
        raise ValueError(f"bin_width must be positive, got {bin_width}")
    return -(log_px / dimensions + torch.log(symbols.tensor(bin_width, log_px))) / math.log(2)
