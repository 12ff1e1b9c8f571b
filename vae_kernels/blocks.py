"""The choices that `with` blocks make, each for its own thread and async context.

Dynamo cannot trace a `ContextVar`, but it can read a module's attribute and guard the value. Compiled code therefore
reads the choices of the blocks around it as attributes of this module. The choices of blocks within compiled code are
in a global variable, whose changes Dynamo follows.
"""

import sys
from contextvars import ContextVar

import torch

# Each tuple holds the outermost block's choice first. The context managers themselves hold no state, so that one object
# may be entered twice, or by several threads.
_CHOICES: dict[str, ContextVar[tuple]] = {
    kind: ContextVar(f"vae_kernels.{kind}", default=()) for kind in ("backend", "check_values")
}
_traced: dict[str, tuple] = dict.fromkeys(_CHOICES, ())


def innermost(kind: str) -> object:
    """The innermost block's choice; None outside of all blocks."""
    if torch.compiler.is_dynamo_compiling():
        return _traced[kind][-1] if _traced[kind] else getattr(sys.modules[__name__], kind)
    choices = _CHOICES[kind].get()
    return choices[-1] if choices else None


def __getattr__(kind: str) -> object:
    if kind not in _CHOICES:
        raise AttributeError(f"module {__name__!r} has no attribute {kind!r}")
    return innermost(kind)


def enter(kind: str, choice: object) -> None:
    if torch.compiler.is_dynamo_compiling():
        _traced[kind] = (*_traced[kind], choice)
    else:
        _CHOICES[kind].set((*_CHOICES[kind].get(), choice))


def leave(kind: str) -> None:
    if torch.compiler.is_dynamo_compiling():
        _traced[kind] = _traced[kind][:-1]
    else:
        _CHOICES[kind].set(_CHOICES[kind].get()[:-1])
