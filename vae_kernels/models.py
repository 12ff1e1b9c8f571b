"""Reference VAEs with an MLP and with convolutions. Their loss terms are this package's ops.

A `VAE` has an encoder, a decoder, and a `Likelihood` that interprets the decoder's output. `VAE.forward` returns the
terms from which every objective in `vae_kernels.objectives` is computed. `VAE.elbo` is the ELBO of Kingma & Welling
2014.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import prod
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .latent import reparameterize_kl_packed
from .likelihood import bernoulli_log_likelihood, gaussian_log_likelihood

# A smooth activation does not amplify rounding errors. Two backends, whose noise differs in the last bit, have held-out
# ELBOs within 3e-6 nats of each other after 2300 steps on the digits. With ReLU, whose units flip near the kink, it is
# 4e-2.
ACTIVATION = nn.SiLU


@dataclass(frozen=True)
class VAESettings:
    """The settings from which a model is built, without its weights. `dataclasses.asdict` makes them JSON.

    `hidden` has the widths of the MLP's layers, or the channels of the convolutions. `logvar` is the fixed log-variance
    of a Gaussian decoder, or the initial value of a learned one. A Bernoulli decoder ignores it.
    """

    model: str
    input_shape: tuple[int, ...]
    hidden: tuple[int, ...]
    latent_dim: int
    likelihood: str
    logvar: float

    def __post_init__(self) -> None:
        for name in ("input_shape", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.input_shape or min(self.input_shape) < 1:
            raise ValueError(f"input_shape must hold positive sizes, got {self.input_shape}")
        if min(self.hidden, default=1) < 1:
            raise ValueError(f"hidden must hold positive sizes, got {self.hidden}")
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(LIKELIHOODS)}, got {self.likelihood!r}")

    def build(self) -> "VAE":
        """Build a model with these settings and new random weights."""
        arguments = asdict(self)
        name = arguments.pop("model")
        if name not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
        return MODELS[name](**arguments)


class Likelihood(nn.Module, ABC):
    """`p(x|z)`. It maps the decoder's output `(B, outputs, *input_shape)` to the distribution's parameters.

    To add a family, write a subclass and a row in `LIKELIHOODS`.
    """

    outputs: ClassVar[int] = 1
    """The number of decoder outputs for each element of x."""

    def __init__(self, settings: VAESettings) -> None:
        super().__init__()

    def forward(self, output: Tensor) -> tuple[Tensor, ...]:
        return (output.squeeze(1),)

    @abstractmethod
    def log_px(self, x: Tensor, *parameters: Tensor) -> Tensor:
        """`log p(x|z)` per sample in nats, of shape `(B,)` or `(K, B)`: the parameters' shape without `input_shape`."""

    @abstractmethod
    def mean(self, *parameters: Tensor) -> Tensor:
        """`E[x|z]`, of the shape of the parameters."""


class Bernoulli(Likelihood):
    """The decoder outputs logits; x is in [0, 1]."""

    def log_px(self, x: Tensor, logits: Tensor) -> Tensor:
        return bernoulli_log_likelihood(logits, x, batch_dims=_batch_dims(logits, x))

    def mean(self, logits: Tensor) -> Tensor:
        return torch.sigmoid(logits)


class Gaussian(Likelihood):
    """The decoder outputs means; all variances are `exp(settings.logvar)`."""

    def __init__(self, settings: VAESettings) -> None:
        super().__init__(settings)
        self.logvar: float | Tensor = settings.logvar

    def log_px(self, x: Tensor, mean: Tensor) -> Tensor:
        return gaussian_log_likelihood(mean, x, self.logvar, batch_dims=_batch_dims(mean, x))

    def mean(self, mean: Tensor) -> Tensor:
        return mean


class GaussianLearned(Gaussian):
    """The decoder outputs means; one log-variance, shared by all elements, is learned with the weights.

    Source: Rybkin et al. 2021, "Simple and effective VAE training with calibrated decoders".
    """

    def __init__(self, settings: VAESettings) -> None:
        super().__init__(settings)
        self.logvar = nn.Parameter(torch.tensor(settings.logvar))


