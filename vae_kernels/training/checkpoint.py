"""A run on disk: its tensors in `checkpoint.safetensors`, and its settings in `checkpoint.json`."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..extras import require
from ..models import VAE, VAESettings

TENSORS, SETTINGS = "checkpoint.safetensors", "checkpoint.json"


def save_settings(folder: Path, model: VAESettings, training: dict[str, Any]) -> None:
    """Write the settings of the model and of the training as JSON."""
    from .. import __version__

    content = {
        "model": asdict(model),
        "training": training,
        "versions": {"vae_kernels": __version__, "torch": torch.__version__},
    }
    _replace(folder / SETTINGS, lambda path: path.write_text(json.dumps(content, indent=2) + "\n"))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Context manager that turns errors in the content of a file into one line that names the file.

    Raises:
        ValueError: the content is damaged.
    """
    damages = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
    try:
        yield
    except (*damages, require("safetensors").SafetensorError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ValueError(f"{path} is damaged, or of another version of vae_kernels ({reason})") from error


def load_settings(folder: Path) -> dict[str, Any]:
    """Read what `save_settings` wrote.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ValueError: its settings are damaged.
    """
    for name in (SETTINGS, TENSORS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no checkpoint in {folder}: {name} is missing")
    with reading(folder / SETTINGS):
        return json.loads((folder / SETTINGS).read_text())


def save(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Tensor]) -> None:
    """Write weights, optimizer state and `progress` to one file, atomically: a crash leaves the old file."""
    names = [name for name, _ in model.named_parameters()]
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{names[index]}.{key}": value for key, value in state.items()}
    tensors |= {f"progress.{key}": value for key, value in progress.items()}
    save_file = require("safetensors.torch").save_file
    _replace(folder / TENSORS, lambda path: save_file({k: v.contiguous() for k, v in tensors.items()}, path))


def load(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Load what `save` wrote into a model and an optimizer with the same settings. Returns `progress`.

    A damaged file may raise any error: call this within `reading`.
    """
    tensors = require("safetensors.torch").load_file(folder / TENSORS)
    model.load_state_dict(_below("model.", tensors))
    state = {index: _below(f"optimizer.{name}.", tensors) for index, (name, _) in enumerate(model.named_parameters())}
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {i: s for i, s in state.items() if s}, "param_groups": groups})
    return _below("progress.", tensors)


def load_model(folder: str | os.PathLike[str]) -> VAE:
    """Load the model of a run from its folder, in evaluation mode, on the CPU.

    Raises:
        FileNotFoundError: the folder holds no checkpoint.
        ImportError: safetensors is missing.
        ValueError: the checkpoint is damaged.
    """
    folder = Path(folder)
    content = load_settings(folder)
    with reading(folder / SETTINGS):
        model = VAESettings(**content["model"]).build()
    with reading(folder / TENSORS):
        weights = _below("model.", require("safetensors.torch").load_file(folder / TENSORS))
        model.to({weight.dtype for weight in weights.values()}.pop()).load_state_dict(weights)
    return model.eval()


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _replace(path: Path, write: Callable[[Path], Any]) -> None:
    partial = path.with_name(path.name + ".partial")
    write(partial)
    os.replace(partial, path)
