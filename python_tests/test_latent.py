"""The latent step in all its forms, see latent_cases.py: the error rule, gradients, noise, layouts, compilation."""

import math

import pytest
import reference
import torch
from latent_cases import CASES, PRIORS, SPREADS, LatentCase
from recorded_ops import RecordedOps
from samples import BF16, DEVICE, F16, F32, F64, LAYOUTS
from torch import Tensor

import vae_kernels as vk
from vae_kernels import noise


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=str)
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-1.0, 0.0), (0.0, 0.0)], ids=str)
@pytest.mark.parametrize("scale", [scale for scale in SPREADS if scale != "softplus"])  # that hits no bound
@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
def test_at_a_bound_the_log_variance_has_its_gradient(
    backend: str, packed: bool, scale: str, bounds: tuple[float, float], dtype: torch.dtype
) -> None:
    """At a bound the gradient is that of a log-variance that is not clamped, whatever torch.clamp has. Beyond it is
    zero."""
    unclamped = torch.tensor([0.0, -3.0, 3.0] * 8, dtype=F64).reshape(3, 8)
    raw = SPREADS[scale](unclamped).to(dtype).to(DEVICE)  # of a log-variance of 0 it is exactly 0 or 1
    mu, upstream = torch.randn(2, 3, 8).to(dtype).to(DEVICE)

    def gradient(clamp: tuple[float, float] | None) -> Tensor:
        leaf = raw.clone().requires_grad_()
        options = {"scale": scale, "logvar_clamp": clamp, "seed": 5}
        if packed:
            z, kl = vk.reparameterize_kl_packed(torch.cat((mu, leaf), 1), **options)
        else:
            z, kl = vk.reparameterize_kl(mu, leaf, **options)
        return torch.autograd.grad((z, kl), leaf, (upstream, torch.ones_like(kl)))[0]

    at_bound, clamped = (unclamped == 0).to(DEVICE), gradient(bounds)
    assert torch.equal(clamped[at_bound], gradient(None)[at_bound])
    assert clamped[at_bound].count_nonzero() > 0
    assert clamped[~at_bound].count_nonzero() == 0


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_rule(backend: str, case: LatentCase) -> None:
    case.check_error_rule(backend)


EMPTY = [
    LatentCase(shape, num_samples=count, kl_estimator=estimator, prior=prior, packed_dim=dim)
    for shape in ((0, 4), (4, 0))
    for count, estimator in ((None, "analytic"), (2, "analytic"), (2, "path"))
    for prior in ((None, None), (shape, (shape[1],)))
    for dim in (None, 1)
]


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("case", EMPTY, ids=str)
def test_empty(backend: str, case: LatentCase) -> None:
    got = case.results()
    assert got["z"].shape == case.z_shape
    for name, value in got.items():
        assert torch.equal(value, torch.zeros_like(value)), name
    for name, tensor in case.make().items():
        assert got[f"grad {name}"].shape == tensor.shape


