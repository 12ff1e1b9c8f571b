"""What is measured, as data: the ops with the bytes that each must move, and the shapes that people train with."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

Shape = tuple[int, ...]

MODES = ("forward", "backward", "both")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Traffic(NamedTuple):
    """Names of the tensors that must be read and written once. Per-sample sums are neglected."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Op:
    """An op: the shapes of its inputs for a case's shape, which inputs are differentiated, what it must move.

    `grad_t` is the gradient of the tensor t, of its size; `z` has the case's shape.
    """

    inputs: Callable[[Shape], dict[str, Shape]]
    differentiated: tuple[str, ...]
    outputs: tuple[str, ...]
    forward: Traffic
    backward: Traffic
    shared: tuple[str, ...] = ()  # inputs that all samples have in common
    batch_dims: int = 1  # leading dims that the sums keep
    num_samples: int | None = None  # the first dim of the case's shape, if it can be no other
    dtypes: tuple[str, ...] = tuple(DTYPES)


# 45 levels, of as many pixels squared, as of a very deep VAE on 32×32 images (Child 2021).
HIERARCHY = (1,) * 2 + (4,) * 3 + (8,) * 6 + (16,) * 12 + (32,) * 22
SAMPLE_COUNTS = (10, 50)
PRIOR_INPUTS = ("mu", "logvar", "prior_mu", "prior_logvar")


def level_names(level: int) -> tuple[str, ...]:
    return tuple(f"{name}_{level}" for name in PRIOR_INPUTS)


_HIERARCHY_INPUTS = tuple(name for level in range(len(HIERARCHY)) for name in level_names(level))
_HIERARCHY_MEANS = tuple(name for name in _HIERARCHY_INPUTS if name.startswith("mu"))

OPS = {
    "latent": Op(  # 3N, 5N
        inputs=lambda s: {"mu": s, "logvar": s},
        differentiated=("mu", "logvar"),
        outputs=("z", "kl"),
        forward=Traffic(("mu", "logvar"), ("z",)),
        backward=Traffic(("grad_z", "mu", "logvar"), ("grad_mu", "grad_logvar")),
    ),
    "latent-packed": Op(  # 3N, 5N: mu and logvar are the halves of `moments` along dim 1
        inputs=lambda s: {"moments": (s[0], 2 * s[1], *s[2:])},
        differentiated=("moments",),
        outputs=("z", "kl"),
        forward=Traffic(("moments",), ("z",)),
        backward=Traffic(("grad_z", "moments"), ("grad_moments",)),
    ),
    "latent-prior": Op(  # 5N, 9N: a learned prior, as at each level of a hierarchical VAE
        inputs=lambda s: dict.fromkeys(PRIOR_INPUTS, s),
        differentiated=PRIOR_INPUTS,
        outputs=("z", "kl"),
        forward=Traffic(PRIOR_INPUTS, ("z",)),
        backward=Traffic(("grad_z", *PRIOR_INPUTS), tuple(f"grad_{name}" for name in PRIOR_INPUTS)),
    ),
    "latent-hierarchy": Op(  # the same at 45 levels, the finest of the case's shape
        inputs=lambda s: {
            name: (*s[:2], size, size) for (level, size) in enumerate(HIERARCHY) for name in level_names(level)
        },
        differentiated=_HIERARCHY_INPUTS,
        outputs=tuple(f"{name}_{level}" for level in range(len(HIERARCHY)) for name in ("z", "kl")),
        forward=Traffic(_HIERARCHY_INPUTS, _HIERARCHY_MEANS),  # z is of the size of mu, and so is its gradient
        backward=Traffic(_HIERARCHY_MEANS + _HIERARCHY_INPUTS, _HIERARCHY_INPUTS),
    ),
    **{
        f"latent-samples-{count}": Op(  # N + 2N/K, N + 4N/K: K samples of z, of the case's shape, and the KL at each
            inputs=lambda s: {"mu": s[1:], "logvar": s[1:]},
            differentiated=("mu", "logvar"),
            outputs=("z", "kl"),
            forward=Traffic(("mu", "logvar"), ("z",)),
            backward=Traffic(("grad_z", "mu", "logvar"), ("grad_mu", "grad_logvar")),
            shared=("mu", "logvar"),
            batch_dims=2,
            num_samples=count,
            dtypes=("float32",),  # a rounded z does not tell the noise, from which the expected KL is found
        )
        for count in SAMPLE_COUNTS
    },
    "bernoulli-samples": Op(  # N + N/K, 2N + N/K: K decoded samples against one x
        inputs=lambda s: {"logits": s, "x": s[1:]},
        differentiated=("logits",),
        outputs=("log_px",),
        forward=Traffic(("logits", "x"), ()),
        backward=Traffic(("logits", "x"), ("grad_logits",)),
        shared=("x",),
        batch_dims=2,
    ),
    "bernoulli": Op(  # 2N, 3N
        inputs=lambda s: {"logits": s, "x": s},
        differentiated=("logits",),
        outputs=("log_px",),
        forward=Traffic(("logits", "x"), ()),
        backward=Traffic(("logits", "x"), ("grad_logits",)),
    ),
    "gaussian": Op(  # 3N, 5N: the decoder gives a log-variance for each element
        inputs=lambda s: {"mean": s, "x": s, "logvar": s},
        differentiated=("mean", "logvar"),
        outputs=("log_px",),
        forward=Traffic(("mean", "x", "logvar"), ()),
        backward=Traffic(("mean", "x", "logvar"), ("grad_mean", "grad_logvar")),
    ),
    "gaussian-fixed": Op(  # 2N, 3N: variance 1
        inputs=lambda s: {"mean": s, "x": s},
        differentiated=("mean",),
        outputs=("log_px",),
        forward=Traffic(("mean", "x"), ()),
        backward=Traffic(("mean", "x"), ("grad_mean",)),
    ),
    "gaussian-scalar": Op(  # 2N, 3N: one learned log-variance
        inputs=lambda s: {"mean": s, "x": s, "logvar": ()},
        differentiated=("mean", "logvar"),
        outputs=("log_px",),
        forward=Traffic(("mean", "x", "logvar"), ()),
        backward=Traffic(("mean", "x", "logvar"), ("grad_mean", "grad_logvar")),
        shared=("logvar",),
    ),
    "gaussian-column": Op(  # 2N + D, 3N + 2D: one learned log-variance for each of the D elements of a sample
        inputs=lambda s: {"mean": s, "x": s, "logvar": s[1:]},
        differentiated=("mean", "logvar"),
        outputs=("log_px",),
        forward=Traffic(("mean", "x", "logvar"), ()),
        backward=Traffic(("mean", "x", "logvar"), ("grad_mean", "grad_logvar")),
        shared=("logvar",),
    ),
    "negative-binomial": Op(  # 2N + D, 3N + 2D: counts, with one dispersion for each of the D genes
        inputs=lambda s: {"mu": s, "x": s, "theta": s[1:]},
        differentiated=("mu", "theta"),
        outputs=("log_px",),
        forward=Traffic(("mu", "x", "theta"), ()),
        backward=Traffic(("mu", "x", "theta"), ("grad_mu", "grad_theta")),
        shared=("theta",),
    ),
    "categorical": Op(  # N, 2N, and one integer for each position: the last dim is that of the classes
        inputs=lambda s: {"logits": s, "x": s[:-1]},
        differentiated=("logits",),
        outputs=("log_px",),
        forward=Traffic(("logits", "x"), ()),
        backward=Traffic(("logits", "x"), ("grad_logits",)),
    ),
}

