"""Eager on a device without float64: it makes no float64 tensor, and keeps its error rule.

A CPU pretends to be one. Eager is told that it has no float64, and whatever makes a float64 tensor is refused.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence

import mpmath
import numpy as np
import pytest
import reference
import torch
from error_rule import SLACK_ULP
from latent_cases import CASES, SAMPLED, SPREADS, LatentCase
from noise_cases import SEEDS, edge_normals, edge_words, ulp_apart
from public_calls import CALLS
from samples import F64, I64, OPS, VALUES, Sample, sample
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vae_kernels as vk
from vae_kernels import eager, noise
from vae_kernels.models import LIKELIHOODS, MLPVAE


class NoFloat64(TorchDispatchMode):
    """Refuses whatever makes a float64 tensor, but torch's own tangents of Python numbers, which no device sees."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        found = op(*args, **(kwargs or {}))
        made = [t for t in tree_leaves(found) if isinstance(t, Tensor) and t.dtype == F64 and not t.is_meta]
        if not all(t._is_zerotensor() for t in made):
            raise RuntimeError(f"{op} makes float64, which this device has not")
        return found


@pytest.fixture(autouse=True)
def without_float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(eager, "FLOAT64_DEVICES", ())
    with vk.use_backend("eager"):
        yield


def to_second_order(call: Callable[..., object], inputs: Sequence[Tensor]) -> None:
    """Outputs, gradients and gradients of these, float64 being refused."""
    outputs = call(*inputs)
    for create_graph in (True, False):
        outputs = [o for o in (outputs if isinstance(outputs, tuple | list) else [outputs]) if o is not None]
        outputs = [o for o in outputs if o.requires_grad]
        if outputs:
            upstream = [torch.randn_like(o) for o in outputs]
            outputs = torch.autograd.grad(outputs, inputs, upstream, create_graph=create_graph, allow_unused=True)


def test_float64_is_refused() -> None:
    with NoFloat64(), pytest.raises(RuntimeError, match="makes float64"):
        torch.zeros(3).double()


@pytest.mark.parametrize("seed", SEEDS)
def test_noise_of_a_seed(seed: int) -> None:
    for rows, cols in ((1, 1), (3, 5), (7, 1025), (300, 3), (1, 70001)):
        zero = torch.zeros(rows, cols)
        with NoFloat64():
            z, _ = vk.reparameterize_kl(zero, zero, seed=seed)
        assert ulp_apart(z, reference.normals(seed, rows, cols)) <= SLACK_ULP


