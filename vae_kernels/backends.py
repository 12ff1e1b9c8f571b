"""The choice of a backend for each device, and the reason if a backend cannot serve it."""

import os
import threading
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from . import blocks, transforms

NAMES = ("auto", "eager", "cpp", "cuda", "triton")

# The backends that `auto` tries for a device, best first. `eager` serves every device.
AUTO = {"cpu": ("cpp",), "cuda": ("cuda", "triton")}

_DEVICES = {"cpp": ("cpu",), "cuda": ("cuda",), "triton": ("cuda", "cpu")}

# The process's choice. A `with` block overrides it.
_default = os.environ.get("VAE_KERNELS_BACKEND", "auto")


class _Undecided(threading.local):
    """Id and name of this thread's last `use_backend`, as long as a `with` block may still enter it."""

    choice: tuple[int, str] | None = None


_undecided = _Undecided()


class use_backend:
    """Choose the backend of later calls: as a function for the whole process, as a context manager for a `with` block.

    `"auto"` takes the fastest backend that can serve the device, and never raises: eager serves every device. It is the
    default, unless the environment variable `VAE_KERNELS_BACKEND` names another backend. Naming a backend that cannot
    serve the device raises `RuntimeError` with the reason. A backward pass runs on the backend of its forward pass.

    A block's choice overrides the process's choice in the block's own thread and async context, so the blocks of
    several threads or tasks may overlap. A thread that is started within a block begins with the process's choice.
    `torch.utils.checkpoint` repeats a forward pass on a GPU in such a thread.

    >>> import torch, vae_kernels as vk
    >>> with vk.use_backend("eager"):
    ...     z, kl = vk.reparameterize_kl(torch.zeros(2, 3), torch.zeros(2, 3))
    """

    def __init__(self, name: str) -> None:
        if name not in NAMES:
            raise ValueError(f"name must be one of {', '.join(NAMES)}, got {name!r}")
        if name not in ("auto", "eager"):
            reasons = {device: _why_not(name, device) for device in _DEVICES[name]}
            if all(reasons.values()):
                raise RuntimeError(f"backend {name!r} is not available: {next(iter(reasons.values()))}")
        if _undecided.choice is not None:
            _decide()
        self._name, _undecided.choice = name, (id(self), name)

    def __enter__(self) -> "use_backend":
        if self._may_be_a_block():
            _undecided.choice = None
        blocks.enter("backend", self._name)
        return self

    def __exit__(self, *_: object) -> None:
        blocks.leave("backend")

    def __del__(self) -> None:
        if self._may_be_a_block():
            _decide()

    def _may_be_a_block(self) -> bool:
        return _undecided.choice is not None and _undecided.choice[0] == id(self)


def _decide() -> None:
    """Make this thread's last choice the process's choice, because no `with` block has entered it."""
    global _default
    _default, _undecided.choice = _undecided.choice[1], None


def backends() -> dict[str, dict[str, str]]:
    """The state of every backend: for each device type, a backend's name and `"available"` or the reason why it is not.

    >>> import vae_kernels as vk
    >>> vk.backends()["cpu"]["eager"]
    'available'
    """
    return {
        device: {
            name: "available" if name == "eager" else _why_not(name, device) or "available"
            for name in NAMES
            if name == "eager" or device in _DEVICES.get(name, ())
        }
        for device in AUTO
    }


def current_backend(device_type: str) -> str:
    """The backend that serves tensors on this device type, under the current thread's blocks."""
    if _undecided.choice is not None:
        _decide()
    return _select(device_type, blocks.innermost("backend") or _default)


def backend_of(tensor: Tensor) -> str:
    """The backend of a call with this tensor: eager under functorch transforms, which differentiate its formulas."""
    if transforms.active():
        return "eager"
    return current_backend("cpu" if tensor.is_cpu else tensor.device.type)


def _select(device_type: str, requested: str) -> str:
    return _resolve(device_type, requested)


# This is what `torch.compiler.assume_constant_result` sets. Calling it would import torch._dynamo and triton, which
# adds one second to the import of this package.
_select._dynamo_marked_constant = True


@cache
def _resolve(device_type: str, requested: str) -> str:
    if requested not in NAMES:
        raise ValueError(f"VAE_KERNELS_BACKEND must be one of {', '.join(NAMES)}, got {requested!r}")
    if requested == "auto":
        return next((name for name in AUTO.get(device_type, ()) if not _why_not(name, device_type)), "eager")
    if requested != "eager" and (reason := _why_not(requested, device_type)):
        raise RuntimeError(f"backend {requested!r} cannot serve {device_type} tensors: {reason}")
    return requested


@cache
def _why_not(name: str, device_type: str) -> str:
    """An empty string if the backend can serve the device; its ops are then registered. Otherwise the reason."""
    if device_type not in _DEVICES[name]:
        return f"{name} serves {' and '.join(_DEVICES[name])} tensors only"
    if name == "triton":
        return _load_triton(device_type)
    if name == "cuda" and not (torch.version.cuda and torch.cuda.is_available()):
        return "this torch sees no CUDA device" if torch.version.cuda else "this torch is built without CUDA"
    return _load_library(name)


def _load_library(name: str) -> str:
    path = Path(__file__).with_name(f"_{name}.so")
    if not path.exists():
        return f"{path.name} was not built: reinstall with a {'CUDA' if name == 'cuda' else 'C++'} compiler"
    from . import ops
    from .families import FAMILIES

    try:
        torch.ops.load_library(path)
    except OSError as error:
        return f"{path.name} does not load: {error}"
    library = getattr(torch.ops, f"vae_kernels_{name}")
    if not hasattr(library, "families") or library.families() != " ".join(FAMILIES):
        return f"{path.name} was built from other sources: reinstall"
    ops.define(f"vae_kernels_{name}")
    return ""


def _load_triton(device_type: str) -> str:
    if device_type == "cuda" and not torch.cuda.is_available():
        return "this torch sees no CUDA device"
    try:
        from .triton import DEVICES
    except ImportError as error:
        return f"the Triton kernels do not import: {error}"
    return (
        "" if device_type in DEVICES else "triton serves CPU tensors only in its interpreter, with TRITON_INTERPRET=1"
    )
