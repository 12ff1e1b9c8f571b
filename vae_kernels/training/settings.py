"""The options of `python -m vae_kernels.train`, and their defaults."""

import argparse
import math
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from ..backends import NAMES
from ..models import LIKELIHOODS, MODELS
from ..objectives import CAPACITY_PER, FREE_BITS_PER
from ..schedules import cyclical_schedule, linear_schedule
from . import checkpoint
from .objective import OBJECTIVES

# There is no float16, because its gradients underflow without loss scaling. bfloat16 needs no loss scaling.
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# The options that a resumed run may change: how long, where and by which backend it is computed, not its result.
RESUME_MAY_CHANGE = ("data_dir", "epochs", "device", "backend", "compile", "evaluate", "out")

# `linear` rises during the first half of the run. `cyclical` has four cycles and rises during the first half of each.
BETA_SCHEDULES = {
    "constant": lambda step, steps: 1.0,
    "linear": lambda step, steps: linear_schedule(step, steps // 2),
    "cyclical": cyclical_schedule,
}


@dataclass(frozen=True)
class Defaults:
    """The defaults for one source of pictures."""

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
    """The settings of one run: the command's options. `DEFAULTS` and the machine replace some fields that are None."""

    data: str = "digits"
    data_dir: str | None = None
    image_size: int = 64
    model: str | None = None
    hidden: tuple[int, ...] | None = None
    likelihood: str = "bernoulli"
    logvar: float = -3.0
    latent_dim: int = 20
    objective: str = "elbo"
    num_samples: int | None = None
    beta: float = 1.0
    beta_schedule: str = "constant"
    free_bits: float | None = None
    free_bits_per: str = "dimension"
    capacity: float | None = None
    capacity_per: str = "sample"
    epochs: int | None = None
    batch_size: int | None = None
    lr: float = 1e-3
    seed: int = 0
    device: str | None = None
    dtype: str = "float32"
    backend: str = "auto"
    compile: bool = False
    evaluate: int = 0
    out: str | None = None

    def __post_init__(self) -> None:
        _one_of("data", self.data, DEFAULTS)
        _one_of("objective", self.objective, OBJECTIVES)
        defaults = vars(DEFAULTS[self.data]) | {
            "num_samples": OBJECTIVES[self.objective].num_samples,
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
        for name, values in CHOICES.items():
            _one_of(name, getattr(self, name), values)
        for name, least in (("epochs", 1), ("batch_size", 1), ("image_size", 1), ("num_samples", 1), ("evaluate", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        for name in ("lr", "beta", "free_bits", "capacity"):
            if not 0 <= (getattr(self, name) or 0) < math.inf:
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}")
        self._check_weights()
        if torch.device(self.device).type == "cuda" and not torch.cuda.is_available():
            raise ValueError(f"device is {self.device!r}, but this torch sees no CUDA device")

    def _check_weights(self) -> None:
        objective = OBJECTIVES[self.objective]
        if not objective.weighs_kl and (self.beta, self.beta_schedule) != (1.0, "constant"):
            raise ValueError(f"beta and beta_schedule have no meaning for the objective {self.objective}")
        if self.objective != "elbo" and (self.free_bits, self.capacity) != (None, None):
            raise ValueError(
                f"free_bits and capacity are held against the analytic KL: objective must be elbo, got {self.objective}"
            )
        if None not in (self.free_bits, self.capacity):
            raise ValueError("give at most one of free_bits and capacity")


# The options that take one of several names.
CHOICES = {
    "model": MODELS,
    "likelihood": LIKELIHOODS,
    "dtype": DTYPES,
    "backend": NAMES,
    "beta_schedule": BETA_SCHEDULES,
    "free_bits_per": FREE_BITS_PER,
    "capacity_per": CAPACITY_PER,
}


def parse(arguments: list[str] | None = None) -> tuple[Settings, bool]:
    """Parse a command line. Returns the settings, and True for `--resume`. A resumed run keeps its first settings.

    Raises:
        FileNotFoundError: there is nothing to resume.
        ValueError: an option is out of range, a resumed run cannot change it, or the checkpoint is damaged.
    """
    chosen = vars(_parser().parse_args(arguments))
    resume = chosen.pop("resume", False)
    settings = Settings(**chosen)
    if not resume:
        return settings, False
    folder = Path(settings.out)
    content = checkpoint.load_settings(folder)
    with checkpoint.reading(folder / checkpoint.SETTINGS):
        began = Settings(**content["training"] | {"device": settings.device})
    for name in sorted(chosen.keys() - set(RESUME_MAY_CHANGE)):
        if getattr(settings, name) != getattr(began, name):
            raise ValueError(
                f"{name} was {getattr(began, name)} when this run began: --resume cannot make it {chosen[name]}"
            )
    resumed = Settings(**vars(began) | chosen)
    if resumed.epochs != began.epochs and (began.beta_schedule != "constant" or began.capacity is not None):
        raise ValueError(
            f"epochs was {began.epochs} when this run began, and beta or the capacity rises with them: --resume cannot "
            f"make it {resumed.epochs}"
        )
    return resumed, True


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
    add("--objective", choices=OBJECTIVES, help="what is maximised; the ELBO is shown whatever it is (elbo)")
    add("--num-samples", type=int, help="samples of z for each picture (1; 5 for iwae, dreg and score-function)")
    add("--beta", type=float, help="weight of the KL in the objective; the ELBO shown is always that of beta 1 (1)")
    add("--beta-schedule", choices=BETA_SCHEDULES, help="how beta rises from 0 to its value over the run (constant)")
    add("--free-bits", type=float, help="nats that each part of the KL may cost before it counts")
    add(
        "--free-bits-per", choices=FREE_BITS_PER, help="those parts: each latent dimension, or all together (dimension)"
    )
    add("--capacity", type=float, help="nats that the KL is drawn to, from 0 to this over the run")
    add("--capacity-per", choices=CAPACITY_PER, help="each picture's KL is drawn there, or their mean (sample)")
    add("--epochs", type=int, help=f"({by_data['epochs']})")
    add("--batch-size", type=int, help=f"({by_data['batch_size']})")
    add("--lr", type=float, help="learning rate of Adam (0.001)")
    add("--seed", type=int, help="of the weights, the order of the pictures and the noise (0)")
    add("--device", help="cpu, cuda, cuda:1, … (cuda if there is one)")
    add("--dtype", choices=DTYPES, help="bfloat16: autocast, with weights and sums in float32 (float32)")
    add("--backend", choices=NAMES, help="who computes the loss (auto)")
    add("--compile", action="store_true", help="torch.compile the loss and its backward")
    add(
        "--evaluate",
        type=int,
        metavar="N",
        help="estimate log p(x) of the held-out pictures with N samples at the end (0)",
    )
    add("--out", help="folder for history, checkpoint and pictures (out/digits, …)")
    add("--resume", action="store_true", help="go on with the run in --out, with the settings it began with")
    return parser