@pytest.mark.parametrize("form", ["int", "tensor", "of_each_sample", "samples", "packed", "channels_last"])
def test_forms_of_a_seed(form: str) -> None:
    """The noise is that of a device with float64, within its bound."""
    zero = torch.zeros(3, 4, 2, 6)
    given = {
        "tensor": {"seed": torch.tensor(5)},
        "of_each_sample": {"seed": torch.tensor([5, 2**40, 0])},
        "samples": {"seed": 5, "num_samples": 3},
    }.get(form, {"seed": 5})
    if form == "channels_last":
        zero = zero.contiguous(memory_format=torch.channels_last)
    call = vk.reparameterize_kl_packed if form == "packed" else lambda t, **kw: vk.reparameterize_kl(t, t, **kw)
    with NoFloat64():
        z, _ = call(zero, **given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(eager, "FLOAT64_DEVICES", ("cpu",))
        want, _ = call(zero, **given)
    assert not torch.equal(z, want)
    assert ulp_apart(z, want.double().numpy()) <= SLACK_ULP + 0.5


def test_box_muller_at_its_edges() -> None:
    for lane, want in zip(noise.box_muller(*edge_words()), edge_normals(), strict=True):
        assert ulp_apart(lane, want) <= SLACK_ULP


@pytest.mark.parametrize("near_1", [False, True])
@pytest.mark.parametrize("near_axis", [False, True])
def test_box_muller_of_many_words(near_1: bool, near_axis: bool) -> None:
    """A million of each: any, and with u next to 1 and angles next to every axis, at distances of every size."""
    size = 10**6
    word0, word1 = torch.randint(2**32, (2, size)).numpy().astype(np.uint64)
    random = np.random.default_rng(1)
    if near_1:
        word0 = np.uint64(2**32 - 1) - np.exp(random.uniform(0, 22, size)).astype(np.uint64)
    if near_axis:
        distance = np.exp(random.uniform(0, 20, size)).astype(np.int64) * random.choice((-1, 1), size)
        word1 = ((random.integers(4, size=size) * 2**30 + distance) % 2**32).astype(np.uint64)
    u = word0.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
    radius = np.sqrt(-2 * np.log(u.astype(np.float64)))
    lanes = noise.box_muller(*(torch.from_numpy(w.astype(np.int64)) for w in (word0, word1)))
    for lane, part in zip(lanes, reference._sine_cosine_of_turns(word1), strict=True):
        assert ulp_apart(lane, radius * part) <= SLACK_ULP


NARROW = [case for case in CASES if F64 not in case.dtypes and math.prod(case.shape) < 10**4]


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_latent_error_rule(case: LatentCase) -> None:
    case.check_error_rule("eager")


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_latent_refused(case: LatentCase) -> None:
    function, inputs = case.of_inputs()
    with NoFloat64():
        to_second_order(function, inputs)


SEEDS_GIVEN = {"drawn": None, "int": 3, "tensor": torch.tensor([3]), "of_each_sample": torch.tensor([3, 1, 4])}


@pytest.mark.parametrize(
    ("scale", "estimator", "seed"),
    list(itertools.product(SPREADS, ("analytic", *SAMPLED), SEEDS_GIVEN)),
)
def test_seeded_latent_refused(scale: str, estimator: str, seed: str) -> None:
    tensors = [t.requires_grad_() for t in (torch.randn(3, 5), torch.rand(3, 5) + 0.5, torch.randn(5), torch.randn(5))]
    for clamp, count, reduction in itertools.product((None, (-1, 0.5)), (None, 2), ("sum", "none")):

        def step(*t: Tensor) -> tuple[Tensor, Tensor]:
            return vk.reparameterize_kl(
                *t[:2],
                prior_mu=t[2],
                prior_logvar=t[3],
                scale=scale,
                kl_estimator=estimator,
                seed=SEEDS_GIVEN[seed],
                logvar_clamp=clamp,  # noqa: B023
                num_samples=count,  # noqa: B023
                kl_reduction=reduction,  # noqa: B023
            )

        with NoFloat64():
            to_second_order(step, tensors)


@pytest.mark.parametrize("case", [case for case in VALUES if case.op == "latent" and F64 not in case.dtypes], ids=str)
def test_error_rule(case: Sample) -> None:
    case.check_error_rule("eager")


@pytest.mark.parametrize("values", [(op, values) for op in OPS for values in OPS[op].values], ids=str)
def test_likelihoods_refused(values: tuple[str, str]) -> None:
    op, kind = values
    for dtypes in OPS[op].dtypes:
        if F64 not in dtypes:
            function, inputs = sample(op, (3, 5), values=kind, dtypes=dtypes).of_inputs()
            with NoFloat64():
                to_second_order(function, inputs)


@pytest.mark.parametrize("name", CALLS)
def test_calls_refused(name: str) -> None:
    """Numbers as parameters, the categorical, objectives and statistics."""
    inputs = [torch.randn(6, 5).requires_grad_() for _ in range(2)]
    with NoFloat64():
        to_second_order(CALLS[name], inputs)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_models_refused(likelihood: str) -> None:
    model = MLPVAE((1, 4, 4), (5,), 2, likelihood, -1.0)
    x = torch.rand(3, 1, 4, 4)
    with NoFloat64():
        model.elbo(x, seed=1).elbo.sum().backward()
        vk.log_marginal_likelihood(model, x, num_samples=5, chunk=2)
        model.sample(2)


def test_transforms_refused() -> None:
    """Under `torch.func` eager answers for every backend."""
    mu, std = torch.randn(3, 5), torch.rand(3, 5) + 0.5

    def total(mu: Tensor, std: Tensor) -> Tensor:
        z, kl = vk.reparameterize_kl(mu, std, scale="std", seed=1, batch_dims=mu.dim() - 1)
        return z.sum() + kl.sum()

    with NoFloat64():
        torch.func.vmap(torch.func.grad(total))(mu, std)
        torch.func.jvp(total, (mu, std), (std, mu))
        torch.func.hessian(total)(mu, std)


@pytest.mark.parametrize("scale", ["std", "variance"])
@pytest.mark.parametrize("near_1", [False, True])
def test_kl_of_a_spread(scale: str, near_1: bool) -> None:
    """Within the error rule of float32 as people write it from a spread, near the prior and over twelve decades."""
    size = torch.cat((10 ** torch.linspace(-7, -0.5, 300), -(10 ** torch.linspace(-7, -0.5, 300))))
    spread = 1 + size if near_1 else 10 ** torch.linspace(-6, 6, 600)
    zero = torch.zeros_like(spread)
    with NoFloat64():
        kl = vk.reparameterize_kl(zero, spread, scale=scale, eps=zero, kl_reduction="none", batch_dims=0)[1]
    with mpmath.workdps(30):
        numbers = [mpmath.mpf(s) for s in spread.tolist()]
        variances = [s**2 if scale == "std" else s for s in numbers]
        want = np.array([float((v - 1 - mpmath.log(v)) / 2) for v in variances])
    logvar = 2 * torch.log(spread) if scale == "std" else torch.log(spread)
    plain = -0.5 * (1 + logvar - logvar.exp())
    there = want > 0
    mine, people = (ulp_apart(t[there], want[there]) for t in (kl, plain))
    assert mine <= 2 * people + SLACK_ULP
    assert (kl >= 0).all()


def test_integers_beyond_float32() -> None:
    """Classes and seeds are never converted to floats."""
    logits = torch.randn(2, 3, requires_grad=True)
    with NoFloat64():
        log_px = vk.categorical_log_likelihood(logits, torch.tensor([0, 2**62], dtype=I64))
        assert log_px.isnan().tolist() == [False, True]
