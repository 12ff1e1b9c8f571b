"""The row form: every tensor as a matrix of shape (rows, cols).

The first `batch_dims` dims are flattened to rows. All other dims are flattened to columns, in the order in which
`torch.empty_like` stores them: C order for C-contiguous tensors, memory order for other dense tensors (channels_last).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype of arithmetic and sums: float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def column_dims(tensor: Tensor, batch_dims: int) -> list[int]:
    """The dims after the first `batch_dims`, in the order in which columns are counted; the slowest comes first."""
    dims = range(batch_dims, tensor.dim())
    if tensor.is_contiguous():
        return list(dims)
    stride = torch.empty_like(tensor, device="meta").stride()
    return sorted(dims, key=lambda d: -stride[d] if tensor.shape[d] > 1 else 0)


def row_shape(tensor: Tensor, batch_dims: int) -> tuple[int, int]:
    """`(rows, cols)` of the row form."""
    return math.prod(tensor.shape[:batch_dims]), math.prod(tensor.shape[batch_dims:])


def from_rows(rows: Tensor, like: Tensor, batch_dims: int, num_samples: int | None = None) -> Tensor:
    """Convert a row form to a tensor of the shape of `like`, with a leading dim if `num_samples` is not None."""
    order = [*range(batch_dims), *column_dims(like, batch_dims)]
    sizes, back = [like.shape[d] for d in order], [order.index(d) for d in range(like.dim())]
    if num_samples is None:
        return rows.reshape(sizes).permute(back)
    return rows.reshape(num_samples, *sizes).permute(0, *(d + 1 for d in back))


def empty_samples(like: Tensor, num_samples: int | None, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for `num_samples` tensors one after the other, each with the layout of `torch.empty_like(like)`."""
    if num_samples is None:
        return torch.empty_like(like, dtype=dtype)
    one = torch.empty_like(like, device="meta")
    strides = (max(one.numel(), 1), *one.stride())
    return like.new_empty_strided((num_samples, *like.shape), strides, dtype=dtype or like.dtype)


def expands(shape: torch.Size, to: torch.Size) -> bool:
    """True if `Tensor.expand` accepts the shape `to`. It is not tried, because compiled code cannot catch its error."""
    return len(shape) <= len(to) and all(a in (1, b) for a, b in zip(shape[::-1], to[::-1], strict=False))


def check_broadcast(name: str, parameter: Tensor, first_name: str, first: Tensor) -> None:
    """Raise unless a parameter broadcasts to the first argument."""
    if not expands(parameter.shape, first.shape):
        raise ValueError(
            f"{name} must broadcast to the shape of {first_name}, {tuple(first.shape)}, got {tuple(parameter.shape)}"
        )


def expand_other(
    parameter: Tensor | None, first: Tensor, batch_dims: int, arithmetic_of: Sequence[Tensor | None] = ()
) -> Tensor | None:
    """Prepare a parameter for the kernels.

    The kernels themselves reduce the gradient of a parameter of full shape, or of one that all samples share; it is
    returned as it is. Any other parameter is expanded, and `sum_other` sums its gradient. A backward pass gives
    `arithmetic_of`, whose compute dtype the expanded parameter then has, so that `sum_other` rounds only once.
    """
    if parameter is None or parameter.shape == first.shape:
        return parameter
    leading = parameter.shape[: max(batch_dims - (first.dim() - parameter.dim()), 0)]
    if all(size == 1 for size in leading):
        return parameter
    if arithmetic_of:
        parameter = parameter.to(compute_dtype(*(t for t in arithmetic_of if t is not None)))
    return parameter.expand_as(first)


def sum_other(gradient: Tensor | None, parameter: Tensor) -> Tensor | None:
    """The gradient of a parameter that `expand_other` expanded."""
    return None if gradient is None else sum_to_size(gradient, parameter.shape).to(parameter.dtype)


def sum_to_size(tensor: Tensor, shape: Sequence[int]) -> Tensor:
    """`tensor.sum_to_size(shape)`, without the dims of size 1 on the way: torch sums tensors of at most 64 dims."""
    wanted = (*(1 for _ in range(tensor.dim() - len(shape))), *shape)
    sizes = [(have, want) for have, want in zip(tensor.shape, wanted, strict=True) if have != 1]
    summed = tensor.reshape([have for have, _ in sizes]).sum_to_size([want for _, want in sizes])
    return summed.reshape(shape)
