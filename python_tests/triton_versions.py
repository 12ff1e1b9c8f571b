"""The oldest and the newest Triton that are supported, beside the one that is installed."""

import os
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OTHERS = ("3.6.0", "3.9.0")


def _folder(version: str) -> Path:
    """Where `import triton` finds that version; fetched once."""
    there = ROOT / "build" / f"triton-{version}-{sys.implementation.cache_tag}"
    if not there.exists():
        there.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=there.parent) as temporary:
            fetched = Path(temporary) / "packages"
            pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
            done = subprocess.run([*pip, "--target", fetched, f"triton=={version}"], capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"triton {version}, for which the kernels are compiled too, cannot be had: {done.stderr}")
            # Another process may have been faster.
            with suppress(OSError):
                fetched.rename(there)
    return there


def environment(version: str, given: dict[str, str]) -> dict[str, str]:
    """For a process that imports that version."""
    paths = [str(_folder(version)), given.get("PYTHONPATH", "")]
    changed = given | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
    show = [sys.executable, "-c", "import triton; print(triton.__version__)"]
    assert subprocess.run(show, env=changed, capture_output=True, text=True).stdout.strip() == version
    return changed
