"""One table of sample inputs for all tests: shapes with tails, layouts, dtypes, and values at random and at the edges.

`VAE_KERNELS_TEST_DEVICE` moves the whole suite to another device.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import mpmath
import numpy as np
import reference
import torch
from cases import Case
from error_rule import Expected, total
from torch import Tensor

import vae_kernels as vk

DEVICE = os.environ.get("VAE_KERNELS_TEST_DEVICE", "cpu")
# Those that serve it here.
BACKENDS = [name for name, state in vk.backends()[DEVICE].items() if state == "available"]
KERNELS = [name for name in BACKENDS if name != "eager"]

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
U8, BOOL, I64 = torch.uint8, torch.bool, torch.int64

Draw = Callable[[torch.Generator, tuple[int, ...]], Tensor]


class Op(NamedTuple):
    """One public function: how it is called with tensors in order, and what it is compared with."""

    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    plain: Callable[..., Tensor | tuple[Tensor, ...]]
    reference: Callable[[reference.Arrays, reference.Arrays], tuple[reference.Terms, reference.Terms]]
    values: dict[str, dict[str, Draw]]
    dtypes: tuple[tuple[torch.dtype, ...], ...]


def _normal(scale: float = 1.0, shift: float = 0.0) -> Draw:
    return lambda g, shape: torch.randn(shape, generator=g, dtype=F64) * scale + shift


def _among(*values: float) -> Draw:
    return lambda g, shape: torch.tensor(values, dtype=F64)[torch.randint(len(values), shape, generator=g)]


def _uniform(low: float, high: float) -> Draw:
    return lambda g, shape: torch.rand(shape, generator=g, dtype=F64) * (high - low) + low


def _log_uniform(low: float, high: float) -> Draw:
    return lambda g, shape: torch.exp(_uniform(math.log(low), math.log(high))(g, shape))


def _rounded(draw: Draw, step: float = 1.0) -> Draw:
    return lambda g, shape: torch.round(draw(g, shape) / step) * step


def _tiny(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Magnitudes from 1e-1 to 1e-7, of both signs."""
    return _among(-1, 1)(g, shape) * 10 ** _uniform(-7, -1)(g, shape)


