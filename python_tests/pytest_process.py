"""pytest in a process of its own, with a plugin that changes where the tests run."""

import os
import re
import subprocess
import sys
from pathlib import Path

from fresh_process import skip_without_interpreter

TESTS = Path(__file__).parent


def run(plugin: str, *arguments: object, environment: dict[str, str]) -> str:
    """Runs pytest, in which no test may fail, and returns the last line that it prints."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", plugin, "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, cwd=TESTS.parent
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return done.stdout.splitlines()[-1]


def run_in_interpreter(*arguments: object) -> None:
    """Runs tests in Triton's interpreter: those of the backend "triton". All must pass, and there must be some."""
    skip_without_interpreter()
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "VAE_KERNELS_TEST_DEVICE": "cpu",
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)]),
    }
    last = run("triton_interpreter", "-W", "ignore", *arguments, environment=environment)
    assert re.fullmatch(r"\d+ passed(, \d+ deselected)? in .*", last), last


def marked(marker: str) -> list[Path]:
    """The files that have tests of this marker. The others need not be collected."""
    mark = re.compile(rf"\bpytest\.mark\.{marker}\b")
    return [path for path in sorted(TESTS.glob("*.py")) if mark.search(path.read_text(encoding="utf-8"))]
