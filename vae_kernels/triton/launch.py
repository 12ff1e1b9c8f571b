"""Launching with as little work on the host as there can be."""

from collections.abc import Callable, Hashable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from .tile import MAX_IN_SEQUENCE, THREADS, sum_rows_kernel

# A plan for each combination of shapes, strides and dtypes met: a training has a handful.
MAX_PLANS = 4096
# Triton compiles one kernel for pointers that this divides and another for those that it does not. Of two halves of a
# tensor the second may be aligned where the first is not, so that it is not enough to know whether the tensor is.
ALIGNMENT = 16

_plans: dict[Hashable, Callable[..., None]] = {}


class Launch:
    """A kernel with its grid and all arguments behind the tensors and numbers that differ from call to call.

    At each call Triton would choose a compiled kernel by the dtypes, the alignment and the divisibility of all arguments.
    Here these follow from the plan, so the kernel compiled at the first launch serves all others.
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
            # None under the interpreter, which has nothing to compile.
            self._compiled = self._kernel[self._grid](*tensors, *self._arguments, **options())
        else:
            self._compiled[self._grid](*tensors, *self._arguments)


def options() -> dict[str, int | bool]:
    """What the compiler is told of every kernel. AMD's warps have 64 threads, where others have 32; and from 3.10 on a
    product and a sum become one instruction only where that is asked for."""
    width = 32 if triton.knobs.runtime.interpret else driver.active.get_current_target().warp_size
    return {"num_warps": THREADS // width, "enable_fp_fusion": True}


class SplitLaunch:
    """A launch whose last tensor, of `rows` sums, is to be added up from `chunks` times as many by a second kernel."""

    def __init__(self, launch: Launch, device: int, rows: int, chunks: int) -> None:
        self._launch, self._size = launch, chunks * rows
        self._sum = _sum_chunks(device, chunks, rows)

    def __call__(self, *tensors: Any) -> None:
        chunk_sums = tensors[-1].new_empty(self._size)
        self._launch(*tensors[:-1], chunk_sums)
        self._sum(chunk_sums, tensors[-1])


def sum_rows(device: int, rows: int, cols: int) -> Launch:
    """The launch that sums the columns of a contiguous (rows, cols) tensor."""
    rows_at_once, cols_at_once = triton.next_power_of_2(rows), triton.next_power_of_2(cols)
    block_cols = min(cols_at_once, 1024 // min(rows_at_once, 32))
    return _sum_rows(device, rows, cols, min(rows_at_once, 1024 // block_cols), block_cols)


def _sum_chunks(device: int, chunks: int, rows: int) -> Launch:
    """The launch that sums the chunks of each of `rows` rows, of (chunks, rows), in an order that follows from `chunks`
    alone: a sample's sum does not depend on how many other samples there are."""
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
    """What `make()` returned the first time for this key."""
    plan = _plans.get(key)
    if plan is None:
        if len(_plans) >= MAX_PLANS:
            _plans.clear()
        plan = _plans[key] = make()
    return plan


def signature(tensor: Tensor | None) -> Hashable:
    """All that a plan may depend on but the device."""
    if tensor is None:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.data_ptr() % ALIGNMENT
