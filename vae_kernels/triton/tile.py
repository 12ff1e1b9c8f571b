"""The tile: the elements that a program holds at once. And the number of programs."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .layout import Layout

# The threads of a program, for every width of a warp.
THREADS = 128
# Elements that a thread holds at once: two to four 16-byte loads of each tensor in flight, in at most 128 registers.
HELD = 16
MAX_GRID_Y = 65535
SMALL_PROBLEM = 2**20
# The number of programs that keeps a large GPU busy. It is a constant, so that results do not depend on the device.
ENOUGH_PROGRAMS = 512
MANY_PROGRAMS = 1024
# Up to this number, the chunks of a row are added sequentially. More chunks are added in parallel, by a second kernel.
MAX_IN_SEQUENCE = 16


class Tile(NamedTuple):
    """A tile of `block_rows` x `block_cols` elements. There are `row_blocks` x `chunks` tiles."""

    block_rows: int
    block_cols: int
    row_blocks: int
    chunks: int

    @property
    def held(self) -> int:
        """The number of elements that a thread holds."""
        return self.block_rows * self.block_cols // THREADS

    def grid(self, programs_per_row: int, blocks_per_program: int = 1) -> tuple[int, int, int]:
        """The grid. Its first dimension has the programs of one row, so that neighbouring programs read neighbouring
        memory. The blocks of rows follow, in two dimensions if one is too small: see `block_index`."""
        blocks = triton.cdiv(self.row_blocks, blocks_per_program)
        planes = triton.cdiv(blocks, MAX_GRID_Y)
        return programs_per_row, triton.cdiv(blocks, planes), planes


def tile(rows: int, cols: int, dtype: torch.dtype, tensors: Iterable[Tensor], held: int = HELD) -> Tile:
    """The tile, which depends on sizes and dtypes only.

    It has complete rows if a program can hold them, and several rows if they are short. Otherwise it has as many
    columns of one row as a program can hold. `dtype` is that of the arithmetic: float64 needs two registers per number,
    and functions of it need more. A small problem is spread over more programs.

    The split of a row, and its distribution over threads, depend only on the number of columns and on dtypes. A
    sample's sum therefore does not depend on the number of samples.
    """
    most = THREADS * (held // 4 if dtype == torch.float64 else held)
    block_cols = min(max(triton.next_power_of_2(cols), 4), most)
    chunks = triton.cdiv(cols, block_cols)
    elements = most if rows * chunks * block_cols >= SMALL_PROBLEM else min(least(tensors), most)
    block_rows = max(elements // block_cols, 1)
    return Tile(block_rows, block_cols, triton.cdiv(rows, block_rows), chunks)


def least(tensors: Iterable[Tensor]) -> int:
    """The least number of elements of a program: the number that its threads load at once from the tensor with the
    narrowest dtype. Fewer elements would be distributed differently over threads, and would have to move between
    them."""
    return THREADS * max(4, 16 // min(t.element_size() for t in tensors))


def finer(shape: Tile, cols: int, tensors: Iterable[Tensor]) -> Tile:
    """A tile with more programs, if there are few. It is for a kernel that sums nothing: it may split rows anywhere."""
    if shape.block_rows > 1 or shape.row_blocks * shape.chunks >= ENOUGH_PROGRAMS:
        return shape
    block_cols = min(shape.block_cols, least(tensors))
    return shape._replace(block_cols=block_cols, chunks=triton.cdiv(cols, block_cols))


def chunks_per_program(shape: Tile) -> int:
    """The number of chunks of a row that one program sums: all, unless there are too few rows to keep a GPU busy."""
    if shape.row_blocks >= ENOUGH_PROGRAMS:
        return shape.chunks
    return triton.cdiv(shape.chunks, min(shape.chunks, triton.cdiv(MANY_PROGRAMS, shape.row_blocks)))


def is_split(shape: Tile, per_program: int) -> bool:
    """True if each chunk of a row has its own sum, and a second kernel adds them up.

    For up to MAX_IN_SEQUENCE chunks, that kernel has the order and arithmetic of a program that sums a complete row, so
    that both give the same result.
    """
    return per_program < shape.chunks or shape.chunks > MAX_IN_SEQUENCE


def row_blocks_per_program(shape: Tile) -> int:
    """The number of row blocks over which one program sums each column. It is as large as enough programs allow,
    because fewer partial sums cost less memory traffic."""
    groups = min(shape.row_blocks, triton.cdiv(MANY_PROGRAMS, shape.chunks))
    return triton.cdiv(shape.row_blocks, groups)


def geometry(form: Layout, shape: Tile) -> dict[str, int | bool]:
    """The arguments of every kernel that follow from layout and tile."""
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
    """The number in 64 bits if WIDE, so that a product with it does not overflow."""
    return tl.cast(number, tl.int64) if WIDE else number


@triton.jit
def chunk_index(WIDE: tl.constexpr):
    """The index of the program along the columns."""
    return widened(tl.program_id(0), WIDE)


@triton.jit
def block_index(WIDE: tl.constexpr):
    """The index of the program along the rows. It may be beyond the last block."""
    return widened(tl.program_id(1) + tl.program_id(2) * tl.num_programs(1), WIDE)


@triton.jit
def offsets(row, col, strides, inner_rows, inner_cols, VEC: tl.constexpr):
    """The offsets, in elements, of rows `row` [R, 1] and columns `col` [1, C] of a tensor; see `layout.Layout`. They
    have 64 bits if `row` has."""
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
    """Load elements as DTYPE, float32 or float64, with 0 where masked. mask may be None, which is faster."""
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
    """Knuth's two-sum: `total + term`, and `lost` plus the rounding error of that sum."""
    new = total + term
    virtual = new - total
    return new, lost + ((total - (new - virtual)) + (term - virtual))


@triton.jit
def compensated(total, lost):
    """The sum plus its rounding errors. If the sum is not finite, `lost` is NaN, and the result is the sum alone."""
    return tl.where(lost == lost, total + lost, total)


@triton.jit(do_not_specialize=["rows", "cols"])
def sum_rows_kernel(x, out, rows, cols, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr):
    """Compute `out[c] = Σ_r x[r, c]`, in an order that depends on `rows` and the block sizes only.

    With BLOCK_ROWS = 1, order and arithmetic are those of a program that adds the sums of its chunks one after the
    other.
    """
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
