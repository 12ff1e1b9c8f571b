"""What the Triton kernels compute, seen from inside: for a process with TRITON_INTERPRET=1, see test_triton.py."""

import itertools
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from cases import Case
from latent_cases import LatentCase
from noise_cases import EDGES, KNOWN_ANSWERS
from samples import BF16, F32, F64, OPS, U8, Sample, sample
from torch import Tensor

import vae_kernels as vk
from benchmarks import smoke
from vae_kernels import noise
from vae_kernels.families import INDEX
from vae_kernels.options import LatentOptions, LikelihoodOptions
from vae_kernels.triton import OPS as KERNELS
from vae_kernels.triton import launch, layout, philox, tile


@pytest.fixture(autouse=True)
def on_triton() -> Iterator[None]:
    with vk.use_backend("triton"):
        yield


@triton.jit
def _words_kernel(seed, row, quad, out, size, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    words = philox.philox(tl.load(seed), tl.load(row + i), tl.load(quad + i))
    for lane in tl.static_range(4):
        tl.store(out + 4 * i + lane, words[lane].to(tl.int64))


def words(seed: int, row: Tensor, quad: Tensor) -> Tensor:
    out = torch.full((row.numel(), 4), -1)
    _words_kernel[(1,)](torch.tensor([seed]), row, quad, out, row.numel(), row.numel())
    return out


COUNTERS = torch.tensor([0, 1, 3, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 5, 2**62, 2**63 - 1])


@pytest.mark.parametrize("seed", [0, 1, 42, 2**32 - 1, 2**32, 0x299F31D0A4093822, 2**63 - 1])
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32], ids=str)
def test_words_are_bit_identical(seed: int, dtype: torch.dtype) -> None:
    counters = COUNTERS[torch.iinfo(dtype).max >= COUNTERS]
    row, quad = (c.flatten() for c in torch.meshgrid(counters, counters, indexing="ij"))
    row, quad = (torch.cat((c, torch.randint(torch.iinfo(dtype).max, (512 - c.numel(),)))) for c in (row, quad))
    want = torch.stack(noise.philox(torch.tensor(seed), row, quad), dim=-1)
    assert torch.equal(words(seed, row.to(dtype), quad.to(dtype)), want)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], answer: tuple[int, ...]) -> None:
    quad, row, seed = (
        int(np.uint64(low | high << 32).astype(np.int64)) for low, high in (counter[:2], counter[2:], key)
    )
    assert tuple(words(seed, torch.tensor([row]), torch.tensor([quad]))[0].tolist()) == answer


