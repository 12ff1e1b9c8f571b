"""Runs Python in a process of its own, for what is decided once: on import, or by the environment."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import vae_kernels as vk

ROOT = Path(vk.__file__).parents[1]


PROGRAMS = Path(__file__).with_name("programs")


def python(code: str, *arguments: str, path: Path = ROOT, **environment: str) -> str:
    """Runs `code` with the package of `path`, and returns what it prints. Of the package's settings it sees only those
    given."""
    return _printed("-c", code, *arguments, cwd=path, environment={"PYTHONPATH": str(path)} | environment)


def program(name: str, *arguments: str, **environment: str) -> str:
    """Runs a file of `programs`, which may import the helpers of the tests, and returns what it prints. Of the
    package's settings it sees only those given."""
    path = os.pathsep.join([str(ROOT), str(PROGRAMS.parent)])
    return _printed(str(PROGRAMS / name), *arguments, cwd=ROOT, environment={"PYTHONPATH": path} | environment)


def _printed(*command: str, cwd: Path, environment: dict[str, str]) -> str:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VAE_KERNELS_") or k == "VAE_KERNELS_TEST_DEVICE"}
    done = subprocess.run([sys.executable, *command], env=clean | environment, capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def skip_without_interpreter() -> None:
    """Skips the test where Triton's interpreter does not work beside this numpy, as the backend says."""
    if "needs a numpy" in (state := _state_in_interpreter()):
        pytest.skip(state)


@cache
def _state_in_interpreter() -> str:
    return python("import vae_kernels as vk; print(vk.backends()['cpu']['triton'])", TRITON_INTERPRET="1")
