"""Calls that launch the Triton kernels in all their forms, forward and backward, on tensors that nobody has filled.

What makes the tensors is an argument: of no memory for compiling alone, of memory for launching.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_kernels.likelihood import FAMILIES
from vae_kernels.triton import OPS, latent

# `make(5, 37)` or `make((5, 37))`, and perhaps a dtype.
Make = Callable[..., Tensor]

BF16, F16, F64, U8, I64 = torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64


def transposed(make: Make, *shape: int) -> Tensor:
    return make(*shape[::-1]).permute(*range(len(shape))[::-1])


def cropped(make: Make, *shape: int) -> Tensor:
    return make(*(n + 1 for n in shape))[tuple(slice(1, None) for _ in shape)]


def channels_last(make: Make, n: int, c: int, h: int, w: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return make(n, h, w, c, dtype=dtype).permute(0, 3, 1, 2)


def latent_step(
    make: Make,
    *inputs: Tensor | None,
    batch_dims: int = 1,
    packed_dim: int = 0,
    num_samples: int | None = None,
    used: tuple[bool, bool] = (True, True),
    **settings: Any,
) -> None:
    """Of mu, logvar, the prior's parameters, seed and eps, those behind the last given being missing; `used` says which
    of z and the KL divergence has a gradient."""
    inputs = (*inputs, *(None for _ in range(6 - len(inputs))))
    if inputs[4] is None and inputs[5] is None:
        inputs = (*inputs[:4], make(1, dtype=I64), None)
    given = {"scale": "logvar", "low": None, "high": None, "estimator": "analytic", "reduction": "sum"} | settings
    settings = (batch_dims, packed_dim, num_samples, *given.values())
    outputs = latent.latent_forward(*inputs, *settings)
    upstream = [make(t.shape, dtype=t.dtype) if is_used else None for t, is_used in zip(outputs, used, strict=True)]
    latent.latent_backward(*upstream, *inputs, [t is not None for t in (*inputs[:4], inputs[5])], *settings)


def likelihood(
    make: Make, family: str, *inputs: Tensor, constants: tuple[float, ...] = (), batch_dims: int = 1, x: bool = False
) -> None:
    """`x` says whether the target has a gradient."""
    out = OPS["likelihood_forward"](family, list(inputs), list(constants), batch_dims)
    needs = [i != 1 or x for i in range(len(inputs))]
    grad = make(out.shape, dtype=out.dtype)
    OPS["likelihood_backward"](family, grad, list(inputs), list(constants), batch_dims, needs)


def categorical(make: Make, logits: Tensor, batch_dims: int = 1) -> None:
    x = make(logits.shape[:-1], dtype=I64)
    out = OPS["categorical_forward"](logits, x, batch_dims)
    OPS["categorical_backward"](make(out.shape, dtype=out.dtype), logits, x, batch_dims)


def short_ops(make: Make) -> None:
    """Those that have few arguments."""
    mu, logvar, m, v, seed = *(make(5, 36) for _ in range(4)), make(1, dtype=I64)
    z, kl = OPS["latent_plain_forward"](mu, logvar, seed, 1)
    OPS["latent_plain_backward"](z, kl, mu, logvar, seed, 1)
    OPS["latent_prior_forward"](mu, logvar, m, v, seed, 1)
    OPS["latent_prior_backward"](z, kl, mu, logvar, m, v, seed, 1)
    z, kl = OPS["latent_packed_forward"](mu, seed, 1, 1, -30.0, 20.0)
    OPS["latent_packed_backward"](z, kl, mu, seed, 1, 1, -30.0, 20.0)
    out = OPS["likelihood_pair_forward"]("bernoulli", mu, m, 1)
    OPS["likelihood_pair_backward"]("bernoulli", out, mu, m, 1)
    out = OPS["likelihood_triple_forward"]("gaussian", mu, m, v, 1)
    OPS["likelihood_triple_backward"]("gaussian", out, mu, m, v, 1)


def _family(name: str) -> Callable[[Make], None]:
    names = FAMILIES[name].arguments
    constants = (256.0,) if "bins" in names else ()
    return lambda make: likelihood(
        make, name, *(make(5, 36, dtype=BF16) for _ in names[len(constants) :]), constants=constants, x=True
    )


LATENT: dict[str, Callable[[Make], None]] = {
    "one element": lambda make: latent_step(make, make(1, 1), make(1, 1)),
    "tails": lambda make: latent_step(make, make(5, 37), make(5, 37)),
    "whole tiles": lambda make: latent_step(make, make(64, 512, dtype=BF16), make(64, 512, dtype=BF16)),
    "no batch": lambda make: latent_step(make, make(37), make(37), batch_dims=0),
    "gradient of z alone": lambda make: latent_step(make, make(5, 37), make(5, 37), used=(True, False)),
    "gradient of the KL alone": lambda make: latent_step(make, make(5, 37), make(5, 37), used=(False, True)),
    "noise given": lambda make: latent_step(make, make(5, 37), make(5, 37), None, None, None, make(5, 37)),
    "packed, clamped": lambda make: latent_step(make, make(5, 38), packed_dim=1, low=-30.0, high=20.0),
    "packed, channels last": lambda make: latent_step(make, channels_last(make, 2, 8, 4, 4, dtype=F16), packed_dim=1),
    "a seed for each": lambda make: latent_step(
        make, make(5, 37), make(5, 37), None, None, make(5, dtype=I64), num_samples=3, estimator="path"
    ),
    "samples of elements": lambda make: latent_step(
        make,
        *(make(5, 37), make(5, 37), None, None, None, make(3, 5, 37)),
        num_samples=3,
        estimator="monte_carlo",
        reduction="none",
    ),
    "a prior for each element": lambda make: latent_step(make, *(make(5, 37) for _ in range(4)), estimator="path"),
    "a prior for each column": lambda make: latent_step(make, make(64, 64), make(64, 64), make(64), make(1, 64)),
    "a prior for each channel": lambda make: latent_step(
        make, *(channels_last(make, 2, 3, 4, 4) for _ in range(2)), make(3, 1, 1), make(1)
    ),
    "half a prior, of double numbers": lambda make: latent_step(
        make, make(5, 37), make(5, 37), None, make(5, 37, dtype=F64), scale="variance", low=-3.0, high=4.0
    ),
    "split rows": lambda make: latent_step(make, make(2, 786432), make(2, 786432)),
    "split rows of samples": lambda make: latent_step(
        make, make(2, 786432), make(2, 786432), num_samples=2, estimator="monte_carlo", scale="logstd"
    ),
    "two levels of rows": lambda make: latent_step(make, cropped(make, 3, 4, 16), make(3, 4, 16), batch_dims=2),
    "two levels of columns": lambda make: latent_step(make, cropped(make, 3, 4, 16), make(3, 4, 16)),
    "columns apart": lambda make: latent_step(make, transposed(make, 5, 37), make(5, 37), scale="std"),
}

LIKELIHOOD: dict[str, Callable[[Make], None]] = {
    **{name: _family(name) for name in FAMILIES},
    "one per column": lambda make: likelihood(make, "gaussian", make(64, 64), make(64, 64), make(64)),
    "one for all": lambda make: likelihood(make, "laplace", make(64, 64), make(64, 64), make(1)),
    "a number": lambda make: likelihood(make, "gaussian", make(5, 37), make(5, 37), constants=(0.3,)),
    "split rows of a likelihood": lambda make: likelihood(
        make, "bernoulli", make(2, 786432), make(2, 786432, dtype=U8)
    ),
    "columns apart of a likelihood": lambda make: likelihood(
        make, "gaussian", *(transposed(make, 5, 37) for _ in range(3))
    ),
    "two levels of rows of a likelihood": lambda make: likelihood(
        make, "bernoulli", cropped(make, 3, 4, 16), make(3, 4, 16), batch_dims=2
    ),
    "mixed dtypes": lambda make: likelihood(
        make, "gaussian", make(5, 37, dtype=BF16), make(5, 37, dtype=U8), make(1, dtype=F64)
    ),
    "a target for all samples": lambda make: likelihood(make, "bernoulli", make(5, 37), make(37)),
}

CATEGORICAL: dict[str, Callable[[Make], None]] = {
    "few classes": lambda make: categorical(make, make(300, 2)),
    "positions": lambda make: categorical(make, make(3, 2, 7, dtype=BF16)),
    "many classes": lambda make: categorical(make, make(3, 5000)),
    "whole rows of classes": lambda make: categorical(make, make(2, 3, 8192, dtype=F64), batch_dims=2),
    "classes apart": lambda make: categorical(make, make(2, 7, 4, 4).movedim(1, -1)),
}

CALLS = LATENT | LIKELIHOOD | CATEGORICAL | {"ops of few arguments": short_ops}