Draw = Callable[[Shape, torch.Generator], Tensor]


def _uniform(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, device=generator.device)


def _normal(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, device=generator.device)


def _rates(shape: Shape, generator: torch.Generator) -> Tensor:
    """As genes have them: half of them below 0.3, few above 10."""
    return torch.exp(1.5 * _normal(shape, generator) - 1.2)


def _counts(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.poisson(_rates(shape, generator), generator=generator)


# Of what is not normal.
DRAWS: dict[tuple[str, str], Draw] = {
    ("bernoulli", "x"): _uniform,
    ("bernoulli-samples", "x"): _uniform,
    ("negative-binomial", "mu"): _rates,
    ("negative-binomial", "x"): _counts,
    ("negative-binomial", "theta"): _rates,
}


@dataclass(frozen=True)
class Case:
    """One op on one shape, the first dim being the batch, in one dtype."""

    op: str
    shape: Shape
    dtype: str
    about: str
    in_default: bool = True

    @property
    def name(self) -> str:
        return f"{self.op} {format_shape(self.shape)} {self.dtype}"

    def dtype_of(self, tensor: str) -> torch.dtype:
        """Parameters that all samples share are float32, as they are beside bfloat16 activations; classes int64."""
        if (self.op, tensor) == ("categorical", "x"):
            return torch.int64
        op = OPS[self.op]
        parameter = op.batch_dims == 1 and tensor.removeprefix("grad_") in op.shared
        return torch.float32 if parameter else DTYPES[self.dtype]

    def size_of(self, tensor: str) -> int:
        """Bytes of one of the tensors that `Traffic` names."""
        shape = OPS[self.op].inputs(self.shape).get(tensor.removeprefix("grad_"), self.shape)
        return prod(shape) * self.dtype_of(tensor).itemsize

    def moves(self, mode: str) -> list[tuple[list[int], list[int]]]:
        """The sizes read and written by each pass that the mode runs, in bytes."""
        passes = ("forward", "backward") if mode == "both" else (mode,)
        traffic = [getattr(OPS[self.op], name) for name in passes]
        return [([self.size_of(t) for t in reads], [self.size_of(t) for t in writes]) for reads, writes in traffic]

    def ideal_bytes(self, mode: str) -> int:
        """What must be read from and written to memory, each tensor once in each pass."""
        return sum(sum(reads) + sum(writes) for reads, writes in self.moves(mode))

    def inputs(self, device: str) -> dict[str, Tensor]:
        """Values as in training: variances around 1, targets in their range. The same at each call."""
        generator = torch.Generator(device).manual_seed(0)
        tensors = {}
        for name, shape in OPS[self.op].inputs(self.shape).items():
            if (self.op, name) == ("categorical", "x"):
                value = torch.randint(self.shape[-1], shape, generator=generator, device=device)
            else:
                value = DRAWS.get((self.op, name), _normal)(shape, generator).to(self.dtype_of(name))
            tensors[name] = value.requires_grad_(name in OPS[self.op].differentiated)
        return tensors

    def upstream(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Random gradients of the outputs, the same numbers whatever dtype an output has."""
        generator = torch.Generator(outputs[0].device).manual_seed(1)
        return tuple(
            torch.randn(t.shape, generator=generator, device=t.device).to(DTYPES[self.dtype]).to(t.dtype)
            for t in outputs
        )


def format_shape(shape: Shape) -> str:
    return "×".join(map(str, shape))


def parse_shape(text: str) -> Shape:
    return tuple(map(int, text.split("×")))


LATENT_SHAPES = {
    (128, 20): "MNIST, MLP",
    (256, 50): "Pyro's example",
    (64, 128): "CelebA 64×64",
    (16, 16, 32, 32): "a level of a very deep VAE",
    (128, 784): "in cache",
    (512, 4096): "no page faults",
    (512, 16384): "memory",
    (8, 786432): "few huge rows",
}
PACKED_SHAPES = {(4, 4, 64, 64): "latent-diffusion autoencoder"}
LEVEL_SHAPES = {(16, 16, 32, 32): "a level of a very deep VAE"}
HIERARCHY_SHAPES = {(16, 16, 32, 32): "a very deep VAE"}
DECODED_SHAPES = {(count, 64, 784): f"IWAE, {count} samples" for count in SAMPLE_COUNTS}
LIKELIHOOD_SHAPES = {
    (128, 784): "MNIST",
    (64, 3, 64, 64): "CelebA 64×64",
    (4, 3, 512, 512): "latent-diffusion autoencoder",
    (128, 20000): "genes",
    (512, 4096): "no page faults",
    (512, 16384): "memory",
    (8, 786432): "few huge rows",
}
COUNT_SHAPES = {(128, 2000): "genes, the most variable", (128, 20000): "genes"}
CATEGORICAL_SHAPES = {(64, 784, 2): "binary MNIST", (16, 3072, 256): "CIFAR-10 pixels", (16, 50, 10000): "tokens"}
LARGE_SHAPES = {(4096, 16384): "2²⁶ elements", (65536, 1024): "2²⁶ elements, short rows"}

LARGE_OPS = ("latent", "bernoulli", "gaussian", "gaussian-fixed", "gaussian-scalar", "gaussian-column")

# What the ten minutes on two cores leave out in bfloat16, and of the variants of the Gaussian.
BFLOAT16_IN_DEFAULT = {(128, 20), (128, 784), (512, 4096), (512, 16384)}
VARIANTS_IN_DEFAULT = {(128, 784), (64, 3, 64, 64)}


def cases(device: str, everything: bool) -> list[Case]:
    """The cases for a device: on a GPU always all, and the large ones."""
    shapes = {
        "latent": LATENT_SHAPES,
        "latent-packed": PACKED_SHAPES,
        "latent-prior": LEVEL_SHAPES,
        "latent-hierarchy": HIERARCHY_SHAPES,
        **{f"latent-samples-{count}": {(count, 64, 10): f"IWAE, {count} samples"} for count in SAMPLE_COUNTS},
        "bernoulli-samples": DECODED_SHAPES,
        **dict.fromkeys(
            ("bernoulli", "gaussian", "gaussian-fixed", "gaussian-scalar", "gaussian-column"), LIKELIHOOD_SHAPES
        ),
        "negative-binomial": COUNT_SHAPES,
        "categorical": CATEGORICAL_SHAPES,
    }
    large = LARGE_SHAPES if device == "cuda" else {}
    found = [
        Case(op, shape, dtype, about, in_default=_in_default(op, shape, dtype))
        for op, of_op in shapes.items()
        for shape, about in (of_op | (large if op in LARGE_OPS else {})).items()
        for dtype in OPS[op].dtypes
    ]
    return found if everything or device == "cuda" else [case for case in found if case.in_default]


def _in_default(op: str, shape: Shape, dtype: str) -> bool:
    if op in ("gaussian-fixed", "gaussian-scalar", "gaussian-column"):
        return shape in VARIANTS_IN_DEFAULT and dtype == "float32"
    return dtype == "float32" or shape in BFLOAT16_IN_DEFAULT


# Overhead alone: one element, so that nothing but Python, autograd, the dispatcher and the launch is left.
HOST_CASES = [Case(op, (1, 1), "float32", "one element") for op in ("latent", "bernoulli", "gaussian")]

# Six decades: N = 2⁴ … 2²⁴, four times as many columns as rows.
SCALING_CASES = [
    Case(op, (2 ** (k // 2 - 1), 2 ** (k // 2 + 1)), "float32", "scaling")
    for op in ("latent", "bernoulli", "gaussian")
    for k in range(4, 25, 2)
]

THREADS_CASES = [Case(op, (512, 4096), "float32", "threads") for op in ("latent", "bernoulli", "gaussian")]
