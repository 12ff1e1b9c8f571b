"""The noise: known answers, an independent Philox, the distribution, and what it must not depend on."""

import math
from types import ModuleType

import numpy as np
import pytest
import reference
import torch
from error_rule import SLACK_ULP
from hypothesis import HealthCheck, given, settings, strategies
from noise_cases import KNOWN_ANSWERS, SEEDS, edge_normals, edge_words, ulp_apart
from samples import BF16, DEVICE, F16, F32, F64, LAYOUTS
from torch import Tensor

import vae_kernels as vk
from vae_kernels import noise


def _int64(low: int, high: int) -> int:
    value = low | high << 32
    return value - 2**64 if value >= 2**63 else value


def drawn(shape: tuple[int, ...], seed: int | Tensor, batch_dims: int = 1, dtype: torch.dtype = F32) -> Tensor:
    """The noise itself: z at mu = 0 and logvar = 0."""
    zero = torch.zeros((), dtype=dtype, device=DEVICE).expand(shape)
    return vk.reparameterize_kl(zero, zero, seed=seed, batch_dims=batch_dims)[0]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    low, high = (np.array([c[0] | c[1] << 32], dtype=np.uint64) for c in (counter[:2], counter[2:]))
    assert [int(w[0]) for w in reference.philox(key[0] | key[1] << 32, (low, high))] == list(words)
    seed, offset, subsequence = (torch.tensor([_int64(*pair)]) for pair in (key, counter[:2], counter[2:]))
    assert [w.item() for w in noise.philox(seed, subsequence, offset)] == list(words)


def test_box_muller_is_right_to_the_last_bit() -> None:
    """The eager definition computes in float64 and rounds once."""
    for lane, want in zip(noise.box_muller(*edge_words()), edge_normals(), strict=True):
        assert ulp_apart(lane, want) <= 0.5 + 2**-20


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("seed", SEEDS)
def test_normals_are_those_of_numpy(backend: str, seed: int) -> None:
    for rows, cols in ((1, 1), (3, 5), (7, 20), (2, 1025), (300, 3), (1, 70001)):
        got = drawn((rows, cols), seed)
        assert ulp_apart(got, reference.normals(seed, rows, cols)) <= SLACK_ULP


def test_many_normals_are_those_of_numpy(kernel: str) -> None:
    """Enough words to meet angles next to every axis and radii next to zero."""
    assert ulp_apart(drawn((4, 10**6), 3), reference.normals(3, 4, 10**6)) <= SLACK_ULP


@pytest.mark.interpreted
@pytest.mark.parametrize("seed", SEEDS)
def test_seed_as_a_tensor(backend: str, seed: int) -> None:
    want = drawn((3, 5), seed)
    for shape in ((), (1,), (1, 1)):
        assert torch.equal(drawn((3, 5), torch.full(shape, seed, dtype=torch.int64, device=DEVICE)), want)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [F64, BF16, F16], ids=str)
def test_same_noise_in_every_dtype(backend: str, dtype: torch.dtype) -> None:
    """On NVIDIA GPUs the CUDA kernels' noise of half types is within 2⁻¹⁴, before it is rounded to the type."""
    got, want = drawn((7, 1025), 5, dtype=dtype), drawn((7, 1025), 5)
    if backend == "cuda" and dtype in (BF16, F16):
        rounding = torch.finfo(dtype).eps * 2.0 ** torch.floor(torch.log2(want.abs().double())) / 2
        assert ((got.double() - want.double()).abs() <= 2.0**-14 + 2 * rounding).all()
    else:
        assert torch.equal(got, want.to(dtype))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_same_noise_whatever_the_layout(backend: str, dtype: torch.dtype) -> None:
    """Whole packs, rows that are cut off, several samples, a prior and gaps between the elements change no bit."""
    zeros = torch.zeros(5, 1032, dtype=dtype, device=DEVICE)
    want = vk.reparameterize_kl(zeros, zeros, seed=5)[0]
    prior = {"prior_mu": zeros, "prior_logvar": zeros}
    gaps = torch.zeros(5, 2064, dtype=dtype, device=DEVICE)[:, ::2]
    assert torch.equal(drawn((5, 1032), 5, dtype=dtype), want)
    assert torch.equal(drawn((5, 1029), 5, dtype=dtype), want[:, :1029])
    assert torch.equal(vk.reparameterize_kl(gaps, gaps, seed=5)[0], want)
    assert torch.equal(vk.reparameterize_kl(zeros, zeros, seed=5, num_samples=2)[0][0], want)
    assert torch.equal(vk.reparameterize_kl(zeros, zeros, seed=5, **prior)[0], want)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
