"""The options of `python -m vae_kernels.train`, and what they are where the command says nothing."""

import argparse
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from . import checkpoint
from .backends import NAMES
from .models import LIKELIHOODS, MODELS

# float16 is left out: its gradients underflow without loss scaling, and bfloat16 needs none.
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# What a resumed run may change: how far, where and by whom it is computed, not what.
RESUME_MAY_CHANGE = ("data_dir", "epochs", "device", "backend", "compile", "out")


@dataclass(frozen=True)
class Defaults:
    """What suits one source of pictures."""

    model: str
    epochs: int
    batch_size: int


DEFAULTS = {
    "digits": Defaults("mlp", epochs=100, batch_size=64),
    "mnist": Defaults("mlp", epochs=20, batch_size=128),
    "images": Defaults("conv", epochs=20, batch_size=64),
}


@dataclass(frozen=True)
class Settings:
    """One run; the fields are the command's options. A None that `DEFAULTS` or the machine decides on is filled in."""

    data: str = "digits"
    data_dir: str | None = None
    image_size: int = 64
    model: str | None = None
    hidden: tuple[int, ...] | None = None
    likelihood: str = "bernoulli"
    logvar: float = -3.0
    latent_dim: int = 20
    beta: float = 1.0
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 1e-3
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    backend: str = "auto"
    compile: bool = False
    out: str | None = None

    def __post_init__(self) -> None:
        _one_of("data", self.data, DEFAULTS)
        defaults = vars(DEFAULTS[self.data]) | {
            "device": "cuda" if torch.cuda.is_available() else "cpu",
            "out": f"out/{self.data}",
        }
        for name, value in defaults.items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        if self.hidden is not None:
            object.__setattr__(self, "hidden", tuple(self.hidden))
        self._check()

    def _check(self) -> None:
        for name, values in (("model", MODELS), ("likelihood", LIKELIHOODS), ("dtype", DTYPES), ("backend", NAMES)):
            _one_of(name, getattr(self, name), values)
        for name in ("epochs", "batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("lr", "beta"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, but this torch sees no CUDA device")


def parse(arguments: list[str] | None = None) -> tuple[Settings, bool]:
    """The settings of a command line, and whether to resume; a resumed run has the settings it began with.

    Raises:
        FileNotFoundError: nothing to resume.
        ValueError: an option out of range, or one that a resumed run cannot change.
    """
    given = vars(_parser().parse_args(arguments))
    resume = given.pop("resume", False)
    settings = Settings(**given)
    if not resume:
        return settings, False
    began = Settings(**checkpoint.load_settings(Path(settings.out))["training"] | {"device": settings.device})
    for name in sorted(given.keys() - set(RESUME_MAY_CHANGE)):
        if getattr(settings, name) != getattr(began, name):
            raise ValueError(
                f"{name} was {getattr(began, name)} when this run began: --resume cannot make it {given[name]}"
            )
    return Settings(**vars(began) | given), True


def _one_of(name: str, value: str, values) -> None:
    if value not in values:
        raise ValueError(f"{name} must be one of {', '.join(values)}, got {value!r}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vae_kernels.train",
        description="Train a reference VAE on the package's kernels.",
        argument_default=argparse.SUPPRESS,
    )
    by_data = {
        field.name: ", ".join(f"{getattr(d, field.name)} for {name}" for name, d in DEFAULTS.items())
        for field in fields(Defaults)
    }
    add = parser.add_argument
    add("--data", choices=DEFAULTS, help="digits: scikit-learn's, no download (default); the others need --data-dir")
    add("--data-dir", help="the folder of MNIST's four IDX files, or of pictures")
    add("--image-size", type=int, help="height and width to which the pictures of a folder are scaled (64)")
    add("--model", choices=MODELS, help=f"({by_data['model']})")
    add("--hidden", type=int, nargs="+", help="widths of the MLP's layers, or channels of the convolutions")
    add("--likelihood", choices=LIKELIHOODS, help="what the decoder's output means (bernoulli)")
    add("--logvar", type=float, help="a Gaussian decoder's fixed log-variance, or where a learned one starts (-3)")
    add("--latent-dim", type=int, help="2 also draws the manifold and the means by class (20)")
    add("--beta", type=float, help="weight of the KL in the objective; the ELBO shown is always that of beta 1 (1)")
    add("--epochs", type=int, help=f"({by_data['epochs']})")
    add("--batch-size", type=int, help=f"({by_data['batch_size']})")
    add("--lr", type=float, help="learning rate of Adam (0.001)")
    add("--seed", type=int, help="of the weights, the order of the pictures and the noise (0)")
    add("--device", help="cpu, cuda, cuda:1, … (cuda if there is one)")
    add("--dtype", choices=DTYPES, help="bfloat16: autocast, with weights and sums in float32 (float32)")
    add("--backend", choices=NAMES, help="who computes the loss (auto)")
    add("--compile", action="store_true", help="torch.compile the loss and its backward")
    add("--out", help="folder for history, checkpoint and pictures (out/digits, …)")
    add("--resume", action="store_true", help="go on with the run in --out, with the settings it began with")
    return parser
