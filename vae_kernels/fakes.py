"""The ops that every kernel backend registers: their schemas, and shapes and strides of their results for tracing.

`inputs` of a likelihood are the decoder's first output, `x`, then the family's other parameters; those given as Python
floats follow in `constants`.
"""

import torch
from torch import Tensor

from .eager import compute_dtype
from .rows import empty_samples

_SETTINGS = (
    "int batch_dims, int packed_dim, int? num_samples, str scale, float? low, float? high, str kl_estimator,"
    " str kl_reduction"
)

SCHEMAS = {
    "latent_forward": (
        "(Tensor mu, Tensor? logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor? seed, Tensor? eps,"
        f" {_SETTINGS}) -> (Tensor, Tensor)"
    ),
    "latent_backward": (
        "(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor? logvar, Tensor? prior_mu, Tensor? prior_logvar,"
        f" Tensor? seed, Tensor? eps, bool[] needs, {_SETTINGS}) -> Tensor[]"
    ),
    # The commonest latent steps, with few arguments.
    "latent_plain_forward": "(Tensor mu, Tensor logvar, Tensor seed, int batch_dims) -> (Tensor, Tensor)",
    "latent_plain_backward": (
        "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor seed, int batch_dims) -> (Tensor, Tensor)"
    ),
    "latent_prior_forward": (
        "(Tensor mu, Tensor logvar, Tensor prior_mu, Tensor prior_logvar, Tensor seed, int batch_dims)"
        " -> (Tensor, Tensor)"
    ),
    "latent_prior_backward": (
        "(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar, Tensor prior_mu, Tensor prior_logvar, Tensor seed,"
        " int batch_dims) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "latent_packed_forward": (
        "(Tensor moments, Tensor seed, int batch_dims, int dim, float? low, float? high) -> (Tensor, Tensor)"
    ),
    "latent_packed_backward": (
        "(Tensor grad_z, Tensor grad_kl, Tensor moments, Tensor seed, int batch_dims, int dim, float? low, float? high)"
        " -> Tensor"
    ),
    "likelihood_forward": "(str family, Tensor[] inputs, float[] constants, int batch_dims) -> Tensor",
    "likelihood_backward": (
        "(str family, Tensor grad, Tensor[] inputs, float[] constants, int batch_dims, bool[] needs) -> Tensor[]"
    ),
    # Families without parameters behind x, or with one; without the gradient of x: with few arguments.
    "likelihood_pair_forward": "(str family, Tensor first, Tensor x, int batch_dims) -> Tensor",
    "likelihood_pair_backward": "(str family, Tensor grad, Tensor first, Tensor x, int batch_dims) -> Tensor",
    "likelihood_triple_forward": "(str family, Tensor first, Tensor x, Tensor parameter, int batch_dims) -> Tensor",
    "likelihood_triple_backward": (
        "(str family, Tensor grad, Tensor first, Tensor x, Tensor parameter, int batch_dims) -> (Tensor, Tensor)"
    ),
    "categorical_forward": "(Tensor logits, Tensor x, int batch_dims) -> Tensor",
    "categorical_backward": "(Tensor grad, Tensor logits, Tensor x, int batch_dims) -> Tensor",
}


def plain_settings(
    batch_dims: int, packed_dim: int = 0, low: float | None = None, high: float | None = None
) -> tuple[int, int, None, str, float | None, float | None, str, str]:
    """The settings of the ops with few arguments."""
    return batch_dims, packed_dim, None, "logvar", low, high, "analytic", "sum"


def register(namespace: str) -> None:
    for name in SCHEMAS:
        torch.library.register_fake(f"{namespace}::{name}", globals()[f"_{name}"])


