"""The code that nvcc generated for the CUDA kernels, read from the built library. No GPU is needed.

`python -m benchmarks.cuda_codegen` prints a table and writes `results/cuda_codegen.csv`. The machine code for every
architecture comes from one PTX (see setup.py). Moves of global memory are counted in the PTX, registers and memory per
architecture. Instructions are counted in the machine code for sm_90: see machine_code.py.
"""

import csv
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import vae_kernels as vk

from .machine_code import CARDS, Way, main_loops, predicted, read_nvidia

LIBRARY = Path(vk.__file__).with_name("_cuda.so")
TABLE = Path(__file__).parent / "results" / "cuda_codegen.csv"


@dataclass(frozen=True)
class Kernel:
    """One kernel on one architecture.

    Memory is in bytes, per thread and (shared) per block. `stack` and `local` would hold values that do not fit into
    registers. Moves are counted in the code, those of 16 bytes separately from smaller ones. `ptx` is the version of
    PTX, from which nvcc's version follows. On sm_90, kernels for complete packs of 16 bytes also have the instructions
    per element, those of the special-function unit, and the predicted fractions of the speed of a copy of all tensors
    that the kernel can read and write.
    """

    name: str
    architecture: str
    registers: int
    stack: int
    local: int
    shared: int
    loads_16: int
    other_loads: int
    stores_16: int
    other_stores: int
    ptx: str
    instructions: float | None
    special: float | None
    predicted_h100: float | None
    predicted_h200: float | None

    @property
    def packs(self) -> bool:
        """True if the kernel is for tensors that consist of complete, aligned packs of 16 bytes."""
        return "Vectors<" in self.name


def why_not() -> str:
    """An empty string if the kernels can be inspected here, else the reason."""
    if not LIBRARY.exists():
        return f"{LIBRARY.name} was not built: no nvcc"
    if not cuobjdump().exists():
        return "no cuobjdump, which Triton brings"
    return "" if shutil.which("c++filt") else "no c++filt of binutils"


def cuobjdump() -> Path:
    if found := shutil.which("cuobjdump"):
        return Path(found)
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def kernels() -> list[Kernel]:
    """The kernels in the library, grouped by architecture."""
    moves, ways = dict(_moves()), dict(_ways("sm_90"))
    version = next(line.removeprefix(".version ") for line in _dump("-ptx") if line.startswith(".version "))
    names = _names(list(moves))
    found = []
    for architecture, symbol, used in _resources():
        count = moves[symbol]
        loops = ways[symbol] if architecture == "sm_90" else []
        found.append(
            Kernel(
                names[symbol],
                architecture,
                *(used[name] for name in ("REG", "STACK", "LOCAL", "SHARED")),
                *(count[direction, wide] for direction in ("ld", "st") for wide in (True, False)),
                version,
                *_per_element(names[symbol], count["ld", True], loops),
            )
        )
    return sorted(found, key=lambda kernel: (int(kernel.architecture.removeprefix("sm_")), kernel.name))


def _per_element(name: str, loads: int, loops: list[Way]) -> tuple[float | None, ...]:
    """Instructions, special ones, and a prediction for each card.

    Each of the `loads` loads a pack of one tensor; for logits there are several packs. A second loop loads from a
    cache.
    """
    size = {"float": 4, "BFloat16": 2, "Float16": 2}
    access = re.search(r"\bVectors<(\w+)>", name)
    if not access or not loops:
        return (None,) * (2 + len(CARDS))
    pack = 16 // size[access[1]]
    tensors = 1 if re.match(r"(normalize|gather|gradient|part_gradient)_", name) else loads
    elements = [pack * loop.loads / tensors for loop in loops]
    instructions, special, loaded, stored = (
        sum(getattr(loop, count) / n for loop, n in zip(loops[:end], elements, strict=False))
        for count, end in (("instructions", None), ("special", None), ("loads", 1), ("stores", None))
    )
    moved = 16 * (loaded + stored)
    fractions = (predicted(card, instructions, special, moved) for card in CARDS.values())
    return round(instructions, 1), round(special, 2), *(round(fraction, 2) for fraction in fractions)


