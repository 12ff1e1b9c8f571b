"""Objectives, schedules and statistics by small tables worked by hand, their gradients, and what they refuse."""

import doctest
import math

import pytest
import torch
from samples import DEVICE, F64
from torch import Tensor

import vae_kernels as vk
from vae_kernels import evaluation, objectives, schedules


def tensor(*values) -> Tensor:
    return torch.tensor(values, dtype=F64)


LOG_PX, KL = tensor(-3.0, -5.0, -1.0), tensor(1.0, 2.0, 6.0)


@pytest.mark.parametrize("module", [evaluation, objectives, schedules], ids=lambda m: m.__name__)
def test_the_examples_run(module) -> None:
    failed, run = doctest.testmod(module)
    assert run and not failed


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [-4, -7, -7]),
        ({"beta": 0.5}, [-3.5, -6, -4]),
        ({"beta": tensor(2.0)[0]}, [-5, -9, -13]),
        ({"beta": tensor(2.0).reshape(1, 1, 1)}, [-5, -9, -13]),
        ({"capacity": 2.0}, [-4, -5, -5]),
        ({"capacity": tensor(2.0).reshape(1, 1)}, [-4, -5, -5]),
        ({"capacity": 2.0, "beta": 10.0}, [-13, -5, -41]),
        ({"capacity": 2.0, "capacity_per": "batch"}, [-2, -5, -5]),
        ({"capacity": 4.0, "capacity_per": "batch"}, [-6, -7, 1]),
        ({"free_bits": 2.0, "free_bits_per": "group"}, [-4, -7, -7]),
        ({"free_bits": 4.0, "free_bits_per": "group"}, [-7, -9, -5]),
    ],
    ids=str,
)
def test_per_sample_values(options, expected) -> None:
    expected = tensor(*expected)
    for reduction, want in (("none", expected), ("sum", expected.sum()), ("mean", expected.mean())):
        torch.testing.assert_close(vk.elbo(LOG_PX, KL, reduction=reduction, **options), want)
    torch.testing.assert_close(vk.elbo(LOG_PX, KL, **options), expected.mean())


PARTS = tensor([1.0, 0.5, 3.0], [2.0, 0.1, 1.0])
"""KL of two samples in three dimensions, of means 1.5, 0.3 and 2."""


