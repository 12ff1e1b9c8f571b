"""`vae_kernels.distributions.pyro` in Pyro's models and inference, beside Pyro's own distributions."""

import doctest
import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import JitTraceMeanField_ELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO
from pyro.infer.enum import config_enumerate
from pyro_vae import LATENT, PIXELS, Original, Ours, Vae, pictures, training
from torch import Tensor
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

import vae_kernels.distributions.pyro as ours
from vae_kernels.distributions import normal


@pytest.fixture(autouse=True)
def empty_store() -> None:
    pyro.clear_param_store()


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def negative_binomial(mu: Tensor, theta: Tensor) -> dist.Distribution:
    return dist.NegativeBinomial(theta, logits=torch.log(mu) - torch.log(theta))


# Ours, Pyro's namesake, positive parameters or any, and values.
Pair = tuple[type, Callable[..., dist.Distribution], tuple[Callable[..., Tensor], ...], Callable[..., Tensor]]


def positive(*shape: int) -> Tensor:
    return draw(*shape).abs() + 0.5


def counts(*shape: int) -> Tensor:
    return torch.poisson(positive(*shape))


PAIRS: dict[str, Pair] = {
    "normal": (ours.DiagonalNormal, lambda m, l: dist.Normal(m, torch.exp(l / 2)), (draw, draw), draw),
    "bernoulli": (
        ours.IndependentBernoulli,
        lambda a: dist.Bernoulli(logits=a),
        (draw,),
        lambda *shape: (draw(*shape) > 0).double(),
    ),
    "laplace": (ours.IndependentLaplace, lambda m, s: dist.Laplace(m, torch.exp(s)), (draw, draw), draw),
    "negative_binomial": (
        ours.IndependentNegativeBinomial,
        negative_binomial,
        (positive, positive),
        counts,
    ),
    "zero_inflated": (
        ours.IndependentZeroInflatedNegativeBinomial,
        lambda mu, theta, gate: dist.ZeroInflatedDistribution(negative_binomial(mu, theta), gate_logits=gate),
        (positive, positive, draw),
        counts,
    ),
    "categorical": (
        ours.IndependentCategorical,
        lambda a: dist.Categorical(logits=a),
        (lambda *shape: draw(*shape, 5),),
        lambda *shape: torch.randint(5, shape),
    ),
}

every = pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)


@every
def test_observed_in_plates(pair: Pair) -> None:
    """Expanded by plates, scaled, masked: the log-probability of the site and its gradients."""
    kind, namesake, draws, values = pair
    parameters = [one(1, 7).requires_grad_() for one in draws]
    x, mask = values(3, 4, 7), torch.tensor([True, False, True, True])

    def model(d: dist.Distribution) -> None:
        with poutine.scale(scale=2.5), pyro.plate("outer", 3, dim=-2), pyro.plate("inner", 4, dim=-1):
            pyro.sample("x", d.mask(mask), obs=x)

    found, expected = (
        poutine.trace(model).get_trace(d).log_prob_sum() for d in (kind(*parameters), namesake(*parameters).to_event(1))
    )
    torch.testing.assert_close(found, expected)
    ours_, theirs = torch.autograd.grad(found, parameters), torch.autograd.grad(expected, parameters)
    for have, want in zip(ours_, theirs, strict=True):
        torch.testing.assert_close(have, want)


@every
def test_shapes_are_those_that_pyro_expects(pair: Pair) -> None:
    kind, namesake, draws, _ = pair
    parameters = [one(4, 3, 7) for one in draws]
    mine, theirs = kind(*parameters), namesake(*parameters).to_event(1)
    assert mine.event_dim == theirs.event_dim and mine.shape((2,)) == theirs.shape((2,))
    assert mine((2,)).shape == theirs((2,)).shape
    for n in (None, 0, 1, 2):
        one, other = mine.to_event(n), theirs.to_event(n)
        assert type(one) is kind and (one.batch_shape, one.event_shape) == (other.batch_shape, other.event_shape)
    one, other = mine.to_event(-1), theirs.to_event(-1)
    assert (one.batch_shape, one.event_shape) == (other.batch_shape, other.event_shape)
    assert one.has_enumerate_support == other.has_enumerate_support
    assert not mine.has_enumerate_support
    assert mine.expand_by((5,)).batch_shape == (5, 4, 3) and type(mine.expand_by((5,))) is kind
    with pytest.raises(ValueError, match="reinterpreted_batch_ndims"):
        mine.to_event(3)
    with pytest.raises(ValueError, match="reinterpreted_batch_ndims"):
        mine.to_event(-2)


def test_enumerated_in_parallel() -> None:
    """The marginal log-likelihood of a mixture by TraceEnum_ELBO, to that of Pyro's own distributions."""
    x = draw(6, 7)

    def model(bernoulli: Callable, categorical: Callable) -> None:
        with pyro.plate("data", 6):
            side = pyro.sample("side", bernoulli(torch.tensor(0.4, dtype=torch.float64)))
            kind = pyro.sample("kind", categorical(torch.tensor([0.1, 0.5, -0.3], dtype=torch.float64)))
            mean = (side - kind).unsqueeze(-1).expand((*torch.broadcast_shapes(side.shape, kind.shape), 7))
            pyro.sample("x", dist.Normal(mean, torch.ones_like(mean)).to_event(1), obs=x)

    def guide(*_: Callable) -> None:
        pass

    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    both = (
        (lambda a: ours.IndependentBernoulli(a, 0), lambda a: ours.IndependentCategorical(a, 0)),
        (lambda a: dist.Bernoulli(logits=a), lambda a: dist.Categorical(logits=a)),
    )
    found, expected = (elbo.loss(config_enumerate(model, "parallel"), guide, *kinds) for kinds in both)
    assert math.isclose(found, expected, rel_tol=1e-6)


