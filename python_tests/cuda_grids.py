"""The edges of the CUDA kernels' grids: pytest collects this file where the kernels run, on a GPU or emulated."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from categorical_cases import CategoricalCase
from error_rule import SLACK_ULP, Expected, check, error, ulp
from latent_cases import LatentCase
from multinomial_cases import MultinomialCase
from samples import BF16, DEVICE, F16, F32, F64, U8, Sample, sample
from torch import Tensor
from torch_reference import check_error_rule

import vae_kernels as vk
from vae_kernels import noise

pytestmark = pytest.mark.emulated


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
    for dtypes in ((F32, F32, F32), (BF16, BF16, BF16), (BF16, BF16, F32))
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
    check_error_rule(sample, "cuda")


# The kernel of all other latent steps: a row of mu or of z, parts of long ones, a prior for each column or for all.
LATENT = [
    LatentCase((rows_of(cols), cols), prior=prior, num_samples=count, kl_estimator=estimator)
    for cols in (1, 5, 33, 64, 1025, 16384, 16385, 20000)
    for prior in ((None, None), ((cols,), ()))
    for count, estimator in ((None, "monte_carlo"), (3, "path"), (2, "analytic"))
] + [
    # A clamped log-variance: whole packs, and other layouts.
    *(
        LatentCase(shape, packed_dim=1, clamp=clamp, layout=layout, dtypes=(dtype,) * 5)
        for shape, layout in (
            ((4, 4, 8, 8), "contiguous"),
            ((4, 4, 3, 5), "contiguous"),
            ((4, 4, 8, 8), "channels_last"),
        )
        for clamp in ((-30.0, 20.0), (-0.5, 0.5))
        for dtype in (F32, BF16, F16)
    ),
    *(LatentCase((rows_of(cols), cols), clamp=(-0.5, 0.5), dtypes=(BF16,) * 5) for cols in (8, 1032, 16392, 20000)),
]


@pytest.mark.parametrize("case", LATENT, ids=str)
def test_error_rule_of_the_latent_step(case: LatentCase) -> None:
    case.check_error_rule("cuda")


SEEDED = [
    LatentCase(
        (rows_of(cols), cols),
        prior=((rows_of(cols), cols),) * 2 * prior or (None, None),
        clamp=clamp,
        dtypes=(dtype,) * 5,
    )
    for cols in (8, 136, 1032, 16392)
    for prior, clamp in ((False, None), (False, (-0.5, 0.5)), (True, None))
    for dtype in (F32, BF16, F16)
]


@pytest.mark.parametrize("case", SEEDED, ids=str)
def test_error_rule_with_a_seed(case: LatentCase) -> None:
    """The kernels of whole packs make their noise themselves. For half types the noise may be 2⁻¹⁴ off. This is not the
    error rule of error_rule.py: what that error changes is added to what the rule allows, element by element."""
    seed = torch.tensor([3], device=DEVICE)
    tensors = case.make()
    tensors["eps"] = noise.normal_like(tensors["mu"].detach().float(), seed, 1).requires_grad_()
    own = {name: t for name, t in tensors.items() if name != "eps"}
    got = case.results(lambda t: case.call(t, partial(case.function, seed=seed)), own)
    want = case.expected_of(tensors)
    with vk.use_backend("eager"):
        yardstick = case.results(tensors=tensors)
    raw = tensors["raw"].detach().double()
    std = (raw.clamp(*case.clamp) if case.clamp else raw).div(2).exp()
    of_noise = {"z": std, "grad raw": case.upstream({"z": got["z"]})["z"].double().abs() * std / 2}
    for name, value in got.items():
        unit = ulp(want[name].magnitude, value.dtype)
        allowed = (2 * error(yardstick[name], want[name]) + SLACK_ULP) * unit
        if name in of_noise and case.dtypes[0] != F32:
            allowed = allowed + 2.0**-14 * of_noise[name]
        assert ((value.double() - want[name].value).abs() <= allowed).all(), name


def inputs(rows: int, cols: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows * cols)
    return [torch.randn(rows, cols, generator=generator).to(dtype).to(DEVICE) for _ in range(2)]


# Around a pack, what 1, 2, … 32 lanes take at a time, a warp's most, a block's steps, a larger block, parts.
FEW_CLASSES = [1, 2, 4, 5, 8, 9, 31, 32, 33, 64, 65, 128, 129, 256, 257, 512, 520, 1020, 1024]
MANY_CLASSES = [1025, 1032, 4104, 8192, 8193, 8200, 16384, 65536, 65537, 65544, 98304, 98311]
CLASSES = [
    CategoricalCase((rows_of(classes), classes), dtype, layout=layout)
    for dtype in (F32, BF16)
    for classes, layout in (
        *((classes, layout) for classes in FEW_CLASSES for layout in ("contiguous", "transposed")),
        *((classes, "contiguous") for classes in MANY_CLASSES),
        (1032, "transposed"),
        (8200, "sliced"),
        (65544, "offset"),
    )
] + [
    *(
        CategoricalCase((3, 30, classes), dtype, layout="transposed")
        for dtype in (F64, BF16)
        for classes in (7, 100, 300)
    ),
    *(CategoricalCase((rows_of(classes), classes), F64) for classes in (2, 33, 256, 257, 1028, 8196, 65540)),
    *(CategoricalCase((2, 3, 70, classes), F16, batch_dims=2) for classes in (2, 8, 256)),
]


@pytest.mark.parametrize("case", CLASSES, ids=str)
def test_error_rule_of_classes(case: CategoricalCase) -> None:
    found = case.in_float64()
    log_px, gradient = found["log_px"], found["grad logits"]
    want = {
        "log_px": Expected.at_largest(log_px, log_px.abs()),
        "grad logits": Expected.at_largest(gradient, gradient),  # the scale of the largest that is positive
    }
    check(case.results(), case.yardstick("cuda"), want)


def log_probs_and_gradients(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    logits = logits.detach().requires_grad_()
    log_px = vk.categorical_log_likelihood(logits, x)
    return log_px.detach(), torch.autograd.grad(log_px.sum() * 0.7, logits)[0]


@pytest.mark.parametrize("classes", [2, 8, 10, 20, 40, 100, 256, 784, 1000, 2000, 9000, 65544])
def test_a_position_has_the_same_bits_in_any_batch_layout_and_dtype(classes: int) -> None:
    a, b = inputs(5, classes, BF16)
    a, x = 3 * a, torch.arange(5, device=DEVICE) * 7919 % classes
    log_px, gradient = log_probs_and_gradients(a, x)
    wide, wide_gradient = log_probs_and_gradients(a.float(), x)
    assert torch.equal(wide, log_px)
    assert torch.equal(wide_gradient.to(BF16), gradient)
    shifted = torch.cat((a.flatten()[:1], a.flatten()))[1:].view(5, classes)
    for rows, other in ((1, a[:1]), (5, torch.stack((a, b), -1)[..., 0]), (5, a.t().contiguous().t()), (5, shifted)):
        other_log_px, other_gradient = log_probs_and_gradients(other, x[:rows])
        assert torch.equal(other_log_px, log_px[:rows])
        assert torch.equal(other_gradient, gradient[:rows])


def test_many_positions_of_many_classes_have_the_bits_of_few() -> None:
    """With so many positions a block of the backward pass takes a whole one, part after part."""
    backward = torch.ops.vae_kernels_cuda.categorical_backward.default
    logits, x = inputs(2, 65544, BF16)[0], torch.tensor([5, 65543], device=DEVICE)
    gradient = backward(torch.ones(2, device=DEVICE), logits, x, 1)
    many = backward(torch.ones(128, device=DEVICE), logits.repeat(64, 1), x.repeat(64), 1)
    assert torch.equal(many, gradient.repeat(64, 1))


@pytest.mark.parametrize("classes", [1, 8, 33, 256, 1024, 1032, 8193, 65544])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_counts(classes: int, dtype: torch.dtype) -> None:
    case = MultinomialCase((rows_of(classes), classes), dtype, x_dtype=dtype)
    found = case.in_float64()
    want = {
        "log_px": Expected.at_largest(found["log_px"], case.terms()),
        **{name: Expected.at_largest(found[name], found[name].abs()) for name in ("grad logits", "grad x")},
    }
    check(case.results(), case.yardstick("cuda"), want)


@pytest.mark.parametrize("classes", [2, 10, 100, 1000, 9000])
def test_counts_have_the_same_bits_in_any_batch_layout_and_dtype(classes: int) -> None:
    a, b = inputs(5, classes, BF16)
    x = b.abs().round()
    log_px = vk.multinomial_log_likelihood(a, x)
    apart = torch.stack((a, b), -1)[..., 0]
    for rows, logits, counts in ((1, a[:1], x[:1]), (5, a.float(), x.float()), (5, apart, x.long())):
        assert torch.equal(vk.multinomial_log_likelihood(logits, counts), log_px[:rows])


OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "latent": lambda a, b: vk.reparameterize_kl(a, b, seed=7)[1],
    "clamped": lambda a, b: vk.reparameterize_kl(a, b, seed=7, logvar_clamp=(-0.5, 0.5))[1],
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


@pytest.mark.parametrize(("cols", "dtype"), [(1024, F32), (1024, BF16), (16384, BF16), (40000, F32)], ids=str)
@pytest.mark.parametrize("op", OPS)
def test_a_row_sums_to_the_same_bits_among_many(op: str, cols: int, dtype: torch.dtype) -> None:
    """Few rows are spread over more threads, and a second pass adds up their sums. Many rows are not."""
    few = inputs(2, cols, dtype)
    many = [t.repeat(1100 if cols == 1024 else 70, 1) for t in few]
    sums = OPS[op](*many)
    assert torch.equal(sums[:2], OPS[op](*few))
    assert torch.equal(sums[:3], OPS[op](*(t[:3] for t in many)))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("cols", [20, 100, 1024, 40000])
def test_noise_has_the_same_bits_in_any_layout(cols: int, dtype: torch.dtype) -> None:
    """The noise of half types may differ from that of float32 by 2⁻¹⁴ before it is rounded."""
    zeros = torch.zeros(3, cols, 2, dtype=dtype, device=DEVICE)
    z = vk.reparameterize_kl(zeros[..., 0].contiguous(), zeros[..., 1].contiguous(), seed=2**40 + 3)[0]
    assert torch.equal(z, vk.reparameterize_kl(zeros[..., 0], zeros[..., 1], seed=2**40 + 3)[0])
    exact = vk.reparameterize_kl(zeros[..., 0].float(), zeros[..., 1].float(), seed=2**40 + 3)[0]
    rounding = exact.abs() * (torch.finfo(dtype).eps / 2 if dtype != F32 else 0)
    assert ((z.float() - exact).abs() <= rounding + (2**-14 if dtype != F32 else 0)).all()
