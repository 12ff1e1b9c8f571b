"""The error rule for the Triton kernels in Triton's interpreter, and what holds where numbers end."""

from test_triton import run_in_interpreter

TESTS = [
    "test_accuracy.py::test_error_rule",
    "test_latent.py::test_error_rule",
    "test_latent.py::test_empty",
    "test_categorical.py::test_error_rule",
    "test_categorical.py::test_empty",
    "test_categorical.py::test_a_class_that_does_not_exist",
    "test_categorical.py::test_not_finite",
    "test_categorical.py::test_opcheck",
    "test_accuracy.py::test_not_finite",
    "test_accuracy.py::test_half_precision_rounds_once",
    "test_accuracy.py::test_kl_is_never_negative",
    "test_accuracy.py::test_float16_with_logvar_beyond_its_exponential",
    "test_accuracy.py::test_logvar_as_a_number_is_that_of_a_tensor",
    "test_accuracy.py::test_target_may_lack_batch_dims",
    "test_inputs.py::test_empty",
    "test_inputs.py::test_empty_with_a_parameter",
    "test_inputs.py::test_empty_with_noise",
    "test_extremes.py::test_arguments_go_as_far_as_their_type",
    "test_extremes.py::test_a_prior_of_any_variance",
    "test_families.py::test_constant_pixels_under_a_tiny_variance",
    "test_families.py::test_a_poissons_limit",
    "test_families.py::test_below_1e_8_a_count_is_zero",
    "test_families.py::test_the_gradient_is_that_of_the_value",
    "test_families.py::test_counts_that_no_formula_has_are_nan",
]


def test_accuracy() -> None:
    run_in_interpreter(*TESTS)