class Ops(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name().split("::")[1])
        return func(*args, **(kwargs or {}))


def test_a_step_of_mean_field_inference_has_one_latent_kernel() -> None:
    vae, x = Ours(), pictures(16)
    with Ops() as ops:
        TraceMeanField_ELBO().loss_and_grads(vae.model, vae.guide, x)
    assert ops.names.count("latent_forward") == ops.names.count("latent_backward") == 1


class SameNoise:
    """Hands the same normal numbers to Pyro's Normal and to ours, in the order in which they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.distributions.normal, "_standard_normal", self.draw)
        latent_step = normal.latent_step
        monkeypatch.setattr(
            normal,
            "latent_step",
            lambda mu, logvar, event_dims, *, num_samples: latent_step(
                mu, logvar, event_dims, eps=self.draw(mu.shape, mu.dtype, mu.device)
            ),
        )
        self.restart()

    def restart(self) -> None:
        self.generator, self.draws = torch.Generator().manual_seed(7), 0

    def draw(self, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
        self.draws += 1
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype).to(device)


ELBOS = {
    "analytic": TraceMeanField_ELBO,
    "sampled": Trace_ELBO,
    "particles": lambda: TraceMeanField_ELBO(num_particles=2),
    "vectorized": lambda: Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1),
}


@pytest.mark.parametrize("elbo", ELBOS.values(), ids=ELBOS)
def test_the_curve_is_that_of_the_original(elbo: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the same noise, step by step, to 1e-4."""
    noise = SameNoise(monkeypatch)
    curves, draws = [], []
    for kind in (Original, Ours):
        noise.restart()
        curves.append(list(training(kind, elbo(), seed=1)))
        draws.append(noise.draws)
    assert draws[0] == draws[1] >= 20
    original, found = map(torch.tensor, curves)
    torch.testing.assert_close(found, original, rtol=1e-4, atol=0)
    assert found[-4:].mean() < found[:4].mean() - 5  # nats: it did learn


def test_plain_training_agrees_statistically() -> None:
    """Each with its own noise, from the same weights: the mean loss of the last epochs over six runs differs by less than
    four standard errors of the difference."""

    def final(kind: type[Vae], seed: int) -> float:
        steps = list(training(kind, TraceMeanField_ELBO(), seed, epochs=8))
        return sum(steps[-16:]) / 16

    pairs = torch.tensor([[final(kind, seed) for kind in (Original, Ours)] for seed in range(6)], dtype=torch.float64)
    difference = pairs[:, 1] - pairs[:, 0]
    assert difference.std() > 0
    assert difference.mean().abs() < 4 * difference.std() / math.sqrt(len(pairs))


@pytest.mark.parametrize("prior", ["ours", "pyro's", "learned"])
def test_other_priors_and_masks(prior: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The KL of a masked site to priors of several kinds, by inference: loss and gradients."""
    noise, x = SameNoise(monkeypatch), pictures(8)
    mask = torch.tensor([True, True, False, True, True, False, True, True])
    losses, gradients = [], []
    for kind in (Original, Ours):
        noise.restart()
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        vae = kind()
        if prior != "ours" or kind is Original:
            location = torch.full((LATENT,), 0.0 if prior == "ours" else 0.5)
            location.requires_grad_(prior == "learned")
            vae.prior = lambda x, m=location: dist.Normal(m, torch.ones(LATENT)).to_event(1)
        model, guide = (poutine.mask(f, mask=mask) for f in (vae.model, vae.guide))
        losses.append(TraceMeanField_ELBO().loss_and_grads(model, guide, x))
        wanted = [*vae.parameters(), *([location] if prior == "learned" else [])]
        gradients.append([p.grad for p in wanted])
    assert math.isclose(*losses, rel_tol=1e-5)
    for have, want in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(have, want, rtol=1e-4, atol=1e-5)


def test_kl_of_wrapped_distributions() -> None:
    mu, logvar = draw(4, 7).requires_grad_(), draw(4, 7).requires_grad_()
    q, plain = ours.DiagonalNormal(mu, logvar, 0), dist.Normal(mu, torch.exp(logvar / 2))
    p, plain_p = (
        ours.DiagonalNormal.standard(7, dtype=torch.float64),
        dist.Normal(0 * mu, torch.ones_like(mu)).to_event(1),
    )
    expected = kl_divergence(plain.to_event(1), plain_p)
    torch.testing.assert_close(kl_divergence(q.to_event(1), p), expected)
    torch.testing.assert_close(kl_divergence(dist.Independent(q, 1), plain_p), expected)
    torch.testing.assert_close(kl_divergence(plain.to_event(1), p), expected)
    torch.testing.assert_close(
        kl_divergence(q.to_event(1).mask(False), p.expand((4,)).mask(True)), 0.0, check_dtype=False
    )
    torch.testing.assert_close(kl_divergence(q.to_event(1).mask(True), p.expand((4,)).mask(True)), expected)
    at = dist.Delta(draw(4, 7)).to_event(1)
    torch.testing.assert_close(
        kl_divergence(dist.Delta(at.base_dist.v, event_dim=1), q.to_event(1)),
        -plain.to_event(1).log_prob(at.base_dist.v),
    )


def test_traced_by_torch_jit() -> None:
    vae, x = Ours(), pictures(16)
    loss = JitTraceMeanField_ELBO(ignore_jit_warnings=True).loss_and_grads(vae.model, vae.guide, x)
    assert abs(loss / 16 - PIXELS * math.log(2)) < 15


def test_the_examples_run() -> None:
    failed, run = doctest.testmod(ours)
    assert run and not failed
