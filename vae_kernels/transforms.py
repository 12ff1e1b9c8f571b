"""Where only plain PyTorch gives right results."""

import torch
from torch import Tensor
from torch.autograd import forward_ad


def active() -> bool:
    """Whether a functorch transform (vmap, func.grad, jvp, …) or forward-mode differentiation is running.

    An `autograd.Function` around an opaque op gives an error there, and silently wrong gradients when compiled
    (pytorch #193279), so the public functions answer with their eager version.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def batched(gradient: Tensor | None) -> bool:
    """Whether a backward pass runs for several upstream gradients at once: within `vmap`, or by `is_grads_batched`."""
    if gradient is None or torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(gradient)
