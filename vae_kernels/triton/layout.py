"""Where the elements of a kernel's tensors lie: the row form of `vae_kernels.rows` as strides.

A kernel sees every tensor as (rows, cols). Rows may have two levels, an outer and an inner one, each with a stride, and
so may columns: that covers contiguous tensors, slices, `chunk`s of packed moments, expanded targets and channels_last.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from torch import Tensor

# Masked lanes of a tile reach past the last row and column, by less than this many.
MAX_OFFSET_32_BIT = 2**31 - 2**14

Strides = tuple[int, ...]


class Layout(NamedTuple):
    """What the kernels need to know of several tensors.

    `strides` of a tensor are `(row,)` where rows have one level and columns are dense; `(outer row, inner row)` where
    there are two levels of rows; `(outer row, inner row, outer column)` where there are two of columns, the inner ones
    dense; else all four. Those of a tensor with one element per row are `(row,)` or `(outer row, inner row)`.
    `vec`, a power of 2, divides `cols`, `inner_cols` and the strides of all but the inner columns, so that the compiler
    can prove that vectors are aligned; all of them are given in units of it.
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
    """The layout of `tensors`, all of one shape, with columns counted in `order`, and of `per_row` tensors of its batch
    dims. None where there are more levels than the kernels know; then take `dense` copies.

    Some may be the first of `samples` tensors, one `steps` elements behind the other, which reach `farther`.
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
    """A C-contiguous tensor with the columns in `order`."""
    return tensor.permute(*range(batch_dims), *order).contiguous()


def from_dense(tensor: Tensor, like: Tensor, batch_dims: int, order: Sequence[int]) -> Tensor:
    """The reverse: a tensor with the shape and strides of `like`, of which only those are used."""
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
    """Size of the outer and the inner level, and for each tensor both strides. Neighbouring dims are one level wherever
    every tensor steps through them evenly; None if that leaves more than two."""
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
