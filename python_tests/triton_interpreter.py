"""A pytest plugin that mends Triton's interpreter.

It rounds to bfloat16 to nearest, as GPUs do; by itself it cuts digits off, and gets numbers wrong that are denormal
there. And for every function that a kernel calls it replaces `triton.language` again, around the replacements that are
there: its time grows with every call. Once is enough: per launch for `triton.language`, which is restored after it; for
`triton.language.core`, which its own functions use, once for all.
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


_core_replaced = False


def _call(function: interpreter.InterpretedFunction, *args: object, **kwargs: object) -> object:
    global _core_replaced
    if not _core_replaced and any(value is tl.core for value in function.fn.__globals__.values()):
        interpreter._patch_lang(function.fn)
        _core_replaced = True
    return function.rewrite()(*args, **kwargs)


interpreter._convert_float = _to_nearest
interpreter.InterpretedFunction.__call__ = _call
