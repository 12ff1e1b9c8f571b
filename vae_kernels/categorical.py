"""The reconstruction term for discrete data: the log-likelihood of classes under a softmax, summed per sample."""

import torch
from torch import Tensor

from . import checks, eager, transforms
from .backends import backend_of
from .options import REDUCTIONS


def categorical_log_likelihood(logits: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum") -> Tensor:
    """Sum the categorical log-likelihood of the classes `x` per sample, from logits.

        log p(x) = Σ aₓ − ln Σₖ exp(aₖ),    a = logits, k over their last dim        [nats]

    For each sample this is `−cross_entropy(..., reduction="sum")` with the classes in the last dim. Use it for tokens,
    or for pixels of 256 values. The log-sum-exp is accurate even if one class has nearly all of the probability. Only
    `logits` and `x` are kept for the backward pass.

    If an element of `x` is no valid class, its sample's value is NaN, and so are the gradients of all logits at that
    position. Within `check_values` a `ValueError` names the sample instead. There is no `ignore_index`: for padding,
    use `reduction="none"` and mask the log-likelihoods at the padded positions, where `x` may be any class.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, of shape `(B, …, classes)`, any strides.
        x: classes from 0 to `classes − 1`, any integer dtype or bool, of the shape of `logits` without its last dim.
            Leading batch dims may be missing or 1. It has no gradient.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood at every position.

    Returns:
        Shape `logits.shape[:batch_dims]`, or `logits.shape[:-1]` for `reduction="none"`; float64 if `logits` is
        float64, else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit, or there are no classes.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", equations 4.104 and 4.108.

    >>> import torch, vae_kernels as vk
    >>> vk.categorical_log_likelihood(torch.zeros(2, 3, 10), torch.tensor([[0, 4, 9]] * 2))
    tensor([-6.9078, -6.9078])
    """
    x, batch_dims = _check(logits, x, batch_dims, reduction)
    backend = backend_of(logits)
    if backend == "eager":
        return transforms.with_dense_gradients(_eager(logits, x, batch_dims))
    return CategoricalLogLikelihood.apply(logits, x, batch_dims, f"vae_kernels_{backend}")


class CategoricalLogLikelihood(torch.autograd.Function):
    """Autograd function with one kernel per direction."""

    @staticmethod
    def forward(ctx, logits, x, batch_dims, namespace):
        ctx.save_for_backward(logits, x)
        ctx.batch_dims, ctx.namespace = batch_dims, namespace
        return getattr(torch.ops, namespace).categorical_forward.default(logits, x, batch_dims)

    @staticmethod
    def backward(ctx, grad):
        grad = transforms.dense(grad)
        logits, x = ctx.saved_tensors
        if transforms.only_eager(grad):
            (grad_logits,) = eager.gradients(lambda a: _eager(a, x, ctx.batch_dims), (logits,), (True,), (grad,))
        else:
            op = getattr(torch.ops, ctx.namespace).categorical_backward.default
            grad_logits = op(grad, logits, x, ctx.batch_dims)
        return grad_logits, None, None, None


def _eager(logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    return eager.sum_columns(eager.categorical(logits.to(eager.compute_dtype(logits)), x), batch_dims)


def _check(logits: Tensor, x: Tensor, batch_dims: int, reduction: str) -> tuple[Tensor, int]:
    """Check the arguments. Returns `x`, broadcast to one class for each position, and the number of dims kept."""
    checks.tensor("logits", logits, checks.FLOATS)
    checks.tensor("x", x, checks.INTEGERS)
    checks.same_device("x", x, "logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have at least one class in their last dim, got the shape {tuple(logits.shape)}")
    summed = checks.choice("reduction", reduction, REDUCTIONS) is None
    batch_dims = checks.batch_dims(batch_dims, "logits", logits, others=1, summed=summed)
    x = checks.target(x, logits.shape[:-1], "logits without the classes", batch_dims)
    if checks.values_checked():
        checks.no_nan("logits", logits, batch_dims)
        last = logits.shape[-1] - 1
        checks.in_range("x", x, batch_dims, checks.Range(f"in [0, {last}]", lambda v: (v >= 0) & (v <= last)))
    return x, batch_dims if summed else logits.dim() - 1
