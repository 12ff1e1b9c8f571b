"""Reconstruction terms: log-likelihoods of `x` under the decoder's output, summed per sample."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, eager, transforms
from .backends import current_backend


class Family(NamedTuple):
    """One family of distributions: the arguments in order, the log-probability of an element in plain PyTorch, and the
    range of `x` that `check_values` lets pass.

    The kernels of every backend know the family by its key in `FAMILIES`.
    """

    arguments: tuple[str, ...]
    log_prob: Callable[..., Tensor]
    support: tuple[float, float] = (-math.inf, math.inf)


FAMILIES = {
    "bernoulli": Family(("logits", "x"), eager.bernoulli, (0, 1)),
    "gaussian": Family(("mean", "x", "logvar"), eager.gaussian),
}


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, *, batch_dims: int = 1) -> Tensor:
    """Sum the Bernoulli log-likelihood of `x` per sample, from logits.

        log p(x) = Σ x · a − softplus(a),    a = logits        [nats]

    This is `−binary_cross_entropy_with_logits(logits, x, reduction="sum")` of each sample. `x` outside [0, 1] is
    evaluated by the formula.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `logits`, except that leading batch dims
            may be missing or 1.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `logits.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1.

    >>> import torch, vae_kernels as vk
    >>> vk.bernoulli_log_likelihood(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("bernoulli", (logits, x), batch_dims)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, logvar: Tensor | float = 0.0, *, batch_dims: int = 1) -> Tensor:
    """Sum the Gaussian log-likelihood of `x` per sample.

        log p(x) = Σ −½ (logvar + (x − mean)² · exp(−logvar) + ln 2π)        [nats]

    The constant is always there. `logvar` is the natural logarithm of the *variance*; from a log standard deviation pass
    `2 * logstd`.

    Args:
        mean: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `mean`, except that leading batch dims may
            be missing or 1.
        logvar: a float, or a tensor that broadcasts to `mean`: one for all, one per channel, one per element. Its
            gradient has its own shape and dtype.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `mean.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.2.

    >>> import torch, vae_kernels as vk
    >>> vk.gaussian_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), logvar=0.0)
    tensor([-2.7568, -2.7568])
    """
    return _log_likelihood("gaussian", (mean, x, logvar), batch_dims)


def _log_likelihood(family: str, arguments: tuple[Tensor | float, ...], batch_dims: int) -> Tensor:
    inputs, constants = _check(family, arguments, batch_dims)
    backend = "eager" if transforms.active() else current_backend(inputs[0].device.type)
    if backend == "eager":
        return _eager(family, inputs, constants, batch_dims)
    return LogLikelihood.apply(family, constants, batch_dims, f"vae_kernels_{backend}", *inputs)


class LogLikelihood(torch.autograd.Function):
    """One kernel forward, one backward."""

    @staticmethod
    def forward(ctx, *arguments):
        # Named parameters before the inputs would let Dynamo drop `ctx` of two inputs without gradient: it compares the
        # number of arguments with that of parameters, `*inputs` counting as one.
        family, constants, batch_dims, namespace, *inputs = arguments
        ctx.save_for_backward(*inputs)
        ctx.family, ctx.constants, ctx.batch_dims, ctx.namespace = family, constants, batch_dims, namespace
        return getattr(torch.ops, namespace).likelihood_forward.default(family, inputs, constants, batch_dims)

    @staticmethod
    def backward(ctx, grad):
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[4:]
        if torch.is_grad_enabled() or transforms.batched(grad):
            grads = eager.gradients(
                lambda *args: _eager(ctx.family, args, ctx.constants, ctx.batch_dims), inputs, needs, (grad,)
            )
        else:
            grads = getattr(torch.ops, ctx.namespace).likelihood_backward.default(
                ctx.family, grad, inputs, ctx.constants, ctx.batch_dims, needs
            )
        grads = iter(grads)
        return None, None, None, None, *(next(grads) if need else None for need in needs)


def _eager(family: str, inputs: tuple[Tensor, ...], constants: list[float], batch_dims: int) -> Tensor:
    dtype = eager.compute_dtype(*inputs)
    constants = [torch.full((), c, dtype=dtype, device=inputs[0].device) for c in constants]
    elements = FAMILIES[family].log_prob(*(t.to(dtype) for t in inputs), *constants)
    return eager.sum_columns(elements, batch_dims)


def _check(
    family: str, arguments: tuple[Tensor | float, ...], batch_dims: int
) -> tuple[tuple[Tensor, ...], list[float]]:
    """Tensors in the order of the family's arguments, then the parameters given as numbers."""
    names = FAMILIES[family].arguments
    first, x = arguments[:2]
    checks.tensor(names[0], first, checks.FLOATS)
    checks.tensor("x", x, checks.TARGETS)
    checks.same_device("x", x, names[0], first)
    checks.batch_dims(batch_dims, names[0], first)
    inputs = [first, _expand_target(x, names[0], first, batch_dims)]
    constants = []
    for name, parameter in zip(names[2:], arguments[2:], strict=True):
        if isinstance(parameter, int | float) and not isinstance(parameter, bool):
            constants.append(float(parameter))
            continue
        checks.tensor(name, parameter, checks.FLOATS)
        checks.same_device(name, parameter, names[0], first)
        inputs.append(_expand_parameter(name, parameter, names[0], first, batch_dims))
    if checks.values_checked():
        for name, value in zip(names, inputs, strict=False):
            checks.no_nan(name, value, batch_dims if value.dim() == first.dim() else 0)
        checks.in_range("x", inputs[1], batch_dims, *FAMILIES[family].support)
    return tuple(inputs), constants


def _expand_target(x: Tensor, first_name: str, first: Tensor, batch_dims: int) -> Tensor:
    """`x` in the shape of the decoder's output; only batch dims are broadcast, so that no other mismatch passes."""
    if x.shape == first.shape:
        return x
    missing = first.dim() - x.dim()
    leading = first.shape[missing:batch_dims] if missing >= 0 else ()
    fits = (
        0 <= missing <= batch_dims
        and x.shape[batch_dims - missing :] == first.shape[batch_dims:]
        and all(have in (1, want) for have, want in zip(x.shape, leading, strict=False))
    )
    if not fits:
        raise ValueError(
            f"x must have the shape of {first_name}, {tuple(first.shape)} (of the first {batch_dims} dims, batch_dims, "
            f"leading ones may be missing or 1), got {tuple(x.shape)}"
        )
    return x.expand_as(first)


def _expand_parameter(name: str, parameter: Tensor, first_name: str, first: Tensor, batch_dims: int) -> Tensor:
    """A parameter that is the same for all samples as it is: the kernels broadcast it. Any other is expanded here, and
    autograd sums its gradient."""
    if parameter.shape == first.shape:
        return parameter
    try:
        expanded = parameter.expand_as(first)
    except RuntimeError:
        raise ValueError(
            f"{name} must broadcast to the shape of {first_name}, {tuple(first.shape)}, got {tuple(parameter.shape)}"
        ) from None
    leading = parameter.shape[: max(batch_dims - (first.dim() - parameter.dim()), 0)]
    return parameter if all(size == 1 for size in leading) else expanded
