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

# The most elements that a program holds at once: of several rows, and of one row.
MAX_ELEMENTS = 2048
MAX_PIECE = 4096


@triton.jit
def _piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape: tl.constexpr):
    """The columns `c` of the piece that begins at column `start`, and their logits; −∞ beyond the last class."""
    DTYPE: tl.constexpr = shape[0]
    c = start + tl.arange(0, shape[4])[None, :]
    at = logits + offsets(r, c, strides, inner_rows, inner_cols, shape[1])
    l = tl.load(at) if shape[3] else tl.load(at, mask=(r < rows) & (c < cols * shape[1]), other=float("-inf"))
    return c, l.to(DTYPE)


@triton.jit
def _merged(max1, ties1, others1, max2, ties2, others2):
    """Merge the largest logits, their numbers of ties and the sums over all other classes of two sets of classes."""
    largest = tl.maximum(max1, max2)
    # Comparisons, because the difference of infinite maxima is NaN.
    first, second = max1 == largest, max2 == largest
    scale1, scale2 = exp(tl.where(first, 0.0, max1 - largest)), exp(tl.where(second, 0.0, max2 - largest))
    others = tl.where(first, others1, (ties1 + others1) * scale1) + tl.where(
        second, others2, (ties2 + others2) * scale2
    )
    return largest, tl.where(first, ties1, 0.0) + tl.where(second, ties2, 0.0), others


@triton.jit
def _normalize(logits, strides, row, k, rows, cols, inner_rows, inner_cols, shape: tl.constexpr):
    """For each row: the largest logit m, Σ e^(l − m), the same minus 1, the logit of class k, and whether k is a class.

    Classes with the largest logit are counted, and only the others are summed. The logarithm of the sum, and 1 − p of
    the likeliest class, are therefore accurate even if the others have nearly no probability.
    """
    DTYPE: tl.constexpr = shape[0]
    r = row[:, None]
    m = tl.full(row.shape, float("-inf"), DTYPE)
    ties = tl.zeros(row.shape, DTYPE)
    others = tl.zeros(row.shape, DTYPE)
    for start in range(0, cols * shape[1], shape[4]):
        _, l = _piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape)
        piece_m = tl.max(tl.where(l == l, l, float("-inf")), 1)
        tie = l == piece_m[:, None]
        piece_ties = tl.sum(tl.where(tie, 1.0, 0.0).to(DTYPE), 1)
        piece_others = tl.sum(tl.where(tie, 0.0, exp(l - piece_m[:, None])), 1)
        m, ties, others = _merged(m, ties, others, piece_m, piece_ties, piece_others)
    # If the largest logit is not finite, all probabilities are NaN.
    total = ties + others + (m - m)
    is_class = (k >= 0) & (k < cols * shape[1])
    at = logits + offsets(r, k[:, None], strides, inner_rows, inner_cols, shape[1])
    logit = tl.load(at, mask=((row < rows) & is_class)[:, None], other=0).to(DTYPE)
    return m, total, (ties - 1.0) + others, tl.sum(logit, 1), is_class


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
        c, l = _piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape)
        value = tl.where(c == k[:, None], of_class[:, None], scale[:, None] * exp(l - m[:, None]))
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        store(out + offsets(r, c, out_strides, inner_rows, inner_cols, VEC), value, mask)


@triton.jit(do_not_specialize=["samples", "positions"])
def sum_positions_kernel(log_probs, out, samples, positions, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Sum over the positions of each sample, for a contiguous tensor (samples, positions)."""
    DTYPE: tl.constexpr = out.dtype.element_ty
    positions = tl.cast(positions, tl.int64)
    sample = block_index(True) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    total = tl.zeros([BLOCK_ROWS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS], DTYPE)
    for start in range(0, positions, BLOCK_COLS):
        c = start + tl.arange(0, BLOCK_COLS)[None, :]
        mask = (sample < samples)[:, None] & (c < positions)
        term = tl.load(log_probs + sample[:, None] * positions + c, mask=mask, other=0)
        total, lost = add_compensated(total, lost, tl.sum(term, 1))
    store(out + sample, compensated(total, lost), sample < samples)


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
    shape = _tile(form.rows, form.cols * form.vec)
    launch = Launch(
        categorical_forward_kernel,
        shape.grid(1),
        logits.get_device(),
        strides=form.strides[0],
        x_strides=form.per_row_strides[0],
        **geometry(form, shape),
    )
    samples = logits.shape[:batch_dims].numel()
    return launch if samples == form.rows else _SummedLaunch(launch, logits.get_device(), samples, form.rows // samples)


def categorical_backward(grad: Tensor, logits: Tensor, x: Tensor, batch_dims: int) -> Tensor:
    """The gradient of the logits, in their dtype."""
    out = torch.empty_like(logits)
    if logits.numel() == 0:
        return out
    last = logits.dim() - 1
    of_positions = grad[(...,) + (None,) * (last - batch_dims)].expand(logits.shape[:-1])
    key = (
        "categorical_backward",
        logits.get_device(),
        (of_positions.stride(), grad.dtype),
        signature(logits),
        signature(x),
    )
    plan = planned(key, lambda: _plan_backward(of_positions, logits, x))
    if plan is None:
        return out.copy_(categorical_backward(grad.contiguous(), logits.contiguous(), x.contiguous(), batch_dims))
    plan(logits, x, of_positions, out)
    return out


def _plan_backward(grad: Tensor, logits: Tensor, x: Tensor) -> Callable[..., None] | None:
    """The plan; None if the kernel cannot read the tensors in place."""
    last = logits.dim() - 1
    form = layout((logits, torch.empty_like(logits, device="meta")), last, (last,), (x, grad))
    if form is None:
        return None
    shape = _tile(form.rows, form.cols * form.vec)
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


def _tile(rows: int, cols: int) -> Tile:
    """The tile: complete rows if they fit, and several rows if they are short, else one piece of a row.

    The split of a row, and its distribution over threads, depend on the number of columns only.
    """
    block_cols = min(max(triton.next_power_of_2(cols), 4), MAX_PIECE)
    block_rows = max(MAX_ELEMENTS // block_cols, 1)
    return Tile(block_rows, block_cols, triton.cdiv(rows, block_rows), triton.cdiv(cols, block_cols))


class _SummedLaunch:
    """The launch for the log-probabilities of all positions, followed by the launch that sums them per sample."""

    def __init__(self, launch: Launch, device: int, samples: int, positions: int) -> None:
        shape = _tile(samples, positions)
        self._launch, self._size = launch, samples * positions
        self._sum = Launch(
            sum_positions_kernel,
            shape.grid(1),
            device,
            samples=samples,
            positions=positions,
            BLOCK_ROWS=shape.block_rows,
            BLOCK_COLS=shape.block_cols,
        )

    def __call__(self, logits: Tensor, x: Tensor, out: Tensor) -> None:
        log_probs = out.new_empty(self._size)
        self._launch(logits, x, log_probs)
        self._sum(log_probs, out)
