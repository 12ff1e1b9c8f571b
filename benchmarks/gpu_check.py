"""Everything that needs a GPU, in stages: `python -m benchmarks.gpu_check STAGE --out FOLDER`. docs/gpu.md has the
order.

A stage requires the backends that it tests. If the CUDA library does not load, the stage builds it. A stage writes each
result at once, needs no other stage, and ends after eight minutes. The exit status is 1 if anything failed. Nothing is
installed: the interpreter must find a CUDA torch, triton and pytest.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch

from .machine import ROOT, cores, device_name, versions

LIMIT = 480  # seconds
TESTS = ROOT / "python_tests"
REQUIRED = ("4096×16384", "latent 128×20")
# Shapes that people train with. The suite `host` has only one shape.
TIMED = ("65536×1024", "128×784", "1×1")
TIMED_NEXT = ("4×4×64×64", "16×16×32×32", "8×786432")
# Parts of the names of our own kernels. The accesses of torch's kernels are not checked.
KERNEL_NAMES = (
    *(
        "rows_kernel",
        "columns_kernel",
        "sum_kernel",
        "gather_kernel",
        "normalize_kernel",
        "merge_kernel",
        "gradient_kernel",
    ),  # CUDA
    *("latent_", "likelihood_", "categorical_", "sum_rows", "sum_positions"),  # Triton
    "multinomial_",  # both
)
COMPILERS = 8  # processes that fill Triton's cache before a sanitizer runs one

BACKENDS = "import json, sys, vae_kernels as vk; print(json.dumps(vk.backends()[sys.argv[1]]))"


class Stage:
    """A stage's output and its time. `<name>.txt` in the folder gets everything that its commands print, at once."""

    def __init__(self, name: str, device: str, out: Path, limit: float = LIMIT) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.name, self.device, self.out = name, device, out.resolve()
        self.ends = time.monotonic() + limit
        self.log = (out / f"{name}.txt").open("w", encoding="utf-8")

    def say(self, text: str) -> None:
        for stream in (sys.stdout, self.log):
            print(text, file=stream, flush=True)

    def run(self, *command: object, **environment: str) -> bool:
        """Run a command. Returns False if it fails, or does not end in time; all its processes are killed then."""
        self.say(" ".join(["+", *(f"{k}={v}" for k, v in environment.items()), *map(str, command)]))
        try:
            process = subprocess.Popen(
                list(map(str, command)),
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self.say(f"FAILED: {error}")
            return False
        killer = threading.Timer(max(0.0, self.ends - time.monotonic()), os.killpg, (process.pid, signal.SIGKILL))
        killer.start()
        for line in process.stdout:
            self.say(line.rstrip("\n"))
        code = process.wait()
        killer.cancel()
        if code == -signal.SIGKILL:
            self.say("FAILED: killed; the stage's time was over" if time.monotonic() >= self.ends else "FAILED: killed")
        elif code:
            self.say(f"FAILED: exit status {code}")
        return code == 0

    def python(self, *arguments: object, **environment: str) -> bool:
        return self.run(sys.executable, *arguments, **environment)

    def demand(self, *backends: str) -> bool:
        """True if the backends serve the device. Builds the CUDA library before, if necessary."""
        states = self._states()
        if "cuda" in backends and states.get("cuda") != "available" and self.device == "cuda":
            self.say(f"cuda: {states.get('cuda')}")
            major, minor = torch.cuda.get_device_capability()
            self.python(
                *("setup.py", "--quiet", "build_ext", "--inplace", "--force"),
                TORCH_CUDA_ARCH_LIST=f"{major}.{minor}",
                VAE_KERNELS_BUILD_CUDA="1",
                VAE_KERNELS_BUILD_CPU="0",
            )
            states = self._states()
        for name in backends:
            self.say(f"{name}: {states.get(name, 'nothing is known of it')}")
        return all(states.get(name) == "available" for name in backends)

    def _states(self) -> dict[str, str]:
        """The states of all backends, from a new process: this one would remember a library that did not load."""
        done = subprocess.run([sys.executable, "-c", BACKENDS, self.device], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            self.say(done.stderr)
            return {}
        return json.loads(done.stdout.splitlines()[-1])


def kernels(device: str) -> tuple[str, ...]:
    """The backends that must serve the device. On a CPU, where the stages are tested, it is the C++ backend."""
    return ("cuda", "triton") if device == "cuda" else ("cpp",)


def smoke(stage: Stage) -> bool:
    """Print versions and libraries, and compare every op of each backend once with eager."""
    for command in (("nvidia-smi",), ("nvcc", "--version"), ("compute-sanitizer", "--version")):
        if shutil.which(command[0]):
            stage.run(*command)
    there = stage.demand(*kernels(stage.device))
    stage.python("-m", "vae_kernels")
    return all([there, *(stage.python("-m", "benchmarks.smoke", name, stage.device) for name in kernels(stage.device))])


def required(stage: Stage) -> bool:
    """Measure the required ratios."""
    measured = _time(stage, "ops", only=REQUIRED)
    return stage.python("-m", "benchmarks", "required", stage.out / stage.name / "results.csv") and measured


def timings(stage: Stage) -> bool:
    """Measure other shapes, and the host's time."""
    return _time(stage, "ops", "host", only=TIMED)


def more_timings(stage: Stage) -> bool:
    """Measure the shapes of convolutional models and latent diffusion."""
    return _time(stage, "ops", only=TIMED_NEXT)


def _time(stage: Stage, *suites: str, only: tuple[str, ...]) -> bool:
    measure = ("-m", "benchmarks", "--device", stage.device, "--suite", *suites, "--only", *only)
    return stage.demand(*kernels(stage.device)) and stage.python(*measure, "--out", stage.out / stage.name)


def cuda(stage: Stage) -> bool:
    """Run the correctness tests of the CUDA kernels."""
    name = kernels(stage.device)[0]
    return stage.demand(name) and _test(stage, name)


def triton(stage: Stage) -> bool:
    """Run the correctness tests of the Triton kernels. Each variant is compiled once."""
    return stage.demand("triton") and _test(stage, "triton")


def rest(stage: Stage) -> bool:
    """Run the tests of no backend or of all backends. Then run those that need gigabytes, one at a time."""
    there = stage.demand(*kernels(stage.device))
    return all([there, _test(stage, "rest"), _test(stage, "slow", workers=1)])


def _test(stage: Stage, part: str, workers: int | None = None) -> bool:
    """Run tests on the device. python_tests/gpu_part.py chooses them, and writes each outcome at once."""
    workers = workers or min(16, cores())
    parallel = ("--numprocesses", workers, "--dist", "worksteal") if find_spec("xdist") and workers > 1 else ()
    return stage.python(
        *("-m", "pytest", "-q", "--tb=short", "-p", "gpu_part", "--part", part, "--outcomes", stage.out, *parallel),
        VAE_KERNELS_TEST_DEVICE=stage.device,
        PYTHONPATH=os.pathsep.join([str(ROOT), str(TESTS)]),
        OMP_NUM_THREADS="1",
        TORCHINDUCTOR_COMPILE_THREADS="1",  # in each worker
    )


def memcheck(stage: Stage) -> bool:
    """Find accesses out of bounds. Each tensor has its own allocation: the element behind it is out of bounds."""
    return _sanitize(stage, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def racecheck(stage: Stage) -> bool:
    """Find races in shared memory."""
    return _sanitize(stage)


def initcheck(stage: Stage) -> bool:
    """Find reads of uninitialised memory. The tool sees copies, fills, and the writes of the kernels that it checks.
    All inputs of our kernels are therefore copied from the host, or written by our kernels."""
    return _sanitize(stage, PYTORCH_NO_CUDA_MEMORY_CACHING="1")


def _sanitize(stage: Stage, **environment: str) -> bool:
    places = (os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
    sanitizer = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
    if sanitizer is None:
        stage.say("FAILED: there is no compute-sanitizer")
        return False
    if not stage.demand(*kernels(stage.device)):
        return False
    program = (sys.executable, TESTS / "short_gpu_run.py", stage.device)
    environment["PYTHONPATH"] = str(ROOT)
    # Triton first compiles outside of the sanitizer, in parallel, into its cache.
    if not stage.python(*program[1:], "--processes", COMPILERS, **environment):
        return False
    own = [part for name in KERNEL_NAMES for part in ("--kernel-name", f"kns={name}")]
    tool = (sanitizer, "--tool", stage.name, "--error-exitcode", "9", "--target-processes", "application-only")
    return stage.run(*tool, *own, *program, **environment)


STAGES: dict[str, Callable[[Stage], bool]] = {
    "smoke": smoke,
    "required": required,
    "cuda": cuda,
    "triton": triton,
    "memcheck": memcheck,
    "racecheck": racecheck,
    "initcheck": initcheck,
    "timings": timings,
    "more-timings": more_timings,
    "rest": rest,
}


def main(arguments: list[str] | None = None) -> int:
    """Run a stage. Returns the exit status: 1 if there is no device, or if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.partition("\n\n")[0])
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--out", type=Path, default=Path("out/gpu_check"), help="folder for all that is found")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: to test a stage itself")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print(f"gpu-check: no CUDA device: torch {torch.__version__} sees none; nothing was checked", file=sys.stderr)
        return 1
    began = time.monotonic()
    stage = Stage(options.stage, options.device, options.out)
    stage.say(f"{device_name(options.device)}; {versions()}")
    passed = STAGES[options.stage](stage)
    stage.say(f"{options.stage}: {'passed' if passed else 'FAILED'} in {time.monotonic() - began:.0f} s")
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
