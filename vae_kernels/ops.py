"""The ops of every kernel backend: schemas, and functions that allocate results, which tracing uses too."""

import torch
from torch import Tensor

from .options import LatentOptions, LikelihoodOptions
from .rows import compute_dtype, empty_samples

_LATENT = (
    "Tensor mu, Tensor? logvar, Tensor? prior_mu, Tensor? prior_logvar, Tensor noise, int batch_dims, int? packed_dim,"
    " int? num_samples, int? scale, float? std_floor, float? low, float? high, int? kl_estimator, int? kl_reduction"
)
_LIKELIHOOD = (
    "Tensor first, Tensor x, Tensor? parameter0, Tensor? parameter1, int family, float? number0, float? number1,"
    " int batch_dims, int? reduction"
)
# If `logvar` is None, `mu` holds both moments along `packed_dim`. `noise` is int64 seeds, or eps itself. Bit i of
# `needs` is set if gradient i is wanted; an unwanted gradient is None. Options are numbers instead of strings and
# lists, and None for a default: for small tensors passing arguments dominates, and an int takes twice the time of None.
SCHEMAS = {
    "latent_forward": f"({_LATENT}) -> (Tensor, Tensor)",
    "latent_backward": (
        f"(Tensor? grad_z, Tensor? grad_kl, {_LATENT}, int needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
    ),
    "likelihood_forward": f"({_LIKELIHOOD}) -> Tensor",
    "likelihood_backward": f"(Tensor grad, {_LIKELIHOOD}, int needs) -> (Tensor, Tensor, Tensor, Tensor)",
    "categorical_forward": "(Tensor logits, Tensor x, int batch_dims) -> Tensor",
    "categorical_backward": "(Tensor grad, Tensor logits, Tensor x, int batch_dims) -> Tensor",
    "multinomial_forward": "(Tensor logits, Tensor x, int batch_dims, bool coefficient) -> Tensor",
    "multinomial_backward": (
        "(Tensor grad, Tensor logits, Tensor x, int batch_dims, bool coefficient, int needs) -> (Tensor, Tensor)"
    ),
}

_libraries: dict[str, torch.library.Library] = {}


def define(namespace: str) -> torch.library.Library:
    """Define the ops of a backend, and register the functions that tracing calls instead."""
    library = _libraries[namespace] = torch.library.Library(namespace, "DEF")
    for name, schema in SCHEMAS.items():
        library.define(name + schema)
        torch.library.register_fake(f"{namespace}::{name}", globals()[name])
    return library


def latent_forward(
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    noise: Tensor,
    *options: float,
) -> tuple[Tensor, Tensor]:
    options = LatentOptions(*options)
    mean = mu if logvar is not None else mu.chunk(2, options.packed_dim)[0]
    dtype = compute_dtype(*(t for t in (mu, logvar, prior_mu, prior_logvar) if t is not None))
    z = empty_samples(mean, options.num_samples)
    if not options.summed:
        return z, empty_samples(mean, options.kl_samples, dtype)
    samples = (options.kl_samples,) if options.kl_samples else ()
    return z, mu.new_empty((*samples, *mean.shape[: options.batch_dims]), dtype=dtype)


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    noise: Tensor,
    *options_and_needs: float,
) -> tuple[Tensor | None, ...]:
    *options, needs = options_and_needs
    options = LatentOptions(*options)
    mean = mu if logvar is not None else mu.chunk(2, options.packed_dim)[0]
    return (
        torch.empty_like(mu) if needs & 1 else None,
        torch.empty_like(mean, dtype=logvar.dtype) if needs & 2 else None,
        _empty_gradient(prior_mu, mean) if needs & 4 else None,
        _empty_gradient(prior_logvar, mean) if needs & 8 else None,
        empty_samples(mean, options.num_samples, noise.dtype) if needs & 16 else None,
    )


def _empty_gradient(tensor: Tensor, full: Tensor) -> Tensor:
    return torch.empty_like(full, dtype=tensor.dtype) if tensor.shape == full.shape else tensor.new_empty(tensor.shape)


def likelihood_forward(
    first: Tensor, x: Tensor, parameter0: Tensor | None, parameter1: Tensor | None, *options: float
) -> Tensor:
    options = LikelihoodOptions(*options)
    dtype = compute_dtype(*(t for t in (first, x, parameter0, parameter1) if t is not None))
    if not options.summed:
        return torch.empty_like(first, dtype=dtype)
    return first.new_empty(first.shape[: options.batch_dims], dtype=dtype)


def likelihood_backward(
    grad: Tensor,
    first: Tensor,
    x: Tensor,
    parameter0: Tensor | None,
    parameter1: Tensor | None,
    *options_and_needs: float,
) -> tuple[Tensor | None, ...]:
    needs = options_and_needs[-1]
    inputs = (first, x, parameter0, parameter1)
    return tuple(_empty_gradient(t, first) if needs >> i & 1 else None for i, t in enumerate(inputs))


def categorical_forward(logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return logits.new_empty(logits.shape[:batch_dims], dtype=compute_dtype(logits))


def categorical_backward(grad: Tensor, logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return torch.empty_like(logits)


def multinomial_forward(logits: Tensor, x: Tensor, batch_dims: int, coefficient: bool) -> Tensor:
    return logits.new_empty(logits.shape[:batch_dims], dtype=compute_dtype(logits, x))


def multinomial_backward(
    grad: Tensor, logits: Tensor, x: Tensor, batch_dims: int, coefficient: bool, needs: int
) -> tuple[Tensor | None, Tensor | None]:
    return (
        torch.empty_like(logits) if needs & 1 else None,
        torch.empty_like(logits, dtype=x.dtype) if needs & 2 else None,
    )
