"""Packages that only training and its pictures need."""

from importlib import import_module
from types import ModuleType


def require(module: str) -> ModuleType:
    """Import `module`, or raise an `ImportError` that says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        raise ImportError(f"{module} is needed: pip install 'vae_kernels[train]' ({error})") from error