def _latent_forward(
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
    eps: Tensor | None,
    batch_dims: int,
    packed_dim: int,
    num_samples: int | None,
    scale: str,
    low: float | None,
    high: float | None,
    kl_estimator: str,
    kl_reduction: str,
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(*(t for t in (mu, logvar, prior_mu, prior_logvar) if t is not None))
    mean = mu.chunk(2, packed_dim)[0] if logvar is None else mu
    kl_samples = None if kl_estimator == "analytic" else num_samples
    z = empty_samples(mean, num_samples)
    if kl_reduction == "none":
        return z, empty_samples(mean, kl_samples, dtype)
    samples = () if kl_samples is None else (kl_samples,)
    return z, mu.new_empty((*samples, *mean.shape[:batch_dims]), dtype=dtype)


def _latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
    eps: Tensor | None,
    needs: list[bool],
    batch_dims: int,
    packed_dim: int,
    num_samples: int | None,
    scale: str,
    low: float | None,
    high: float | None,
    kl_estimator: str,
    kl_reduction: str,
) -> list[Tensor]:
    mean = mu.chunk(2, packed_dim)[0] if logvar is None else mu

    def gradient(tensor: Tensor) -> Tensor:
        if tensor is mu and logvar is None:
            return torch.empty_like(mu)
        if tensor is eps:
            return empty_samples(mean, num_samples, eps.dtype)
        return _empty_gradient(tensor, mean)

    inputs = (mu, logvar, prior_mu, prior_logvar, eps)
    return [gradient(t) for t, need in zip(inputs, needs, strict=True) if need]


def _latent_plain_forward(mu: Tensor, logvar: Tensor, seed: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), mu.new_empty(mu.shape[:batch_dims], dtype=compute_dtype(mu, logvar))


def _latent_plain_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, batch_dims: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), torch.empty_like(mu, dtype=logvar.dtype)


def _latent_prior_forward(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, seed: Tensor, batch_dims: int
) -> tuple[Tensor, Tensor]:
    return _latent_forward(mu, logvar, prior_mu, prior_logvar, seed, None, *plain_settings(batch_dims))


def _latent_prior_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    seed: Tensor,
    batch_dims: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return tuple(_empty_gradient(t, mu) for t in (mu, logvar, prior_mu, prior_logvar))


def _latent_packed_forward(
    moments: Tensor, seed: Tensor, batch_dims: int, dim: int, low: float | None, high: float | None
) -> tuple[Tensor, Tensor]:
    return _latent_forward(moments, None, None, None, seed, None, *plain_settings(batch_dims, dim))


def _latent_packed_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    moments: Tensor,
    seed: Tensor,
    batch_dims: int,
    dim: int,
    low: float | None,
    high: float | None,
) -> Tensor:
    return torch.empty_like(moments)


def _empty_gradient(tensor: Tensor, full: Tensor) -> Tensor:
    return torch.empty_like(full, dtype=tensor.dtype) if tensor.shape == full.shape else tensor.new_empty(tensor.shape)


def _likelihood_forward(family: str, inputs: list[Tensor], constants: list[float], batch_dims: int) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[:batch_dims], dtype=compute_dtype(*inputs))


def _likelihood_backward(
    family: str, grad: Tensor, inputs: list[Tensor], constants: list[float], batch_dims: int, needs: list[bool]
) -> list[Tensor]:
    return [_empty_gradient(t, inputs[0]) for t, need in zip(inputs, needs, strict=True) if need]


def _likelihood_pair_forward(family: str, first: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return _likelihood_forward(family, [first, x], [], batch_dims)


def _likelihood_pair_backward(family: str, grad: Tensor, first: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return torch.empty_like(first)


def _likelihood_triple_forward(family: str, first: Tensor, x: Tensor, parameter: Tensor, batch_dims: int) -> Tensor:
    return _likelihood_forward(family, [first, x, parameter], [], batch_dims)


def _likelihood_triple_backward(
    family: str, grad: Tensor, first: Tensor, x: Tensor, parameter: Tensor, batch_dims: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(first), _empty_gradient(parameter, first)


def _categorical_forward(logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return logits.new_empty(logits.shape[:batch_dims], dtype=compute_dtype(logits))


def _categorical_backward(grad: Tensor, logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return torch.empty_like(logits)
