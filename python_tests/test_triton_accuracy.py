"""The error rule for the Triton kernels in Triton's interpreter, and results at the limits of the types."""

import sys

import pytest
from pytest_process import marked, run_in_interpreter

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")


def test_accuracy() -> None:
    run_in_interpreter("-m", "interpreted_accuracy and not slow", *marked("interpreted_accuracy"))
