"""The strides of a kernel's tensors in the row form of `vae_kernels.rows`.

For a kernel every tensor is (rows, cols). Rows, and also columns, may have two levels, an outer and an inner one, each
with its own stride. This covers contiguous tensors, slices, halves of packed moments, expanded targets and
channels_last.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

# Offsets of masked lanes go beyond the last row and column, but by less than 2¹⁴.
MAX_OFFSET_32_BIT = 2**31 - 2**14

Strides = tuple[int, ...]


class Layout(NamedTuple):
    """The common sizes of several tensors, and the strides of each.

    The strides of a tensor are
    - `(row,)` if rows have one level and columns are dense,
    - `(outer row, inner row)` if rows have two levels and columns are dense,
    - `(outer row, inner row, outer column)` if columns have two levels, with dense inner columns,
    - all four otherwise.
    The strides of a tensor with one element per row are `(row,)` or `(outer row, inner row)`.

    `vec` is a power of 2 that divides `cols`, `inner_cols` and all strides except those of inner columns. These numbers
    are in units of `vec`, so that the compiler can prove that vectors are aligned.
    """

    rows: int
    cols: int
    inner_rows: int
    inner_cols: int
    vec: int
    wide: bool
    strides: tuple[Strides, ...]
    per_row_strides: tuple[Strides, ...]


def layout(
    tensors: Sequence[Tensor],
    batch_dims: int,
    order: Sequence[int],
    per_row: Sequence[Tensor] = (),
    steps: Sequence[int] = (),
    samples: int = 1,
    farther: int = 0,
) -> Layout | None:
    """The layout of `tensors`, which have the same shape, and of `per_row` tensors, which have its batch dims.

    Columns are counted in `order`. The result is None if there are more levels than the kernels support: then use
    `dense` copies. A tensor may be the first of `samples` tensors; `steps` are the distances in elements from one to
    the next, and the last begins at most `farther` elements after the first.
    """
    return _layout(
        tuple(tensors[0].shape),
        batch_dims,
        tuple(order),
        tuple(t.stride() for t in tensors),
        tuple(t.stride() for t in per_row),
        tuple(steps),
        samples,
        farther,
    )


def dense(tensor: Tensor, batch_dims: int, order: Sequence[int]) -> Tensor:
    """A C-contiguous copy with the columns in `order`."""
    return tensor.permute(*range(batch_dims), *order).contiguous()


def from_dense(tensor: Tensor, like: Tensor, batch_dims: int, order: Sequence[int]) -> Tensor:
    """The inverse of `dense`: copy the tensor to `like`, and return that."""
    dims = [*range(batch_dims), *order]
    return like.copy_(tensor.permute([dims.index(d) for d in range(len(dims))]))


@lru_cache(maxsize=4096)
def _layout(
    shape: tuple[int, ...],
    batch_dims: int,
    order: tuple[int, ...],
    full: tuple[Strides, ...],
    per_row: tuple[Strides, ...],
    more_steps: tuple[int, ...],
    samples: int,
    farther: int,
) -> Layout | None:
    rows = _two_levels(shape[:batch_dims], [s[:batch_dims] for s in (*full, *per_row)])
    cols = _two_levels([shape[d] for d in order], [[s[d] for d in order] for s in full])
    if rows is None or cols is None:
        return None
    outer_rows, inner_rows, row_strides = rows
    outer_cols, inner_cols, col_strides = cols
    steps = [(*r, *c) for r, c in zip(row_strides, col_strides, strict=False)]
    vec = math.gcd(16, inner_cols, *more_steps, *(s for step in steps for s in step[:3]))
    reach = [sum((n - 1) * s for n, s in zip(shape, strides, strict=False)) for strides in (*full, *per_row)]
    return Layout(
        outer_rows * inner_rows,
        outer_cols * inner_cols // vec,
        inner_rows,
        inner_cols // vec,
        vec,
        max(samples * outer_rows * inner_rows, outer_cols * inner_cols, farther + max(reach)) > MAX_OFFSET_32_BIT,
        tuple(_in_units(vec, *step, outer_rows, outer_cols, inner_cols) for step in steps),
        tuple(step if outer_rows > 1 else step[1:] for step in row_strides[len(full) :]),
    )


def _in_units(
    vec: int, r1: int, r2: int, c1: int, c2: int, outer_rows: int, outer_cols: int, inner_cols: int
) -> Strides:
    if c2 != 1 and inner_cols > 1:
        return r1 // vec, r2 // vec, c1 // vec, c2
    if outer_cols > 1:
        return r1 // vec, r2 // vec, c1 // vec
    if outer_rows > 1:
        return r1 // vec, r2 // vec
    return (r2 // vec,)


def _two_levels(sizes: Sequence[int], strides: Sequence[Sequence[int]]) -> tuple[int, int, list[Strides]] | None:
    """The sizes of the outer and the inner level, and both strides of each tensor.

    Neighbouring dims are merged if one stride per tensor steps through both. The result is None if more than two levels
    remain.
    """
    levels: list[tuple[int, Strides]] = []
    for size, steps in zip(sizes, zip(*strides, strict=True), strict=True):
        if size == 1:
            continue
        if levels and all(outer == size * inner for outer, inner in zip(levels[-1][1], steps, strict=True)):
            levels[-1] = levels[-1][0] * size, steps
        else:
            levels.append((size, steps))
    if len(levels) > 2:
        return None
    missing = 1, (0,) * len(strides)
    (outer_size, outer), (inner_size, inner) = [missing] * (2 - len(levels)) + levels
    return outer_size, inner_size, list(zip(outer, inner, strict=True))