@pytest.mark.parametrize(
    ("free_bits", "expected", "has_gradient"),
    [
        (0.0, 1.5 + 0.3 + 2, [1, 1, 1]),
        (0.2, 1.5 + 0.3 + 2, [1, 1, 1]),
        (1.0, 1.5 + 1 + 2, [1, 0, 1]),
        (1.5, 1.5 + 1.5 + 2, [1, 0, 1]),
        (1.6, 1.6 + 1.6 + 2, [0, 0, 1]),
        (9.0, 27, [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("per", ["dimension", "group"])
def test_free_bits(per: str, free_bits: float, expected: float, has_gradient: list[int]) -> None:
    """max(λ, mean) of each part and its derivative; a sample alone may be on the other side."""
    kl = PARTS.clone().requires_grad_()
    # Per group, what is behind the group's dim is summed.
    given = kl if per == "dimension" else torch.stack((0.25 * kl, 0.75 * kl), -1)
    value = vk.elbo(torch.zeros(2, dtype=F64), given, free_bits=free_bits, free_bits_per=per, beta=2.0)
    torch.testing.assert_close(value, tensor(-2.0 * expected)[0])
    (gradient,) = torch.autograd.grad(value, kl)
    torch.testing.assert_close(gradient, -tensor(*has_gradient).expand(2, 3).contiguous())


def test_free_bits_of_many_latent_dims() -> None:
    kl = torch.rand(4, 2, 3, 5, dtype=F64)
    log_px = torch.zeros(4, dtype=F64)
    for free_bits in (0.3, 0.5):
        want = kl.mean(0).clamp(min=free_bits).sum()
        torch.testing.assert_close(vk.elbo(log_px, kl, free_bits=free_bits), -want)
    for free_bits in (5.0, 7.5):
        want = kl.sum((2, 3)).mean(0).clamp(min=free_bits).sum()
        torch.testing.assert_close(vk.elbo(log_px, kl, free_bits=free_bits, free_bits_per="group"), -want)


@pytest.mark.parametrize(
    ("per", "capacity", "expected"),
    [
        ("sample", 2.0, [1, 0, -1]),
        ("sample", 0.0, [-1, -1, -1]),
        ("batch", 2.0, [-1, -1, -1]),
        ("batch", 3.0, [0, 0, 0]),
        ("batch", 4.0, [1, 1, 1]),
    ],
)
def test_capacity_draws_from_both_sides(per: str, capacity: float, expected: list[int]) -> None:
    """Times one over the batch; exactly at the capacity, 0."""
    kl = KL.clone().requires_grad_()
    vk.elbo(LOG_PX, kl, capacity=capacity, capacity_per=per).backward()
    torch.testing.assert_close(kl.grad, tensor(*expected) / 3)


@pytest.mark.parametrize(
    "options",
    [
        {"beta": 0.3},
        {"free_bits": 0.6},
        {"free_bits": 1.8, "free_bits_per": "group"},
        {"capacity": 2.5},
        {"capacity": 2.5, "capacity_per": "batch", "reduction": "sum"},
        {"dataset_size": 100, "reduction": "none", "capacity": 0.2},
    ],
    ids=str,
)
def test_gradcheck(options) -> None:
    torch.manual_seed(0)
    log_px, kl = torch.randn(5, dtype=F64, requires_grad=True), torch.rand(5, 4, dtype=F64, requires_grad=True)

    def value(log_px: Tensor, kl: Tensor) -> Tensor:
        result = vk.elbo(log_px, kl if "free_bits" in options else kl.sum(1), **options)
        # Values of single samples do not have the gradient of the mean, which goes through the batch's mean.
        return result.sum() if "free_bits" in options or "capacity_per" in options else result

    torch.autograd.gradcheck(value, (log_px, kl))


def test_a_minibatch_stands_for_the_data_set() -> None:
    """Equation 8: N/M times the sum."""
    assert vk.elbo(LOG_PX, KL, dataset_size=30, reduction="sum").item() == 10 * (-18)
    assert vk.elbo(LOG_PX, KL, dataset_size=30, reduction="none").tolist() == [-40, -70, -70]
    assert vk.elbo(LOG_PX, KL, dataset_size=30).item() == -60


def test_samples_are_averaged() -> None:
    log_px, kl = tensor([-3.0, -5.0], [-1.0, -6.0]), tensor([1.0, 2.0], [3.0, 4.0])
    assert vk.elbo(log_px, kl, reduction="none").tolist() == [-4, -8.5]
    assert vk.elbo(log_px, kl[0], reduction="none").tolist() == [-3, -7.5]
    assert vk.elbo(log_px, kl, capacity=2.0, reduction="none").tolist() == [-2, -6.5]
    assert vk.elbo(log_px, kl[0].unsqueeze(1), free_bits=2.0, reduction="none").tolist() == [-4, -7.5]


def test_a_nan_stays_in_its_sample() -> None:
    log_px = tensor(-3.0, math.nan)
    assert vk.elbo(log_px, KL[:2], reduction="none").isnan().tolist() == [False, True]
    weighted = vk.importance_weighted_elbo(log_px.expand(3, 2), KL[:2].expand(3, 2))
    assert weighted.isnan().tolist() == [False, True]


def test_empty_batches() -> None:
    none = torch.zeros(0)
    assert vk.elbo(none, none, reduction="none").shape == (0,)
    assert vk.elbo(none, none, reduction="sum").item() == 0
    assert vk.elbo(none, torch.zeros(0, 4), free_bits=1.0, reduction="sum").item() == 0
    for kl in (none, torch.zeros(0, 4), torch.zeros(0, 4, 2)):
        assert vk.elbo(none, kl, free_bits=1.0, free_bits_per="group", reduction="sum").item() == 0
    assert vk.importance_weighted_elbo(torch.zeros(5, 0), torch.zeros(5, 0)).shape == (0,)


def test_the_weighted_bound_by_hand() -> None:
    log_w = tensor([math.log(2.0), 0.0], [math.log(4.0), -math.inf])
    bound = vk.importance_weighted_elbo(log_w, torch.zeros(2, 2, dtype=F64))
    torch.testing.assert_close(bound, tensor(math.log(3.0), math.log(0.5)))
    # 1000 nats below and above what exp can hold.
    for far in (-1000.0, 1000.0):
        torch.testing.assert_close(vk.importance_weighted_elbo(log_w + far, torch.zeros(2, 2, dtype=F64)), bound + far)


@pytest.mark.parametrize("gradient", ["iwae", "dreg"])
def test_of_one_sample_the_weighted_bound_is_the_elbo(gradient: str) -> None:
    z = torch.zeros(1, 3, 2, dtype=F64)
    bound = vk.importance_weighted_elbo(LOG_PX.unsqueeze(0), KL.unsqueeze(0), z=z, gradient=gradient)
    torch.testing.assert_close(bound, LOG_PX - KL)


BATCHES = [(), (3,), (0,), (2, 3), (2, 0), (2, 1, 3)]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("gradient", ["iwae", "dreg"])
def test_the_weighted_bound_of_a_batch_of_any_shape(gradient: str, batch: tuple[int, ...]) -> None:
    """By torch.logsumexp, in float64, under random upstream gradients; DReG has its own: weights to log_px, their squares
    to the KL, and once more to z."""
    torch.manual_seed(0)
    log_px, kl = (torch.randn(4, *batch, dtype=F64, requires_grad=True) for _ in range(2))
    z = torch.randn(4, *batch, 5, 2, dtype=F64, requires_grad=True)
    upstream, of_z = torch.randn(batch, dtype=F64), z * 1
    bound = vk.importance_weighted_elbo(log_px + of_z.sum((-1, -2)), kl, z=of_z, gradient=gradient)
    log_w = log_px + z.sum((-1, -2)) - kl
    want = torch.logsumexp(log_w, 0) - math.log(4)
    torch.testing.assert_close(bound, want)
    found = torch.autograd.grad(bound, (log_px, kl, z), upstream)
    by_log_px, by_kl, by_z = torch.autograd.grad(want, (log_px, kl, z), upstream)
    if gradient == "dreg":
        weights = torch.exp(log_w - torch.logsumexp(log_w, 0)).detach()
        by_kl, by_z = by_kl * weights, by_z * weights[..., None, None]
    for got, expected in zip(found, (by_log_px, by_kl, by_z), strict=True):
        torch.testing.assert_close(got, expected)


# Whether the KL has samples too; those of its parts are averaged before.
SAMPLED_OPTIONS = [
    *((sampled, {"beta": 0.3, "dataset_size": 50}) for sampled in (False, True)),
    *((sampled, {"capacity": 0.7, "capacity_per": per}) for sampled in (False, True) for per in ("sample", "batch")),
    *(
        (False, {"free_bits": free_bits, "free_bits_per": per})
        for free_bits, per in ((0.6, "dimension"), (1.4, "group"))
    ),
]


@pytest.mark.parametrize("batch", [(2, 3), (2, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize(("sampled", "options"), SAMPLED_OPTIONS, ids=str)
def test_the_elbo_of_a_batch_of_any_shape(sampled: bool, options: dict, batch: tuple[int, ...]) -> None:
    """Is that of the same samples in a row, and so are its gradients."""
    torch.manual_seed(0)
    samples, parts = (4,) if sampled else (), (2, 2) if "free_bits" in options else ()
    log_px = torch.randn(4, *batch, dtype=F64, requires_grad=True)
    kl = torch.rand(*samples, *batch, *parts, dtype=F64, requires_grad=True)
    row = kl.flatten(len(samples), len(samples) + len(batch) - 1)
    for reduction in ("none", "sum", "mean"):
        value = vk.elbo(log_px, kl, reduction=reduction, **options)
        want = vk.elbo(log_px.flatten(1), row, reduction=reduction, **options)
        want = want.reshape(batch) if reduction == "none" else want
        torch.testing.assert_close(value, want, equal_nan=True)
        upstream = torch.randn_like(value)
        gradients = (torch.autograd.grad(v, (log_px, kl), upstream, retain_graph=True) for v in (value, want))
        for got, expected in zip(*gradients, strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("batch", [(3,), (2, 3), (2, 0), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("sampled", [False, True])
def test_the_score_function_of_a_batch_of_any_shape(sampled: bool, batch: tuple[int, ...]) -> None:
    """f and the gradient f ∂log q, each averaged over the samples."""
    torch.manual_seed(0)
    log_px, log_q = (torch.randn(4, *batch, dtype=F64, requires_grad=True) for _ in range(2))
    kl = torch.randn(*((4,) if sampled else ()), *batch, dtype=F64, requires_grad=True)
    baseline, upstream = torch.randn(batch, dtype=F64), torch.randn(batch, dtype=F64)
    value = vk.score_function_elbo(log_px, kl, log_q, baseline=baseline, beta=0.5, reduction="none")
    f = log_px - 0.5 * kl
    torch.testing.assert_close(value, f.mean(0))
    found = torch.autograd.grad(value, (log_px, kl, log_q), upstream)
    of_kl = upstream.expand(4, *batch) / 4 if sampled else upstream
    want = (upstream.expand(4, *batch) / 4, -0.5 * of_kl, upstream * (f - baseline) / 4)
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected)


class Shifted:
    """z and x differ by a unit Gaussian; the posterior's means are x itself."""

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, torch.zeros_like(x)

    def log_px(self, x: Tensor, z: Tensor) -> Tensor:
        return -0.5 * ((x - z) ** 2).sum(-1)


def test_log_px_of_a_batch_of_several_dims() -> None:
    """Is that of the same x in a row: their noise is the same."""
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    found, want = (
        vk.log_marginal_likelihood(
            Shifted(), t, num_samples=7, chunk=4, generator=torch.Generator().manual_seed(1), batch_dims=t.dim() - 1
        )
        for t in (x, x.flatten(0, 1))
    )
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected.view(2, 3))


def test_gradcheck_of_the_weighted_bound() -> None:
    torch.manual_seed(0)
    terms = [torch.randn(4, 3, dtype=F64, requires_grad=True) for _ in range(2)]
    torch.autograd.gradcheck(vk.importance_weighted_elbo, terms)
    torch.autograd.gradgradcheck(vk.importance_weighted_elbo, terms)


def test_dreg_with_weights_that_vanish() -> None:
    """A sample of weight 0, log p(x|z) = −∞, has no part in the gradient and does not spoil it."""
    log_px = tensor([-1.0], [-math.inf]).requires_grad_()
    kl = torch.zeros(2, 1, dtype=F64, requires_grad=True)
    z = torch.zeros(2, 1, 3, dtype=F64, requires_grad=True)
    vk.importance_weighted_elbo(log_px, kl, z=z, gradient="dreg").sum().backward()
    assert log_px.grad.flatten().tolist() == [1, 0] and kl.grad.flatten().tolist() == [-1, 0]


def test_dreg_without_gradient() -> None:
    """Evaluated only, z needs no gradient."""
    log_px, kl, z = torch.randn(4, 3), torch.randn(4, 3), torch.randn(4, 3, 2)
    bound = vk.importance_weighted_elbo(log_px, kl, z=z, gradient="dreg")
    torch.testing.assert_close(bound, torch.logsumexp(log_px - kl, 0) - math.log(4))


def test_dreg_refuses_a_full_gradient(backend: str) -> None:
    mu, logvar = (torch.zeros(3, 2, device=DEVICE, requires_grad=True) for _ in range(2))
    z, kl = vk.reparameterize_kl(mu, logvar, num_samples=4, kl_estimator="monte_carlo")
    with pytest.raises(ValueError, match=r'kl must be given by kl_estimator="path" .* got one by "monte_carlo"'):
        vk.importance_weighted_elbo(-kl, kl, z=z, gradient="dreg")
    with torch.no_grad():
        z, kl = vk.reparameterize_kl(mu, logvar, num_samples=4, kl_estimator="monte_carlo")
    vk.importance_weighted_elbo(-kl, kl, z=z, gradient="dreg")  # the value alone is the same


class _Foreign(torch.autograd.Function):
    """The identity, whose node carries what it is given."""

    @staticmethod
    def forward(ctx, value, settings, metadata):
        ctx.settings = settings
        ctx.metadata.update(metadata)
        return value.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


@pytest.mark.parametrize("settings", [None, 3, {"lr": 0.1}, ("monte_carlo", "sum")], ids=str)
def test_dreg_trusts_nothing_of_another_node(backend: str, settings: object) -> None:
    """Whoever made the kl may call what it keeps as we do."""
    log_px, kl, z = (torch.randn(3, 4, device=DEVICE, requires_grad=True) for _ in range(3))
    want = vk.importance_weighted_elbo(log_px, kl, z=z * 1, gradient="dreg")
    foreign = _Foreign.apply(kl, settings, {"kl_estimator": "monte_carlo"})
    assert torch.equal(vk.importance_weighted_elbo(log_px, foreign, z=z * 1, gradient="dreg"), want)


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12), reason="torch < 2.12 compiles no such hook"
)
def test_dreg_compiles_in_one_graph(backend: str) -> None:
    """The hook on z is part of the graph."""
    torch.manual_seed(0)
    mu, logvar, weight, x = (torch.randn(shape, device=DEVICE) for shape in ((3, 2), (3, 2), (2, 5), (3, 5)))
    leaves = [t.requires_grad_() for t in (mu, logvar, weight)]

    def value(seed: Tensor) -> Tensor:
        z, kl = vk.reparameterize_kl(mu, logvar, num_samples=4, kl_estimator="path", seed=seed)
        log_px = vk.gaussian_log_likelihood(z @ weight, x, batch_dims=2)
        return vk.importance_weighted_elbo(log_px, kl, z=z, gradient="dreg").sum()

    seed = torch.tensor([5], device=DEVICE)
    compiled = torch.compile(value, fullgraph=True, backend="aot_eager")(seed)
    want = torch.autograd.grad(value(seed), leaves)
    for got, expected in zip(torch.autograd.grad(compiled, leaves), want, strict=True):
        torch.testing.assert_close(got, expected)


class Allocations(list):
    """Within it, the bytes of every allocation, and of every release as a negative number."""

    def __enter__(self) -> "Allocations":
        self._profile = torch.profiler.profile(profile_memory=True).__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._profile.__exit__(*error)
        events = self._profile.profiler.kineto_results.events()
        self.extend(event.nbytes() for event in events if event.name() == "[memory]")


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the allocator rounds up")
def test_fifty_samples_hold_x_once(kernel: str) -> None:
    """IWAE with K = 50 at 64×784: x has 0.2 MB, the decoder's output 10 MB, and so has its gradient; what else is
    allocated are numbers by sample, of 12.8 kB. Eager takes 73 MB forward, five times the decoder's output at once."""
    logits, x = torch.randn(50, 64, 784, requires_grad=True), torch.rand(64, 784)
    kl = torch.rand(50, 64, requires_grad=True)

    def loss() -> Tensor:
        return -vk.importance_weighted_elbo(vk.bernoulli_log_likelihood(logits, x, batch_dims=2), kl).mean()

    with Allocations() as forward:
        value = loss()
    with Allocations() as backward:
        value.backward()
    by_sample = 50 * 64 * 4
    assert sum(n for n in forward if n > 0) < 10 * by_sample < x.nbytes
    assert sum(n for n in backward if n > 0) - logits.nbytes < 10 * by_sample
    with vk.use_backend("eager"), Allocations() as eager:
        loss()
    assert sum(n for n in eager if n > 0) > 5 * logits.nbytes  # the measure sees what is there


def test_the_score_function_by_hand() -> None:
    """f + (f − b) ∂log q; f's own gradient passes, the baseline has none."""
    log_px, kl, log_q = (tensor(*v).requires_grad_() for v in ((-3.0, -5.0), (1.0, 2.0), (-0.5, -0.7)))
    baseline = tensor(-5.0, -10.0).requires_grad_()
    value = vk.score_function_elbo(log_px, kl, log_q, baseline=baseline, beta=2.0, reduction="sum")
    assert value.item() == -5 - 9
    found = torch.autograd.grad(value, (log_px, kl, log_q, baseline), allow_unused=True)
    assert [g.tolist() for g in found[:3]] == [[1, 1], [-2, -2], [0, 1]] and found[3] is None


@pytest.mark.parametrize("start", [0.0, 0.25])
def test_linear_schedule(start: float) -> None:
    values = [vk.linear_schedule(step, 10, start=start, stop=2.0) for step in range(13)]
    assert values[0] == start and values[10:] == [2.0] * 3
    assert values[5] == (start + 2) / 2
    assert vk.linear_schedule(0, 0) == 1.0


def test_cyclical_schedule() -> None:
    """Fu et al.: β = f(τ) for τ ≤ R and 1 above, τ the part of the cycle that is over."""
    for steps, cycles, ratio in ((1000, 4, 0.5), (90, 3, 0.25), (64, 1, 1.0)):
        for step in range(steps):
            tau = step % (steps // cycles) / (steps / cycles)
            want = tau / ratio if tau <= ratio else 1.0
            assert vk.cyclical_schedule(step, steps, cycles=cycles, ratio=ratio) == pytest.approx(want, abs=1e-12)
        assert vk.cyclical_schedule(steps, steps, cycles=cycles) == 1
    # Of cycles that are no whole number of steps there are as many as asked for.
    values = [vk.cyclical_schedule(step, 10, cycles=3) for step in range(10)]
    assert [step for step in range(1, 10) if values[step] < values[step - 1]] == [4, 7]


def test_kl_per_dimension_is_that_of_torch_distributions() -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(50, 4, dtype=F64), torch.randn(50, 4, dtype=F64)
    _, kl = vk.reparameterize_kl(mu, logvar, kl_reduction="none")
    q = torch.distributions.Normal(mu, (logvar / 2).exp())
    want = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(vk.kl_per_dimension(kl), want)


def test_active_units() -> None:
    """One dimension that follows x, one that hardly does, one that does not."""
    x = torch.linspace(-1, 1, 101, dtype=F64)
    mu = torch.stack((x, 0.17 * x, 3 + 0 * x), dim=1)
    assert vk.active_units(mu).tolist() == [True, False, False]
    assert vk.active_units(mu, threshold=0.009).tolist() == [True, True, False]


def test_aggregate_posterior_has_the_moments_of_its_samples() -> None:
    torch.manual_seed(0)
    mu, logvar = torch.randn(40, 3, dtype=F64), torch.randn(40, 3, dtype=F64)
    z, _ = vk.reparameterize_kl(mu, logvar, num_samples=5000, seed=0)
    mean, variance = vk.aggregate_posterior(mu, logvar)
    torch.testing.assert_close(z.mean((0, 1)), mean, rtol=0, atol=5 * math.sqrt(variance.max() / z[..., 0].numel()))
    torch.testing.assert_close(z.var((0, 1)), variance, rtol=0.02, atol=0)


def test_bits_per_dimension() -> None:
    """A uniform density over [0, 1] of pixels in 256 steps: eight bits; of probabilities 1/2, one bit."""
    zero = torch.zeros(3)
    assert vk.bits_per_dimension(zero, 784, bin_width=1 / 256).tolist() == [8, 8, 8]
    torch.testing.assert_close(vk.bits_per_dimension(zero - 20 * math.log(2), 20), torch.ones(3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vk.elbo(LOG_PX, KL[:2]), r"kl must have the shape \(3,\) or that of log_px, \(3,\), got \(2,\)"),
        (
            lambda: vk.elbo(PARTS[None], KL),
            r"kl must have the shape \(2, 3\) or that of log_px, \(1, 2, 3\), got \(3,\)",
        ),
        (lambda: vk.elbo(LOG_PX, PARTS), r"kl must have the shape .* got \(2, 3\)"),
        (lambda: vk.elbo(LOG_PX[0], KL[0]), r"log_px must have the shape \(B,\) or \(L, \*batch\), got \(\)"),
        (lambda: vk.elbo(LOG_PX, KL, free_bits=1.0), r"kl must have the shape \(3, \*latent\), with kl_reduction"),
        (lambda: vk.elbo(PARTS[None], PARTS, free_bits=1.0), r"kl must have the shape \(2, 3, \*latent\), with kl_red"),
        (lambda: vk.elbo(LOG_PX, PARTS, free_bits=1.0, free_bits_per="group"), r"\(3,\) or \(3, J, ...\).* \(2, 3\)"),
        (lambda: vk.elbo(LOG_PX, KL, free_bits=-1.0, free_bits_per="group"), "free_bits must not be negative, got -1"),
        (lambda: vk.elbo(LOG_PX, KL, free_bits_per="x"), "free_bits_per must be one of dimension, group, got 'x'"),
        (lambda: vk.elbo(LOG_PX, KL, capacity_per="x"), "capacity_per must be one of sample, batch, got 'x'"),
        (lambda: vk.elbo(LOG_PX, KL, reduction="x"), "reduction must be one of mean, sum, none, got 'x'"),
        (
            lambda: vk.elbo(LOG_PX, KL, free_bits=1.0, free_bits_per="group", capacity=1.0),
            "at most one of free_bits and capacity",
        ),
        (lambda: vk.elbo(LOG_PX, KL, dataset_size=0, reduction="sum"), "dataset_size must be at least 1, got 0"),
        (lambda: vk.importance_weighted_elbo(KL[0], KL[0]), r"log_px must have the shape \(K, \*batch\).* got \(\)"),
        (lambda: vk.importance_weighted_elbo(KL[:0], KL[:0]), r"K of at least 1, got \(0,\)"),
        (lambda: vk.importance_weighted_elbo(PARTS, PARTS[0]), r"kl must have the shape of log_px, \(2, 3\).* \(3,\)"),
        (lambda: vk.importance_weighted_elbo(PARTS, PARTS, gradient="x"), "gradient must be one of iwae, dreg"),
        (lambda: vk.importance_weighted_elbo(PARTS, PARTS, gradient="dreg"), '"dreg" needs z'),
        (
            lambda: vk.importance_weighted_elbo(PARTS, PARTS, gradient="dreg", z=PARTS[0]),
            r"z must have the shape \(K, \*batch, ...\) = \(2, 3, .*\), got \(3,\)",
        ),
        (
            lambda: vk.score_function_elbo(LOG_PX, KL, KL[:2]),
            r"log_q must have the shape of log_px, \(3,\), got \(2,\)",
        ),
        (lambda: vk.score_function_elbo(LOG_PX, KL, KL, baseline=PARTS), r"baseline must broadcast to log_px, \(3,\)"),
        (lambda: vk.score_function_elbo(LOG_PX, KL, KL, baseline=KL[:2]), r"baseline must broadcast .* got \(2,\)"),
        (lambda: vk.score_function_elbo(LOG_PX, KL, KL, beta=KL), r"beta must be a number or .* got the shape \(3,\)"),
        (lambda: vk.elbo(LOG_PX, KL, beta=KL), r"beta must be a number or a tensor of one .* got the shape \(3,\)"),
        (lambda: vk.elbo(LOG_PX, KL, capacity=KL), r"capacity must be a number or .* got the shape \(3,\)"),
        (lambda: vk.log_marginal_likelihood(None, KL, num_samples=0, chunk=1), "num_samples must be at least 1, got 0"),
        (lambda: vk.log_marginal_likelihood(None, KL, num_samples=1, chunk=0), "chunk must be at least 1, got 0"),
        (
            lambda: vk.log_marginal_likelihood(None, KL, num_samples=1, chunk=1, proposal="x"),
            "proposal must be one of posterior, prior, got 'x'",
        ),
        (lambda: vk.linear_schedule(-1, 2), "step must not be negative, got -1"),
        (lambda: vk.cyclical_schedule(1, 2, cycles=0), "cycles must be at least 1, got 0"),
        (lambda: vk.cyclical_schedule(1, 2, ratio=0.0), r"ratio must be in \(0, 1\], got 0.0"),
        (lambda: vk.kl_per_dimension(KL), r"kl must have the shape \(N, \*latent\), .* got \(3,\)"),
        (lambda: vk.active_units(PARTS[:1]), r"N of at least 2, got \(1, 3\)"),
        (lambda: vk.aggregate_posterior(PARTS, KL), r"logvar must have the shape of mu, \(2, 3\), got \(3,\)"),
        (lambda: vk.aggregate_posterior(PARTS[:0], PARTS[:0]), r"N of at least 1, got \(0, 3\)"),
        (lambda: vk.bits_per_dimension(KL, 0), "dimensions must be at least 1, got 0"),
        (lambda: vk.bits_per_dimension(KL, 1, bin_width=0.0), "bin_width must be positive, got 0.0"),
    ],
)
def test_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vk.elbo([1.0], KL), "log_px must be a torch.Tensor, got list"),
        (lambda: vk.elbo(LOG_PX, KL.long()), "kl must have one of the dtypes torch.float64, .*, got torch.int64"),
        (lambda: vk.score_function_elbo(LOG_PX, KL, 1.0), "log_q must be a torch.Tensor, got float"),
    ],
)
def test_refused_types(call, message) -> None:
    with pytest.raises(TypeError, match=message):
        call()
