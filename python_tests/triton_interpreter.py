"""A pytest plugin that mends Triton's interpreter.

It rounds to bfloat16 to nearest, as GPUs do; by itself it cuts digits off, and gets numbers wrong that are denormal there.
And it replaces the functions of `triton.language` once per launch, not again, around what it put there before, for every
function that a kernel calls.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_convert = interpreter._convert_float


def _to_nearest(values: np.ndarray, source: tl.dtype, target: tl.dtype, rounding: object) -> np.ndarray:
    if (source, target) != (tl.float32, tl.bfloat16):
        return _convert(values, source, target, rounding)
    rounded = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16)
    return rounded.view(torch.int16).numpy().view(np.uint16).reshape(values.shape)


def _call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    return function.rewrite()(*args, **kwargs)


interpreter._convert_float = _to_nearest
interpreter.InterpretedFunction.__call__ = _call
