"""Kernel launches with as little work on the host as possible."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from .tile import MAX_IN_SEQUENCE, THREADS, sum_rows_kernel

# There is one plan for each combination of shapes, strides and dtypes. A training has only a few.
MAX_PLANS = 4096
# Triton compiles one kernel for pointers that this number divides, and another for all others. The alignment of a
# tensor does not tell that of its halves: the second may be aligned when the first is not.
ALIGNMENT = 16

_plans: dict[Hashable, Callable[..., None]] = {}


class Launch:
    """A kernel with its grid and all arguments that are equal in all calls. Those that differ from call to call come
    first.

    At each call Triton would choose a compiled kernel by the dtypes, the alignment and the divisibility of all
    arguments. Here the plan determines them, so that the kernel compiled for the first launch is used for all others.
    """

    def __init__(self, kernel: Any, grid: tuple[int, int, int], device: int, **arguments: Any) -> None:
        names = kernel.arg_names[-len(arguments) :]
        self._arguments = [arguments.pop(name) for name in names]
        self._kernel, self._grid, self._device = kernel, grid, device
        self._compiled = None

    def __call__(self, *tensors: Any) -> None:
        if self._device >= 0 and self._device != torch.cuda.current_device():
            with torch.cuda.device(self._device):
                self._run(tensors)
        else:
            self._run(tensors)

    def _run(self, tensors: tuple[Any, ...]) -> None:
        if self._compiled is None:
            # The interpreter returns None, because it compiles nothing.
            self._compiled = self._kernel[self._grid](*tensors, *self._arguments, **options())
        else:
            self._compiled[self._grid](*tensors, *self._arguments)


def options() -> dict[str, int | bool]:
    """The compiler options of every kernel.

    AMD's warps have 64 threads, others 32. From Triton 3.10 on, a product and a sum are fused only with
    `enable_fp_fusion`.
    """
    width = 32 if triton.knobs.runtime.interpret else driver.active.get_current_target().warp_size
    return {"num_warps": THREADS // width, "enable_fp_fusion": True}


class SplitLaunch:
    """A launch that computes `chunks` sums for each of `rows` rows, and a second one that adds them up."""

    def __init__(self, launch: Launch, device: int, rows: int, chunks: int) -> None:
        self._launch, self._size = launch, chunks * rows
        self._sum = _sum_chunks(device, chunks, rows)

    def __call__(self, *tensors: Any) -> None:
        chunk_sums = tensors[-1].new_empty(self._size)
        self._launch(*tensors[:-1], chunk_sums)
        self._sum(chunk_sums, tensors[-1])


def sum_rows(device: int, rows: int, cols: int) -> Launch:
    """The launch that sums a contiguous (rows, cols) tensor over its rows."""
    rows_at_once, cols_at_once = triton.next_power_of_2(rows), triton.next_power_of_2(cols)
    block_cols = min(cols_at_once, 1024 // min(rows_at_once, 32))
    return _sum_rows(device, rows, cols, min(rows_at_once, 1024 // block_cols), block_cols)


def _sum_chunks(device: int, chunks: int, rows: int) -> Launch:
    """The launch that sums a (chunks, rows) tensor over its chunks.

    The order of the sum depends on `chunks` only, so that a sample's sum does not depend on the number of samples.
    """
    if chunks <= MAX_IN_SEQUENCE:
        return _sum_rows(device, chunks, rows, 1, min(triton.next_power_of_2(rows), 128))
    return _sum_rows(device, chunks, rows, min(triton.next_power_of_2(chunks), 256), 8)


def _sum_rows(device: int, rows: int, cols: int, block_rows: int, block_cols: int) -> Launch:
    return Launch(
        sum_rows_kernel,
        (triton.cdiv(cols, block_cols), 1, 1),
        device,
        rows=rows,
        cols=cols,
        BLOCK_ROWS=block_rows,
        BLOCK_COLS=block_cols,
    )


def planned(key: Hashable, make: Callable[[], Callable[..., None]]) -> Callable[..., None]:
    """The plan for this key: the result of the first `make()`."""
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        plan = _plans[key] = make()
    return plan


def signature(tensor: Tensor | None) -> Hashable:
    """Everything except the device that a plan may depend on."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % ALIGNMENT
