"""What a call must look like. Shapes and dtypes are checked at every call, values only where asked: that costs a sync."""

import math
import os

import torch
from torch import Tensor

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
TARGETS = (*FLOATS, torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)

_checking_values = os.environ.get("VAE_KERNELS_CHECK", "0") not in ("", "0")


class check_values:
    """Context manager: within it, values are checked too (NaN, Bernoulli targets outside [0, 1]).

    The first offending sample is named in a `ValueError`. Every check waits for the device: for finding a bug, not for
    training. `VAE_KERNELS_CHECK=1` in the environment does the same for a whole program. Not in `torch.compile`d code.

    >>> import torch, vae_kernels as vk
    >>> with vk.check_values():
    ...     log_px = vk.bernoulli_log_likelihood(torch.zeros(2, 3), torch.ones(2, 3))
    """

    def __enter__(self) -> "check_values":
        global _checking_values
        self._previous, _checking_values = _checking_values, True
        return self

    def __exit__(self, *_: object) -> None:
        global _checking_values
        _checking_values = self._previous


def values_checked() -> bool:
    """Whether values are to be checked here."""
    return _checking_values and not torch.compiler.is_compiling()


def tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """`value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must have one of the dtypes {', '.join(map(str, dtypes))}, got {value.dtype}")


def same_device(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    if value.device != reference.device:
        raise ValueError(
            f"{name} is on {value.device}, but {reference_name} is on {reference.device}: move one of them"
        )


def same_shape(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    if value.shape != reference.shape:
        raise ValueError(
            f"{name} must have the shape of {reference_name}, {tuple(reference.shape)}, got {tuple(value.shape)}; "
            f"broadcast it with {name}.expand_as({reference_name}), which copies nothing"
        )


def batch_dims(value: int, name: str, reference: Tensor) -> None:
    """0 ≤ batch_dims ≤ dims of the tensor."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"batch_dims must be an int, got {type(value).__name__}")
    if not 0 <= value <= reference.dim():
        raise ValueError(
            f"batch_dims must be between 0 and {reference.dim()}, the number of dims of {name} "
            f"{tuple(reference.shape)}, got {value}"
        )


def all_samples(name: str, value: Tensor, batch_dims: int, good: Tensor, need: str) -> None:
    """Raises naming the first sample of `value` in which an element is not `good`."""
    if not good.all():
        index = tuple((~good).nonzero()[0, :batch_dims].tolist())
        culprit = value[~good][0].item()
        raise ValueError(f"{name} must be {need}, but sample {index} holds {culprit}")


def no_nan(name: str, value: Tensor, batch_dims: int) -> None:
    if value.is_floating_point():
        all_samples(name, value, batch_dims, ~value.isnan(), "free of NaN")


def in_range(name: str, value: Tensor, batch_dims: int, low: float, high: float) -> None:
    if (low, high) != (-math.inf, math.inf):
        all_samples(name, value, batch_dims, (value >= low) & (value <= high), f"in [{low}, {high}]")
