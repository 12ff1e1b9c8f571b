"""A Python process of its own: for what is decided once, on import or by the environment."""

import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import vae_kernels as vk

ROOT = Path(vk.__file__).parents[1]


def python(code: str, *arguments: str, path: Path = ROOT, **environment: str) -> str:
    """What it prints, with the package of `path` and none of the package's settings but those given."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("VAE_KERNELS_") or k == "VAE_KERNELS_TEST_DEVICE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=clean | {"PYTHONPATH": str(path)} | environment,
        capture_output=True,
        text=True,
        cwd=path,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def skip_without_interpreter() -> None:
    """Skips the test where Triton's interpreter does not work beside this numpy, of which the backend tells."""
    if "needs a numpy" in (state := _state_in_interpreter()):
        pytest.skip(state)


@cache
def _state_in_interpreter() -> str:
    return python("import vae_kernels as vk; print(vk.backends()['cpu']['triton'])", TRITON_INTERPRET="1")
