"""Parameters: Python numbers, and tensors that all samples share, whose gradients are sums over samples."""

import ctypes
import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..rows import sum_to_size
from .launch import sum_rows
from .tile import load, offsets


@triton.jit
def load_parameter(pointer, strides, row, col, mask, inner_rows, inner_cols, VEC: tl.constexpr, DTYPE: tl.constexpr):
    """Load the elements [R, C] of a parameter, or its only element if it has no strides."""
    if len(strides) == 0:
        return tl.load(pointer).to(DTYPE)
    else:
        return load(pointer + offsets(row, col, strides, inner_rows, inner_cols, VEC), mask, DTYPE)


@triton.jit
def number(parts, DTYPE: tl.constexpr):
    """The number whose `float32_parts` are passed. In float32 it is the first part, in float64 the sum of all three."""
    value = tl.full([1, 1], parts[0], DTYPE)
    if tl.float64 == DTYPE:
        value += tl.full([1, 1], parts[1], DTYPE) + tl.full([1, 1], parts[2], DTYPE)
    return value


@triton.jit
def store_partial(out, sums, strides, group, first_col, cols, there, VEC: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Store the sum of a program's `sums` [R, C] over its rows in out [groups, cols].

    A parameter with one element has no strides: its sum over rows and columns is stored in out [groups, chunks].
    """
    if len(strides) == 0:
        at = group.to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
        tl.store(out + at, tl.sum(tl.sum(sums, 1), 0), mask=there)
    else:
        col = first_col + tl.arange(0, BLOCK_COLS)
        at = group.to(tl.int64) * (cols * VEC) + col
        tl.store(out + at, tl.sum(sums, 0), mask=there & (col < cols * VEC))


class SumOfPartials:
    """The launch that adds up the programs' partial sums of a gradient, for a parameter that all samples share."""

    def __init__(
        self, full: Tensor, parameter: Tensor, dtype: torch.dtype, batch_dims: int, order: Sequence[int], count: int
    ) -> None:
        self._device, self._dtype, self._count, self._order = full.device, dtype, count, order
        self._shape = full.shape[batch_dims:]
        self._cols = 1 if parameter.numel() == 1 else math.prod(self._shape)
        # If elements share a value, or their order is not that of the columns, a sum or a permutation follows.
        self._direct = parameter.numel() == self._cols and (self._cols == 1 or list(order) == sorted(order))
        self._batch_dims = batch_dims
        self._sum = sum_rows(full.get_device(), count, self._cols)

    def empty_partials(self) -> Tensor:
        return torch.empty((self._count, self._cols), dtype=self._dtype, device=self._device)

    def __call__(self, partials: Tensor, grad: Tensor) -> None:
        if self._direct:
            self._sum(partials, grad)
            return
        sums = partials.new_empty([self._shape[d - self._batch_dims] for d in self._order])
        self._sum(partials, sums)
        in_order = sums.permute([self._order.index(d) for d in sorted(self._order)])
        own = grad.shape[max(grad.dim() - len(self._shape), 0) :]
        grad.copy_(sum_to_size(in_order, own).view(grad.shape))


def float32_parts(number: float) -> tuple[float, float, float]:
    """Three float32 numbers whose sum is the number, because Triton passes numbers as float32."""
    first = ctypes.c_float(number).value
    if not math.isfinite(first):
        return first, 0.0, 0.0
    second = ctypes.c_float(number - first).value
    return first, second, number - first - second
