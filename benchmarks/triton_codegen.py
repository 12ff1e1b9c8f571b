"""The code that the compiler generates for the Triton kernels, without a GPU: `python -m benchmarks.triton_codegen`.

Every kernel, forward and backward, is compiled for each target, by the calls that launch it. Read from its code are the
bytes that a thread loads and stores per element of the (rows, cols) tensors, with the least possible number, registers,
spills, instructions per element (see machine_code.py) and, for sm_90, predictions from them. The table is printed and
written to `benchmarks/results/triton_codegen.csv`.
"""

import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import astuple, dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from vae_kernels import ops
from vae_kernels.families import FAMILIES, INDEX
from vae_kernels.options import KlEstimator, LatentOptions, LikelihoodOptions, Reduction, Scale

from .machine_code import CARDS, Code, main_loops, predicted, read_amd, read_nvidia

RESULTS = Path(__file__).parent / "results" / "triton_codegen.csv"

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}

# Rows and columns are multiples of a tile, and one program computes each row.
ROWS, COLS = 1024, 8192


class Case(NamedTuple):
    """A function of the dtype that launches the kernels, and the least traffic.

    The traffic is the number of tensors of full shape that must be loaded and stored. `wide_loaded` and `wide_stored`
    of them have the dtype of sums, at least float32.
    """

    call: Callable[[torch.dtype], object]
    loaded: int
    stored: int
    wide_loaded: int = 0
    wide_stored: int = 0

    def ideal_bytes(self, dtype: torch.dtype) -> tuple[int, int]:
        """The bytes loaded and stored per element."""
        extra = max(dtype.itemsize, 4) - dtype.itemsize
        return (
            self.loaded * dtype.itemsize + self.wide_loaded * extra,
            self.stored * dtype.itemsize + self.wide_stored * extra,
        )


def _full(dtype: torch.dtype, count: int = 1) -> list[Tensor]:
    return [torch.empty(ROWS, COLS, dtype=dtype, device="meta") for _ in range(count)]


class LatentVariant(NamedTuple):
    """The differences from the default latent step. `prior` has the shapes of the prior's two parameters."""

    prior: tuple[tuple[int, ...], ...] = ()
    packed: bool = False
    options: LatentOptions = LatentOptions(1)

    def inputs(self, dtype: torch.dtype) -> list[Tensor | None]:
        prior = [torch.empty(shape, dtype=dtype, device="meta") for shape in self.prior] or [None, None]
        moments = [torch.empty(ROWS, 2 * COLS, dtype=dtype, device="meta"), None] if self.packed else _full(dtype, 2)
        return [*moments, *prior, torch.empty(1, dtype=torch.int64, device="meta")]

    def forward(self, dtype: torch.dtype) -> object:
        from vae_kernels.triton import latent

        return latent.latent_forward(*self.inputs(dtype), *self.options)

    def backward(self, dtype: torch.dtype) -> object:
        """All gradients except that of the noise."""
        from vae_kernels.triton import latent

        inputs = self.inputs(dtype)
        upstream = ops.latent_forward(*inputs, *self.options)
        needs = sum(1 << i for i, t in enumerate(inputs[:4]) if t is not None)
        return latent.latent_backward(*upstream, *inputs, *self.options, needs)

    def cases(self) -> tuple[Case, Case]:
        """The forward and the backward case. For several samples, the code has one load or store in a loop (forward),
        or one for the first and one for all others (backward)."""
        read = 2 + sum(shape == (ROWS, COLS) for shape in self.prior)
        elements = int(not self.options.summed)
        samples = 1 if self.options.num_samples is None else 2
        backward = Case(self.backward, samples * (1 + elements) + read, read, wide_loaded=samples * elements)
        return Case(self.forward, read, 1 + elements, wide_stored=elements), backward


