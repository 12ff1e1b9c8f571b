"""Likelihoods over classes: rows are positions, columns are classes. A row is read piece by piece.

A program normalizes its rows in one pass over their logits. The log-probabilities of positions are summed per sample by
a second kernel.
"""

from collections.abc import Callable

import triton
import triton.language as tl
from torch import Tensor

from .launch import Launch
from .math import exp
from .tile import Tile, add_compensated, block_index, compensated, offsets, store

# The most elements that a program holds at once: of several rows, and of one row.
MAX_ELEMENTS = 2048
MAX_PIECE = 4096


@triton.jit
def piece(pointer, strides, r, start, rows, cols, inner_rows, inner_cols, shape: tl.constexpr, OTHER: tl.constexpr):
    """The columns `c` of the piece that begins at column `start`, and its elements; OTHER beyond the last class.

    `shape` is (DTYPE, VEC, WIDE, EVEN, BLOCK_COLS).
    """
    DTYPE: tl.constexpr = shape[0]
    c = start + tl.arange(0, shape[4])[None, :]
    at = pointer + offsets(r, c, strides, inner_rows, inner_cols, shape[1])
    value = tl.load(at) if shape[3] else tl.load(at, mask=(r < rows) & (c < cols * shape[1]), other=OTHER)
    return c, value.to(DTYPE)


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
def normalize(logits, strides, row, rows, cols, inner_rows, inner_cols, shape: tl.constexpr):
    """For each row: the largest logit m, Σ e^(l − m), and the same minus 1.

    Classes with the largest logit are counted, and only the others are summed. The logarithm of the sum, and 1 − p of
    the likeliest class, are therefore accurate even if the others have nearly no probability.
    """
    DTYPE: tl.constexpr = shape[0]
    r = row[:, None]
    m = tl.full(row.shape, float("-inf"), DTYPE)
    ties = tl.zeros(row.shape, DTYPE)
    others = tl.zeros(row.shape, DTYPE)
    for start in range(0, cols * shape[1], shape[4]):
        _, l = piece(logits, strides, r, start, rows, cols, inner_rows, inner_cols, shape, float("-inf"))
        piece_m = tl.max(tl.where(l == l, l, float("-inf")), 1)
        tie = l == piece_m[:, None]
        piece_ties = tl.sum(tl.where(tie, 1.0, 0.0).to(DTYPE), 1)
        piece_others = tl.sum(tl.where(tie, 0.0, exp(l - piece_m[:, None])), 1)
        m, ties, others = _merged(m, ties, others, piece_m, piece_ties, piece_others)
    # If the largest logit is not finite, all probabilities are NaN.
    return m, ties + others + (m - m), (ties - 1.0) + others


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


def position_tile(rows: int, cols: int, max_elements: int = MAX_ELEMENTS, max_piece: int = MAX_PIECE) -> Tile:
    """The tile: complete rows if they fit, and several rows if they are short, else one piece of a row.

    The split of a row, and its distribution over threads, depend on the number of columns only.
    """
    block_cols = min(max(triton.next_power_of_2(cols), 4), max_piece)
    block_rows = max(max_elements // block_cols, 1)
    return Tile(block_rows, block_cols, triton.cdiv(rows, block_rows), triton.cdiv(cols, block_cols))


class SummedLaunch:
    """The launch for the log-probabilities of all positions, followed by the launch that sums them per sample."""

    def __init__(self, launch: Launch, device: int, samples: int, positions: int) -> None:
        shape = position_tile(samples, positions)
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


def of_positions(grad: Tensor, logits: Tensor) -> Tensor:
    """For each position the gradient of its sample, as a view."""
    inner = logits.dim() - 1 - grad.dim()
    return grad[(...,) + (None,) * inner].expand(logits.shape[:-1])


def summed(launch: Launch, device: int, samples: int, positions: int) -> Callable[..., None]:
    """The launch itself if samples have one position each, else the one that also sums their positions."""
    return launch if samples == positions else SummedLaunch(launch, device, samples, positions // samples)
