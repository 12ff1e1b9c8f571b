"""The measured cases as data: the ops with the bytes that each must move, and the shapes that people train with."""

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
    """The names of the tensors that must be read and written once. Sums per sample are neglected."""

    reads: tuple[str, ...]
    writes: tuple[str, ...]


@dataclass(frozen=True)
class Op:
    """An op: the shapes of its inputs for a case's shape, the differentiated inputs, and the tensors it must move.

    `grad_t` is the gradient of the tensor t and has its size. `z` has the case's shape.
    """

    inputs: Callable[[Shape], dict[str, Shape]]
    differentiated: tuple[str, ...]
    outputs: tuple[str, ...]
    forward: Traffic
    backward: Traffic
    shared: tuple[str, ...] = ()  # inputs that all samples share
    batch_dims: int = 1  # leading dims that the sums keep
    num_samples: int | None = None  # the first dim of the case's shape, if it is fixed
    dtypes: tuple[str, ...] = tuple(DTYPES)


# The heights and widths of 45 levels, as in a very deep VAE on 32×32 images (Child 2021).
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
    "latent-prior": Op(  # 5N, 9N: a learned prior, as in each level of a hierarchical VAE
        inputs=lambda s: dict.fromkeys(PRIOR_INPUTS, s),
        differentiated=PRIOR_INPUTS,
        outputs=("z", "kl"),
        forward=Traffic(PRIOR_INPUTS, ("z",)),
        backward=Traffic(("grad_z", *PRIOR_INPUTS), tuple(f"grad_{name}" for name in PRIOR_INPUTS)),
    ),
    "latent-hierarchy": Op(  # the same at 45 levels; the finest has the case's shape
        inputs=lambda s: {
            name: (*s[:2], size, size) for (level, size) in enumerate(HIERARCHY) for name in level_names(level)
        },
        differentiated=_HIERARCHY_INPUTS,
        outputs=tuple(f"{name}_{level}" for level in range(len(HIERARCHY)) for name in ("z", "kl")),
        forward=Traffic(_HIERARCHY_INPUTS, _HIERARCHY_MEANS),  # z and its gradient have the size of mu
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
            dtypes=("float32",),  # the expected KL is computed from the noise, which cannot be found from a rounded z
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
    "gaussian": Op(  # 3N, 5N: the decoder outputs a log-variance for each element
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
    "categorical": Op(  # N, 2N, and one integer for each position: the last dim has the classes
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
    """Random rates like those of genes: half of them are below 0.3, few are above 10."""
    return torch.exp(1.5 * _normal(shape, generator) - 1.2)


def _counts(shape: Shape, generator: torch.Generator) -> Tensor:
    return torch.poisson(_rates(shape, generator), generator=generator)


# The inputs that are not drawn from a normal distribution.
DRAWS: dict[tuple[str, str], Draw] = {
    ("bernoulli", "x"): _uniform,
    ("bernoulli-samples", "x"): _uniform,
    ("negative-binomial", "mu"): _rates,
    ("negative-binomial", "x"): _counts,
    ("negative-binomial", "theta"): _rates,
}


@dataclass(frozen=True)
class Case:
    """One op on one shape, whose first dim is the batch, in one dtype."""

    op: str
    shape: Shape
    dtype: str
    about: str
    in_default: bool = True

    @property
    def name(self) -> str:
        return f"{self.op} {format_shape(self.shape)} {self.dtype}"

    def dtype_of(self, tensor: str) -> torch.dtype:
        """The dtype of a tensor. Shared parameters are float32, as with bfloat16 activations. Classes are int64."""
        if (self.op, tensor) == ("categorical", "x"):
            return torch.int64
        op = OPS[self.op]
        parameter = op.batch_dims == 1 and tensor.removeprefix("grad_") in op.shared
        return torch.float32 if parameter else DTYPES[self.dtype]

    def size_of(self, tensor: str) -> int:
        """The size of a tensor that `Traffic` names, in bytes."""
        shape = OPS[self.op].inputs(self.shape).get(tensor.removeprefix("grad_"), self.shape)
        return prod(shape) * self.dtype_of(tensor).itemsize

    def moves(self, mode: str) -> list[tuple[list[int], list[int]]]:
        """The sizes of the tensors that each pass of the mode reads and writes, in bytes."""
        passes = ("forward", "backward") if mode == "both" else (mode,)
        traffic = [getattr(OPS[self.op], name) for name in passes]
        return [([self.size_of(t) for t in reads], [self.size_of(t) for t in writes]) for reads, writes in traffic]

    def ideal_bytes(self, mode: str) -> int:
        """The bytes that must be read and written, with each tensor once per pass."""
        return sum(sum(reads) + sum(writes) for reads, writes in self.moves(mode))

    def inputs(self, device: str) -> dict[str, Tensor]:
        """Values as in training: variances around 1, targets in their range. They are equal in all calls."""
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
        """Random gradients of the outputs. The numbers are the same for every dtype of an output."""
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

# The shapes that ten minutes on two cores include for bfloat16, and for the variants of the Gaussian.
BFLOAT16_IN_DEFAULT = {(128, 20), (128, 784), (512, 4096), (512, 16384)}
VARIANTS_IN_DEFAULT = {(128, 784), (64, 3, 64, 64)}


def cases(device: str, everything: bool) -> list[Case]:
    """The cases for a device. On a GPU they are always all cases, including the large ones."""
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


# Overhead only: for one element the time is that of Python, autograd, the dispatcher and the launch.
HOST_CASES = [Case(op, (1, 1), "float32", "one element") for op in ("latent", "bernoulli", "gaussian")]

# Six decades: N = 2⁴ … 2²⁴, with four times as many columns as rows.
SCALING_CASES = [
    Case(op, (2 ** (k // 2 - 1), 2 ** (k // 2 + 1)), "float32", "scaling")
    for op in ("latent", "bernoulli", "gaussian")
    for k in range(4, 25, 2)
]

THREADS_CASES = [Case(op, (512, 4096), "float32", "threads") for op in ("latent", "bernoulli", "gaussian")]
