"""Python numbers in compiled code, where one that changed between calls has become a symbol."""

import torch
from torch import Tensor


def changes(number: float) -> bool:
    """Whether compiled code holds the number as a symbol. As the argument of an op, of `math` or of `torch.full` it would
    become a constant again, compiled anew at each value; in `torch.where` it would keep an old one (pytorch #194976)."""
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # sympy: not at import

    return not has_static_value(number)


def tensor(number: float, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The number as a tensor of one element, on the device of `like`: by a product, which compiled code takes symbols in."""
    return torch.ones((), dtype=dtype or like.dtype, device=like.device) * number
