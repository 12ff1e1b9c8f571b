"""The multinomial likelihood: `Σ xₖ log pₖ` under a softmax over the last dim, summed per sample.

Rows are positions, columns are classes. The logits are read twice, the counts once; the second time the logits of a row
come from a cache. The backward pass reads both twice.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import ops
from ..rows import compute_dtype
from .families import poisson_rate_grad, poisson_rate_log_prob
from .launch import Launch, planned, signature
from .layout import layout
from .math import exp, log_ratio
from .positions import normalize, of_positions, piece, position_tile, summed
from .tile import (
    Tile,
    add_compensated,
    block_index,
    compensated,
    geometry,
    load,
    offsets,
    per_row_offsets,
    store,
    widened,
)

# The most elements that a program holds at once. log Γ takes many registers.
MAX_ELEMENTS = 1024


@triton.jit
def log_factorial(x):
    """log Γ(x+1), from a Poisson with rate 1. It is exactly 0 for x = 0 and x = 1."""
    return tl.where(x == 1.0, 0.0, -1.0 - poisson_rate_log_prob(tl.full(x.shape, 1.0, x.dtype), x))


@triton.jit
def log_factorial_slope(x):
    """ψ(x+1), the derivative of `log_factorial`."""
    return -poisson_rate_grad(tl.full(x.shape, 1.0, x.dtype), x)[1]


@triton.jit(do_not_specialize=["rows", "cols", "inner_rows", "inner_cols"])
def multinomial_forward_kernel(
    logits, x, out, strides, x_strides, rows, cols, inner_rows, inner_cols, COEFFICIENT: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute the log-probability of each row's counts; with the multinomial coefficient if COEFFICIENT."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    shape: tl.constexpr = (DTYPE, VEC, WIDE, EVEN, BLOCK_COLS)
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    r = row[:, None]
    m, total, total_minus_1 = normalize(logits, strides, row, rows, cols, inner_rows, inner_cols, shape)
    zero = tl.zeros([BLOCK_ROWS], DTYPE)
    count, lost_count, weighted, lost_weighted, factorials, lost_factorials = zero, zero, zero, zero, zero, zero
    for start in range(0, cols * VEC, BLOCK_COLS):
        _, l = piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape, float("-inf"))
        _, n = piece(x, x_strides, r, start, rows, cols, inner_rows, inner_cols, shape, 0)
        count, lost_count = add_compensated(count, lost_count, tl.sum(n, 1))
        # A count of 0 adds 0, even if its class has no probability.
        term = tl.sum(tl.where(n == 0.0, 0.0, n * (l - m[:, None])), 1)
        weighted, lost_weighted = add_compensated(weighted, lost_weighted, term)
        if COEFFICIENT:
            factorials, lost_factorials = add_compensated(factorials, lost_factorials, tl.sum(log_factorial(n), 1))
    count = compensated(count, lost_count)
    log_p = compensated(weighted, lost_weighted) - count * log_ratio(total, total_minus_1)[0]
    if COEFFICIENT:
        log_p += log_factorial(count) - compensated(factorials, lost_factorials)
    store(out + row, log_p, row < rows)


@triton.jit(do_not_specialize=["grad", "rows", "cols", "inner_rows", "inner_cols"])
def multinomial_backward_kernel(
    logits, x, grad, outs, strides, x_strides, grad_strides, out_strides, rows, cols, inner_rows, inner_cols,
    NEEDS: tl.constexpr, COEFFICIENT: tl.constexpr, DTYPE: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr,
    EVEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute `xₖ − N pₖ` and `log pₖ`, times the upstream gradient of the row's sample, into outs: those in NEEDS.

    If one class has more than half of the probability, its gradient is `N (1 − p) − (N − x)`, which is accurate even if
    it has nearly all. With the coefficient, the gradient of x has `ψ(N+1) − ψ(xₖ+1)` too.
    """
    shape: tl.constexpr = (DTYPE, VEC, WIDE, EVEN, BLOCK_COLS)
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    r = row[:, None]
    g = load(grad + per_row_offsets(row, grad_strides, inner_rows), row < rows, DTYPE)[:, None]
    m, total, total_minus_1 = normalize(logits, strides, row, rows, cols, inner_rows, inner_cols, shape)
    count = tl.zeros([BLOCK_ROWS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS], DTYPE)
    for start in range(0, cols * VEC, BLOCK_COLS):
        _, n = piece(x, x_strides, r, start, rows, cols, inner_rows, inner_cols, shape, 0)
        count, lost = add_compensated(count, lost, tl.sum(n, 1))
    count = compensated(count, lost)
    scale = (count / total)[:, None]
    of_dominant = (count * (total_minus_1 / total))[:, None]
    dominant = tl.where(total < 2.0, m, float("nan"))[:, None]
    log_total = log_ratio(total, total_minus_1)[0][:, None]
    if COEFFICIENT and NEEDS & 2 != 0:
        slope = log_factorial_slope(count)[:, None]
    for start in range(0, cols * VEC, BLOCK_COLS):
        c, l = piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape, float("-inf"))
        _, n = piece(x, x_strides, r, start, rows, cols, inner_rows, inner_cols, shape, 0)
        at = offsets(r, c, out_strides, inner_rows, inner_cols, VEC)
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        if NEEDS & 1 != 0:
            value = tl.where(l == dominant, of_dominant - (count[:, None] - n), n - scale * exp(l - m[:, None]))
            store(outs[0] + at, g * value, mask)
        if NEEDS & 2 != 0:
            log_p = (l - m[:, None]) - log_total
            # A class without probability and counts has the gradient of log p = 0, as in torch.distributions.
            value = tl.where((n == 0.0) & (log_p == float("-inf")), 0.0, log_p)
            if COEFFICIENT:
                value += slope - log_factorial_slope(n)
            store(outs[-1] + at, g * value, mask)


