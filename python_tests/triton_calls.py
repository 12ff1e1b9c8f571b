"""Calls that launch the Triton kernels in all their forms, forward and backward, on tensors that nobody has filled.

What makes the tensors is an argument: of no memory for compiling alone, of memory for launching.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae_kernels.families import FAMILIES, INDEX
from vae_kernels.options import KlEstimator, LatentOptions, LikelihoodOptions, Reduction, Scale
from vae_kernels.triton import OPS

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
    used: tuple[bool, bool] = (True, True),
    **options: Any,
) -> None:
    """Of mu, logvar, the prior's parameters and the noise, those behind the last given being missing; `used` says which
    of z and the KL divergence has a gradient."""
    inputs = (*inputs, *(None for _ in range(4 - len(inputs))), *([] if len(inputs) == 5 else [make(1, dtype=I64)]))
    options = LatentOptions(batch_dims, **options)
    outputs = OPS["latent_forward"](*inputs, *options)
    upstream = [make(t.shape, dtype=t.dtype) if is_used else None for t, is_used in zip(outputs, used, strict=True)]
    needs = sum(1 << i for i, t in enumerate(inputs) if t is not None and t.is_floating_point())
    OPS["latent_backward"](*upstream, *inputs, *options, needs)


def likelihood(
    make: Make,
    family: str,
    *arguments: Tensor | float,
    batch_dims: int = 1,
    x: bool = False,
    reduction: Reduction | None = None,
) -> None:
    """`x` says whether the target has a gradient."""
    arguments = (*arguments, *(None for _ in range(4 - len(arguments))))
    inputs = [t if isinstance(t, Tensor) else None for t in arguments]
    numbers = [t if isinstance(t, float) else None for t in arguments[2:]]
    options = LikelihoodOptions(INDEX[family], *numbers, batch_dims, reduction)
    out = OPS["likelihood_forward"](*inputs, *options)
    needs = sum(1 << i for i, t in enumerate(inputs) if t is not None and (i != 1 or x))
    OPS["likelihood_backward"](make(out.shape, dtype=out.dtype), *inputs, *options, needs)


def categorical(make: Make, logits: Tensor, batch_dims: int = 1) -> None:
    x = make(logits.shape[:-1], dtype=I64)
    out = OPS["categorical_forward"](logits, x, batch_dims)
    OPS["categorical_backward"](make(out.shape, dtype=out.dtype), logits, x, batch_dims)


def multinomial(make: Make, logits: Tensor, batch_dims: int = 1, dtype: torch.dtype = I64) -> None:
    x = make(logits.shape, dtype=dtype)
    options = batch_dims, True
    out = OPS["multinomial_forward"](logits, x, *options)
    needs = 1 | dtype.is_floating_point << 1
    OPS["multinomial_backward"](make(out.shape, dtype=out.dtype), logits, x, *options, needs)


def _family(name: str) -> Callable[[Make], None]:
    names = FAMILIES[name].arguments
    return lambda make: likelihood(
        make, name, *(256.0 if argument == "bins" else make(5, 36, dtype=BF16) for argument in names), x=True
    )


LATENT: dict[str, Callable[[Make], None]] = {
    "one element": lambda make: latent_step(make, make(1, 1), make(1, 1)),
    "tails": lambda make: latent_step(make, make(5, 37), make(5, 37)),
    "whole tiles": lambda make: latent_step(make, make(64, 512, dtype=BF16), make(64, 512, dtype=BF16)),
    "no batch": lambda make: latent_step(make, make(37), make(37), batch_dims=0),
    "gradient of z alone": lambda make: latent_step(make, make(5, 37), make(5, 37), used=(True, False)),
    "gradient of the KL alone": lambda make: latent_step(make, make(5, 37), make(5, 37), used=(False, True)),
    "noise given": lambda make: latent_step(make, make(5, 37), make(5, 37), None, None, make(5, 37)),
    "packed, clamped": lambda make: latent_step(make, make(5, 38), packed_dim=1, low=-30.0, high=20.0),
    "packed, channels last": lambda make: latent_step(make, channels_last(make, 2, 8, 4, 4, dtype=F16), packed_dim=1),
    "packed, with a floor": lambda make: latent_step(
        make, make(5, 38), packed_dim=1, scale=Scale.softplus, std_floor=1e-4
    ),
    "a seed for each": lambda make: latent_step(
        make, make(5, 37), make(5, 37), None, None, make(5, dtype=I64), num_samples=3, kl_estimator=KlEstimator.path
    ),
    "samples of elements": lambda make: latent_step(
        make,
        *(make(5, 37), make(5, 37), None, None, make(3, 5, 37)),
        num_samples=3,
        kl_estimator=KlEstimator.monte_carlo,
        kl_reduction=Reduction.none,
    ),
    "a prior for each element": lambda make: latent_step(
        make, *(make(5, 37) for _ in range(4)), kl_estimator=KlEstimator.path
    ),
    "a prior for each column": lambda make: latent_step(make, make(64, 64), make(64, 64), make(64), make(1, 64)),
    "a prior for each channel": lambda make: latent_step(
        make, *(channels_last(make, 2, 3, 4, 4) for _ in range(2)), make(3, 1, 1), make(1)
    ),
    "half a prior, of double numbers": lambda make: latent_step(
        make, make(5, 37), make(5, 37), None, make(5, 37, dtype=F64), scale=Scale.variance, low=-3.0, high=4.0
    ),
    "split rows": lambda make: latent_step(make, make(2, 786432), make(2, 786432)),
    "split rows of samples": lambda make: latent_step(
        make, make(2, 786432), make(2, 786432), num_samples=2, kl_estimator=KlEstimator.monte_carlo, scale=Scale.logstd
    ),
    "two levels of rows": lambda make: latent_step(make, cropped(make, 3, 4, 16), make(3, 4, 16), batch_dims=2),
    "two levels of columns": lambda make: latent_step(make, cropped(make, 3, 4, 16), make(3, 4, 16)),
    "columns apart": lambda make: latent_step(make, transposed(make, 5, 37), make(5, 37), scale=Scale.std),
}

LIKELIHOOD: dict[str, Callable[[Make], None]] = {
    **{name: _family(name) for name in FAMILIES},
    "one per column": lambda make: likelihood(make, "gaussian", make(64, 64), make(64, 64), make(64)),
    "one for all": lambda make: likelihood(make, "laplace", make(64, 64), make(64, 64), make(1)),
    "elements": lambda make: likelihood(
        make, "laplace", make(64, 64), make(64, 64), make(64), x=True, reduction=Reduction.none
    ),
    "elements in two levels of rows": lambda make: likelihood(
        make, "bernoulli", cropped(make, 3, 4, 16), make(3, 4, 16), batch_dims=2, reduction=Reduction.none
    ),
    "a number": lambda make: likelihood(make, "gaussian", make(5, 37), make(5, 37), 0.3),
    "a number before a tensor": lambda make: likelihood(
        make, "zero_inflated_negative_binomial", make(5, 37), make(5, 37), 2.0, make(37)
    ),
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

MULTINOMIAL: dict[str, Callable[[Make], None]] = {
    "counts": lambda make: multinomial(make, make(5, 37)),
    "counts of positions": lambda make: multinomial(make, make(3, 2, 7, dtype=BF16), dtype=F64),
    "many counts": lambda make: multinomial(make, make(3, 5000), dtype=torch.float32),
    "whole rows of counts": lambda make: multinomial(make, make(2, 3, 8192), batch_dims=2, dtype=BF16),
    "counts apart": lambda make: multinomial(make, make(2, 7, 4, 4).movedim(1, -1), dtype=torch.float32),
}

CALLS = LATENT | LIKELIHOOD | CATEGORICAL | MULTINOMIAL
