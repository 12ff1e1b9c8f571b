"""The same mathematics in plain PyTorch: the oracle of the tests, and the fallback on every device without a kernel.

Differentiable to any order, and under every functorch transform.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of arithmetic and sums: float64 if any tensor is, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sum_columns(elements: Tensor, batch_dims: int) -> Tensor:
    """Sum over the dims behind the first `batch_dims`."""
    return elements if elements.dim() == batch_dims else elements.sum(dim=tuple(range(batch_dims, elements.dim())))


def exp_minus_1_minus(l: Tensor) -> Tensor:  # noqa: E741
    """`eˡ − 1 − l` without the loss near 0: in float64, or for float64 itself and on devices without it by the Taylor
    series where |l| ≤ ½, which costs many more passes."""
    if l.dtype == torch.float32 and l.device.type != "mps":
        wide = l.double()
        return (torch.expm1(wide) - wide).float()
    terms = 14 if l.dtype == torch.float64 else 7
    small = l.abs() <= 0.5
    inside = torch.where(small, l, 0)
    series = torch.full_like(l, 1 / math.factorial(terms + 1))
    for n in range(terms, 1, -1):
        series = series * inside + 1 / math.factorial(n)
    return torch.where(small, series * inside * inside, torch.expm1(l) - l)


def reparameterize_kl(mu: Tensor, logvar: Tensor, eps: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
    """`z = mu + exp(logvar/2)·eps` and `KL = Σ ½ (mu² + e^logvar − 1 − logvar)`."""
    dtype = compute_dtype(mu, logvar)
    m, l, e = mu.to(dtype), logvar.to(dtype), eps.to(dtype)  # noqa: E741
    z = m + torch.exp(0.5 * l) * e
    kl = sum_columns(0.5 * (m * m + exp_minus_1_minus(l)), batch_dims)
    return z.to(mu.dtype), kl


def bernoulli(logits: Tensor, x: Tensor) -> Tensor:
    """`x·a − softplus(a)`, by PyTorch's own fused op: what people have, at its speed."""
    return -F.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")


def gaussian(mean: Tensor, x: Tensor, logvar: Tensor | float) -> Tensor:
    """`−½ (logvar + (x − mean)² e^−logvar + ln 2π)`."""
    precision = torch.exp(-logvar) if isinstance(logvar, Tensor) else math.exp(-logvar)
    return -0.5 * (logvar + (x - mean) ** 2 * precision + math.log(2 * math.pi))


def gradients(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: tuple[Tensor, ...],
    needs: Sequence[bool],
    upstream: tuple[Tensor | None, ...],
) -> list[Tensor]:
    """Gradients of `function(*inputs)` for the inputs that need one, differentiable in their turn under `create_graph`.

    `upstream` holds the gradient of each output, None for one that nothing used.
    """
    # Views stand between the inputs and whatever made them: if one input was computed from another, its gradient must
    # not contain the other's.
    with torch.enable_grad():
        aliases = [t.view_as(t) if need else t for t, need in zip(inputs, needs, strict=True)]
        outputs = function(*aliases)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    # An output that depends on no input that needs a gradient (the KL on eps alone) contributes nothing.
    used = [(o, g) for o, g in zip(outputs, upstream, strict=True) if g is not None and o.requires_grad]
    wanted = [t for t, need in zip(aliases, needs, strict=True) if need]
    if not used:
        return [torch.zeros_like(t) for t in wanted]
    return list(
        torch.autograd.grad(
            [o for o, _ in used],
            wanted,
            [g for _, g in used],
            create_graph=torch.is_grad_enabled(),
            materialize_grads=True,
        )
    )
