"""The CUDA kernels without a GPU: tests of every backend, and those of the grids, on the emulated device.

Whatever reads or writes outside a tensor, moves 16 bytes where they are not aligned, or meets a barrier with only some
of a block's threads ends the run.
"""

import shutil
from pathlib import Path

import emulated_cuda
import pytest
from pytest_process import marked, run


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return emulated_cuda.build(tmp_path_factory.mktemp("emulated_cuda"))


def test_passes(library: Path) -> None:
    """All tests that are marked `emulated` pass: those whose results the kernels decide."""
    # Formulas of float64 are those of the CPU kernels, to the bit; the Poissons' differ by a line.
    chosen = "cuda and not (go_as_far and float64) and not poisson_rate"
    environment = emulated_cuda.environment(library)
    run("emulated_cuda", "-x", "-m", "emulated", "-k", chosen, *marked("emulated"), environment=environment)
