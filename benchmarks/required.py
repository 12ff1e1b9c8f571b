"""The ratios that the kernels must reach, and a report of those that a run reached."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .cases import DTYPES, LARGE_OPS, Case, Shape, format_shape
from .contenders import COPY, UNCHANGED
from .results import Row


class AtLeast(NamedTuple):
    """The required speedups over eager and over torch.compile; None if none is required."""

    eager: float
    compile: float | None = None


# A case that takes more than this multiple of the time of the copy needs a profile that explains it.
FAR = 1.3

# CPU, forward and backward.
CPU: dict[tuple[str, str], dict[Shape, AtLeast]] = {
    ("latent", "float32"): {
        (512, 16384): AtLeast(5, 4),
        (512, 4096): AtLeast(4.5, 4),
        (128, 784): AtLeast(3, 4),
        (128, 20): AtLeast(2.5, 2.5),
    },
    ("latent", "bfloat16"): {
        (512, 16384): AtLeast(5, 4),
        (512, 4096): AtLeast(5, 4),
        (128, 784): AtLeast(3, 4),
        (128, 20): AtLeast(2.5, 2.5),
    },
    ("bernoulli", "float32"): {
        (512, 16384): AtLeast(3, 1.1),
        (512, 4096): AtLeast(2, 1.1),
        (128, 784): AtLeast(2, 2),
    },
    ("bernoulli", "bfloat16"): {
        (512, 16384): AtLeast(1.5, 1.1),
        (512, 4096): AtLeast(1.5, 1.1),
        (128, 784): AtLeast(2, 2),
    },
    ("gaussian", "float32"): {
        (512, 16384): AtLeast(5, 1.3),
        (512, 4096): AtLeast(5, 1.3),
        (128, 784): AtLeast(2.5, 2),
    },
    ("gaussian", "bfloat16"): {
        (512, 16384): AtLeast(2.5, 1.3),
        (512, 4096): AtLeast(2.5, 1.3),
        (128, 784): AtLeast(2, 2),
    },
    ("negative-binomial", "float32"): {(128, 20000): AtLeast(5)},
    ("latent-packed", "float32"): {(4, 4, 64, 64): AtLeast(3)},
    ("latent-prior", "float32"): {(16, 16, 32, 32): AtLeast(4)},
    ("latent-hierarchy", "float32"): {(16, 16, 32, 32): AtLeast(4)},
}

# GPU, 2²⁶ elements, forward and backward: the fraction of the copy's speed, and the speedup over torch.compile.
GPU_SHAPE = (4096, 16384)
GPU_FRACTION_OF_COPY = 0.88
GPU_COMPILE = {op: 1.2 if op == "latent" else 0.97 for op in LARGE_OPS}

# GPU, the latent step at 128×20, forward and backward: eager's host time divided by that of the kernels.
GPU_HOST_SHAPE = (128, 20)
GPU_HOST = 3.0


@dataclass(frozen=True)
class Requirement:
    """One ratio: the kernel, the baseline, and the least value. `measured` is None if the run does not have it."""

    kernel: str
    op: str
    dtype: str
    shape: Shape
    over: str
    at_least: float
    measured: float | None

    @property
    def verdict(self) -> str:
        if self.measured is None:
            return "not measured"
        return "met" if self.measured >= self.at_least else "missed"


def on_gpu(case: Case) -> bool:
    """True if a ratio is required for the case on a GPU."""
    large = case.op in GPU_COMPILE and case.shape == GPU_SHAPE
    return large or (case.op, case.shape) == ("latent", GPU_HOST_SHAPE)


def requirements(rows: list[Row]) -> list[Requirement]:
    """All requirements for the run's device, for each kernel backend in the run."""
    measured = {(r.op, r.dtype, r.shape, r.contender): r for r in rows if (r.suite, r.mode) == ("ops", "both")}
    kernels = sorted({r.contender for r in rows if r.suite == "ops"} - set(UNCHANGED))
    find = _on_gpu if any(r.host_us is not None for r in measured.values()) else _on_cpu
    return [requirement for kernel in kernels for requirement in find(kernel, measured)]


def report(rows: list[Row]) -> str:
    """The table in Markdown. Each cell has the baseline, the ratio, and the required ratio."""
    found = requirements(rows)
    shapes = list(dict.fromkeys(r.shape for r in found))
    cells: dict[tuple[str, str, str], dict[Shape, list[str]]] = {}
    for r in found:
        cells.setdefault((r.kernel, r.op, r.dtype), {}).setdefault(r.shape, []).append(_describe(r))
    lines = [f"| backend | op | dtype | {' | '.join(map(format_shape, shapes))} |", f"|{' --- |' * (3 + len(shapes))}"]
    for labels, by_shape in cells.items():
        figures = [", ".join(by_shape.get(shape, [])) for shape in shapes]
        lines.append(f"| {' | '.join([*labels, *figures])} |")
    count = {verdict: sum(r.verdict == verdict for r in found) for verdict in ("met", "missed", "not measured")}
    return "\n".join([*lines, "", ", ".join(f"{n} {verdict}" for verdict, n in count.items() if n)])


def _describe(r: Requirement) -> str:
    if r.measured is None:
        return f"{r.over} not measured"
    verdict = "met" if r.verdict == "met" else "**missed**"
    return f"{r.over} {r.measured:.2f} of {r.at_least:g} {verdict}"


Measured = dict[tuple[str, str, str, str], Row]


def _on_cpu(kernel: str, measured: Measured) -> Iterator[Requirement]:
    for (op, dtype), shapes in CPU.items():
        for shape, at_least in shapes.items():
            for over, least in at_least._asdict().items():
                if least is None:
                    continue
                ratio = _ratio(measured, (op, dtype, format_shape(shape)), over, kernel, "median_us")
                yield Requirement(kernel, op, dtype, shape, over, least, ratio)


def _on_gpu(kernel: str, measured: Measured) -> Iterator[Requirement]:
    for dtype in DTYPES:
        for op, least in GPU_COMPILE.items():
            case = op, dtype, format_shape(GPU_SHAPE)
            ratio = _ratio(measured, case, COPY, kernel, "median_us")
            yield Requirement(kernel, op, dtype, GPU_SHAPE, COPY, GPU_FRACTION_OF_COPY, ratio)
            ratio = _ratio(measured, case, "compile", kernel, "median_us")
            yield Requirement(kernel, op, dtype, GPU_SHAPE, "compile", least, ratio)
        ratio = _ratio(measured, ("latent", dtype, format_shape(GPU_HOST_SHAPE)), "eager", kernel, "host_us")
        yield Requirement(kernel, "latent", dtype, GPU_HOST_SHAPE, "eager, host time", GPU_HOST, ratio)


def _ratio(measured: Measured, case: tuple[str, str, str], over: str, kernel: str, figure: str) -> float | None:
    slow, fast = (getattr(measured.get((*case, name)), figure, None) for name in (over, kernel))
    return slow / fast if slow and fast else None