LATENT_VARIANTS = {
    "latent": LatentVariant(),
    "latent, packed, clamped": LatentVariant(packed=True, options=LatentOptions(1, packed_dim=1, low=-30.0, high=20.0)),
    "latent, softplus, floor": LatentVariant(options=LatentOptions(1, scale=Scale.softplus, std_floor=1e-4)),
    "latent, prior": LatentVariant(prior=((ROWS, COLS),) * 2),
    "latent, one prior for all": LatentVariant(prior=((1,), (1,))),
    "latent, std, elements": LatentVariant(options=LatentOptions(1, scale=Scale.std, kl_reduction=Reduction.none)),
    "latent, samples, prior, monte carlo": LatentVariant(
        ((ROWS, COLS),) * 2, options=LatentOptions(1, num_samples=8, kl_estimator=KlEstimator.monte_carlo)
    ),
    "latent, path": LatentVariant(options=LatentOptions(1, kl_estimator=KlEstimator.path)),
}


# A parameter after x has the full shape by default. It can be one element, or a number.
ONE = "one element"


def _arguments(family: str, parameters: tuple, dtype: torch.dtype) -> tuple[list[Tensor | None], LikelihoodOptions]:
    """The tensors and options of the op."""
    names = FAMILIES[family].arguments[2:]
    parameters = parameters or tuple(256.0 if name in FAMILIES[family].numbers else None for name in names)
    tensors, numbers = _full(dtype, 2), [None, None]
    for i, parameter in enumerate(parameters):
        if isinstance(parameter, float):
            numbers[i] = parameter
        shape = (1,) if parameter == ONE else (ROWS, COLS)
        tensors.append(None if isinstance(parameter, float) else torch.empty(shape, dtype=dtype, device="meta"))
    return [*tensors, *(None for _ in range(4 - len(tensors)))], LikelihoodOptions(INDEX[family], *numbers, 1)


def _forward(family: str, parameters: tuple, dtype: torch.dtype) -> object:
    from vae_kernels.triton import likelihood

    tensors, options = _arguments(family, parameters, dtype)
    return likelihood.likelihood_forward(*tensors, *options)


def _backward(family: str, parameters: tuple, dtype: torch.dtype) -> object:
    """All gradients except that of x."""
    from vae_kernels.triton import likelihood

    tensors, options = _arguments(family, parameters, dtype)
    needs = sum(1 << i for i, t in enumerate(tensors) if t is not None and i != 1)
    return likelihood.likelihood_backward(torch.empty(ROWS, device="meta"), *tensors, *options, needs)


