"""Checks of arguments. Shapes and dtypes are always checked, values only on request, because it costs a sync."""

import numbers
import os
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import blocks, transforms
from .rows import expands

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.uint8, torch.bool, torch.int8, torch.int16, torch.int32, torch.int64)
TARGETS = (*FLOATS, *INTEGERS)


class Range(NamedTuple):
    """The values that an argument may have: in words, and as an elementwise test, which NaN fails."""

    need: str
    good: Callable[[Tensor], Tensor]


UNIT = Range("in [0, 1]", lambda v: (v >= 0) & (v <= 1))
SYMMETRIC_UNIT = Range("in [-1, 1]", lambda v: (v >= -1) & (v <= 1))
NOT_NEGATIVE = Range("at least 0", lambda v: v >= 0)
POSITIVE = Range("positive", lambda v: v > 0)

_CHECK_ALWAYS = os.environ.get("VAE_KERNELS_CHECK", "0") not in ("", "0")


class check_values:
    """Context manager within which every call also checks the values of its arguments.

    A `ValueError` names the argument and the first sample that holds NaN or a value that the distribution does not
    allow (a Bernoulli target outside [0, 1], a negative rate, a class that does not exist). Every check waits for the
    device: use it to find a bug, not for training. `VAE_KERNELS_CHECK=1` in the environment switches the checks on for
    a whole program. They are skipped if there are no values to read: in compiled, exported or traced code, under
    `vmap`, and for meta and fake tensors. A block holds in its own thread and async context.

    >>> import torch, vae_kernels as vk
    >>> with vk.check_values():
    ...     log_px = vk.bernoulli_log_likelihood(torch.zeros(2, 3), torch.ones(2, 3))
    """

    def __enter__(self) -> "check_values":
        blocks.enter("check_values", True)
        return self

    def __exit__(self, *_: object) -> None:
        blocks.leave("check_values")


def values_checked() -> bool:
    """True if calls have to check values here."""
    if torch.compiler.is_compiling():
        return False
    return (_CHECK_ALWAYS or blocks.innermost("check_values") is not None) and not transforms.traced()


def tensor(name: str, value: object, dtypes: tuple[torch.dtype, ...]) -> None:
    """Raise unless `value` is a tensor of one of `dtypes`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in dtypes:
        advice = f": pass {name}.dequantize()" if value.is_quantized and torch.float32 in dtypes else ""
        raise TypeError(f"{name} must have one of the dtypes {', '.join(map(str, dtypes))}, got {value.dtype}{advice}")
    if type(value) is not Tensor and hasattr(value, "to_local"):
        raise TypeError(
            f"{name} must be a plain tensor, got a {type(value).__name__}: pass {name}.to_local(), and give each sample "
            "a seed of its own, so that the noise is that of the whole batch"
        )
    dense(name, value)


def dense(name: str, value: Tensor) -> None:
    """Raise unless `value` is strided: not nested, not sparse."""
    if value.is_nested:
        raise TypeError(
            f"{name} must be dense, got a nested tensor: pass {name}.to_padded_tensor(0.0), and mask in the result what "
            "was padded"
        )
    if value.layout is not torch.strided:
        raise TypeError(f"{name} must be dense, got the layout {value.layout}: pass {name}.to_dense()")


def integer(name: str, value: object, need: str = "an int") -> int:
    """`value` as a Python int. NumPy's integers are accepted too."""
    if not isinstance(value, int):
        if not isinstance(value, numbers.Integral):
            raise TypeError(f"{name} must be {need}, got {type(value).__name__}")
        return int(value)
    if isinstance(value, bool):
        raise TypeError(f"{name} must be {need}, got bool")
    return value


def choice(name: str, value: object, choices: dict[str, int | None]) -> int | None:
    """`choices[value]`, or an error that lists the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
    return choices[value]


def is_number(value: object) -> bool:
    """True if a parameter is a Python or NumPy number instead of a tensor."""
    return isinstance(value, int | float | numbers.Real) and not isinstance(value, bool)


def same_device(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    if value.device != reference.device:
        raise ValueError(
            f"{name} is on {value.device}, but {reference_name} is on {reference.device}: move one of them"
        )


def same_shape(name: str, value: Tensor, reference_name: str, reference: Tensor) -> None:
    if value.shape != reference.shape:
        advice = f"; broadcast it with {name}.expand_as({reference_name}), which copies nothing"
        advice = advice if expands(value.shape, reference.shape) else ""
        raise ValueError(
            f"{name} must have the shape of {reference_name}, {tuple(reference.shape)}, got {tuple(value.shape)}{advice}"
        )


def batch_dims(value: int, name: str, reference: Tensor, others: int = 0, summed: bool = True) -> int:
    """Raise unless `0 ≤ value ≤ reference.dim() − others`. Returns 0 if that bound is 0 and nothing is summed."""
    value = integer("batch_dims", value)
    most = reference.dim() - others
    if most == 0 and not summed:
        return 0
    if not 0 <= value <= most:
        before = " before that of the classes" if others else ""
        raise ValueError(
            f"batch_dims must be between 0 and {most}, the number of dims of {name} {tuple(reference.shape)}{before}, "
            f"got {value}"
        )
    return value


def target(x: Tensor, shape: torch.Size, first_name: str, batch_dims: int) -> Tensor:
    """`x` expanded to `shape`, that of the decoder's output. Only batch dims broadcast; other mismatches raise."""
    if x.shape == shape:
        return x
    missing = len(shape) - x.dim()
    leading = shape[missing:batch_dims] if missing >= 0 else ()
    fits = (
        0 <= missing <= batch_dims
        and x.shape[batch_dims - missing :] == shape[batch_dims:]
        and all(have in (1, want) for have, want in zip(x.shape, leading, strict=False))
    )
    if not fits:
        raise ValueError(
            f"x must have the shape of {first_name}, {tuple(shape)} (of the first {batch_dims} dims, batch_dims, "
            f"leading ones may be missing or 1), got {tuple(x.shape)}"
        )
    return x.expand(shape)


def all_samples(name: str, value: Tensor, batch_dims: int, good: Tensor, need: str) -> None:
    """Raise, naming the first sample of `value` with an element that is not `good`, if `good` can be read."""
    if transforms.readable(good) and not good.all():
        index = tuple((~good).nonzero()[0, :batch_dims].tolist())
        culprit = value[~good][0].item()
        raise ValueError(f"{name} must be {need}, but {f'sample {index}' if batch_dims else 'it'} holds {culprit}")


def no_nan(name: str, value: Tensor, batch_dims: int) -> None:
    if value.is_floating_point():
        all_samples(name, value, batch_dims, ~value.isnan(), "free of NaN")


def in_range(name: str, value: Tensor, batch_dims: int, allowed: Range) -> None:
    # torch compares an integer tensor with a number in the tensor's own dtype: in uint8, 256 becomes 0.
    wide = value if value.is_floating_point() else value.long()
    all_samples(name, value, batch_dims, allowed.good(wide), allowed.need)
