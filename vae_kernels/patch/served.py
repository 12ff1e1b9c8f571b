"""The tensors that our kernels serve. The published code serves all others."""

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import checks
from ..backends import backend_of

HALVES = (torch.bfloat16, torch.float16)


def is_served(*values: object) -> bool:
    """True if all values are strided floating-point tensors, of no subclass, on one device that has kernels."""
    if not all(
        type(t) in (Tensor, Parameter) and t.dtype in checks.FLOATS and t.layout is torch.strided and not t.is_nested
        for t in values
    ):
        return False
    first = values[0]
    return all(t.device == first.device for t in values) and backend_of(first) != "eager"


def autocasts(tensor: Tensor) -> bool:
    """True if autocast may choose the dtype of a result: it is enabled, and the tensor is half precision."""
    return tensor.dtype in HALVES and torch.is_autocast_enabled(tensor.device.type)