def _categorical(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.empty(ROWS, COLS, dtype=dtype, device="meta"), torch.empty(ROWS, dtype=torch.int64, device="meta")


def _categorical_forward(dtype: torch.dtype) -> object:
    from vae_kernels.triton import categorical

    return categorical.categorical_forward(*_categorical(dtype), 1)


def _categorical_backward(dtype: torch.dtype) -> object:
    from vae_kernels.triton import categorical

    return categorical.categorical_backward(torch.empty(ROWS, device="meta"), *_categorical(dtype), 1)


def _multinomial_forward(coefficient: bool, dtype: torch.dtype) -> object:
    from vae_kernels.triton import multinomial

    return multinomial.multinomial_forward(*_full(dtype, 2), 1, coefficient)


def _multinomial_backward(needs: int, dtype: torch.dtype) -> object:
    from vae_kernels.triton import multinomial

    return multinomial.multinomial_backward(torch.empty(ROWS, device="meta"), *_full(dtype, 2), 1, True, needs)


def _cases() -> dict[str, Case]:
    cases = {}
    for name, variant in LATENT_VARIANTS.items():
        comma = "," if "," in name else ""
        cases[f"{name}{comma} forward"], cases[f"{name}{comma} backward"] = variant.cases()
    for family in FAMILIES:
        count = len(FAMILIES[family].arguments) - len(FAMILIES[family].numbers)
        cases[f"{family} forward"] = Case(partial(_forward, family, ()), count, 0)
        cases[f"{family} backward"] = Case(partial(_backward, family, ()), count, count - 1)
    cases["categorical forward"] = Case(_categorical_forward, 1, 0)
    # The second load is from a cache.
    cases["categorical backward"] = Case(_categorical_backward, 2, 1)
    # The second load of the logits is from a cache, and in the backward pass that of the counts.
    cases["multinomial forward"] = Case(partial(_multinomial_forward, True), 3, 0)
    cases["multinomial, no coefficient, forward"] = Case(partial(_multinomial_forward, False), 3, 0)
    cases["multinomial backward"] = Case(partial(_multinomial_backward, 1), 4, 1)
    cases["multinomial, x, backward"] = Case(partial(_multinomial_backward, 3), 4, 2)
    for name, parameter in (("fixed variance", 0.5), ("one logvar", ONE)):
        cases[f"gaussian, {name}, forward"] = Case(partial(_forward, "gaussian", (parameter,)), 2, 0)
        cases[f"gaussian, {name}, backward"] = Case(partial(_backward, "gaussian", (parameter,)), 2, 1)
    return cases


CASES = _cases()


@dataclass(frozen=True)
class Row:
    """One compiled kernel. `held` is the number of elements that a thread holds at once. Bytes and instructions are per
    element. `other_accesses` are the instructions that move fewer than 16 bytes: for the seed, and for one number per
    row."""

    kernel: str
    dtype: str
    target: str
    triton: str
    held: float
    ideal_loaded: int
    loaded: float
    ideal_stored: int
    stored: float
    other_accesses: int
    registers: int
    spilled: int
    local_bytes: int
    shared_bytes: int
    barriers: int
    instructions: float | None
    predicted_h100: float | None
    predicted_h200: float | None


class Target:
    """A stand-in for the GPU that Triton looks for. Its device number exists on no machine, because Triton caches
    compiled kernels by device number."""

    def __init__(self, name: str) -> None:
        self._target, self._number = TARGETS[name], 1000 + list(TARGETS).index(name)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return self._number

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled(call: Callable[[], object], target: str) -> list[tuple[Any, int]]:
    """The compiled kernels that a call would launch, in order, with the sizes of their tiles."""
    from vae_kernels.triton import launch

    kernels = []

    def compile_only(self: launch.Launch, tensors: tuple[Any, ...]) -> None:
        kernel = self._kernel.warmup(*tensors, *self._arguments, grid=self._grid, **launch.options())
        given = dict(zip(self._kernel.arg_names[-len(self._arguments) :], self._arguments, strict=True))
        kernels.append((kernel, given["BLOCK_ROWS"] * given["BLOCK_COLS"]))

    active = driver._active
    driver.set_active(Target(target))
    launch._plans.clear()
    run, launch.Launch._run = launch.Launch._run, compile_only
    try:
        call()
    finally:
        launch.Launch._run = run
        launch._plans.clear()
        driver._active = active
    return kernels


class Access(NamedTuple):
    """One instruction on global memory."""

    store: bool
    bytes: int


def rows_of(case: str, dtype_name: str, target: str) -> list[Row]:
    """The rows of a case's kernels. Those after the first have no ideal, because they only add up a few numbers."""
    dtype = DTYPES[dtype_name]
    rows = []
    for i, (kernel, tile) in enumerate(compiled(partial(CASES[case].call, dtype), target)):
        threads = kernel.metadata.num_warps * kernel.metadata.target.warp_size
        held = tile / threads
        read = _read_amd if "amdgcn" in kernel.asm else _read_nvidia
        accesses, registers, spilled, local_bytes, barriers, code = read(kernel)
        whole = [a for a in accesses if a.bytes == 16]
        loaded, stored = CASES[case].ideal_bytes(dtype) if i == 0 else (0, 0)
        rows.append(
            Row(
                case if i == 0 else f"{case}, sum",
                dtype_name,
                target,
                triton.__version__,
                held,
                loaded,
                sum(a.bytes for a in whole if not a.store) / held,
                stored,
                sum(a.bytes for a in whole if a.store) / held,
                len(accesses) - len(whole),
                registers,
                spilled,
                local_bytes,
                kernel.metadata.shared,
                barriers,
                *_per_element(code, held, loaded + stored, target),
            )
        )
    return rows


def _per_element(code: Code, held: float, bytes_: int, target: str) -> tuple[float | None, ...]:
    """Instructions, and a prediction for each card. One iteration of a main loop computes one tile."""
    ways = main_loops(code)
    if not ways or not bytes_:
        return (None,) * (1 + len(CARDS))
    instructions, special = (sum(getattr(way, n) for way in ways) / held for n in ("instructions", "special"))
    fractions = (
        round(predicted(card, instructions, special, bytes_), 2) if target == "sm_90" else None
        for card in CARDS.values()
    )
    return round(instructions, 1), *fractions


def _read_nvidia(kernel: Any) -> tuple[list[Access], int, int, int, int, Code]:
    ptx = kernel.asm["ptx"]
    accesses = [
        Access(op == "st", int(vector or 1) * int(bits) // 8)
        for op, vector, bits in re.findall(r"\b(ld|st)\.global(?:\.[a-z][\w:]*?)*?(?:\.v(\d))?\.[busf](\d+)\b", ptx)
    ]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _run_tool("cuobjdump", "-res-usage", file.name)
        sass = _run_tool("cuobjdump", "-sass", file.name)
    registers, stack, local = (int(re.search(rf"\b{name}:(\d+)", usage)[1]) for name in ("REG", "STACK", "LOCAL"))
    opcodes = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\w*)", sass, re.MULTILINE)
    spilled = sum(op in ("STL", "LDL") for op in opcodes)
    return accesses, registers, spilled, stack + local, opcodes.count("BAR"), read_nvidia(sass)


def _run_tool(name: str, *arguments: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([tool, *arguments], check=True, capture_output=True, text=True).stdout


_AMD_BYTES = {"ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "short": 2}


def _read_amd(kernel: Any) -> tuple[list[Access], int, int, int, int, Code]:
    code = kernel.asm["amdgcn"]
    accesses = []
    for op, size in re.findall(r"^\s+(?:global|buffer|flat)_(load|store)_(\w+)", code, re.MULTILINE):
        size = size.removesuffix("_d16_hi").removesuffix("_d16")
        bytes_ = _AMD_BYTES.get(size) or 4 * int(size.removeprefix("dwordx") if "x" in size else 1)
        accesses.append(Access(op == "store", bytes_))

    def number(name: str) -> int:
        return int(re.search(rf"\.{name}:\s+(\d+)", code)[1])

    opcodes = re.findall(r"^\s+((?:v|s|ds|global|buffer|flat)_\w+)", code, re.MULTILINE)
    # Scalar registers are spilled to lanes of vector registers, not to memory.
    spilled, local = number("vgpr_spill_count"), number("private_segment_fixed_size")
    return accesses, number("vgpr_count"), spilled, local, opcodes.count("s_barrier"), read_amd(code)


def all_rows() -> list[Row]:
    """The rows of every case in every dtype for every target, computed on all cores."""
    jobs = [(case, dtype, target) for case in CASES for dtype in DTYPES for target in TARGETS]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        return [row for rows in pool.map(rows_of, *zip(*jobs, strict=True)) for row in rows]


def main() -> None:
    rows = all_rows()
    names = [field.name for field in fields(Row)]
    with RESULTS.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(names)
        writer.writerows(map(astuple, rows))
    table = [names, *([str(v) for v in astuple(row)] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        sys.stdout.write("  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() + "\n")


if __name__ == "__main__":
    main()
