"""The piece of a tensor that a program holds at once, and how many programs there are."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import Layout

# Of a program, whatever the width of a warp.
THREADS = 128
# Elements that a thread holds at once: two to four 16-byte loads of each tensor in flight, in at most 128 registers.
HELD = 16
MAX_GRID_Y = 65535
SMALL_PROBLEM = 2**20
# Programs that keep a large GPU busy. A constant, so that results do not depend on the device.
ENOUGH_PROGRAMS = 512
MANY_PROGRAMS = 1024
# So many chunks of a row are added one after the other; more of them by a second kernel, side by side.
MAX_IN_SEQUENCE = 16


class Tile(NamedTuple):
    """`block_rows` x `block_cols` elements at a time; rows and columns are cut into `row_blocks` and `chunks` of them."""

    block_rows: int
    block_cols: int
    row_blocks: int
    chunks: int

    @property
    def held(self) -> int:
        """Elements of a thread."""
        return self.block_rows * self.block_cols // THREADS

    def grid(self, programs_per_row: int, blocks_per_program: int = 1) -> tuple[int, int, int]:
        """Programs along rows first, so that neighbours read what lies side by side; then blocks of rows, in two
        dimensions where one does not hold them: see `block_index`."""
        blocks = triton.cdiv(self.row_blocks, blocks_per_program)
        planes = triton.cdiv(blocks, MAX_GRID_Y)
        return programs_per_row, triton.cdiv(blocks, planes), planes


def tile(rows: int, cols: int, dtype: torch.dtype, tensors: Iterable[Tensor], held: int = HELD) -> Tile:
    """The launch shape, from the sizes alone: whole rows where a program can hold them, many at a time if they are short;
    else chunks of as many columns as it can hold. `dtype` is that of the arithmetic: float64 takes two registers for a
    number and more of them for a function. A small problem is spread over more programs.

    How a row is cut and over which threads it lies depends on the number of columns and on dtypes only: a sample's sum
    does not depend on how many other samples there are.
    """
    most = THREADS * (held // 4 if dtype == torch.float64 else held)
    block_cols = min(max(triton.next_power_of_2(cols), 4), most)
    chunks = triton.cdiv(cols, block_cols)
    elements = most if rows * chunks * block_cols >= SMALL_PROBLEM else min(least(tensors), most)
    block_rows = max(elements // block_cols, 1)
    return Tile(block_rows, block_cols, triton.cdiv(rows, block_rows), chunks)


def least(tensors: Iterable[Tensor]) -> int:
    """Of a program's elements: as many as its threads load from the tensor of the narrowest dtype at once. With fewer
    they would lie over other threads, and numbers would have to move between them."""
    return THREADS * max(4, 16 // min(t.element_size() for t in tensors))


def finer(shape: Tile, cols: int, tensors: Iterable[Tensor]) -> Tile:
    """For a kernel that sums nothing, whose rows may be cut anywhere: more programs where they are few."""
    if shape.block_rows > 1 or shape.row_blocks * shape.chunks >= ENOUGH_PROGRAMS:
        return shape
    block_cols = min(shape.block_cols, least(tensors))
    return shape._replace(block_cols=block_cols, chunks=triton.cdiv(cols, block_cols))


def chunks_per_program(shape: Tile) -> int:
    """How many chunks of a row one program sums. All of them, unless there are too few rows to keep a GPU busy."""
    if shape.row_blocks >= ENOUGH_PROGRAMS:
        return shape.chunks
    return triton.cdiv(shape.chunks, min(shape.chunks, triton.cdiv(MANY_PROGRAMS, shape.row_blocks)))


def is_split(shape: Tile, per_program: int) -> bool:
    """Whether the chunks of a row have sums of their own, for a second kernel to add up. With up to MAX_IN_SEQUENCE of
    them that kernel does what a program does that sums a whole row, so that both give the same."""
    return per_program < shape.chunks or shape.chunks > MAX_IN_SEQUENCE


def row_blocks_per_program(shape: Tile) -> int:
    """How many blocks of rows one program adds up per column: as many as leave enough programs, so that partial sums
    cost little traffic."""
    groups = min(shape.row_blocks, triton.cdiv(MANY_PROGRAMS, shape.chunks))
    return triton.cdiv(shape.row_blocks, groups)


def geometry(form: Layout, shape: Tile) -> dict[str, int | bool]:
    """What every kernel is told of both."""
    return {
        "rows": form.rows,
        "cols": form.cols,
        "inner_rows": form.inner_rows,
        "inner_cols": form.inner_cols,
        "VEC": form.vec,
        "WIDE": form.wide,
        "EVEN": form.rows % shape.block_rows == 0
        and form.cols * form.vec % shape.block_cols == 0
        and shape.row_blocks <= MAX_GRID_Y,
        "BLOCK_ROWS": shape.block_rows,
        "BLOCK_COLS": shape.block_cols,
    }


@triton.jit
def widened(number, WIDE: tl.constexpr):
    """A number that others are multiplied with: of 64 bits if WIDE, before anything is."""
    return tl.cast(number, tl.int64) if WIDE else number


@triton.jit
def chunk_index(WIDE: tl.constexpr):
    """Which chunks of columns are the program's."""
    return widened(tl.program_id(0), WIDE)


