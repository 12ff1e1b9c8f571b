"""A profile of a case by samples of Linux's perf: `python -m benchmarks.profile`.

Forward and backward passes run in a loop. The samples of their thread are divided among the kernels, waiting for the
other threads of the kernels, torch, Python, and the system, which is almost only page faults. Without arguments, all
cases are profiled that took more than `FAR` times their floor in the committed run.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from . import machine, results
from .__main__ import RESULTS, TABLE
from .cases import Case, cases
from .contenders import calls, named
from .required import FAR
from .results import Row

# The part of a sample is the first one whose key is contained in the name of the sample's library.
PARTS = {
    "_cpp.so": "kernels",
    "libgomp": "waiting",
    "libomp": "waiting",
    "kernel": "system",
    "vdso": "system",
    "torch": "torch",
    "libc10": "torch",
    "python": "Python",
}
OTHER = "C library"
COLUMNS = (*dict.fromkeys(PARTS.values()), OTHER)


def shares(report: str) -> tuple[Counter[str], Counter[str]]:
    """The percentage of samples by part, and those of the kernels by function.

    `report` is the output of `perf report` with the tab-separated fields share, library and symbol.
    """
    parts: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for line in report.splitlines():
        if not (found := re.match(r"\s*([\d.]+)%\s*\t\s*(\S+)\s*\t\s*(?:\[\S\] )?(.+)", line)):
            continue
        share, library, symbol = float(found[1]), found[2], found[3].strip()
        part = next((part for name, part in PARTS.items() if name in library), OTHER)
        parts[part] += share
        if part == "kernels":
            functions[_short(symbol)] += share
    return parts, functions


def _short(symbol: str) -> str:
    """A short name: `noise` for `vk::cpu::Avx512::noise<float>`, `PlainForward` for the function that runs it."""
    symbol = re.sub(r"\(anonymous namespace\)::|vk::(cpu::)?|(Avx512|Avx2|Baseline)::", "", symbol)
    kernel = re.match(r"(?:void )?run<(\w+)", symbol)
    return kernel[1] if kernel else re.sub(r"^void |[<(].*", "", symbol)


def far(rows: list[Row]) -> dict[str, float]:
    """The cases that took more than `FAR` times their floor, forward plus backward, and how many times."""
    return {
        f"{row.op} {row.shape} {row.dtype}": 1 / row.fraction_of_copy
        for row in rows
        if (row.suite, row.mode, row.contender) == ("ops", "both", "cpp")
        and row.fraction_of_copy
        and row.fraction_of_copy < 1 / FAR
    }


def profile(case: Case, seconds: float) -> tuple[float, str]:
    """Microseconds of forward and backward, and perf's report."""
    contender = named("cpp")
    with contender.chosen(), tempfile.TemporaryDirectory() as folder:
        passes = calls(contender.build(case.op), case, case.inputs("cpu"))
        for _ in range(3):
            passes.backward(passes.forward())
        data = Path(folder) / "perf.data"
        thread = ("--tid", str(os.getpid()))
        record = subprocess.Popen(["perf", "record", "--quiet", "--output", data, *thread, "--", "sleep", str(seconds)])
        began, count = time.perf_counter(), 0
        while record.poll() is None:
            passes.backward(passes.forward())
            count += 1
        took = time.perf_counter() - began
        fields = ("--sort", "dso,symbol", "--field-separator", "\t", "--percent-limit", "0")
        command = ["perf", "report", "--input", data, "--stdio", "--no-children", *fields]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return took / count * 1e6, report


def line(name: str, distance: float | None, took: float, report: str) -> str:
    parts, functions = shares(report)
    most = ", ".join(f"{function} {share:.0f}" for function, share in functions.most_common(3) if share >= 1)
    floor = "" if distance is None else f"{distance:.1f}"
    return f"| {' | '.join([name, f'{took:.0f}', floor, *(f'{parts[part]:.0f}' for part in COLUMNS), most])} |"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__.partition("\n")[0])
    parser.add_argument("cases", nargs="*", help="names, such as 'latent 128×20 float32'")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each case runs")
    options = parser.parse_args(arguments)
    if shutil.which("perf") is None:
        sys.exit("benchmarks.profile: no perf (Linux tools) on this machine")
    known = {case.name: case for case in cases("cpu", everything=True)}
    if unknown := set(options.cases) - set(known):
        sys.exit(f"benchmarks.profile: no case is named {', '.join(unknown)}")
    committed = RESULTS / machine.folder_name("cpu") / TABLE
    distances = far(results.read(committed)) if committed.exists() else {}
    print(f"{machine.device_name('cpu')}; {machine.versions()}\n")
    print(f"| case | µs | times the copy | {' | '.join(f'{part} %' for part in COLUMNS)} | most of the kernels |")
    print("|" + " --- |" * (4 + len(COLUMNS)))
    for name in options.cases or distances:
        print(line(name, distances.get(name), *profile(known[name], options.seconds)), flush=True)


if __name__ == "__main__":
    main()