def _thresholds(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Around the places where a branch of `e^l - 1 - l` may end."""
    return _among(-1.5, -1, -0.5, 0.5, 1, 1.5)(g, shape) + _uniform(-0.01, 0.01)(g, shape)


LATENT_VALUES = {
    "random": {"mu": _normal(), "logvar": _normal(1, -0.5), "eps": _normal()},
    "collapsed": {"mu": _among(0.0, 1e-4), "logvar": _tiny, "eps": _normal()},
    "thresholds": {"mu": _among(0.0), "logvar": _thresholds, "eps": _normal()},
    "wide": {"mu": _normal(), "logvar": _uniform(-80, 80), "eps": _normal()},
    "zeros": {"mu": _among(0.0, -0.0), "logvar": _among(0.0, -0.0), "eps": _among(0.0, -0.0, 1.0)},
    "sharp": {"mu": _normal(1000), "logvar": _uniform(-40, -20), "eps": _normal()},
}

BERNOULLI_VALUES = {
    "random": {"logits": _normal(3), "x": _uniform(0, 1)},
    "binary": {"logits": _normal(3), "x": _among(0, 1)},
    "saturated": {"logits": _uniform(-120, 120), "x": _among(0, 1)},
    "right": {"logits": _uniform(5, 80), "x": _among(1)},
    "huge": {"logits": _among(100, -100, 1e4, -1e4), "x": _among(0, 1)},
    "zeros": {"logits": _among(0.0, -0.0), "x": _among(0, 1)},
    "tiny": {"logits": _tiny, "x": _among(0, 1)},
    "outside": {"logits": _normal(3), "x": _among(-2.5, 1.5, 3, 255)},
}

GAUSSIAN_VALUES = {
    "random": {"mean": _normal(), "x": _normal(), "logvar": _normal()},
    "wide": {"mean": _normal(), "x": _normal(), "logvar": _uniform(-80, 80)},
    "close": {"mean": _normal(1e-3, 1), "x": _normal(1e-3, 1), "logvar": _uniform(-12, -6)},
    "tiny": {"mean": _normal(), "x": _normal(), "logvar": _tiny},
    "zeros": {"mean": _among(0.0, -0.0), "x": _among(0.0, 1.0), "logvar": _among(0.0, -0.0)},
    "pixels": {"mean": _uniform(0, 255), "x": _uniform(0, 255), "logvar": _normal(1, 5)},
}

LAPLACE_VALUES = {
    "random": {"loc": _normal(), "x": _normal(), "log_scale": _normal()},
    "wide": {"loc": _normal(), "x": _normal(), "log_scale": _uniform(-40, 40)},
    "equal": {"loc": _among(0.0, 1.0), "x": _among(0.0, 1.0), "log_scale": _among(0.0, -0.0, 1.0)},
}

CONTINUOUS_BERNOULLI_VALUES = {
    "random": {"logits": _normal(3), "x": _uniform(0, 1)},
    "half": {"logits": _tiny, "x": _uniform(0, 1)},
    "zeros": {"logits": _among(0.0, -0.0), "x": _uniform(0, 1)},
    "thresholds": {"logits": lambda g, shape: 2 * _thresholds(g, shape), "x": _uniform(0, 1)},
    "saturated": {"logits": _uniform(-120, 120), "x": _among(0, 1)},
    "huge": {"logits": _among(100, -100, 1e4, -1e4), "x": _uniform(0, 1)},
}

BERNOULLI_PROBS_VALUES = {
    "random": {"probs": _uniform(0.05, 0.95), "x": _uniform(0, 1)},
    "binary": {"probs": _uniform(0, 1), "x": _among(0, 1)},
    "edges": {"probs": _among(0, 1, 2**-14, 2**-24, 1 - 2**-8), "x": _among(0, 1, 0.3)},
}

# Up to what float16 holds.
NEGATIVE_BINOMIAL_VALUES = {
    "random": {"mu": _log_uniform(0.1, 30), "x": _log_uniform(0.5, 40), "theta": _log_uniform(0.1, 30)},
    "counts": {"mu": _log_uniform(0.1, 30), "x": _among(0, 0, 0, 1, 2, 5, 30), "theta": _log_uniform(0.1, 30)},
    "wide": {"mu": _log_uniform(1e-8, 6e4), "x": _among(0, 1, 2, 7, 100, 5e4), "theta": _log_uniform(1e-4, 6e4)},
    "poisson": {"mu": _uniform(900, 1100), "x": _rounded(_uniform(900, 1100)), "theta": _log_uniform(1e4, 6e4)},
    "zeros": {"mu": _among(0, 1e-8, 1), "x": _among(0, 3), "theta": _among(1e-4, 1)},
}

ZERO_INFLATED_VALUES = {
    name: values | {"zero_logits": _uniform(-30, 30) if name == "wide" else _normal(2)}
    for name, values in NEGATIVE_BINOMIAL_VALUES.items()
}

POISSON_RATE_VALUES = {
    "random": {"rate": _log_uniform(0.1, 30), "x": _log_uniform(0.5, 40)},
    "counts": {"rate": _log_uniform(0.1, 30), "x": _among(0, 0, 0, 1, 2, 5, 30)},
    "wide": {"rate": _log_uniform(1e-4, 6e4), "x": _among(0, 1, 2, 7, 8, 9, 100, 5e4)},
    "near": {"rate": _uniform(900, 1100), "x": _rounded(_uniform(900, 1100))},
    "zeros": {"rate": _log_uniform(1e-7, 30), "x": _among(0)},
}

POISSON_VALUES = {
    "random": {"log_rate": _normal(2), "x": _log_uniform(0.5, 40)},
    "counts": {"log_rate": _normal(2), "x": _among(0, 0, 0, 1, 2, 5, 30)},
    "wide": {"log_rate": _uniform(-80, 11), "x": _among(0, 1, 2, 7, 8, 9, 100, 5e4)},
    "near": {"log_rate": _uniform(6.8, 7), "x": _rounded(_uniform(900, 1100))},
    "zeros": {"log_rate": _among(0.0, -0.0), "x": _among(0, 1)},
}

ZERO_INFLATED_POISSON_VALUES = {
    **{
        name: values | {"zero_logits": _uniform(-30, 30) if name == "wide" else _normal(2)}
        for name, values in POISSON_VALUES.items()
    },
    "huge": {"log_rate": _uniform(-4, 11), "x": _among(0, 0, 1, 30), "zero_logits": _among(100, -100, 1e4, -1e4)},
}

_pixels = lambda g, shape: _rounded(_uniform(0, 255))(g, shape) / 127.5 - 1  # noqa: E731
DISCRETIZED_LOGISTIC_VALUES = {
    "random": {"mean": _uniform(-1, 1), "x": _pixels, "log_scale": _uniform(-4, 0)},
    "ends": {"mean": _uniform(-1, 1), "x": _among(-1, 1), "log_scale": _normal(1, -3)},
    "sharp": {"mean": _uniform(-1, 1), "x": _pixels, "log_scale": _uniform(-9, -5)},
    "blurred": {"mean": _uniform(-1, 1), "x": _pixels, "log_scale": _uniform(0, 10)},
}

_UNIFORM_DTYPES = (F64, F32, BF16, F16)


def _dtypes(count: int, *mixed: tuple[torch.dtype, ...]) -> tuple[tuple[torch.dtype, ...], ...]:
    """One dtype for all arguments, and mixtures of the first, x, and the others."""
    return (*((d,) * count for d in _UNIFORM_DTYPES), *((*m[:2], *m[2:] * (count - 2)) for m in mixed))


def _family(
    name: str, arguments: tuple[str, ...], values: dict[str, dict[str, Draw]], *mixed: tuple[torch.dtype, ...]
) -> Op:
    return Op(
        arguments,
        ("log_px",),
        getattr(vk, f"{name}_log_likelihood"),
        getattr(reference, f"plain_{name}"),
        getattr(reference, name),
        values,
        _dtypes(len(arguments), *mixed),
    )


OPS = {
    "latent": Op(
        ("mu", "logvar", "eps"),
        ("z", "kl"),
        lambda mu, logvar, eps, *, batch_dims: vk.reparameterize_kl(mu, logvar, eps=eps, batch_dims=batch_dims),
        reference.plain_latent,
        reference.latent,
        LATENT_VALUES,
        (
            *((dtype,) * 3 for dtype in (F64, F32, BF16, F16)),
            (BF16, F32, F32),
            (F32, BF16, BF16),
            (F16, F32, F32),
            (F32, F64, F32),
            (F64, F32, BF16),
        ),
    ),
    "bernoulli": Op(
        ("logits", "x"),
        ("log_px",),
        vk.bernoulli_log_likelihood,
        reference.plain_bernoulli,
        reference.bernoulli,
        BERNOULLI_VALUES,
        (
            *((dtype,) * 2 for dtype in (F64, F32, BF16, F16)),
            (BF16, U8),
            (BF16, BOOL),
            (BF16, F32),
            (BF16, F64),
            (F16, F32),
            (F32, U8),
            (F32, I64),
            (F32, BF16),
            (F64, BOOL),
            (F64, F32),
        ),
    ),
    "gaussian": Op(
        ("mean", "x", "logvar"),
        ("log_px",),
        vk.gaussian_log_likelihood,
        reference.plain_gaussian,
        reference.gaussian,
        GAUSSIAN_VALUES,
        (
            *((dtype,) * 3 for dtype in (F64, F32, BF16, F16)),
            (BF16, U8, F32),
            (BF16, F32, BF16),
            (BF16, BF16, F32),
            (F16, F32, F32),
            (F32, I64, F32),
            (F32, BOOL, BF16),
            (F64, U8, F32),
            (F32, F32, F64),
        ),
    ),
    "laplace": _family("laplace", ("loc", "x", "log_scale"), LAPLACE_VALUES, (BF16, U8, F32)),
    "continuous_bernoulli": _family("continuous_bernoulli", ("logits", "x"), CONTINUOUS_BERNOULLI_VALUES, (BF16, F32)),
    "bernoulli_probs": _family("bernoulli_probs", ("probs", "x"), BERNOULLI_PROBS_VALUES, (BF16, F32), (F32, U8)),
    "negative_binomial": _family(
        "negative_binomial", ("mu", "x", "theta"), NEGATIVE_BINOMIAL_VALUES, (F32, I64, F32), (BF16, U8, F32)
    ),
    "zero_inflated_negative_binomial": _family(
        "zero_inflated_negative_binomial",
        ("mu", "x", "theta", "zero_logits"),
        ZERO_INFLATED_VALUES,
        (F32, I64, F32),
        (BF16, U8, F32),
    ),
    "discretized_logistic": _family(
        "discretized_logistic", ("mean", "x", "log_scale"), DISCRETIZED_LOGISTIC_VALUES, (BF16, F32, F32)
    ),
    "poisson": _family("poisson", ("log_rate", "x"), POISSON_VALUES, (F32, I64), (BF16, U8)),
    "poisson_rate": _family("poisson_rate", ("rate", "x"), POISSON_RATE_VALUES, (F32, I64), (BF16, U8)),
    "zero_inflated_poisson": _family(
        "zero_inflated_poisson",
        ("log_rate", "x", "zero_logits"),
        ZERO_INFLATED_POISSON_VALUES,
        (F32, I64, F32),
        (BF16, U8, F32),
    ),
}


# A layout takes a C-contiguous tensor to one with the same values (`expanded_*`: its first ones) elsewhere in memory.
# What lies between the elements is NaN where the dtype has one, so that an element read from the wrong place shows.


def _gap(tensor: Tensor) -> Tensor:
    return torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else torch.ones_like(tensor)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def _chunk(tensor: Tensor) -> Tensor:
    return torch.cat((_gap(tensor), tensor), dim=-1).chunk(2, dim=-1)[1]


def _sliced(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, _gap(tensor)), dim=-1)[..., 0]


def _permuted_slice(tensor: Tensor) -> Tensor:
    """Its first dim the fastest, with gaps."""
    return _sliced(tensor.movedim(0, -1)).movedim(-1, 0)


def _offset(tensor: Tensor) -> Tensor:
    return torch.cat((_gap(tensor.flatten()[:1]), tensor.flatten()))[1:].view(tensor.shape)


def _expanded_rows(tensor: Tensor) -> Tensor:
    return tensor[:1].clone().expand_as(tensor)


def _expanded_columns(tensor: Tensor) -> Tensor:
    return tensor[..., :1].clone().expand_as(tensor)


def _channels_last(tensor: Tensor) -> Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return tensor.contiguous(memory_format=formats[tensor.dim()])


def _chunk_of_channels(tensor: Tensor) -> Tensor:
    return torch.cat((tensor, _gap(tensor)), dim=1).chunk(2, dim=1)[0]


def _boxed(tensor: Tensor) -> Tensor:
    """The inside of a larger tensor: no two dims merge into one, and the first element is far from the beginning."""
    box = _gap(tensor.new_empty([size + 2 for size in tensor.shape]))
    inside = box[tuple(slice(1, -1) for _ in tensor.shape)]
    return inside.copy_(tensor)


LAYOUTS = {
    "contiguous": lambda tensor: tensor,
    "transposed": _transposed,
    "chunk": _chunk,
    "sliced": _sliced,
    "permuted_slice": _permuted_slice,
    "offset": _offset,
    "expanded_rows": _expanded_rows,
    "expanded_columns": _expanded_columns,
    "channels_last": _channels_last,
    "chunk_of_channels": _chunk_of_channels,
    "boxed": _boxed,
}


@dataclass(frozen=True)
class Sample(Case):
    """One call: an op, the dtype, layout and shape of each argument, the kind of values, and what is summed."""

    op: str
    values: str
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
    layouts: tuple[str, ...]
    batch_dims: int
    reduction: str = "sum"

    @property
    def keep(self) -> int:
        """How many dims the sums have."""
        return self.batch_dims if self.reduction == "sum" else len(self.shapes[0])

    @property
    def output_dtypes(self) -> dict[str, torch.dtype]:
        """`z` has the dtype of `mu`; a sum is float64 if an input is, else float32."""
        sums = F64 if F64 in self.dtypes else F32
        return {name: self.dtypes[0] if name == "z" else sums for name in OPS[self.op].outputs}

    @property
    def function(self) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        reduction = {} if self.reduction == "sum" else {"reduction": self.reduction}
        return partial(OPS[self.op].call, batch_dims=self.batch_dims, **reduction)

    def __str__(self) -> str:
        dtypes = _once([str(d).removeprefix("torch.") for d in self.dtypes])
        shapes = _once(["x".join(map(str, s)) or "scalar" for s in self.shapes])
        layouts = _once(list(self.layouts))
        keep = f"keep{self.batch_dims}" if self.reduction == "sum" else "elements"
        return "-".join((self.op, self.values, dtypes, shapes, layouts, keep))

    def make(self) -> dict[str, Tensor]:
        op, generator = OPS[self.op], self.generator()
        tensors = {}
        for name, dtype, shape, layout in zip(op.arguments, self.dtypes, self.shapes, self.layouts, strict=True):
            values = op.values[self.values][name](generator, shape)
            values = values if dtype.is_floating_point else values.clamp(0, 255).round()
            tensor = LAYOUTS[layout](values.to(dtype).to(DEVICE))
            tensors[name] = tensor.requires_grad_(dtype.is_floating_point)
        return tensors

    def plain(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return self.named(OPS[self.op].plain(*tensors.values(), batch_dims=self.keep))

    def expected(self, of_eager: bool = False) -> dict[str, Expected]:
        return {name: both[of_eager] for name, both in _by_mpmath(self).items()}

    def yardstick(self, backend: str) -> dict[str, Tensor]:
        """For families of counts it is what people write: eager puts their terms together as the kernels do, and
        test_extremes.py bounds the errors of both."""
        return super().yardstick("eager" if "theta" in OPS[self.op].arguments else backend)


@cache
def _by_mpmath(sample: Sample) -> dict[str, tuple[Expected, Expected]]:
    """The true results with the magnitudes of the kernels' terms, and with those of eager's."""
    op, shape, keep = OPS[sample.op], sample.shapes[0], sample.keep
    empty = {
        name: torch.empty(shape if name == "z" else shape[:keep], dtype=dtype)
        for name, dtype in sample.output_dtypes.items()
    }
    upstream = {
        name: np.broadcast_to(_pad(reference.exact(g), len(shape) - g.dim()), shape)[None]
        for name, g in sample.upstream(empty).items()
    }
    tensors = sample.make()
    with mpmath.workdps(reference.DIGITS):
        # The leading dim of one: NumPy makes a number of an object array without dims.
        values = {name: np.broadcast_to(reference.exact(t), shape)[None] for name, t in tensors.items()}
        outputs, gradients = op.reference(values, upstream)
        found = {name: total(terms, shape if name == "z" else shape[:keep]) for name, terms in outputs.items()}
        for name, shape_of in zip(op.arguments, sample.shapes, strict=True):
            if tensors[name].requires_grad:
                found[f"grad {name}"] = total(gradients[name], shape_of, leading=name not in op.arguments[:2])
    return found


def _pad(array: np.ndarray, dims: int) -> np.ndarray:
    return array.reshape(array.shape + (1,) * dims)


def _once(parts: list[str]) -> str:
    return parts[0] if len(set(parts)) == 1 else "_".join(parts)


def sample(
    op: str,
    shape: tuple[int, ...] = (3, 37),
    *,
    values: str = "random",
    dtypes: tuple[torch.dtype, ...] | torch.dtype = F32,
    layouts: tuple[str, ...] | str = "contiguous",
    batch_dims: int = 1,
    parameter: tuple[int, ...] | None = None,
    reduction: str = "sum",
) -> Sample:
    """A sample of one shape; `parameter` is the shape of the arguments behind the first two, where it is another."""
    count = len(OPS[op].arguments)
    shapes = (shape,) * 2 + ((parameter if parameter is not None else shape),) * (count - 2)
    dtypes = dtypes if isinstance(dtypes, tuple) else (dtypes,) * count
    layouts = layouts if isinstance(layouts, tuple) else (layouts,) * count
    return Sample(op, values, dtypes, shapes, layouts, batch_dims, reduction)


# Every kind of values in every combination of dtypes.
VALUES = [
    sample(name, values=values, dtypes=dtypes)
    for name, op in OPS.items()
    for values in op.values
    for dtypes in op.dtypes
]

SHAPES = (
    ((1, 1), 1),
    ((3, 5), 1),
    ((7, 20), 1),
    ((128, 20), 1),
    ((5, 785), 1),
    ((2, 1025), 1),
    ((2, 4097), 1),
    ((1, 70001), 1),
    ((1500, 3), 1),
    ((2, 3, 4, 5), 0),
    ((2, 3, 4, 5), 1),
    ((2, 3, 4, 5), 2),
    ((2, 3, 4, 5), 4),
    ((9,), 1),
    ((9,), 0),
    ((), 0),
)

# The kernels of both Poissons differ by a line: shapes and layouts are those of one.
_OPS = [op for op in OPS if op != "poisson_rate"]

# Tails, few and many rows, every number of batch dims.
SHAPED = [
    sample(op, shape, dtypes=dtype, batch_dims=batch_dims)
    for op in _OPS
    for shape, batch_dims in SHAPES
    for dtype in (F32, BF16)
]

EMPTY = [
    sample(op, shape, dtypes=dtype, batch_dims=batch_dims, reduction=reduction)
    for op in _OPS
    for shape, batch_dims in (((0, 4), 1), ((4, 0), 1), ((0, 0), 1), ((0,), 0), ((2, 0, 3), 2), ((3, 0, 2), 1))
    for dtype in (F64, F32, BF16)
    for reduction in (("sum", "none") if op == "gaussian" else ("sum",))
]

_ANY_LAYOUT = (
    "transposed", "chunk", "sliced", "permuted_slice", "offset", "expanded_rows", "expanded_columns", "boxed"
)  # fmt: skip
_4D_LAYOUTS = ("transposed", "channels_last", "chunk_of_channels", "boxed")

# What reads and writes memory knows of a family how many tensors it has, constants, and whether its formula is short.
_READERS = ("latent", "bernoulli", "gaussian", "discretized_logistic", "zero_inflated_negative_binomial")

LAID_OUT = [
    sample(op, shape, dtypes=dtype, layouts=layout, batch_dims=batch_dims)
    for op in _READERS
    for dtype in (F64, F32, BF16)
    for shape, batch_dims, layouts in (
        ((5, 35), 1, _ANY_LAYOUT),
        ((2, 3, 4, 5), 1, (*_ANY_LAYOUT, "channels_last", "chunk_of_channels")),
        *(((2, 3, 4, 5), batch_dims, _4D_LAYOUTS) for batch_dims in (0, 2, 3, 4)),
        ((2, 3, 2, 4, 5), 1, ("channels_last", "boxed")),
    )
    for layout in layouts
] + [
    sample(op, (2, 3, 4, 5), layouts=(first, *(second,) * (len(OPS[op].arguments) - 1)))
    for op in _READERS
    for first, second in (
        ("contiguous", "channels_last"),
        ("channels_last", "contiguous"),
        ("channels_last", "expanded_rows"),
        ("chunk", "contiguous"),
        ("contiguous", "chunk_of_channels"),
        ("expanded_rows", "transposed"),
        ("boxed", "contiguous"),
        ("contiguous", "boxed"),
    )
]

# Shapes of the Gaussian's logvar: one element, per column, per channel, per sample, and between.
PARAMETERS = (
    ((7, 20), 1, ((), (1,), (1, 1), (20,), (1, 20), (7, 1))),
    ((3, 4, 2, 5), 1, ((), (1,), (5,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1, 5), (1, 2, 1), (3, 1, 1, 1), (3, 1, 2, 1))),
    ((3, 4, 2, 5), 2, ((), (4, 1, 1), (2, 5), (3, 1, 1, 1), (1, 4, 2, 5))),
    ((3, 4, 2, 5), 0, ((), (4, 1, 1), (3, 1, 1, 1), (5,))),
    ((600, 9), 1, ((), (9,))),
    ((3, 5000), 1, ((), (5000,), (3, 1))),
)

BROADCAST = (
    [
        sample("gaussian", shape, dtypes=dtypes, batch_dims=batch_dims, parameter=parameter)
        for shape, batch_dims, parameters in PARAMETERS
        for parameter in parameters
        for dtypes in ((F64, F64, F64), (F32, F32, F32), (BF16, BF16, BF16), (BF16, F32, F32))
    ]
    + [
        sample("gaussian", (3, 4, 2, 5), layouts=(layout, layout, "contiguous"), parameter=parameter)
        for parameter in ((), (4, 1, 1), (5,), (4, 2, 5), (3, 1, 1, 1))
        for layout in ("channels_last", "boxed")
    ]
    + [
        sample("gaussian", (3, 4, 2, 5), layouts=("contiguous", "contiguous", "boxed"), parameter=parameter)
        for parameter in ((1,), (4, 1, 1), (5,), (4, 2, 5), (3, 1, 2, 1))
    ]
)

# Counts with one dispersion per gene, or one probability of an excess zero.
BROADCAST += [
    sample(op, shape, dtypes=dtype, batch_dims=batch_dims, parameter=parameter)
    for op in ("negative_binomial", "zero_inflated_negative_binomial", "zero_inflated_poisson")
    for shape, batch_dims, parameter in (((7, 20), 1, (20,)), ((7, 20), 1, ()), ((3, 4, 2, 5), 2, (2, 5)))
    for dtype in (F64, F32, BF16)
]

# Not summed: tails, few and many rows and columns, layouts of the result's own, parameters whose gradients are sums.
_elements = partial(sample, reduction="none")
ELEMENTS = [
    _elements(op, shape, dtypes=dtype, layouts=layout, batch_dims=batch_dims, parameter=parameter)
    for op in ("gaussian", "zero_inflated_negative_binomial")
    for dtype in (F32, BF16)
    for shape, layout, batch_dims, parameter in (
        ((5, 37), "contiguous", 1, None),
        ((8, 64), "contiguous", 1, (64,)),
        ((9,), "contiguous", 1, None),
        ((9,), "contiguous", 0, ()),
        ((), "contiguous", 1, None),
        ((7, 20), "contiguous", 2, (20,)),
        ((5, 36), "transposed", 1, ()),
        ((5, 35), "expanded_rows", 1, None),
        ((2, 3, 4, 5), "channels_last", 1, None),
        ((2, 3, 4, 5), "channels_last", 2, None),
        ((2, 3, 4, 5), "boxed", 1, (1,)),
        ((1, 4097), "contiguous", 1, ()),
        ((600, 3), "contiguous", 1, (3,)),
    )
] + [_elements(op, dtypes=dtype) for op in OPS if op != "latent" for dtype in OPS[op].dtypes]

SAMPLES = VALUES + SHAPED + LAID_OUT + BROADCAST + ELEMENTS