def _dump(*options: str) -> list[str]:
    command = [cuobjdump(), *options, LIBRARY]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def _resources() -> Iterator[tuple[str, str, dict[str, int]]]:
    """Architecture, kernel, and the resources it uses."""
    architecture = symbol = ""
    for line in _dump("-res-usage"):
        if line.startswith("arch = "):
            architecture = line.removeprefix("arch = ")
        elif line.startswith(" Function "):
            symbol = line.removeprefix(" Function ").rstrip(":")
        elif "REG:" in line:
            yield architecture, symbol, {name: int(size) for name, size in re.findall(r"(\w+):(\d+)", line)}


def _ways(architecture: str) -> Iterator[tuple[str, list[Way]]]:
    """For each kernel, the instructions on the way through its main loops. Kernels for any layout have none."""
    text = "\n".join(_dump("-sass", "-arch", architecture))
    for kernel in re.split(r"^\s*Function : ", text, flags=re.MULTILINE)[1:]:
        symbol, _, code = kernel.partition("\n")
        yield symbol, main_loops(read_nvidia(code)) if "Vectors" in symbol else []


def _moves() -> Iterator[tuple[str, Counter[tuple[str, bool]]]]:
    """For each kernel, the number of loads and stores of 16 bytes, and of fewer bytes."""
    count: Counter[tuple[str, bool]] = Counter()
    for line in _dump("-ptx"):
        if entry := re.match(r".*\.entry (\w+)\(", line):
            count = Counter()
            yield entry[1], count
        elif move := re.search(r"\b(ld|st)\.global\S*", line):
            count[move[1], bool(re.search(r"\.v4\.\w32|\.v2\.\w64", move[0]))] += 1


def _names(symbols: list[str]) -> dict[str, str]:
    """The names in the sources, without namespaces and function arguments."""
    demangled = subprocess.run(["c++filt"], input="\n".join(symbols), capture_output=True, text=True, check=True).stdout
    names = (re.sub(r"\(anonymous namespace\)::|\bvk::(cuda::)?|^void ", "", name) for name in demangled.splitlines())
    return {symbol: name.partition("(")[0].replace(" >", ">") for symbol, name in zip(symbols, names, strict=True)}


def write(path: Path, found: list[Kernel]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Kernel)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(kernel) for kernel in found)


def table(found: list[Kernel]) -> str:
    """A table with a line per kernel: registers on each architecture, moves of 16 bytes, instructions, predictions."""
    architectures = list(dict.fromkeys(kernel.architecture for kernel in found))
    registers = {(kernel.name, kernel.architecture): kernel.registers for kernel in found}
    counted = {kernel.name: kernel for kernel in found if kernel.instructions is not None}
    width = max(len(kernel.name) for kernel in found)
    heads = "".join(f"{a:>8}" for a in architectures)
    lines = [f"{'registers of a thread':{width}}{heads}   moves of 16 bytes, instructions, {', '.join(CARDS)}"]
    for kernel in found[: len(found) // len(architectures)]:
        line = f"{kernel.name:{width}}{''.join(f'{registers[kernel.name, a]:8}' for a in architectures)}"
        line += f"   {kernel.loads_16:2},{kernel.stores_16:2}"
        if count := counted.get(kernel.name):
            line += f"{count.instructions:8.1f}{count.predicted_h100:6.2f}{count.predicted_h200:6.2f}"
        lines.append(line)
    return "\n".join(lines)


def main() -> None:
    if reason := why_not():
        sys.exit(f"benchmarks.cuda_codegen: {reason}")
    found = kernels()
    print(table(found))
    spilled = [kernel for kernel in found if kernel.stack or kernel.local]
    print(f"{len(found)} kernels of PTX {found[0].ptx}, {len(spilled)} with local memory or a stack")
    write(TABLE, found)
    print(TABLE)


if __name__ == "__main__":
    main()
