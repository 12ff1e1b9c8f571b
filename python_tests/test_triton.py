"""The Triton kernels on a CPU, in Triton's interpreter: in a process of its own, which has to be started for it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fresh_process import skip_without_interpreter

if sys.platform != "linux":
    pytest.skip("Triton is for Linux", allow_module_level=True)

HERE = Path(__file__).parent


def run_in_interpreter(*tests: str) -> None:
    """Runs tests, `file.py` or `file.py::name`, with what concerns Triton; all of them must pass, and there must be some."""
    skip_without_interpreter()
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "triton_interpreter",
        "-p",
        "no:xdist",
        "-p",
        "no:cacheprovider",
    ]
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "VAE_KERNELS_TEST_DEVICE": "cpu",
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
    }
    done = subprocess.run(
        [*command, "-W", "ignore", "-m", "not slow", *(str(HERE / test) for test in tests)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.fullmatch(r"\d+ passed(, \d+ deselected)? in .*", done.stdout.splitlines()[-1]), done.stdout


def test_from_inside() -> None:
    run_in_interpreter("triton_under_interpreter.py", "triton_functions_under_interpreter.py")


# Of the tests of every backend those that a kernel may fail.
SHARED = [
    # gradients
    "test_gradients.py::test_strided_upstream",
    "test_gradients.py::test_expanded_upstream",
    "test_gradients.py::test_upstream_of_another_form[triton-latent-sparse]",
    "test_gradients.py::test_upstream_of_another_form[triton-latent-negated view]",
    "test_gradients.py::test_upstream_of_another_form[triton-latent-float64]",
    "test_gradients.py::test_upstream_of_another_form[triton-samples-a parameter]",
    "test_gradients.py::test_upstream_of_another_form[triton-gaussian-float64]",
    "test_gradients.py::test_upstream_of_another_form[triton-categorical-float64]",
    "test_gradients.py::test_unused_output",
    "test_gradients.py::test_unused_output_that_overflowed",
    "test_gradients.py::test_any_subset_of_inputs_may_need_a_gradient",
    "test_gradients.py::test_inputs_modified_before_backward",
    "test_gradients.py::test_backward_runs_again",
    "test_gradients.py::test_create_graph_keeps_the_error_rule",
    "test_gradients.py::test_batched_gradients",
    "test_gradients.py::test_activation_checkpointing",
    "test_latent.py::test_path_gradient_vanishes_at_the_posterior",
    "test_latent.py::test_packed_gradient_is_one_tensor",
    "test_latent.py::test_sides",
    # noise
    "test_latent.py::test_noise_of_a_seed",
    "test_latent.py::test_a_seed_for_each_sample",
    "test_latent.py::test_backward_makes_the_same_noise",
    "test_noise.py::test_normals_are_those_of_numpy",
    "test_noise.py::test_seed_as_a_tensor",
    "test_noise.py::test_columns_are_counted_in_memory_order",
    "test_noise.py::test_rows_are_the_kept_dims_and_columns_the_others",
    "test_noise.py::test_noise_does_not_depend_on_how_many_rows_or_columns_there_are",
    "test_noise.py::test_same_noise_in_every_dtype",
    "test_noise.py::test_a_seed_is_the_same_as_its_noise",
    # compiled code and families
    "test_latent.py::test_compile",
    "test_latent.py::test_opcheck",
    "test_compile.py::test_traced_results_are_the_same",
    "test_compile.py::test_traced_results_without_gradients",
    "test_compile.py::test_the_backend_of_the_call_is_compiled",
    "test_inputs.py::test_any_number_of_dims",
    "test_families.py::test_probabilities_of_all_bins_add_up_to_1",
    "test_families.py::test_probabilities_of_all_counts_add_up_to_1",
    "test_families.py::test_large_counts_and_theta_do_not_cancel",
    "test_families.py::test_gradients_near_the_poisson_limit",
    "test_families.py::test_a_number_before_a_tensor",
    "test_default_dtype.py::test_results",
]


def test_shared() -> None:
    """In one process: what a process begins with takes ten seconds."""
    run_in_interpreter(*SHARED)
