"""Python numbers in compiled code. A number that changes between calls becomes a symbol there."""

import torch
from torch import Tensor


def changes(number: float) -> bool:
    """True if compiled code holds the number as a symbol.

    As an argument of an op, of `math` or of `torch.full` a symbol becomes a constant again, and each value recompiles
    the code. In `torch.where` it keeps an old value (pytorch #194976).
    """
    if not torch.compiler.is_compiling():
        return False
    from torch.fx.experimental.symbolic_shapes import has_static_value  # sympy: not at import

    return not has_static_value(number)


def tensor(number: float, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """The number as a tensor of one element on the device of `like`. It is made by a product, which accepts symbols."""
    return torch.ones((), dtype=dtype or like.dtype, device=like.device) * number