# What gradcheck sees: every variant that changes a formula, in float64 and small.
SMALL = [
    LatentCase((2, 3), 1, prior, count, estimator, scale=scale, std_floor=floor, clamp=clamp, dtypes=(F64,) * 5)
    for prior, scale, floor, clamp in (
        ((None, None), "logstd", 0.0, None),
        ((None, None), "std", 0.0, (-1.0, 0.5)),
        (((2, 3), (3,)), "logvar", 0.0, None),
        (((), None), "variance", 0.0, None),
        (((2, 3), (3,)), "variance", 0.1, None),
        (((2, 3), (3,)), "softplus", 0.0, None),
        ((None, None), "softplus", 0.1, (-1.0, 0.5)),
    )
    for estimator in ("analytic", "monte_carlo")
    for count in (None, 2)
]
SMALL += [
    LatentCase((2, 3), kl_reduction="none", kl_estimator=estimator, num_samples=2, dtypes=(F64,) * 5)
    for estimator in ("analytic", "monte_carlo")
]
SMALL += [
    LatentCase(shape, packed_dim=dim, layout=layout, clamp=(-1.0, 0.5), dtypes=(F64,) * 5)
    for shape, dim, layout in (((2, 3), 1, "contiguous"), ((2, 3, 2, 2), 1, "channels_last"), ((2, 3, 1), -1, "sliced"))
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(backend: str, case: LatentCase) -> None:
    function, inputs = case.of_inputs()
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.interpreted
def test_path_gradient_vanishes_at_the_posterior(kernel: str) -> None:
    """Where q is the prior, the path gradient is zero for any z."""
    mu, logvar = (torch.randn(4, 7, device=DEVICE) for _ in range(2))
    q = [t.clone().requires_grad_() for t in (mu, logvar)]
    _, kl = vk.reparameterize_kl(*q, prior_mu=mu, prior_logvar=logvar, num_samples=3, kl_estimator="path")
    for gradient in torch.autograd.grad(kl.sum(), q):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_monte_carlo_has_the_analytic_mean(backend: str) -> None:
    mu, logvar, m, v = (torch.randn(2, 5, device=DEVICE) for _ in range(4))
    kl = vk.reparameterize_kl(mu, logvar, prior_mu=m, prior_logvar=v)[1]
    sampled = vk.reparameterize_kl(
        mu, logvar, prior_mu=m, prior_logvar=v, num_samples=4000, kl_estimator="monte_carlo", seed=1
    )[1]
    deviations = (sampled.mean(0) - kl) / (sampled.std(0) / 4000**0.5)
    assert (deviations.abs() < 4).all()


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("shape", [(5, 7), (5, 1030), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("count", [None, 1, 3])
def test_noise_of_a_seed(backend: str, shape: tuple[int, ...], count: int | None) -> None:
    """The rows of the noise are those of z, samples first."""
    mu = torch.zeros(shape, device=DEVICE)
    z, _ = vk.reparameterize_kl(mu, mu, num_samples=count, seed=11)
    rows = (count or 1) * shape[0]
    want = torch.from_numpy(reference.normals(11, rows, math.prod(shape[1:]))).reshape(z.shape)
    torch.testing.assert_close(z.double().cpu(), want, rtol=1e-6, atol=1e-7)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("shape", [(5, 7), (3, 1030), (3, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("count", [None, 2])
def test_a_seed_for_each_sample(backend: str, shape: tuple[int, ...], count: int | None) -> None:
    """Sample b is the same alone under seed[b] as anywhere in the batch."""
    mu = torch.randn(shape, device=DEVICE)
    seeds = torch.randint(0, 2**62, shape[:1], device=DEVICE)
    z, kl = vk.reparameterize_kl(mu, 0.1 * mu, num_samples=count, seed=seeds, kl_estimator="monte_carlo")
    order = torch.randperm(shape[0], device=DEVICE)
    again, kl_again = vk.reparameterize_kl(
        mu[order], 0.1 * mu[order], num_samples=count, seed=seeds[order], kl_estimator="monte_carlo"
    )
    samples = 0 if count is None else 1
    assert torch.equal(again, z.index_select(samples, order))
    assert torch.equal(kl_again, kl.index_select(samples, order))
    for b in range(shape[0]):
        alone, _ = vk.reparameterize_kl(mu[b : b + 1], 0.1 * mu[b : b + 1], num_samples=count, seed=int(seeds[b]))
        torch.testing.assert_close(alone.select(samples, 0), z.select(samples, b), rtol=1e-6, atol=1e-7)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("count", [None, 3])
@pytest.mark.parametrize("own", [False, True])
def test_backward_makes_the_same_noise(backend: str, count: int | None, own: bool) -> None:
    case = LatentCase((6, 35), kl_estimator="monte_carlo", num_samples=count)
    tensors = case.make()
    del tensors["eps"]
    seed = torch.arange(6, device=DEVICE) if own else torch.tensor([3], device=DEVICE)
    eps = noise.normal_like(tensors["mu"], seed, 1, count)
    by_seed, by_eps = (
        case.results(lambda t, noise=noise: case.named(case.function(*t.values(), **noise)), tensors)
        for noise in ({"seed": seed}, {"eps": eps})
    )
    for name, value in by_seed.items():
        torch.testing.assert_close(value, by_eps[name], rtol=1e-5, atol=1e-5)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_packed_gradient_is_one_tensor(kernel: str, layout: str) -> None:
    """The gradient has the moments' own layout, and nothing else of their size is allocated."""
    moments = LAYOUTS[layout](torch.randn(2, 8, 6, 6, device=DEVICE)).requires_grad_()
    z, kl = vk.reparameterize_kl_packed(moments, seed=1)
    gradient = torch.autograd.grad(z.sum() + kl.sum(), moments)[0]
    assert gradient.stride() == moments.stride()
    assert gradient.untyped_storage().nbytes() == moments.nbytes


@pytest.mark.interpreted
def test_sides(backend: str) -> None:
    """`num_samples=1` gives the leading dim, None does not. A prior given as zeros is the standard one."""
    mu, logvar = torch.randn(3, 5, device=DEVICE), torch.randn(3, 5, device=DEVICE)
    plain = vk.reparameterize_kl(mu, logvar, seed=1)
    one = vk.reparameterize_kl(mu, logvar, seed=1, num_samples=1)
    zero = vk.reparameterize_kl(mu, logvar, seed=1, prior_mu=torch.zeros(5, device=DEVICE))
    assert one[0].shape == (1, 3, 5) and one[1].shape == (3,)
    torch.testing.assert_close(one[0][0], plain[0])
    torch.testing.assert_close(one[1], plain[1])
    torch.testing.assert_close(zero[1], plain[1])


COMPILED = [
    LatentCase(prior=PRIORS[0]),
    LatentCase(prior=PRIORS[1], kl_estimator="path", num_samples=2),
    LatentCase(kl_reduction="none", scale="std", clamp=(-1.0, 1.0)),
    LatentCase((2, 3, 4, 5), packed_dim=1, layout="channels_last", dtypes=(BF16,) * 5),
    LatentCase((2, 3, 4, 5), packed_dim=1, scale="softplus", std_floor=1e-4, num_samples=2, kl_estimator="path"),
]


@pytest.mark.interpreted
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_compile(backend: str, case: LatentCase) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    got = case.results(lambda tensors: case.call(tensors, compiled))
    for name, value in case.results().items():
        torch.testing.assert_close(got[name], value)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_opcheck(kernel: str, case: LatentCase) -> None:
    tensors = case.make()
    del tensors["eps"]
    with RecordedOps(kernel) as ops:
        case.results(tensors=tensors)
    assert len(ops) == 2
    ops.check()


def test_transforms(backend: str) -> None:
    """vmap over stacked inputs gives what a loop gives, and torch.func.grad what the backward pass gives."""
    mu, logvar, m, v = (torch.randn(4, 3, 5, device=DEVICE) for _ in range(4))
    eps = torch.randn(4, 3, 5, device=DEVICE)

    def step(mu: Tensor, logvar: Tensor, m: Tensor, v: Tensor, eps: Tensor) -> Tensor:
        return vk.reparameterize_kl(mu, logvar, prior_mu=m, prior_logvar=v, eps=eps, kl_estimator="monte_carlo")[1]

    mapped = torch.func.vmap(step)(mu, logvar, m, v, eps)
    looped = torch.stack([step(*tensors) for tensors in zip(mu, logvar, m, v, eps, strict=True)])
    torch.testing.assert_close(mapped, looped)
    gradient = torch.func.grad(lambda mu: step(mu, logvar[0], m[0], v[0], eps[0]).sum())(mu[0])
    leaf = mu[0].clone().requires_grad_()
    want = torch.autograd.grad(step(leaf, logvar[0], m[0], v[0], eps[0]).sum(), leaf)[0]
    torch.testing.assert_close(gradient, want)
