"""The reconstruction term for counts that share one total: the log-likelihood under a multinomial distribution."""

import torch
from torch import Tensor

from . import checks, eager, transforms
from .backends import backend_of
from .rows import compute_dtype


def multinomial_log_likelihood(logits: Tensor, x: Tensor, *, coefficient: bool = True, batch_dims: int = 1) -> Tensor:
    """Sum the multinomial log-likelihood of the counts `x` per sample, from logits.

        log p(x) = Σ xₖ ln pₖ  [+ ln Γ(N + 1) − Σ ln Γ(xₖ + 1)],    p = softmax(logits), N = Σ xₖ, k over the last dim

    The part in brackets, in nats as all else, is the logarithm of the multinomial coefficient. Without it
    (`coefficient=False`) this is `(log_softmax(logits, -1) * x).sum()` for each sample, the loss of Mult-VAE and of
    topic models: a recommender's clicks, or the words of a document. `x` may also hold weights that are no integers.

    ln pₖ is accurate even if one class has nearly all of the probability. If `xₖ` and `pₖ` are 0, the class adds 0 to
    the sum and its ln pₖ counts as 0 in the gradient of `x`, as in `torch.distributions.Multinomial`. Only `logits` and
    `x` are kept for the backward pass. The CPU kernels are made for thousands of classes: with two threads, 128×20000
    takes 1.0 ms forward and backward (`log_softmax` and a product: 2.5 ms), but 4096×50 takes 0.46 ms (0.15 ms).

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, of shape `(B, …, classes)`, any strides.
        x: counts or weights, at least 0, any of these dtypes, an integer dtype or bool, of the shape of `logits`.
            Leading batch dims may be missing or 1.
        coefficient: whether the logarithm of the multinomial coefficient is added. It does not depend on `logits`. Its
            terms grow as N ln N. If they cancel those of ln p, as for a large N over few classes, the rounding errors
            of float32 stay in the difference: pass float64 if that matters.
        batch_dims: the number of leading dims that are kept; all others are summed.

    Returns:
        Shape `logits.shape[:batch_dims]`; float64 if an input is float64, else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here; `coefficient` is not a bool.
        ValueError: shapes, devices or `batch_dims` do not fit, or there are no classes.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Liang et al. 2018, "Variational Autoencoders for Collaborative Filtering", equation 2.

    >>> import torch, vae_kernels as vk
    >>> vk.multinomial_log_likelihood(torch.zeros(2, 4), torch.tensor([[1, 0, 2, 0], [0, 0, 0, 0]]))
    tensor([-3.0603,  0.0000])
    """
    x, batch_dims = _check(logits, x, coefficient, batch_dims)
    backend = backend_of(logits)
    if backend == "eager":
        return transforms.with_dense_gradients(_eager(logits, x, batch_dims, coefficient))
    return MultinomialLogLikelihood.apply(logits, x, batch_dims, coefficient, f"vae_kernels_{backend}")


class MultinomialLogLikelihood(torch.autograd.Function):
    """Autograd function with one kernel per direction."""

    @staticmethod
    def forward(ctx, logits, x, batch_dims, coefficient, namespace):
        ctx.save_for_backward(logits, x)
        ctx.batch_dims, ctx.coefficient, ctx.namespace = batch_dims, coefficient, namespace
        return getattr(torch.ops, namespace).multinomial_forward.default(logits, x, batch_dims, coefficient)

    @staticmethod
    def backward(ctx, grad):
        grad = transforms.dense(grad)
        inputs, needs, options = ctx.saved_tensors, ctx.needs_input_grad, (ctx.batch_dims, ctx.coefficient)
        if transforms.only_eager(grad):
            gradients = eager.gradients(lambda *inputs: _eager(*inputs, *options), inputs, needs[:2], (grad,))
        else:
            op = getattr(torch.ops, ctx.namespace).multinomial_backward.default
            gradients = op(grad, *inputs, *options, needs[0] | needs[1] << 1)
        return *gradients, None, None, None


def _eager(logits: Tensor, x: Tensor, batch_dims: int, coefficient: bool) -> Tensor:
    dtype = compute_dtype(logits, x)
    return eager.sum_columns(eager.multinomial(logits.to(dtype), x.to(dtype), coefficient), batch_dims)


def _check(logits: Tensor, x: Tensor, coefficient: bool, batch_dims: int) -> tuple[Tensor, int]:
    """Check the arguments. Returns `x`, broadcast to the shape of `logits`, and the number of dims kept."""
    checks.tensor("logits", logits, checks.FLOATS)
    checks.tensor("x", x, checks.TARGETS)
    checks.same_device("x", x, "logits", logits)
    if not isinstance(coefficient, bool):
        raise TypeError(f"coefficient must be a bool, got {type(coefficient).__name__}")
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must have at least one class in their last dim, got the shape {tuple(logits.shape)}")
    batch_dims = checks.batch_dims(batch_dims, "logits", logits, others=1)
    if x.requires_grad and x.shape != logits.shape:
        x = x.to(compute_dtype(logits, x))  # its gradient is summed over samples, and rounded once
    x = checks.target(x, logits.shape, "logits", batch_dims)
    if checks.values_checked():
        checks.no_nan("logits", logits, batch_dims)
        checks.in_range("x", x, batch_dims, checks.NOT_NEGATIVE)
    return x, batch_dims
