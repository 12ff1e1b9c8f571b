"""The time of the first forward and backward pass in a fresh process with empty compiler caches.

torch and the package are imported before, and the inputs are made before. The time includes everything that a contender
loads or compiles.

`python -m benchmarks.first_call CONTENDER OP SHAPE DEVICE` prints the milliseconds.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from time import perf_counter

import torch

from .cases import Case, format_shape, parse_shape
from .contenders import Contender, calls, contenders, named
from .machine import ROOT
from .results import Row, provenance
from .suites import Plan

FIRST_CALL_CASES = [Case("latent", (128, 20), "float32", "MNIST, MLP")]


def run(cases: list[Case], plan: Plan) -> Iterator[list[Row]]:
    """The rows of each case, as one list per case."""
    competing = contenders(plan.device)[0]
    for case in cases:
        yield [_measure(contender, case, plan.device) for contender in competing]


def _measure(contender: Contender, case: Case, device: str) -> Row:
    shape = format_shape(case.shape)
    row = Row("first_call", case.op, contender.name, "both", case.dtype, shape, torch.get_num_threads())
    vars(row).update(provenance(device))
    command = [sys.executable, "-m", __name__, contender.name, case.op, shape, device]
    with tempfile.TemporaryDirectory() as folder:
        caches = {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
        done = subprocess.run(command, cwd=ROOT, env=os.environ | caches, capture_output=True, text=True)
    if done.returncode == 0:
        row.samples, row.first_call_ms = 1, float(done.stdout)
    else:
        row.status = f"failed {done.stderr.strip().splitlines()[-1]}"
    return row


def _first_call_ms(contender: Contender, case: Case, device: str) -> float:
    tensors = case.inputs(device)
    with contender.chosen():
        began = perf_counter()
        passes = calls(contender.build(case.op), case, tensors)
        passes.backward(passes.forward())
        if device == "cuda":
            torch.cuda.synchronize()
        return (perf_counter() - began) * 1e3


def main(arguments: list[str]) -> None:
    name, op, shape, device = arguments
    print(_first_call_ms(named(name), Case(op, parse_shape(shape), "float32", "first call"), device))


if __name__ == "__main__":
    main(sys.argv[1:])
