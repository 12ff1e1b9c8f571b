"""What `with` blocks choose, each for its own thread and async context.

Dynamo cannot trace a `ContextVar`. It reads attributes of a module and guards what it read, so compiled code finds the
blocks around it as attributes of this one. Blocks within compiled code are a global, whose changes Dynamo follows.
"""

import sys
from contextvars import ContextVar

import torch

# Outermost first. An object that is entered twice, or by several threads, keeps nothing itself.
_CHOICES: dict[str, ContextVar[tuple]] = {
    kind: ContextVar(f"vae_kernels.{kind}", default=()) for kind in ("backend", "check_values")
}
_traced: dict[str, tuple] = dict.fromkeys(_CHOICES, ())


def innermost(kind: str) -> object:
    """The innermost block's choice, None outside of blocks."""
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
