"""The reconstruction term of discrete data: the log-likelihood of classes under a softmax, summed per sample."""

import torch
from torch import Tensor

from . import checks, eager, transforms
from .backends import backend_of
from .options import REDUCTIONS


def categorical_log_likelihood(logits: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum") -> Tensor:
    """Sum the categorical log-likelihood of the classes `x` per sample, from logits.

        log p(x) = Σ aₓ − ln Σₖ exp(aₖ),    a = logits, k over their last dim        [nats]

    This is `−cross_entropy(..., reduction="sum")` of each sample, with the classes in the last dim: for tokens, or for
    pixels of 256 values. The largest logit is taken out of the sum, and what the others add to it is not lost however
    little it is. Nothing is kept for the backward pass but `logits` and `x`.

    Where `x` is no class, the value of its sample is NaN, and so is the gradient of all logits of that position;
    `check_values` names the sample instead. There is no `ignore_index`: with `reduction="none"` mask the log-likelihoods
    of padded positions, which may have any class.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, of shape `(B, …, classes)`, any strides.
        x: classes from 0 to `classes − 1`, of any integer dtype or bool; of the shape of `logits` without its last dim,
            except that leading batch dims may be missing or 1. It has no gradient.
        batch_dims: how many leading dims are kept; all others are summed.
        reduction: `"sum"` per sample, or `"none"`: the log-likelihood of every position.

    Returns:
        Shape `logits.shape[:batch_dims]`, or without a sum `logits.shape[:-1]`; float64 if `logits` is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit; no class.
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
    """One kernel forward, one backward."""

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
    """`x`, one class for each position, and how many dims are kept."""
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
