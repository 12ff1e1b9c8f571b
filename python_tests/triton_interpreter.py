"""A pytest plugin that mends Triton's interpreter and chooses the tests to run in it.

It rounds to bfloat16 to nearest, as GPUs do; by itself it cuts digits off, and gets numbers wrong that are denormal
there. And for every function that a kernel calls it replaces `triton.language` again, around the replacements that are
there: its time grows with every call. Once is enough: per launch for `triton.language`, which is restored after it; for
`triton.language.core`, which its own functions use, once for all. Nor does it look for overflows, half of its time, of
which nothing comes outside debugging.
"""

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter
from variants import Variants

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
object.__setattr__(interpreter.interpreter_builder.options, "sanitize_overflow", False)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, variants = [], Variants()
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        of_triton = "triton" in (parameters.get("backend"), parameters.get("kernel"))
        if item.path.stem.endswith("_under_interpreter") or (of_triton and variants.add(item)):
            kept.append(item)
    empty = {item.function.__name__ for item in items} - {item.function.__name__ for item in kept}
    if empty:
        raise pytest.UsageError(f"nothing of {', '.join(sorted(empty))} is for Triton")
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept
