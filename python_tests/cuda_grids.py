"""The edges of the CUDA kernels' grids: pytest collects this file where the kernels run, on a GPU or emulated."""

from collections.abc import Callable

import pytest
import torch
from samples import BF16, DEVICE, F16, F32, F64, U8, Sample, sample
from test_distributions import check_error_rule
from test_latent import Case, check
from torch import Tensor

import vae_kernels as vk


@pytest.fixture(autouse=True)
def cuda():
    with vk.use_backend("cuda"):
        yield


# Around a quad, a pack, a group of lanes, a block's step, a part of a long row.
COLUMNS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 31, 33, 63, 64, 65, 124, 127, 128, 129, 132, 1020, 1023, 1024, 1025, 1032, 2047]
LONG = [8192, 16380, 16383, 16384, 16385, 16392, 24577, 32768, 40960]


def rows_of(cols: int) -> int:
    return 67 if cols < 200 else 2


SHAPES = [
    sample(op, (rows_of(cols), cols), dtypes=dtype)
    for op in ("latent", "bernoulli", "gaussian")
    for cols in COLUMNS + LONG
    for dtype in ((F32, BF16) if op == "latent" else (BF16,))
]

# A parameter for all, one for each column, each channel, each column of an image; depths of one and two rows.
PARAMETERS = [
    sample("gaussian", shape, dtypes=dtypes, parameter=parameter)
    for shape, parameters in (
        ((3, 1), ((1,), ())),
        ((70, 5), ((5,), ())),
        ((300, 12), ((12,), ())),
        ((9, 131), ((131,), ())),
        ((33, 1028), ((1028,), ())),
        ((2, 20001), ((20001,), ())),
        ((40, 3, 8, 8), ((3, 1, 1), (8,), (3, 1, 8), (1, 8, 1), (3, 8, 8))),
        ((5, 4, 72, 72), ((4, 1, 1), (72,), (4, 1, 72))),
    )
    for parameter in parameters
    for dtypes in ((F32, F32, F32), (BF16, BF16, F32))
] + [sample("gaussian", (600, 4096), parameter=(4096,))]

MIXED = [
    sample(op, shape, dtypes=dtypes)
    for shape in ((5, 40), (3, 1032))
    for op, dtypes in (
        ("bernoulli", (BF16, U8)),
        ("bernoulli", (F32, U8)),
        ("bernoulli", (F16, F32)),
        ("bernoulli", (F32, BF16)),
        ("gaussian", (BF16, U8, F32)),
        ("gaussian", (F16, F64, BF16)),
        ("latent", (F32, BF16, F16)),
        ("latent", (BF16, F64, F32)),
    )
]


@pytest.mark.parametrize("sample", SHAPES + PARAMETERS + MIXED, ids=str)
def test_error_rule(sample: Sample) -> None:
    check_error_rule("cuda", sample)


# The kernel of all other latent steps: a row of mu or of z, parts of long ones, a prior for each column or for all.
LATENT = [
    Case((rows_of(cols), cols), prior=prior, num_samples=count, kl_estimator=estimator)
    for cols in (1, 5, 33, 64, 1025, 16384, 16385, 20000)
    for prior in ((None, None), ((cols,), ()))
    for count, estimator in ((None, "monte_carlo"), (3, "path"), (2, "analytic"))
]


@pytest.mark.parametrize("case", LATENT, ids=str)
def test_error_rule_of_the_latent_step(case: Case) -> None:
    check(case, "cuda")


def inputs(rows: int, cols: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows * cols)
    return [torch.randn(rows, cols, generator=generator).to(dtype).to(DEVICE) for _ in range(2)]


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "latent": lambda a, b: vk.reparameterize_kl(a, b, seed=7)[1],
    "sampled": lambda a, b: vk.reparameterize_kl(a, b, prior_mu=b, seed=7, kl_estimator="monte_carlo")[1],
    "bernoulli": vk.bernoulli_log_likelihood,
    "gaussian": lambda a, b: vk.gaussian_log_likelihood(a, b, b),
}


@pytest.mark.parametrize("cols", [3, 20, 100, 784, 2000, 16392, 40000])
@pytest.mark.parametrize("op", OPS)
def test_a_row_sums_to_the_same_bits_in_any_batch_layout_and_dtype(op: str, cols: int) -> None:
    a, b = inputs(5, cols, BF16)
    sums = OPS[op](a, b)
    assert torch.equal(OPS[op](a[:1], b[:1]), sums[:1])
    assert torch.equal(OPS[op](a.float(), b.float()), sums)
    wide = torch.stack((a, b), dim=-1)  # every element two apart
    assert torch.equal(OPS[op](wide[..., 0], wide[..., 1]), sums)
    shifted = [torch.cat((t.flatten()[:1], t.flatten()))[1:].view(5, cols) for t in (a, b)]  # 2 bytes off
    assert torch.equal(OPS[op](*shifted), sums)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("cols", [20, 100, 1024, 40000])
def test_noise_has_the_same_bits_in_any_layout_and_dtype(cols: int, dtype: torch.dtype) -> None:
    zeros = torch.zeros(3, cols, dtype=dtype, device=DEVICE)
    z = vk.reparameterize_kl(zeros, zeros, seed=2**40 + 3)[0]
    wide = torch.zeros(3, cols, 2, dtype=F32, device=DEVICE)
    assert torch.equal(z, vk.reparameterize_kl(wide[..., 0], wide[..., 1], seed=2**40 + 3)[0].to(dtype))
