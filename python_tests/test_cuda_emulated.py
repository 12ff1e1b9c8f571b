"""The CUDA kernels without a GPU: the tests of every backend, and those of their grids, on the emulated device.

Whatever reads or writes outside a tensor, moves 16 bytes where they are not aligned, or meets a barrier with only some
of a block's threads ends the run.
"""

import shutil
import subprocess
import sys
from pathlib import Path

import emulated_cuda
import pytest

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    return emulated_cuda.build(tmp_path_factory.mktemp("emulated_cuda"))


# What the kernels decide; the rest of a test's file is about Python.
SELECTED = [
    "cuda_grids.py",
    "test_accuracy.py::test_error_rule",
    "test_categorical.py::test_error_rule",
    "test_categorical.py::test_any_upstream",
    "test_categorical.py::test_empty",
    "test_categorical.py::test_several_samples_against_one_x",
    "test_categorical.py::test_a_class_that_does_not_exist",
    "test_categorical.py::test_not_finite",
    "test_categorical.py::test_opcheck",
    "test_extremes.py::test_arguments_go_as_far_as_their_type",
    "test_extremes.py::test_a_prior_of_any_variance",
    "test_families.py::test_a_number_before_a_tensor",
    "test_gradients.py::test_strided_upstream",
    "test_gradients.py::test_expanded_upstream",
    "test_gradients.py::test_unused_output",
    "test_gradients.py::test_any_subset_of_inputs_may_need_a_gradient",
    "test_inputs.py::test_empty",
    "test_inputs.py::test_empty_with_a_parameter",
    "test_inputs.py::test_empty_with_noise",
    "test_inputs.py::test_any_number_of_dims",
    "test_latent.py::test_at_a_bound_the_log_variance_has_its_gradient",
    "test_latent.py::test_error_rule",
    "test_latent.py::test_empty",
    "test_latent.py::test_noise_of_a_seed",
    "test_latent.py::test_a_seed_for_each_sample",
    "test_latent.py::test_backward_makes_the_same_noise",
    "test_latent.py::test_packed_gradient_is_one_tensor",
    "test_latent.py::test_opcheck",
    "test_noise.py::test_normals_are_those_of_numpy",
    "test_noise.py::test_rows_are_the_kept_dims_and_columns_the_others",
    "test_noise.py::test_noise_does_not_depend_on_how_many_rows_or_columns_there_are",
    "test_noise.py::test_columns_are_counted_in_memory_order",
]


def test_passes(library: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-p",
        "emulated_cuda",
        "-p",
        "no:cacheprovider",
        "-k",
        # Formulas of float64 are those of the CPU kernels, to the bit; the Poissons' differ by a line.
        "cuda and not (go_as_far and float64) and not poisson_rate",
    ]
    result = subprocess.run(
        [*command, *(f"{TESTS}/{name}" for name in SELECTED)],
        env=emulated_cuda.environment(library),
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