def test_backward_has_the_noise_of_forward(backend: str, dtype: torch.dtype) -> None:
    """At logvar = 0 the gradient of 2 z is the noise, whichever kernels answer."""
    for cols, prior in ((1032, False), (1029, False), (1032, True)):
        zeros = torch.zeros(5, cols, dtype=dtype, device=DEVICE)
        logvar = zeros.clone().requires_grad_()
        given = {"prior_mu": zeros.clone().requires_grad_(), "prior_logvar": zeros} if prior else {}
        z, kl = vk.reparameterize_kl(zeros, logvar, seed=5, **given)
        for loss in (2 * z.sum(), 2 * z.sum() + kl.sum()):  # the KL's own gradient is 0 there
            (gradient,) = torch.autograd.grad(loss, logvar, retain_graph=True)
            assert torch.equal(gradient, z)


@pytest.mark.emulated
@pytest.mark.interpreted
def test_rows_are_the_kept_dims_and_columns_the_others(backend: str) -> None:
    shape = (2, 3, 4, 5)
    for batch_dims in range(5):
        rows = math.prod(shape[:batch_dims])
        want = drawn((rows, math.prod(shape) // rows), 9)
        assert torch.equal(drawn(shape, 9, batch_dims).reshape(want.shape), want)


@pytest.mark.emulated
@pytest.mark.interpreted
def test_noise_does_not_depend_on_how_many_rows_or_columns_there_are(backend: str) -> None:
    want = drawn((40, 300), 9)
    for rows, cols in ((1, 1), (3, 5), (40, 7), (2, 299)):
        assert torch.equal(drawn((rows, cols), 9), want[:rows, :cols])


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_are_counted_in_memory_order(backend: str, layout: str) -> None:
    """The order is that of `torch.randn_like`; where elements are not dense, that of `torch.empty_like`."""
    mu = LAYOUTS[layout](torch.zeros(2, 3, 4, 5, device=DEVICE))
    order = sorted(range(1, 4), key=lambda d: -torch.empty_like(mu).stride(d))
    want = drawn((2, 60), 11).reshape([2, *(mu.shape[d] for d in order)])
    want = want.permute([0, *(1 + order.index(d) for d in range(1, 4))])
    for logvar in (mu, torch.zeros(2, 3, 4, 5, device=DEVICE)):
        assert torch.equal(vk.reparameterize_kl(mu, logvar, seed=11)[0], want)
    volume = LAYOUTS["channels_last"](torch.zeros(2, 3, 2, 2, 5, device=DEVICE))
    want = drawn((2, 60), 11).reshape(2, 2, 2, 5, 3).permute(0, 4, 1, 2, 3)
    assert torch.equal(vk.reparameterize_kl(volume, volume, seed=11)[0], want)


@strategies.composite
def any_strides(draw: strategies.DrawFn) -> Tensor:
    """Zeros whose dims lie in any order in memory, some with gaps between their elements, some expanded."""
    dims = draw(strategies.integers(1, 5))
    sizes = draw(strategies.lists(strategies.sampled_from((2, 3, 1, 5)), min_size=dims, max_size=dims))
    steps = draw(strategies.lists(strategies.sampled_from((1, 2)), min_size=dims, max_size=dims))
    expanded = draw(strategies.lists(strategies.sampled_from((False, False, True)), min_size=dims, max_size=dims))
    whole = torch.zeros([1 if e else n * s for n, s, e in zip(sizes, steps, expanded, strict=True)], device=DEVICE)
    inside = whole[tuple(slice(None, None, step) for step in steps)].expand(sizes)
    return inside.permute(draw(strategies.permutations(range(dims))))


@given(tensor=any_strides(), batch_dims=strategies.integers(0, 2))
@settings(
    max_examples=200, derandomize=True, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_strides(kernel: str, tensor: Tensor, batch_dims: int) -> None:
    """z has the strides that torch gives, and the noise that the columns in their order have."""
    batch_dims = min(batch_dims, tensor.dim())
    z, _ = vk.reparameterize_kl(tensor, tensor, seed=11, batch_dims=batch_dims)
    want = torch.empty_like(tensor)
    strides = zip(z.stride(), want.stride(), tensor.shape, strict=True)
    assert all(got == given for got, given, size in strides if size > 1)
    columns = sorted(range(batch_dims, tensor.dim()), key=lambda d: -want.stride(d) if tensor.shape[d] > 1 else 0)
    counted = z.permute(*range(batch_dims), *columns).reshape(math.prod(tensor.shape[:batch_dims]), -1)
    assert ulp_apart(counted, reference.normals(11, *counted.shape)) <= SLACK_ULP


@pytest.mark.interpreted
def test_a_seed_is_the_same_as_its_noise(backend: str) -> None:
    """z and all gradients with a seed are, bit by bit, those with the noise of that seed handed in."""
    mu, logvar = (torch.randn(6, 133, device=DEVICE, requires_grad=True) for _ in range(2))
    upstream = torch.randn(6, 133, device=DEVICE), torch.randn(6, device=DEVICE)
    found = []
    for source in ({"seed": 4}, {"eps": drawn((6, 133), 4)}):
        outputs = vk.reparameterize_kl(mu, logvar, **source)
        found.append((*outputs, *torch.autograd.grad(outputs, (mu, logvar), upstream)))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.fixture(scope="module")
def stats() -> ModuleType:
    return pytest.importorskip("scipy.stats")


@pytest.fixture(scope="module")
def many() -> dict[str, np.ndarray]:
    """Ten million numbers of each kernel; of eager, which is slow, a million. One sort serves every test."""
    return {}


def sorted_sample(many: dict[str, np.ndarray], backend: str) -> np.ndarray:
    if backend not in many:
        many[backend] = np.sort(drawn((10, 10**5 if backend == "eager" else 10**6), 2024).flatten().cpu().numpy())
    return many[backend].astype(np.float64)


ALPHA = 1e-4


def test_mean_and_variance(backend: str, many: dict[str, np.ndarray], stats: ModuleType) -> None:
    """The moments are within quantiles of their sampling distributions: 1 in 10⁴ falls outside."""
    eps = sorted_sample(many, backend)
    limit = stats.norm.isf(ALPHA / 2)
    assert abs(eps.mean()) * math.sqrt(eps.size) < limit
    assert abs((eps**2).mean() - 1) * math.sqrt(eps.size / 2) < limit
    assert abs((eps**3).mean()) * math.sqrt(eps.size / 15) < limit
    assert abs((eps**4).mean() - 3) * math.sqrt(eps.size / 96) < limit


def test_kolmogorov_smirnov(backend: str, many: dict[str, np.ndarray], stats: ModuleType) -> None:
    eps = sorted_sample(many, backend)
    cdf = stats.norm.cdf(eps)
    steps = np.arange(eps.size + 1) / eps.size
    distance = max((steps[1:] - cdf).max(), (cdf - steps[:-1]).max())
    assert stats.kstwo.sf(distance, eps.size) > ALPHA


def test_tails(backend: str, many: dict[str, np.ndarray], stats: ModuleType) -> None:
    """The counts of numbers beyond 3, 4 and 5 are right on both sides."""
    eps = sorted_sample(many, backend)
    for sign in (1, -1):
        for edge in (3, 4, 5):
            count = int((sign * eps > edge).sum())
            assert stats.binomtest(count, eps.size, stats.norm.sf(edge)).pvalue > ALPHA
    assert 4.5 < abs(eps).max() < math.sqrt(-2 * math.log(2.0**-33))


def test_rows_columns_and_seeds_are_uncorrelated(backend: str, stats: ModuleType) -> None:
    """Rows of one seed, one row under neighbouring seeds, neighbouring columns."""
    size = 20_000
    rows = drawn((24, size), 7)
    seeds = torch.cat([drawn((1, size), seed) for seed in (*range(8, 24), *(2**32 + s for s in range(8, 16)))])
    lags = torch.stack([drawn((1, size + 24), 6)[0, lag : lag + size] for lag in range(24)])
    for samples in (torch.cat((rows, seeds)), lags):
        matrix = np.corrcoef(samples.double().cpu().numpy())
        off_diagonal = abs(matrix[np.triu_indices(len(matrix), 1)])
        assert off_diagonal.max() * math.sqrt(size) < stats.norm.isf(ALPHA / 2 / off_diagonal.size)


def test_manual_seed_and_generator_reproduce(backend: str) -> None:
    mu, logvar = torch.randn(5, 9, device=DEVICE), torch.randn(5, 9, device=DEVICE)

    def twice(**given: object) -> list[Tensor]:
        return [vk.reparameterize_kl(mu, logvar, **given)[0] for _ in range(2)]

    torch.manual_seed(3)
    first = twice()
    torch.manual_seed(3)
    again = twice()
    torch.manual_seed(4)
    other = twice()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first[0], other[0])

    generator = torch.Generator(DEVICE)
    state = torch.get_rng_state()
    first, again = (twice(generator=generator.manual_seed(5)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], first[1])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_given_seed_leaves_the_random_state_alone(backend: str) -> None:
    state = torch.get_rng_state()
    drawn((3, 5), 1)
    assert torch.equal(torch.get_rng_state(), state)


def test_drawn_seeds_use_all_their_bits() -> None:
    """int64 in [0, 2⁶³): a stream of a few 2³² seeds would repeat in a long training."""
    seeds = torch.cat([noise.draw_seed(torch.device(DEVICE), None) for _ in range(300)])
    assert (seeds >= 0).all()
    assert len(seeds.unique()) == 300
    assert all(0 < ((seeds >> bit) & 1).sum() < 300 for bit in range(63))
