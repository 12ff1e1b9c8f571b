"""How good a trained model is: log p(x) by importance sampling, and what its latents do."""

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from . import symbols
from .latent import reparameterize_kl

PROPOSALS = ("posterior", "prior")


class LatentModel(Protocol):
    """A model with a standard normal prior and a diagonal Gaussian posterior, as `vae_kernels.models.VAE` is one."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`mu` and `logvar` of `q(z|x)`, each `(*batch, *latent)`."""

    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)` for z of shape `(K, *batch, *latent)`, `(K, *batch)`."""


class LogMarginalLikelihood(NamedTuple):
    """An estimate of log p(x) for each x, of the batch's shape, in nats."""

    value: Tensor
    """`ln 1/N Σ w`: a lower bound of log p(x) in the mean, and as `num_samples` grows, log p(x) itself."""
    standard_error: Tensor
    """Of the value, from the spread of the weights; NaN for one sample. Where it is large (above ½, say), single
    weights dominate, and it is itself too small."""


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
    """log p(x) by importance sampling, in bounded memory.

        log p(x) ≈ ln 1/N Σₙ wₙ,    wₙ = p(x|zₙ) p(zₙ) / q(zₙ|x),    zₙ ~ q(z|x)        [nats]
        standard error ≈ sd(w) / (mean(w) √N)

    Args:
        model: what has `encode(x)` and `log_px(x, z)` as `LatentModel` says, with the prior N(0, 1).
        x: `(*batch, ...)`, as the model wants it.
        num_samples: N, samples of z for each x.
        chunk: how many of them are decoded at once: memory is that of so many decoder outputs for each x, whatever N.
        proposal: where z is drawn from. `"posterior"`: the encoder's q(z|x). `"prior"`: plain Monte Carlo from p(z),
            the baseline, which needs about `exp(KL)` samples.
        generator: where the noise's seeds are drawn from, one for each chunk; on the device of `mu`. Default: torch's.
        batch_dims: how many leading dims of the posterior's `mu` are the batch's.

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
        # q = p: the same weights with a KL of 0.
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
            # Near 0 the logarithms keep the digits that the standard error is the difference of.
            shift = log_weights.amax(0).nan_to_num(neginf=0.0)
        log_weights -= shift
        sums = torch.logsumexp(log_weights, 0), torch.logsumexp(2 * log_weights, 0)
        totals = tuple(map(torch.logaddexp, totals, sums)) if totals else sums
    value, error = _mean_and_error(*totals, num_samples)
    return LogMarginalLikelihood(value + shift, error)


def _mean_and_error(log_sum: Tensor, log_sum_of_squares: Tensor, n: int) -> LogMarginalLikelihood:
    """With S₁ = Σ w and S₂ = Σ w²: ln(S₁/n), and `sqrt((n S₂/S₁² − 1) / (n − 1))`."""
    ratio = torch.expm1(math.log(n) + log_sum_of_squares - 2 * log_sum).clamp(min=0)
    error = torch.sqrt(ratio / (n - 1)) if n > 1 else torch.full_like(ratio, math.nan)
    return LogMarginalLikelihood(log_sum - math.log(n), error)


def kl_per_dimension(kl: Tensor) -> Tensor:
    """The KL of each latent dimension, averaged over the samples: which dimensions the model uses, and how much.

        KLⱼ = 1/N Σₙ KL(q(zⱼ|xₙ) ‖ p(zⱼ))        [nats]

    Args:
        kl: `(N, *latent)`, as the latent step gives it with `kl_reduction="none"`.

    Returns:
        `(*latent)`. Summed, it is the rate: the mean of the KL.

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
    """Which latent dimensions depend on x.

        active = Var_x(E_{q(z|x)}[z]) > threshold

    Args:
        mu: posterior means of many x, `(N, *latent)`, N at least 2.
        threshold: of the variance (that of the sample, over N − 1).

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
    """Of `q(z) = 1/N Σₙ q(z|xₙ)`, each `(*latent)`. Near 0 and 1 where the prior is matched."""

    mean: Tensor
    variance: Tensor


def aggregate_posterior(mu: Tensor, logvar: Tensor) -> AggregatePosterior:
    """Mean and variance, by dimension, of what the encoder makes of all the data together.

        mean = 1/N Σₙ muₙ,    variance = 1/N Σₙ exp(logvarₙ) + 1/N Σₙ (muₙ − mean)²

    Args:
        mu, logvar: moments of `q(z|x)` for many x, `(N, *latent)`.

    Raises:
        ValueError: shapes differ, or there is no sample.

    Source: Hoffman & Johnson 2016, "ELBO surgery", section 2, for q(z); the moments are those of a mixture.

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
    """Nats per sample as bits per element of x.

        −(log p(x) / dimensions + ln bin_width) / ln 2

    Args:
        log_px: log p(x), or a bound on it, in nats, any shape.
        dimensions: how many elements an x has: channels · height · width.
        bin_width: for a *density* of x that was rounded (or had noise added) to steps of this width, in the units in
            which the density is one: 1/255 for 8-bit pixels scaled to [0, 1], 2/255 for [−1, 1]. 1 for probabilities.

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
