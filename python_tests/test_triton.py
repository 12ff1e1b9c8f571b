"""The Triton kernels on a CPU, in Triton's interpreter, which needs a process that is started for it."""

import sys

import pytest
from pytest_process import TESTS, marked, run_in_interpreter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


def test_from_inside() -> None:
    run_in_interpreter(TESTS / "triton_under_interpreter.py", TESTS / "triton_functions_under_interpreter.py")


def test_shared() -> None:
    """All tests run in one process, because the start of a process takes ten seconds."""
    run_in_interpreter("-m", "interpreted and not slow", *marked("interpreted"))
