"""Reconstruction terms: `log p(x)`, summed per sample. Each family has two functions; all share two kernels."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import families, ops
from ..options import LikelihoodOptions
from ..rows import column_dims, compute_dtype, sum_to_size
from .families import FAMILIES, Family
from .launch import Launch, SplitLaunch, planned, signature
from .layout import dense, from_dense, layout
from .parameters import SumOfPartials, float32_parts, load_parameter, number, store_partial
from .tile import (
    add_compensated,
    block_index,
    chunk_index,
    chunks_per_program,
    compensated,
    finer,
    geometry,
    is_split,
    load,
    offsets,
    per_row_offsets,
    row_blocks_per_program,
    store,
    tile,
    widened,
)

_FAMILIES = tuple(FAMILIES.values())
_ARGUMENTS = tuple(family.arguments for family in families.FAMILIES.values())


def _family(options: LikelihoodOptions) -> Family:
    return _FAMILIES[options.family]


@triton.jit
def _arguments(inputs, numbers, strides, r, c, mask, inner_rows, inner_cols, VEC: tl.constexpr, DTYPE: tl.constexpr):
    """The family's arguments: the decoder's output, x, and a tuple of the parameters.

    They are elements [R, C]. A number, or a parameter with one element, is a single value.
    """
    first = load(inputs[0] + offsets(r, c, strides[0], inner_rows, inner_cols, VEC), mask, DTYPE)
    params = ()
    for i in tl.static_range(2, len(inputs)):
        if len(numbers[i]) == 0:
            value = load_parameter(inputs[i], strides[i], r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        else:
            value = number(numbers[i], DTYPE)
        params = params + (value,)
    x = load(inputs[1] + offsets(r, c, strides[1], inner_rows, inner_cols, VEC), mask, DTYPE)
    return first, x, params


@triton.jit(do_not_specialize=["rows", "cols", "inner_rows", "inner_cols", "chunks", "chunks_per_program"])
def likelihood_forward_kernel(
    inputs, numbers, out, strides, out_strides,
    rows, cols, inner_rows, inner_cols, chunks, chunks_per_program,
    LOG_PROB: tl.constexpr, VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr,
    SPLIT: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute log-probabilities for `chunks_per_program` chunks of a block of rows.

    The sums over the chunks are stored in out [rows], or if SPLIT the sum of each chunk in out [chunks, rows]. With
    out_strides nothing is summed, and out has all elements.
    """
    DTYPE: tl.constexpr = out.dtype.element_ty
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    begin = chunk_index(WIDE) * chunks_per_program
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    r = row[:, None]
    total = tl.zeros([BLOCK_ROWS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS], DTYPE)
    for chunk in range(begin, tl.minimum(begin + chunks_per_program, chunks)):
        c = chunk * BLOCK_COLS + tl.arange(0, BLOCK_COLS)[None, :]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        first, x, params = _arguments(inputs, numbers, strides, r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        log_prob = LOG_PROB(first, x, *params)
        if len(out_strides) > 0:
            store(out + offsets(r, c, out_strides, inner_rows, inner_cols, VEC), log_prob, mask)
        else:
            if not EVEN:
                log_prob = tl.where(mask, log_prob, 0.0)
            term = tl.sum(log_prob, 1)
            if SPLIT:
                store(out + chunk * rows + row, term, row < rows)
            else:
                total, lost = add_compensated(total, lost, term)
    if not SPLIT and len(out_strides) == 0:
        store(out + row, compensated(total, lost), row < rows)


@triton.jit(do_not_specialize=["rows", "cols", "inner_rows", "inner_cols", "row_blocks", "blocks_per_program"])
def likelihood_backward_kernel(
    inputs, numbers, grad, outs, sum_outs, strides, grad_strides, out_strides,
    rows, cols, inner_rows, inner_cols, row_blocks, blocks_per_program,
    GRAD: tl.constexpr, OF_ELEMENTS: tl.constexpr,
    STORED: tl.constexpr, SUMMED: tl.constexpr, DTYPE: tl.constexpr,
    VEC: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a chunk of columns in `blocks_per_program` blocks of rows.

    The upstream gradient has one element per row, or if OF_ELEMENTS one per element. The gradients of the inputs STORED
    are stored in outs. Those of the inputs SUMMED are summed over the program's rows, into sum_outs: see
    `store_partial`.
    """
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    group = block_index(WIDE)
    first_col = chunk_index(WIDE) * BLOCK_COLS
    c = first_col + tl.arange(0, BLOCK_COLS)[None, :]
    sums = ()
    for _ in tl.static_range(len(SUMMED)):
        sums = sums + (tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE),)
    begin = group * blocks_per_program
    for block in range(begin, tl.minimum(begin + blocks_per_program, row_blocks)):
        row = block * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        r = row[:, None]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        first, x, params = _arguments(inputs, numbers, strides, r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        if OF_ELEMENTS:
            g = load(grad + offsets(r, c, grad_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        else:
            g = load(grad + per_row_offsets(row, grad_strides, inner_rows), row < rows, DTYPE)[:, None]
        grads = GRAD(first, x, *params)
        at = offsets(r, c, out_strides, inner_rows, inner_cols, VEC)
        for i in tl.static_range(len(STORED)):
            store(outs[i] + at, g * grads[STORED[i]], mask)
        more = ()
        for i in tl.static_range(len(SUMMED)):
            value = g * grads[SUMMED[i]]
            if not EVEN:
                value = tl.where(mask, value, 0.0)
            more = more + (sums[i] + value,)
        sums = more
    there = begin < row_blocks
    for i in tl.static_range(len(SUMMED)):
        store_partial(sum_outs[i], sums[i], strides[SUMMED[i]], group, first_col, cols, there, VEC, BLOCK_COLS)


def likelihood_forward(
    first: Tensor, x: Tensor, parameter0: Tensor | None, parameter1: Tensor | None, *options: float
) -> Tensor:
    """The sums, or all elements, as the schema in `vae_kernels.ops` describes them."""
    out = ops.likelihood_forward(first, x, parameter0, parameter1, *options)
    if first.numel() == 0:
        return out.zero_()
    options = LikelihoodOptions(*options)
    inputs, numbers = _as_family_takes((first, x, parameter0, parameter1), options)
    plan = planned(("likelihood_forward", _key(inputs, options)), lambda: _plan_forward(inputs, options))
    plan(*_launched(inputs, numbers), out)
    return out


def _as_family_takes(
    inputs: tuple[Tensor | None, ...], options: LikelihoodOptions
) -> tuple[tuple[Tensor | None, ...], tuple[float | None, ...]]:
    """For each argument of the family: its tensor or None, and its number or None."""
    count = len(_ARGUMENTS[options.family])
    return inputs[:count], (None, None, options.number0, options.number1)[:count]


def _key(inputs: tuple[Tensor | None, ...], options: LikelihoodOptions) -> Hashable:
    """The key of a plan: everything that it depends on."""
    return (options.family, options.batch_dims, options.reduction, inputs[0].get_device(), *map(signature, inputs))


def _launched(inputs: tuple[Tensor | None, ...], numbers: tuple[float | None, ...]) -> tuple[tuple, tuple]:
    """The arguments of the kernels: tensors, and numbers as parts. The tensor of a number is not read."""
    tensors = tuple(inputs[0] if t is None else t for t in inputs)
    return tensors, tuple(float32_parts(n) if t is None else () for t, n in zip(inputs, numbers, strict=True))


def _plan_forward(inputs: Sequence[Tensor | None], options: LikelihoodOptions) -> Callable[..., None]:
    full, elements, family = inputs[0], _elements(inputs), _family(options)
    there = [t for t in inputs if t is not None]
    order = column_dims(full, options.batch_dims)
    results = () if options.summed else (torch.empty_like(full, device="meta"),)
    form = layout([*elements.values(), *results], options.batch_dims, order)
    if form is None:
        return partial(_forward_through_copies, options, order, [t is not None for t in inputs])
    shape = tile(form.rows, form.cols * form.vec, compute_dtype(*there), there, family.held)
    if not options.summed:
        shape = finer(shape, form.cols * form.vec, there)
    chunks = chunks_per_program(shape) if options.summed else 1
    split = options.summed and is_split(shape, chunks)
    launch = Launch(
        likelihood_forward_kernel,
        shape.grid(triton.cdiv(shape.chunks, chunks)),
        full.get_device(),
        strides=_strides(form.strides[: len(elements)], elements, len(inputs)),
        out_strides=() if options.summed else form.strides[-1],
        chunks=shape.chunks,
        chunks_per_program=chunks,
        LOG_PROB=family.log_prob,
        SPLIT=split,
        **geometry(form, shape),
    )
    return SplitLaunch(launch, full.get_device(), form.rows, shape.chunks) if split else launch


def likelihood_backward(
    grad: Tensor,
    first: Tensor,
    x: Tensor,
    parameter0: Tensor | None,
    parameter1: Tensor | None,
    *options_and_needs: float,
) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, as the schema in `vae_kernels.ops` describes them."""
    *options, needs = options_and_needs
    grads = ops.likelihood_backward(grad, first, x, parameter0, parameter1, *options_and_needs)
    if first.numel() == 0:
        for g in grads:
            if g is not None:
                g.zero_()
        return grads
    if not needs:
        return grads
    options = LikelihoodOptions(*options)
    inputs, numbers = _as_family_takes((first, x, parameter0, parameter1), options)
    key = ("likelihood_backward", signature(grad), needs, _key(inputs, options))
    plan = planned(key, lambda: _plan_backward(grad, inputs, options, needs))
    plan(*_launched(inputs, numbers), grad, grads)
    return grads


def _plan_backward(
    grad: Tensor, inputs: Sequence[Tensor | None], options: LikelihoodOptions, needs: int
) -> Callable[..., None]:
    full, elements, family = inputs[0], _elements(inputs), _family(options)
    there = [t for t in inputs if t is not None]
    order = column_dims(full, options.batch_dims)
    out = torch.empty_like(full, device="meta")
    upstream = ([], (grad,)) if options.summed else ([grad], ())
    form = layout([out, *upstream[0], *elements.values()], options.batch_dims, order, upstream[1])
    if form is None:
        return partial(_backward_through_copies, options, order, [t is not None for t in inputs], needs)
    dtype = compute_dtype(*there)
    shape = tile(form.rows, form.cols * form.vec, dtype, there, family.held)
    needed = [i for i in range(len(inputs)) if needs >> i & 1]
    stored = tuple(i for i in needed if inputs[i].shape == full.shape)
    summed = tuple(i for i in needed if inputs[i].shape != full.shape)
    if not summed:
        shape = finer(shape, form.cols * form.vec, there)
    blocks = row_blocks_per_program(shape) if summed else 1
    groups = triton.cdiv(shape.row_blocks, blocks)
    launch = Launch(
        likelihood_backward_kernel,
        shape.grid(shape.chunks, blocks),
        full.get_device(),
        strides=_strides(form.strides[-len(elements) :], elements, len(inputs)),
        grad_strides=form.per_row_strides[0] if options.summed else form.strides[1],
        out_strides=form.strides[0],
        row_blocks=shape.row_blocks,
        blocks_per_program=blocks,
        GRAD=family.grad,
        OF_ELEMENTS=not options.summed,
        STORED=stored,
        SUMMED=summed,
        DTYPE=tl.float64 if dtype == torch.float64 else tl.float32,
        **geometry(form, shape),
    )
    counts = {i: groups * shape.chunks if _is_one(inputs[i], full) else groups for i in summed}
    sums = {i: SumOfPartials(full, inputs[i], dtype, options.batch_dims, order, counts[i]) for i in summed}
    return _Backward(launch, stored, sums)


class _Backward:
    """Launch the kernel. Then sum each gradient that has fewer elements than the first tensor."""

    def __init__(self, launch: Launch, stored: tuple[int, ...], sums: "dict[int, SumOfPartials]") -> None:
        self._launch, self._stored, self._sums = launch, stored, sums

    def __call__(self, tensors: tuple, numbers: tuple, grad: Tensor, grads: tuple[Tensor | None, ...]) -> None:
        partials = tuple(s.empty_partials() for s in self._sums.values())
        self._launch(tensors, numbers, grad, tuple(grads[i] for i in self._stored), partials)
        for (i, total), partial_sums in zip(self._sums.items(), partials, strict=True):
            total(partial_sums, grads[i])


def _is_one(tensor: Tensor | None, full: Tensor) -> bool:
    return tensor is not None and tensor.numel() == 1 and tensor.shape != full.shape


def _elements(inputs: Sequence[Tensor | None]) -> dict[int, Tensor]:
    """The tensors with more than one element, expanded to the shape of the first, by their index."""
    full = inputs[0]
    return {i: t.expand_as(full) for i, t in enumerate(inputs) if t is not None and not _is_one(t, full)}


def _strides(
    of_elements: Sequence[tuple[int, ...]], elements: dict[int, Tensor], count: int
) -> tuple[tuple[int, ...], ...]:
    """The strides of all arguments; an empty tuple for a number or one element."""
    strides = dict(zip(elements, of_elements, strict=True))
    return tuple(strides.get(i, ()) for i in range(count))


def _dense_inputs(inputs: Sequence[Tensor | None], batch_dims: int, order: Sequence[int]) -> list[Tensor | None]:
    """Copies of the op's tensors with the columns in `order`. A shared parameter gets the shape of a row."""
    full = inputs[0]
    copies = [None] * 4
    for i, t in enumerate(inputs):
        if t is None:
            continue
        if _is_one(t, full):
            copies[i] = t.reshape(1)
        elif t.shape == full.shape:
            copies[i] = dense(t, batch_dims, order)
        else:
            row = t.expand_as(full)[(0,) * batch_dims]
            copies[i] = dense(row, 0, [d - batch_dims for d in order])
    return copies


def _with_numbers(options: LikelihoodOptions, numbers: tuple[tuple[float, ...], ...]) -> LikelihoodOptions:
    """The options with the numbers of this call, which may differ from those of the plan."""
    values = [sum(reversed(parts)) if parts else None for parts in numbers[2:]]
    return options._replace(**dict(zip(("number0", "number1"), values, strict=False)))


def _forward_through_copies(options: LikelihoodOptions, order, there, tensors, numbers, out) -> None:
    inputs = [t if is_there else None for t, is_there in zip(tensors, there, strict=True)]
    options = _with_numbers(options, numbers)
    found = likelihood_forward(*_dense_inputs(inputs, options.batch_dims, order), *options)
    out.copy_(found) if options.summed else from_dense(found, out, options.batch_dims, order)


def _backward_through_copies(options: LikelihoodOptions, order, there, needs, tensors, numbers, grad, grads) -> None:
    inputs = [t if is_there else None for t, is_there in zip(tensors, there, strict=True)]
    options = _with_numbers(options, numbers)
    copies = _dense_inputs(inputs, options.batch_dims, order)
    grad = grad.contiguous() if options.summed else dense(grad, options.batch_dims, order)
    found = likelihood_backward(grad, *copies, *options, needs)
    for parameter, result, dense_grad in zip(inputs, grads, found, strict=False):
        if result is None:
            continue
        if parameter.shape == inputs[0].shape:
            from_dense(dense_grad, result, options.batch_dims, order)
        elif parameter.numel() == 1:
            result.copy_(dense_grad.view(result.shape))
        else:
            in_order = dense_grad.permute([order.index(d) for d in sorted(order)])
            own = result.shape[max(result.dim() - len(order), 0) :]
            result.copy_(sum_to_size(in_order, own).view(result.shape))
