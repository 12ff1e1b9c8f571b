"""The row form: every tensor seen as (rows, cols).

Rows are the first `batch_dims` dims, flattened. Columns are the other dims, flattened in the order in which
`torch.empty_like` lays them out: C order for C-contiguous tensors, memory order for other dense ones (channels_last).
"""

import math

import torch
from torch import Tensor


def column_dims(tensor: Tensor, batch_dims: int) -> list[int]:
    """The dims behind the first `batch_dims`, slowest first, in the order in which columns are counted."""
    dims = range(batch_dims, tensor.dim())
    if tensor.is_contiguous():
        return list(dims)
    stride = torch.empty_like(tensor, device="meta").stride()
    return sorted(dims, key=lambda d: -stride[d] if tensor.shape[d] > 1 else 0)


def row_shape(tensor: Tensor, batch_dims: int) -> tuple[int, int]:
    """`(rows, cols)` of the row form."""
    return math.prod(tensor.shape[:batch_dims]), math.prod(tensor.shape[batch_dims:])


def from_rows(rows: Tensor, like: Tensor, batch_dims: int) -> Tensor:
    """A tensor of `like`'s shape from its row form."""
    order = [*range(batch_dims), *column_dims(like, batch_dims)]
    view = rows.reshape([like.shape[d] for d in order])
    return view.permute([order.index(d) for d in range(like.dim())])
