"""Everything that needs a GPU: `python -m benchmarks.gpu_check`, or `make gpu-check`.

Builds the libraries in place, runs all tests on CUDA tensors, runs the kernels under compute-sanitizer and measures them.
Installs nothing: the interpreter must see a CUDA torch and pytest. Names of steps as arguments choose among them.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec

import torch

from .machine import ROOT, device_name, folder_name, versions

SANITIZERS = ("memcheck", "racecheck", "initcheck")
SHAPES = ("128×20", "128×784", "4×4×64×64", "16×16×32×32", "8×786432", "65536×1024", "4096×16384")
TIMINGS = ROOT / "benchmarks" / "results"


def run(*command: object, **environment: str) -> bool:
    print("+", *environment.items(), *command, flush=True)
    return subprocess.run(list(map(str, command)), cwd=ROOT, env=os.environ | environment).returncode == 0


def build() -> bool:
    return run(sys.executable, "setup.py", "--quiet", "build_ext", "--inplace") and run(
        sys.executable, "-m", "vae_kernels"
    )


def tests() -> bool:
    """The whole suite on CUDA tensors. What is about the CPU alone runs as ever."""
    parallel = ("--numprocesses", "6", "--dist", "loadfile") if find_spec("xdist") else ()
    return run(sys.executable, "-m", "pytest", "-q", *parallel, VAE_KERNELS_TEST_DEVICE="cuda")


def sanitizers() -> bool:
    """Each tensor in an allocation of its own, so that the first element behind it is out of bounds."""
    program = ROOT / "python_tests" / "short_gpu_run.py"
    return all(
        [
            run(
                *("compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *_only_own_kernels(tool)),
                *(sys.executable, program),
                PYTORCH_NO_CUDA_MEMORY_CACHING="1",
                PYTHONPATH=str(ROOT),
            )
            for tool in SANITIZERS
        ]
    )


def _only_own_kernels(tool: str) -> list[str]:
    """torch's own kernels may read what nobody wrote."""
    names = ("latent", "likelihood", "categorical", "sum_kernel", "sum_rows", "sum_positions")
    return [part for name in names for part in ("--kernel-name", f"kns={name}")] if tool != "memcheck" else []


def timings() -> bool:
    folder = TIMINGS / folder_name("cuda")
    measure = ("-m", "benchmarks", "--device", "cuda", "--suite", "ops", "host")
    return run(sys.executable, *measure, "--only", *SHAPES, "1×1", "--out", folder)


STEPS: dict[str, Callable[[], bool]] = {"build": build, "tests": tests, "sanitizers": sanitizers, "timings": timings}


def main(chosen: list[str]) -> int:
    """Returns the exit status: 1 without a CUDA device, and if a step failed."""
    if unknown := set(chosen) - set(STEPS):
        print(f"gpu-check: no step called {', '.join(sorted(unknown))}; there are {', '.join(STEPS)}", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(f"gpu-check: no CUDA device: torch {torch.__version__} sees none; nothing was checked", file=sys.stderr)
        return 1
    print(f"{device_name('cuda')}; {versions()}")
    passed = {name: STEPS[name]() for name in chosen or STEPS}
    for name, ok in passed.items():
        print(f"{name}: {'passed' if ok else 'FAILED'}")
    return int(not all(passed.values()))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
