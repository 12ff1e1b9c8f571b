"""Optional packages."""

from importlib import import_module
from types import ModuleType


def require(module: str, install: str = "'vae_kernels[train]'") -> ModuleType:
    """Import `module`, or raise an `ImportError` that says how to install it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed: pip install {install} ({error})") from error
