"""The reconstruction term for discrete data: `log p(x)` under a softmax over the last dim, summed per sample.

Rows are positions, columns are classes. A row is read once, piece by piece, for its normalizer. The backward pass reads
it once more, from a cache, for the gradients.
"""

from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import compute_dtype
from .launch import Launch, planned, signature
from .layout import layout
from .math import exp, log_ratio
from .positions import normalize, of_positions, piece, position_tile, summed
from .tile import block_index, geometry, load, offsets, per_row_offsets, store, widened


@triton.jit
def _normalize(logits, strides, row, k, rows, cols, inner_rows, inner_cols, shape: tl.constexpr):
    """What `normalize` finds for each row, the logit of class k, and whether k is a class."""
    m, total, total_minus_1 = normalize(logits, strides, row, rows, cols, inner_rows, inner_cols, shape)
    is_class = (k >= 0) & (k < cols * shape[1])
    at = logits + offsets(row[:, None], k[:, None], strides, inner_rows, inner_cols, shape[1])
    logit = tl.load(at, mask=((row < rows) & is_class)[:, None], other=0).to(shape[0])
    return m, total, total_minus_1, tl.sum(logit, 1), is_class


@triton.jit(do_not_specialize=["rows", "cols", "inner_rows", "inner_cols"])
def categorical_forward_kernel(
    logits, x, out, strides, x_strides, rows, cols, inner_rows, inner_cols,
    VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute the log-probability of each row's class."""
    shape: tl.constexpr = (out.dtype.element_ty, VEC, WIDE, EVEN, BLOCK_COLS)
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.load(x + per_row_offsets(row, x_strides, inner_rows), mask=row < rows, other=0).to(tl.int64)
    m, total, total_minus_1, logit, is_class = _normalize(
        logits, strides, row, k, rows, cols, inner_rows, inner_cols, shape
    )
    log_p = (logit - m) - log_ratio(total, total_minus_1)[0]
    store(out + row, tl.where(is_class, log_p, float("nan")), row < rows)


@triton.jit(do_not_specialize=["grad", "rows", "cols", "inner_rows", "inner_cols"])
def categorical_backward_kernel(
    logits, x, grad, out, strides, x_strides, grad_strides, out_strides, rows, cols, inner_rows, inner_cols,
    DTYPE: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute `[k = x] − p_k`, times the upstream gradient of the row's sample."""
    shape: tl.constexpr = (DTYPE, VEC, WIDE, EVEN, BLOCK_COLS)
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    k = tl.load(x + per_row_offsets(row, x_strides, inner_rows), mask=row < rows, other=0).to(tl.int64)
    g = load(grad + per_row_offsets(row, grad_strides, inner_rows), row < rows, DTYPE)
    m, total, total_minus_1, logit, is_class = _normalize(
        logits, strides, row, k, rows, cols, inner_rows, inner_cols, shape
    )
    scale = tl.where(is_class, -g / total, float("nan"))
    of_class = g * (tl.where(logit == m, total_minus_1, total - exp(logit - m)) / total)
    r = row[:, None]
    for start in range(0, cols * VEC, BLOCK_COLS):
        c, l = piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape, float("-inf"))
        value = tl.where(c == k[:, None], of_class[:, None], scale[:, None] * exp(l - m[:, None]))
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        store(out + offsets(r, c, out_strides, inner_rows, inner_cols, VEC), value, mask)


def categorical_forward(logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    """The sums that the schema in `vae_kernels.ops` describes."""
    out = logits.new_empty(logits.shape[:batch_dims], dtype=compute_dtype(logits))
    if logits.numel() == 0:
        return out.zero_()
    key = ("categorical_forward", batch_dims, logits.get_device(), signature(logits), signature(x))
    planned(key, lambda: _plan_forward(logits, x, batch_dims))(logits, x, out)
    return out


def _plan_forward(logits: Tensor, x: Tensor, batch_dims: int) -> Callable[..., None]:
    last = logits.dim() - 1
    form = layout((logits,), last, (last,), (x,))
    if form is None:
        return lambda logits, x, out: out.copy_(categorical_forward(logits.contiguous(), x.contiguous(), batch_dims))
    shape = position_tile(form.rows, form.cols * form.vec)
    launch = Launch(
        categorical_forward_kernel,
        shape.grid(1),
        logits.get_device(),
        strides=form.strides[0],
        x_strides=form.per_row_strides[0],
        **geometry(form, shape),
    )
    return summed(launch, logits.get_device(), logits.shape[:batch_dims].numel(), form.rows)


def categorical_backward(grad: Tensor, logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    """The gradient of the logits, in their dtype."""
    out = torch.empty_like(logits)
    if logits.numel() == 0:
        return out
    upstream = of_positions(grad, logits)
    key = (
        "categorical_backward",
        logits.get_device(),
        (upstream.stride(), grad.dtype),
        signature(logits),
        signature(x),
    )
    plan = planned(key, lambda: _plan_backward(upstream, logits, x))
    if plan is None:
        return out.copy_(categorical_backward(grad.contiguous(), logits.contiguous(), x.contiguous(), batch_dims))
    plan(logits, x, upstream, out)
    return out


def _plan_backward(grad: Tensor, logits: Tensor, x: Tensor) -> Callable[..., None] | None:
    """The plan; None if the kernel cannot read the tensors in place."""
    last = logits.dim() - 1
    form = layout((logits, torch.empty_like(logits, device="meta")), last, (last,), (x, grad))
    if form is None:
        return None
    shape = position_tile(form.rows, form.cols * form.vec)
    return Launch(
        categorical_backward_kernel,
        shape.grid(1),
        logits.get_device(),
        strides=form.strides[0],
        x_strides=form.per_row_strides[0],
        grad_strides=form.per_row_strides[1],
        out_strides=form.strides[1],
        DTYPE=tl.float64 if logits.dtype == torch.float64 else tl.float32,
        **geometry(form, shape),
    )