@triton.jit
def block_index(WIDE: tl.constexpr):
    """Which blocks of rows are the program's; perhaps some that are not there."""
    return widened(tl.program_id(1) + tl.program_id(2) * tl.num_programs(1), WIDE)


@triton.jit
def offsets(row, col, strides, inner_rows, inner_cols, VEC: tl.constexpr):
    """Where rows `row` [R, 1] and columns `col` [1, C] of a tensor lie, in elements, see `layout.Layout`; of 64 bits if
    those of the rows have them."""
    WIDE: tl.constexpr = row.dtype == tl.int64
    if len(strides) == 1:
        return row * (widened(strides[0], WIDE) * VEC) + col
    else:
        first = (row // inner_rows) * (widened(strides[0], WIDE) * VEC)
        first += (row % inner_rows) * (widened(strides[1], WIDE) * VEC)
        if len(strides) == 2:
            return first + col
        else:
            inner = widened(inner_cols, WIDE) * VEC
            outer_col = (col // inner) * (widened(strides[2], WIDE) * VEC)
            if len(strides) == 3:
                return first + (outer_col + col % inner)
            else:
                return first + (outer_col + (col % inner) * strides[3])


@triton.jit
def per_row_offsets(row, strides, inner_rows):
    if len(strides) == 1:
        return row * strides[0]
    else:
        return (row // inner_rows) * strides[0] + (row % inner_rows) * strides[1]


@triton.jit
def load(pointers, mask, DTYPE: tl.constexpr):
    """Elements as DTYPE, float32 or float64; zero where masked. No mask, no cost."""
    if mask is None:
        return tl.load(pointers).to(DTYPE)
    else:
        return tl.load(pointers, mask=mask, other=0).to(DTYPE)


@triton.jit
def store(pointers, value, mask):
    element: tl.constexpr = pointers.dtype.element_ty
    if element == tl.bfloat16 and value.dtype == tl.float64:
        value = value.to(tl.float32)
    tl.store(pointers, value.to(element), mask=mask)


@triton.jit
def add_compensated(total, lost, term):
    """Knuth's two-sum: `total + term`, and `lost` plus what rounding took from it."""
    new = total + term
    virtual = new - total
    return new, lost + ((total - (new - virtual)) + (term - virtual))


@triton.jit
def compensated(total, lost):
    """The sum with what was lost; that is NaN where the sum is not finite, which then stands by itself."""
    return tl.where(lost == lost, total + lost, total)


@triton.jit(do_not_specialize=["rows", "cols"])
def sum_rows_kernel(x, out, rows, cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """`out[c] = Σ_r x[r, c]`, in an order that follows from `rows` and the blocks. With BLOCK_ROWS = 1 it is the order,
    and the arithmetic, of a program that adds up `cols` sums itself, chunk after chunk."""
    DTYPE: tl.constexpr = x.dtype.element_ty
    col = chunk_index(True) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
    total = tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE)
    for start in tl.range(0, rows, BLOCK_ROWS, loop_unroll_factor=4):
        row = start + tl.arange(0, BLOCK_ROWS)[:, None]
        term = tl.load(x + row.to(tl.int64) * cols + col, mask=(row < rows) & (col < cols), other=0)
        total, lost = add_compensated(total, lost, term)
    result = tl.sum(compensated(total, lost), 0)
    col = chunk_index(True) * BLOCK_COLS + tl.arange(0, BLOCK_COLS)
    store(out + col, result, col < cols)