class GaussianPerElement(Likelihood):
    """The decoder outputs a mean and a log-variance for each element of x.

    Training would drive the variance of a pixel that is equal in all pictures to 0, and its density to infinity. The
    log-variance therefore has a soft lower bound: `logvar = floor + softplus(output − floor)`, as in Rybkin et al.
    2021. The floor −8 is the variance of the rounding error of x in [0, 1] with 17 levels: `ln(1/16² / 12) = −8.0`.
    """

    outputs = 2
    floor: ClassVar[float] = -8.0

    def __init__(self, settings: VAESettings) -> None:
        super().__init__(settings)
        self.start = settings.logvar

    def forward(self, output: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = output.unbind(1)
        return mean, self.floor + F.softplus(raw + (self.start - self.floor))

    def log_px(self, x: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
        return gaussian_log_likelihood(mean, x, logvar, batch_dims=_batch_dims(mean, x))

    def mean(self, mean: Tensor, logvar: Tensor) -> Tensor:
        return mean


def _batch_dims(parameter: Tensor, x: Tensor) -> int:
    """The number of batch dims: 1, or 2 if there are K samples of z for each x."""
    return parameter.dim() - x.dim() + 1


LIKELIHOODS: dict[str, type[Likelihood]] = {
    "bernoulli": Bernoulli,
    "gaussian": Gaussian,
    "gaussian-learned": GaussianLearned,
    "gaussian-per-element": GaussianPerElement,
}


class Pass(NamedTuple):
    """The results of one pass through a VAE, from which every objective is computed."""

    z: Tensor
    """One sample of `q(z|x)`, `(B, latent_dim)`, or K samples, `(K, B, latent_dim)`."""
    kl: Tensor
    """`KL(q(z|x) ‖ N(0, 1))` in nats, `(B,)`; other shapes are those of `vae_kernels.reparameterize_kl`."""
    parameters: tuple[Tensor, ...]
    """The parameters of `p(x|z)`, as returned by `VAE.decode`."""


class Elbo(NamedTuple):
    """The evidence lower bound and its two terms, each `(B,)` and in nats: `elbo = log_px − kl`."""

    elbo: Tensor
    log_px: Tensor
    kl: Tensor


class VAE(nn.Module, ABC):
    """`q(z|x) = N(mu, exp(logvar))`, prior `N(0, 1)`, and one of `LIKELIHOODS` for `p(x|z)`.

    A subclass builds the encoder and the decoder. The encoder maps `(B, *input_shape)` to the packed moments
    `(B, 2·latent_dim)`. The decoder maps `(B, latent_dim)` to `(B, likelihood.outputs, *input_shape)`.
    """

    def __init__(self, settings: VAESettings) -> None:
        super().__init__()
        self.settings = settings
        self.likelihood = LIKELIHOODS[settings.likelihood](settings)
        self.encoder = self._build_encoder()
        self.decoder = self._build_decoder()

    @abstractmethod
    def _build_encoder(self) -> nn.Module: ...

    @abstractmethod
    def _build_decoder(self) -> nn.Module: ...

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Encode x to `mu` and `logvar` of `q(z|x)`, each `(B, latent_dim)`. They are two views of one tensor, which
        the ops read in place.

        Args:
            x: `(B, *input_shape)`, any dtype; it is converted to the dtype of the weights.

        Raises:
            ValueError: x has another shape.
        """
        return self._moments(x).chunk(2, dim=-1)

    def _moments(self, x: Tensor) -> Tensor:
        """The encoder's output, `(B, 2·latent_dim)`."""
        if x.dim() < 1 or x.shape[1:] != self.settings.input_shape:
            need = ", ".join(("B", *map(str, self.settings.input_shape)))
            raise ValueError(f"x must have the shape ({need}), got {tuple(x.shape)}")
        return self.encoder(x.to(next(self.parameters()).dtype))

    def decode(self, z: Tensor) -> tuple[Tensor, ...]:
        """Decode z to the parameters of `p(x|z)`, each `(B, *input_shape)`: `(logits,)`, `(mean,)` or `(mean, logvar)`.

        `model.likelihood` interprets them: `model.likelihood.mean(*model.decode(z))` are pictures.

        Args:
            z: `(B, latent_dim)`, or `(K, B, latent_dim)` for parameters of shape `(K, B, *input_shape)`.

        Raises:
            ValueError: z has another shape.
        """
        if z.dim() not in (2, 3) or z.shape[-1] != self.settings.latent_dim:
            d = self.settings.latent_dim
            raise ValueError(f"z must have the shape (B, {d}) or (K, B, {d}), got {tuple(z.shape)}")
        parameters = self.likelihood(self.decoder(z.flatten(0, -2)))
        return tuple(p.unflatten(0, z.shape[:-1]) for p in parameters) if z.dim() == 3 else parameters

    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        """`log p(x|z)` in nats, `(B,)`, or `(K, B)` for z of shape `(K, B, latent_dim)`, without repeating x."""
        return self.likelihood.log_px(x, *self.decode(z))

    def forward(
        self,
        x: Tensor,
        *,
        num_samples: int | None = None,
        kl_estimator: str = "analytic",
        kl_reduction: str = "sum",
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> Pass:
        """Encode x, sample z and decode it. The other arguments are those of `vae_kernels.reparameterize_kl`."""
        z, kl = reparameterize_kl_packed(
            self._moments(x),
            dim=-1,
            num_samples=num_samples,
            kl_estimator=kl_estimator,
            kl_reduction=kl_reduction,
            seed=seed,
            generator=generator,
            eps=eps,
        )
        return Pass(z, kl, self.decode(z))

    def elbo(
        self,
        x: Tensor,
        *,
        seed: int | Tensor | None = None,
        generator: torch.Generator | None = None,
        eps: Tensor | None = None,
    ) -> Elbo:
        """Compute the evidence lower bound of each x, with one sample of z.

            elbo = log p(x|z) − KL(q(z|x) ‖ N(0, 1)),    z ~ q(z|x)        [nats]

        Args:
            x: `(B, *input_shape)`, any dtype, in the range of the likelihood ([0, 1] for Bernoulli).
            seed, generator, eps: the source of z's noise, as for `vae_kernels.reparameterize_kl`.

        Returns:
            `Elbo(elbo, log_px, kl)`, each `(B,)`; float64 if the model or x is float64, else float32.

        Raises:
            ValueError: x has another shape.

        Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equation 10.

        >>> import torch
        >>> from vae_kernels.models import MLPVAE
        >>> model, x = MLPVAE((1, 8, 8)), torch.rand(16, 1, 8, 8)
        >>> loss = -model.elbo(x).elbo.mean()
        >>> loss.backward()
        """
        _, kl, parameters = self(x, seed=seed, generator=generator, eps=eps)
        log_px = self.likelihood.log_px(x, *parameters)
        return Elbo(log_px - kl, log_px, kl)

    @torch.no_grad()
    def sample(self, n: int, *, generator: torch.Generator | None = None) -> Tensor:
        """`E[x|z]` for n draws of `z ~ N(0, 1)`, `(n, *input_shape)`, without gradient.

        `generator` must be on the model's device.
        """
        weight = next(self.parameters())
        z = torch.randn(n, self.settings.latent_dim, generator=generator, dtype=weight.dtype, device=weight.device)
        return self.likelihood.mean(*self.decode(z))

    @torch.no_grad()
    def reconstruct(self, x: Tensor) -> Tensor:
        """`E[x|z]` at `z = mu(x)`, `(B, *input_shape)`, without noise and without gradient."""
        mu, _ = self.encode(x)
        return self.likelihood.mean(*self.decode(mu))


class MLPVAE(VAE):
    """VAE with fully connected layers and SiLU. The decoder mirrors the encoder.

    >>> from vae_kernels.models import MLPVAE
    >>> MLPVAE(784, hidden=(400, 400), latent_dim=20).sample(3).shape
    torch.Size([3, 784])
    """

    def __init__(
        self,
        input_shape: int | Sequence[int],
        hidden: Sequence[int] = (400, 400),
        latent_dim: int = 20,
        likelihood: str = "bernoulli",
        logvar: float = 0.0,
    ) -> None:
        shape = (input_shape,) if isinstance(input_shape, int) else input_shape
        super().__init__(VAESettings("mlp", shape, hidden, latent_dim, likelihood, logvar))

    def _build_encoder(self) -> nn.Module:
        s = self.settings
        return nn.Sequential(nn.Flatten(), *_linear_layers(prod(s.input_shape), *s.hidden, 2 * s.latent_dim))

    def _build_decoder(self) -> nn.Module:
        s, outputs = self.settings, self.likelihood.outputs
        return nn.Sequential(
            *_linear_layers(s.latent_dim, *reversed(s.hidden), outputs * prod(s.input_shape)),
            nn.Unflatten(1, (outputs, *s.input_shape)),
        )


class ConvVAE(VAE):
    """VAE with 4×4 convolutions of stride 2 and SiLU, then one linear layer. The decoder mirrors the encoder.

    Args:
        input_shape: `(channels, height, width)`; height and width are halved once for each entry of `hidden`.
        hidden: channels after each convolution, which halves the picture. Default: as many of (32, 64, 128, 256) as
            leave a picture of at least 4×4; for 64×64 these are all four.

    Raises:
        ValueError: the picture cannot be halved that often.

    >>> from vae_kernels.models import ConvVAE
    >>> ConvVAE((3, 64, 64), latent_dim=32).sample(2).shape
    torch.Size([2, 3, 64, 64])
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 64, 64),
        hidden: Sequence[int] | None = None,
        latent_dim: int = 20,
        likelihood: str = "bernoulli",
        logvar: float = 0.0,
    ) -> None:
        if len(input_shape) != 3:
            raise ValueError(f"input_shape must be (channels, height, width), got {tuple(input_shape)}")
        hidden = _default_channels(*input_shape[1:]) if hidden is None else hidden
        if any(size % 2 ** len(hidden) for size in input_shape[1:]):
            raise ValueError(
                f"input_shape must have a height and width that can be halved {len(hidden)} times, once for each of "
                f"hidden {tuple(hidden)}, got {tuple(input_shape)}"
            )
        super().__init__(VAESettings("conv", input_shape, hidden, latent_dim, likelihood, logvar))

    def _build_encoder(self) -> nn.Module:
        s = self.settings
        layers = []
        for c_in, c_out in pairwise((s.input_shape[0], *s.hidden)):
            layers += [nn.Conv2d(c_in, c_out, kernel_size=4, stride=2, padding=1), ACTIVATION()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(prod(self._innermost), 2 * s.latent_dim))

    def _build_decoder(self) -> nn.Module:
        s, outputs = self.settings, self.likelihood.outputs
        layers = []
        for c_in, c_out in pairwise((*reversed(s.hidden), outputs * s.input_shape[0])):
            layers += [ACTIVATION(), nn.ConvTranspose2d(c_in, c_out, kernel_size=4, stride=2, padding=1)]
        return nn.Sequential(
            nn.Linear(s.latent_dim, prod(self._innermost)),
            nn.Unflatten(1, self._innermost),
            *layers,
            nn.Unflatten(1, (outputs, s.input_shape[0])),
        )

    @property
    def _innermost(self) -> tuple[int, int, int]:
        """The shape of the tensor between the convolutions and the linear layer."""
        channels, height, width = self.settings.input_shape
        halvings = len(self.settings.hidden)
        return ((channels, *self.settings.hidden)[-1], height >> halvings, width >> halvings)


MODELS: dict[str, type[VAE]] = {"mlp": MLPVAE, "conv": ConvVAE}


def _linear_layers(*sizes: int) -> list[nn.Module]:
    """Linear layers from each size to the next, with `ACTIVATION` between them."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(sizes):
        layers += [nn.Linear(size_in, size_out), ACTIVATION()]
    return layers[:-1]


def _default_channels(height: int, width: int) -> tuple[int, ...]:
    channels = (32, 64, 128, 256)
    fitting = [n for n in range(len(channels) + 1) if all(s % 2**n == 0 and s >> n >= 4 for s in (height, width))]
    return channels[: max(fitting, default=0)]