@triton.jit
def _box_muller_kernel(word0, word1, out, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sine, cosine = philox.box_muller(tl.load(word0 + i).to(tl.uint32), tl.load(word1 + i).to(tl.uint32))
    tl.store(out + 2 * i, sine)
    tl.store(out + 2 * i + 1, cosine)


def test_normals_are_within_4_ulp_of_the_eager_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    ends = torch.tensor(sorted({(edge + d) % 2**32 for edge in EDGES for d in range(-8, 9)}))
    pairs = torch.cat((torch.cartesian_prod(ends, ends), torch.randint(2**32, (2**20, 2), generator=generator)))
    pairs = pairs[: len(pairs) // 4096 * 4096]
    word0, word1 = pairs.T.contiguous()
    got = torch.full((len(pairs), 2), float("nan"))
    _box_muller_kernel[(len(pairs) // 4096,)](word0, word1, got, 4096)
    want = torch.stack(noise.box_muller(word0, word1), dim=-1)
    assert _steps_apart(got, want).max() <= 4


def _steps_apart(a: Tensor, b: Tensor) -> Tensor:
    """How many float32 numbers lie between two."""
    a, b = (torch.where(t < 0, -(t & 0x7FFFFFFF), t) for t in (t.view(torch.int32).long() for t in (a, b)))
    return (a - b).abs()


SAMPLES = [
    sample("latent", (6, 37)),
    sample("latent", (3, 5000), dtypes=(BF16, F32, F32)),
    sample("latent", (2, 8, 4, 4), layouts=("chunk_of_channels", "channels_last", "contiguous")),
    sample("latent", (3, 4, 2, 5), layouts="transposed", batch_dims=2),
    sample("bernoulli", (3, 4, 600), dtypes=(BF16, U8), layouts=("contiguous", "expanded_rows"), batch_dims=2),
    sample("bernoulli", (3, 9000)),
    sample("bernoulli", (9, 40000)),
    sample("gaussian", (600, 9), parameter=(9,)),
    sample("gaussian", (7, 5000), parameter=()),
    sample("gaussian", (5, 3, 4, 4), parameter=(3, 1, 1), layouts=("channels_last", "channels_last", "contiguous")),
    sample("gaussian", (3, 5000), parameter=(5000,), reduction="none"),
    sample("bernoulli", (3, 4, 2, 5), layouts=("channels_last", "boxed"), batch_dims=2, reduction="none"),
]


# More of the latent step: several samples, priors of every shape, elements of the KL, layouts with samples.
SAMPLES += [
    LatentCase((6, 37), num_samples=3, kl_estimator="path", prior=((6, 37), (37,))),
    LatentCase((2, 5000), num_samples=2, kl_estimator="monte_carlo", prior=((5000,), ())),
    LatentCase((600, 9), prior=((9,), (1,)), scale="std", clamp=(-1.0, 0.5)),
    LatentCase((2, 3, 4, 5), num_samples=2, kl_reduction="none", layout="channels_last"),
    LatentCase((2, 4, 4, 5), packed_dim=1, num_samples=2, layout="channels_last", scale="softplus", std_floor=0.1),
]


def outcome(case: Case) -> dict[str, Tensor]:
    """The results of a call whose plans are made anew."""
    launch._plans.clear()
    layout._layout.cache_clear()
    return case.results()


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_offsets_of_64_bits_change_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    want = outcome(case)
    monkeypatch.setattr(layout, "MAX_OFFSET_32_BIT", 0)
    assert same(outcome(case), want)


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_a_grid_of_several_planes_changes_nothing(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    want = outcome(case)
    monkeypatch.setattr(tile, "MAX_GRID_Y", 2)
    assert same(outcome(case), want)


@pytest.mark.parametrize("case", SAMPLES, ids=str)
def test_splitting_rows_does_not_change_sums(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a row may be summed by one program or by several."""
    want = case.call(case.make())
    for enough, many in ((1, 1), (2**20, 4), (2**20, 2**20)):
        monkeypatch.setattr(tile, "ENOUGH_PROGRAMS", enough)
        monkeypatch.setattr(tile, "MANY_PROGRAMS", many)
        launch._plans.clear()
        assert same(case.call(case.make()), want)


@pytest.mark.parametrize("cols", [1, 20, 784, 2048, 5000, 40000])
def test_a_sample_does_not_depend_on_how_many_there_are(cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mu, logvar = torch.randn(9, cols), torch.randn(9, cols)
    with monkeypatch.context() as patch:
        # As if there were many.
        patch.setattr(tile, "SMALL_PROBLEM", 0)
        patch.setattr(tile, "ENOUGH_PROGRAMS", 0)
        want = vk.reparameterize_kl(mu, logvar, seed=1)
    launch._plans.clear()
    for rows in (1, 7, 9):
        got = vk.reparameterize_kl(mu[:rows], logvar[:rows], seed=1)
        assert all(torch.equal(a, b[:rows]) for a, b in zip(got, want, strict=True))


def _cropped(shape: tuple[int, ...]) -> Tensor:
    """A tensor with more levels of strides than the kernels know."""
    around = torch.full([n + 2 for n in shape], float("nan"))
    inside = around[tuple(slice(1, -1) for _ in shape)]
    return inside.copy_(torch.randn(shape)).requires_grad_()


@pytest.mark.parametrize("batch_dims", [0, 1, 3, 4])
@pytest.mark.parametrize("parameter", [None, (), (5,), (3, 1, 1), (3, 4, 5)])
def test_more_levels_than_the_kernels_know(batch_dims: int, parameter: tuple[int, ...] | None) -> None:
    shape = (2, 3, 4, 5)
    mean, x = _cropped(shape), _cropped(shape)
    logvar = _cropped(shape) if parameter is None else torch.randn(parameter, requires_grad=True)
    found = []
    for backend in ("eager", "triton"):
        with vk.use_backend(backend):
            log_px = vk.gaussian_log_likelihood(mean, x, logvar, batch_dims=batch_dims)
            z, kl = vk.reparameterize_kl(mean, x, eps=mean.detach(), batch_dims=batch_dims)
            upstream = [torch.sin(1 + torch.arange(o.numel())).view(o.shape) for o in (log_px, z, kl)]
            found.append((log_px, z, kl, *torch.autograd.grad((log_px, z, kl), (mean, x, logvar), upstream)))
    for want, got in zip(*found, strict=True):
        assert got.stride() == want.stride()
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", list(itertools.product((True, False), repeat=2)), ids=str)
@pytest.mark.parametrize("needs", list(itertools.product((True, False), repeat=3)), ids=str)
def test_absent_upstream_and_unneeded_gradients(given: tuple[bool, bool], needs: tuple[bool, ...]) -> None:
    mu, logvar, eps = (torch.randn(5, 35, dtype=F64, requires_grad=True) for _ in range(3))
    grad_z, grad_kl = torch.randn(5, 35, dtype=F64), torch.randn(5, dtype=F64)
    upstream = [g if is_given else None for g, is_given in zip((grad_z, grad_kl), given, strict=True)]
    inputs = (mu.detach(), logvar.detach(), None, None, eps.detach())
    wanted = needs[0] | needs[1] << 1 | needs[2] << 4
    got = [g for g in KERNELS["latent_backward"](*upstream, *inputs, *LatentOptions(1), wanted) if g is not None]
    with vk.use_backend("eager"):
        outputs = vk.reparameterize_kl(mu, logvar, eps=eps)
    total = sum((o * g).sum() for o, g, is_given in zip(outputs, (grad_z, grad_kl), given, strict=True) if is_given)
    inputs = [t for t, need in zip((mu, logvar, eps), needs, strict=True) if need]
    want = [torch.zeros_like(t) for t in inputs]
    if any(given) and inputs:
        want = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


# Each evaluation takes tens of milliseconds here, and what depends on layouts is the same code in every dtype.
GRADCHECKED = [
    *(sample(op, (2, 3), dtypes=F64) for op in OPS),
    sample("latent", (2, 2, 1, 2), dtypes=F64, layouts="channels_last"),
    sample("gaussian", (2, 3, 2), dtypes=F64, parameter=(3, 1)),
    sample("gaussian", (3, 2), dtypes=F64, parameter=()),
]


@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradcheck(case: Sample) -> None:
    assert torch.autograd.gradcheck(*case.of_inputs())


def test_gradcheck_with_a_seed() -> None:
    mu, logvar = (torch.randn(2, 3, dtype=F64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(partial(vk.reparameterize_kl, seed=3), (mu, logvar))


def likelihood_options(family: str, number: float | None = None, reduction: int | None = None) -> LikelihoodOptions:
    return LikelihoodOptions(INDEX[family], number, None, 1, reduction)


CLAMPED = LatentOptions(1, packed_dim=1, num_samples=2, std_floor=0.1, low=-30.0, kl_estimator=1, kl_reduction=1)
OP_SAMPLES = {
    "likelihood_forward": [
        (torch.randn(3, 7), torch.rand(3, 7), None, None, *likelihood_options("bernoulli")),
        (torch.randn(3, 7), torch.rand(3, 7), torch.randn(7), None, *likelihood_options("gaussian")),
    ],
    "likelihood_backward": [
        (torch.randn(3), torch.randn(3, 7), torch.rand(3, 7), None, None, *likelihood_options("bernoulli"), 1),
        (torch.randn(3), torch.randn(3, 7), torch.rand(3, 7), None, None, *likelihood_options("gaussian", 0.3), 3),
        (torch.randn(3), torch.randn(3, 7), torch.rand(3, 7), torch.randn(()), None, *likelihood_options("laplace"), 7),
        (*torch.randn(3, 3, 7), torch.randn(7), None, *likelihood_options("laplace", reduction=1), 7),
    ],
    "latent_forward": [
        (torch.randn(3, 7), torch.randn(3, 7), None, None, torch.tensor([1]), *LatentOptions(1)),
        (torch.randn(3, 7), torch.randn(3, 7), torch.randn(7), None, torch.randn(3, 7), *LatentOptions(1)),
        (torch.randn(3, 4, 2), None, None, None, torch.tensor([1]), *CLAMPED),
    ],
    "latent_backward": [
        (
            *torch.randn(1, 3, 7),
            torch.randn(3),
            *torch.randn(2, 3, 7),
            None,
            None,
            torch.tensor([1]),
            *LatentOptions(1),
            3,
        ),
        (None, torch.randn(3), *torch.randn(3, 3, 7), torch.randn(7), torch.randn(3, 7), *LatentOptions(1), 30),
        (*torch.randn(2, 2, 3, 2, 2), torch.randn(3, 4, 2), None, None, None, torch.tensor([1]), *CLAMPED, 1),
    ],
    "categorical_forward": [(torch.randn(3, 2, 7), torch.randint(7, (3, 2)), 1)],
    "categorical_backward": [(torch.randn(3), torch.randn(3, 2, 7), torch.randint(7, (3, 2)), 1)],
    "multinomial_forward": [(torch.randn(3, 2, 7), torch.randint(7, (3, 2, 7)), 1, True)],
    "multinomial_backward": [
        (torch.randn(3), torch.randn(3, 2, 7), torch.rand(3, 2, 7), 1, True, 3),
        (torch.randn(3), torch.randn(3, 2, 7), torch.randint(7, (3, 2, 7)), 1, False, 1),
    ],
}


@pytest.mark.parametrize("op", OP_SAMPLES)
def test_opcheck(op: str) -> None:
    for arguments in OP_SAMPLES[op]:
        torch.library.opcheck(getattr(torch.ops.vae_kernels_triton, op).default, arguments)


@pytest.mark.parametrize("number", [0.0, 0.3, -700.123456789, 1e-300, 5e37, float("inf"), float("nan")])
def test_numbers_arrive_exactly(number: float) -> None:
    mean, x = torch.zeros(1, 1, dtype=F64), torch.zeros(1, 1, dtype=F64)
    got = vk.gaussian_log_likelihood(mean, x, number)
    want = -0.5 * (number + 1.8378770664093453) if number != float("inf") else float("-inf")
    torch.testing.assert_close(got, torch.tensor([want], dtype=F64), rtol=1e-15, atol=0, equal_nan=True)
    with vk.use_backend("eager"):
        assert torch.equal(got.isnan(), vk.gaussian_log_likelihood(mean, x, number).isnan())


def test_every_op_once_as_gpu_check_does() -> None:
    assert smoke.main("triton", "cpu") == 0
