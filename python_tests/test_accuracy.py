"""The error rule for every op, dtype and edge, against mpmath."""

import math

import pytest
import torch
from error_rule import check, expected, output_dtypes, plain_results, results
from samples import F16, F32, F64, OPS, SAMPLES, Sample, sample

import vae_kernels as vk

SMALL = [s for s in SAMPLES if math.prod(s.shapes[0]) <= 4000]


def eager_results(sample: Sample) -> dict[str, torch.Tensor]:
    with vk.use_backend("eager"):
        return results(sample, sample.call)


@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_error_rule(backend: str, sample: Sample) -> None:
    """Kernels against eager; eager against what people write in the same dtypes."""
    yardstick = plain_results(sample) if backend == "eager" else eager_results(sample)
    check(results(sample, sample.call), yardstick, expected(sample))
