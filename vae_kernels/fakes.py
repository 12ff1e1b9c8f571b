"""The ops that every kernel backend registers: their schemas, and shapes and strides of their results for tracing.

`inputs` of a likelihood are the decoder's first output, `x`, then the family's other parameters; those given as Python
floats follow in `constants`.
"""

import torch
from torch import Tensor

from .eager import compute_dtype

SCHEMAS = {
    "latent_forward": "(Tensor mu, Tensor logvar, Tensor? seed, Tensor? eps, int batch_dims) -> (Tensor, Tensor)",
    "latent_backward": (
        "(Tensor? grad_z, Tensor? grad_kl, Tensor mu, Tensor logvar, Tensor? seed, Tensor? eps, int batch_dims,"
        " bool[] needs) -> Tensor[]"
    ),
    "likelihood_forward": "(str family, Tensor[] inputs, float[] constants, int batch_dims) -> Tensor",
    "likelihood_backward": (
        "(str family, Tensor grad, Tensor[] inputs, float[] constants, int batch_dims, bool[] needs) -> Tensor[]"
    ),
}


def register(namespace: str) -> None:
    for name in SCHEMAS:
        torch.library.register_fake(f"{namespace}::{name}", globals()[f"_{name}"])


def _latent_forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, eps: Tensor | None, batch_dims: int
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(mu), mu.new_empty(mu.shape[:batch_dims], dtype=compute_dtype(mu, logvar))


def _latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    eps: Tensor | None,
    batch_dims: int,
    needs: list[bool],
) -> list[Tensor]:
    return [torch.empty_like(mu, dtype=t.dtype) for t, need in zip((mu, logvar, eps), needs, strict=True) if need]


def _likelihood_forward(family: str, inputs: list[Tensor], constants: list[float], batch_dims: int) -> Tensor:
    return inputs[0].new_empty(inputs[0].shape[:batch_dims], dtype=compute_dtype(*inputs))


def _likelihood_backward(
    family: str, grad: Tensor, inputs: list[Tensor], constants: list[float], batch_dims: int, needs: list[bool]
) -> list[Tensor]:
    full = inputs[0]
    return [
        torch.empty_like(full, dtype=t.dtype) if t.shape == full.shape else t.new_empty(t.shape)
        for t, need in zip(inputs, needs, strict=True)
        if need
    ]
