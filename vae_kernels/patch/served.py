"""Which tensors our kernels answer for; all others stay the published code's."""

import torch
from torch import Tensor
from torch.nn import Parameter

from .. import checks
from ..backends import backend_of

HALVES = (torch.bfloat16, torch.float16)


def is_served(*values: object) -> bool:
    """Whether kernels compute with these: plain dense tensors of floating-point numbers on one device that has kernels."""
    if not all(
        type(t) in (Tensor, Parameter) and t.dtype in checks.FLOATS and t.layout is torch.strided and not t.is_nested
        for t in values
    ):
        return False
    first = values[0]
    return all(t.device == first.device for t in values) and backend_of(first) != "eager"


def autocasts(tensor: Tensor) -> bool:
    """Whether autocast may choose the dtype of results here: that of a half-precision tensor."""
    return tensor.dtype in HALVES and torch.is_autocast_enabled(tensor.device.type)