def multinomial_forward(logits: Tensor, x: Tensor, batch_dims: int, coefficient: bool) -> Tensor:
    """The sums that the schema in `vae_kernels.ops` describes."""
    out = ops.multinomial_forward(logits, x, batch_dims, coefficient)
    if logits.numel() == 0:
        return out.zero_()
    key = ("multinomial_forward", batch_dims, coefficient, logits.get_device(), signature(logits), signature(x))
    planned(key, lambda: _plan_forward(logits, x, batch_dims, coefficient))(logits, x, out)
    return out


def _plan_forward(logits: Tensor, x: Tensor, batch_dims: int, coefficient: bool) -> Callable[..., None]:
    last = logits.dim() - 1
    form = layout((logits, x), last, (last,))
    if form is None:
        return lambda logits, x, out: out.copy_(
            multinomial_forward(logits.contiguous(), x.contiguous(), batch_dims, coefficient)
        )
    shape = _tile(form.rows, form.cols * form.vec)
    launch = Launch(
        multinomial_forward_kernel,
        shape.grid(1),
        logits.get_device(),
        strides=form.strides[0],
        x_strides=form.strides[1],
        COEFFICIENT=coefficient,
        **geometry(form, shape),
    )
    return summed(launch, logits.get_device(), logits.shape[:batch_dims].numel(), form.rows)


def multinomial_backward(
    grad: Tensor, logits: Tensor, x: Tensor, batch_dims: int, coefficient: bool, needs: int
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients that are needed, in the dtypes of logits and x."""
    grads = ops.multinomial_backward(grad, logits, x, batch_dims, coefficient, needs)
    outs = tuple(g for g in grads if g is not None)
    if logits.numel() == 0 or not outs:
        return grads
    upstream = of_positions(grad, logits)
    key = (
        *("multinomial_backward", coefficient, needs, logits.get_device()),
        *(upstream.stride(), grad.dtype, signature(logits), signature(x)),
    )
    plan = planned(key, lambda: _plan_backward(upstream, logits, x, coefficient, needs))
    if plan is not None:
        plan(logits, x, upstream, outs)
        return grads
    copies = grad.contiguous(), logits.contiguous(), x.contiguous()
    found = multinomial_backward(*copies, batch_dims, coefficient, needs)
    return tuple(None if g is None else g.copy_(f) for g, f in zip(grads, found, strict=True))


def _plan_backward(
    grad: Tensor, logits: Tensor, x: Tensor, coefficient: bool, needs: int
) -> Callable[..., None] | None:
    """The plan; None if the kernel cannot read the tensors in place."""
    last = logits.dim() - 1
    form = layout((logits, x, torch.empty_like(logits, device="meta")), last, (last,), (grad,))
    if form is None:
        return None
    shape = _tile(form.rows, form.cols * form.vec)
    return Launch(
        multinomial_backward_kernel,
        shape.grid(1),
        logits.get_device(),
        strides=form.strides[0],
        x_strides=form.strides[1],
        grad_strides=form.per_row_strides[0],
        out_strides=form.strides[2],
        NEEDS=needs,
        COEFFICIENT=coefficient,
        DTYPE=tl.float64 if compute_dtype(logits, x) == torch.float64 else tl.float32,
        **geometry(form, shape),
    )


def _tile(rows: int, cols: int) -> Tile:
    return position_tile(rows, cols, MAX_ELEMENTS, MAX_ELEMENTS)
