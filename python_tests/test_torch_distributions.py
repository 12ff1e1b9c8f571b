"""`vae_kernels.distributions` against the namesakes in torch.distributions, and scvi-tools' formulas, in float64."""

import copy
import doctest
import importlib
import math
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fresh_process import ROOT, python
from samples import BF16, DEVICE, F16, F32, F64
from torch import Tensor, distributions
from torch.distributions import Distribution, Independent, Normal, kl_divergence
from torch.func import grad, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from vae_kernels.distributions import (
    DiagonalNormal,
    IndependentBernoulli,
    IndependentCategorical,
    IndependentElements,
    IndependentLaplace,
    IndependentNegativeBinomial,
    IndependentZeroInflatedNegativeBinomial,
)

pytestmark = pytest.mark.around

CLASSES = 5
BATCH, EVENT = (4, 3), (2, 7)


@pytest.fixture(autouse=True)
def validation() -> Iterator[None]:
    """As torch has it, until the first compilation switches it off for the whole process."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(True)
    yield
    Distribution.set_default_validate_args(before)


class ScviNegativeBinomial(distributions.NegativeBinomial):
    """`log_nb_positive` of scvi-tools 1.x."""

    def __init__(self, mu: Tensor, theta: Tensor) -> None:
        self.scvi = mu, theta
        super().__init__(theta, logits=torch.log(mu) - torch.log(theta))

    def log_prob(self, x: Tensor) -> Tensor:
        (mu, theta), eps = self.scvi, 1e-8
        log_sum = torch.log(theta + mu + eps)
        return (
            theta * (torch.log(theta + eps) - log_sum)
            + x * (torch.log(mu + eps) - log_sum)
            + torch.lgamma(x + theta)
            - torch.lgamma(theta)
            - torch.lgamma(x + 1)
        )


class ScviZeroInflated(Distribution):
    """The mixture by its definition, and its moments by those of its parts."""

    arg_constraints = {}  # noqa: RUF012
    support = distributions.constraints.nonnegative_integer

    def __init__(self, mu: Tensor, theta: Tensor, zero_logits: Tensor) -> None:
        self.counts, self.dropped = ScviNegativeBinomial(mu, theta), torch.sigmoid(zero_logits)
        super().__init__(torch.broadcast_shapes(mu.shape, theta.shape, zero_logits.shape), validate_args=False)

    def log_prob(self, x: Tensor) -> Tensor:
        p = (1 - self.dropped) * torch.exp(self.counts.log_prob(x))
        return torch.log(torch.where(x == 0, self.dropped + p, p))

    @property
    def mean(self) -> Tensor:
        return (1 - self.dropped) * self.counts.mean

    @property
    def variance(self) -> Tensor:
        second = (1 - self.dropped) * (self.counts.variance + self.counts.mean**2)
        return second - self.mean**2


def normals(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=F64, device=DEVICE)


def positive(*shape: int) -> Tensor:
    return 0.5 + 5 * torch.rand(shape, dtype=F64, device=DEVICE)


def counts(*shape: int) -> Tensor:
    return torch.poisson(positive(*shape))


class Case(NamedTuple):
    ours: type[IndependentElements]
    theirs: Callable[..., Distribution]
    parameters: dict[str, Callable[..., Tensor]]
    values: Callable[..., Tensor]
    outside: float | None  # of the support
    classes: tuple[int, ...] = ()

    def draw(self, *shapes: tuple[int, ...]) -> dict[str, Tensor]:
        """Parameters of these shapes; the last is that of all the others."""
        return {
            name: draw(*shapes[min(i, len(shapes) - 1)], *self.classes).requires_grad_()
            for i, (name, draw) in enumerate(self.parameters.items())
        }

    def namesake(self, parameters: dict[str, Tensor], event_dims: int) -> Distribution:
        *_, shape = (torch.broadcast_shapes(*(p.shape for p in parameters.values())),)
        whole = [p.expand(shape) for p in parameters.values()]
        return Independent(self.theirs(*whole), event_dims, validate_args=False)


CASES = {
    "normal": Case(
        DiagonalNormal, lambda m, l: Normal(m, torch.exp(l / 2)), {"mu": normals, "logvar": normals}, normals, math.nan
    ),
    "bernoulli": Case(
        IndependentBernoulli,
        lambda a: distributions.Bernoulli(logits=a),
        {"logits": normals},
        lambda *shape: (normals(*shape) > 0).double(),
        0.5,
    ),
    "laplace": Case(
        IndependentLaplace,
        lambda m, s: distributions.Laplace(m, torch.exp(s)),
        {"loc": normals, "log_scale": normals},
        normals,
        math.nan,
    ),
    "negative_binomial": Case(
        IndependentNegativeBinomial, ScviNegativeBinomial, {"mu": positive, "theta": positive}, counts, -1
    ),
    "zero_inflated": Case(
        IndependentZeroInflatedNegativeBinomial,
        ScviZeroInflated,
        {"mu": positive, "theta": positive, "zero_logits": normals},
        counts,
        -1,
    ),
    "categorical": Case(
        IndependentCategorical,
        lambda a: distributions.Categorical(logits=a),
        {"logits": normals},
        lambda *shape: torch.randint(CLASSES, shape, device=DEVICE),
        CLASSES,
        (CLASSES,),
    ),
}

every = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


class Ops(TorchDispatchMode):
    """The names of the ops that run within."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))

    @property
    def ours(self) -> list[str]:
        return [name.split("::")[1] for name in self.names if name.startswith("vae_kernels")]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, check_dtype=False)


def same_with_gradients(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    """Values, and gradients under the same random upstream gradient."""
    close(found, expected)
    upstream = torch.randn_like(expected)
    options = {"retain_graph": True, "materialize_grads": True}
    ours = torch.autograd.grad(found, inputs, upstream.to(found.dtype), **options)
    for have, want in zip(ours, torch.autograd.grad(expected, inputs, upstream, **options), strict=True):
        close(have, want)


@every
@pytest.mark.parametrize("event_dims", [0, 1, 2, 4])
def test_shapes_are_those_of_the_namesake(case: Case, event_dims: int) -> None:
    parameters = case.draw(BATCH + EVENT, EVENT[1:])
    ours, theirs = case.ours(**parameters, event_dims=event_dims), case.namesake(parameters, event_dims)
    assert (ours.batch_shape, ours.event_shape) == (theirs.batch_shape, theirs.event_shape)
    assert ours.event_dims == event_dims
    assert ours.support.event_dim == theirs.support.event_dim
    assert ours.has_enumerate_support == theirs.has_enumerate_support
    assert ours.has_rsample == theirs.has_rsample
    for name, value in parameters.items():
        assert getattr(ours, name).shape == BATCH + EVENT + case.classes
        close(getattr(ours, name), value.expand(BATCH + EVENT + case.classes))
    wider = ours.expand((9, *ours.batch_shape))
    assert type(wider) is case.ours
    assert (wider.batch_shape, wider.event_shape) == ((9, *ours.batch_shape), ours.event_shape)
    assert wider.sample().shape == (9, *BATCH, *EVENT)


# Of the value, for the batch shape (4, 3) and the event shape (2, 7).
VALUES = [(4, 3, 2, 7), (6, 5, 4, 3, 2, 7), (2, 7), (5, 1, 3, 2, 7)]


@every
@pytest.mark.parametrize("shape", VALUES, ids=str)
@pytest.mark.parametrize("event_dims", [0, 1, 2])
@pytest.mark.parametrize("broadcast", ["whole", "per column", "per sample"])
def test_log_prob_is_that_of_the_namesake(
    case: Case, shape: tuple[int, ...], event_dims: int, broadcast: str, backend: str
) -> None:
    others = {"whole": BATCH + EVENT, "per column": EVENT[1:], "per sample": (*BATCH, 1, 1)}[broadcast]
    parameters, value = case.draw(BATCH + EVENT, others), case.values(*shape)
    inputs = list(parameters.values())
    if value.is_floating_point() and case.ours is not IndependentZeroInflatedNegativeBinomial:
        inputs.append(value.requires_grad_())
    if case.ours is IndependentBernoulli:  # whose value torch's formula does not differentiate at 0 and 1
        inputs.pop()
    found = case.ours(**parameters, event_dims=event_dims, validate_args=False).log_prob(value)
    same_with_gradients(found, case.namesake(parameters, event_dims).log_prob(value), *inputs)


@every
def test_an_expanded_one_is_that_of_expanded_parameters(case: Case, backend: str) -> None:
    parameters, value = case.draw((3, 1, 7), (7,)), case.values(5, 6, 3, 4, 7)
    ours = case.ours(**parameters).expand((6, 3, 4))
    theirs = case.namesake({name: p.expand(6, 3, 4, 7, *case.classes) for name, p in parameters.items()}, 1)
    same_with_gradients(ours.log_prob(value), theirs.log_prob(value), *parameters.values())
    torch.testing.assert_close(ours.mean, theirs.mean, equal_nan=True)
    assert ours.expand((2, 6, 3, 4))._validate_args
    assert case.ours(**parameters, validate_args=False).expand((6, 3, 4))._validate_args is False
    with pytest.raises(ValueError, match=r"batch_shape must be one that \(3, 1\) expands to, got \(4, 2\)"):
        case.ours(**parameters).expand((4, 2))


@every
def test_values_and_parameters_are_validated(case: Case) -> None:
    parameters, value = case.draw((4, 7)), case.values(4, 7)
    ours = case.ours(**parameters)
    ours.log_prob(value)
    value[2, 3] = case.outside if value.is_floating_point() else int(case.outside)
    with pytest.raises(ValueError, match="to be within the support"):
        ours.log_prob(value)
    case.ours(**parameters, validate_args=False).log_prob(value)
    with pytest.raises(ValueError, match="must match event_shape"):
        ours.log_prob(case.values(4, 6))
    with pytest.raises(ValueError, match="not broadcastable"):
        ours.log_prob(case.values(3, 7))
    with pytest.raises(TypeError, match=r"value must be a torch.Tensor, got float"):
        ours.log_prob(1.0)
    for name in parameters:
        bad = parameters[name].detach().clone()
        bad[1, 2] = math.nan
        with pytest.raises(ValueError, match=f"Expected parameter {name} "):
            case.ours(**parameters | {name: bad})
        case.ours(**parameters | {name: bad}, validate_args=False)
        with pytest.raises(TypeError, match=f"{name} must have one of the dtypes .* got torch.int64"):
            case.ours(**parameters | {name: bad.nan_to_num().long()})
        with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got str"):
            case.ours(**parameters | {name: "1"})
    with pytest.raises(ValueError, match=r"event_dims must be between 0 and 2, .* \(4, 7\), got 3"):
        case.ours(**parameters, event_dims=3)
    with pytest.raises(TypeError, match="event_dims must be an int, got float"):
        case.ours(**parameters, event_dims=1.0)


def test_shapes_that_do_not_broadcast_are_named() -> None:
    with pytest.raises(ValueError, match=r"must have shapes that broadcast, got mu \(4, 7\), theta \(6,\)"):
        IndependentNegativeBinomial(positive(4, 7), positive(6))
    with pytest.raises(ValueError, match=r"logits must have at least 1 dim, got the shape \(\)"):
        IndependentCategorical(torch.tensor(1.0))
    with pytest.raises(ValueError, match="event_dims must be between 0 and 0"):
        DiagonalNormal(0.0, 0.0)


@pytest.mark.parametrize(("name", "value"), [("mu", -1.0), ("theta", 0.0)])
def test_the_ranges_of_counts(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected parameter {name} "):
        IndependentNegativeBinomial(**{"mu": positive(4, 7), "theta": positive(4, 7)} | {name: torch.full((7,), value)})


def test_they_are_shown_as_torch_shows_its_own() -> None:
    assert repr(DiagonalNormal(torch.zeros(2, 3), torch.zeros(3), 2)) == (
        "DiagonalNormal(mu: torch.Size([2, 3]), logvar: torch.Size([2, 3]), event_dims: 2)"
    )
    assert repr(IndependentLaplace(0.0, torch.tensor(1.0), 0)) == (
        "IndependentLaplace(loc: 0.0, log_scale: 1.0, event_dims: 0)"
    )


@pytest.mark.parametrize(
    "case",
    [CASES[name] for name in ("normal", "laplace", "negative_binomial", "zero_inflated")],
    ids=lambda c: c.ours.__name__,
)
def test_numbers_stand_for_tensors(case: Case) -> None:
    first, *others = case.parameters
    parameters, value = case.draw((4, 7)), case.values(3, 4, 7)
    numbers = dict.fromkeys(others, 1.5)
    tensors = {name: torch.full((4, 7), 1.5, dtype=F64, device=DEVICE) for name in others}
    ours, same = (case.ours(parameters[first], **o) for o in (numbers, tensors))
    close(ours.log_prob(value), same.log_prob(value))
    close(ours.variance, same.variance)
    alone = case.ours(**dict.fromkeys(case.parameters, 1.5), event_dims=0)
    assert alone.batch_shape == () and alone.mean.dtype == torch.get_default_dtype()
    close(
        alone.log_prob(value.to(F32).cpu()),
        case.namesake(tensors | {first: tensors[others[0]]}, 0).log_prob(value).to(F32).cpu(),
    )


@every
def test_moments_and_entropy_are_those_of_the_namesake(case: Case) -> None:
    parameters = case.draw((4, 3, 7), (7,))
    ours, theirs = case.ours(**parameters), case.namesake(parameters, 1)
    inputs = tuple(parameters.values())
    if case.ours is IndependentCategorical:
        assert ours.mean.isnan().all() and ours.variance.isnan().all()
    else:
        for name in ("mean", "variance", "stddev"):
            same_with_gradients(getattr(ours, name), getattr(theirs, name), *inputs)
    if case.ours is not IndependentZeroInflatedNegativeBinomial:
        close(ours.mode, theirs.mode)
    if "theta" in parameters:
        with pytest.raises(NotImplementedError):
            ours.entropy()
    else:
        same_with_gradients(ours.entropy(), theirs.entropy(), *inputs)


def test_counts_are_those_of_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    mu, theta, x = positive(50), positive(50), counts(50)
    n, p = theta.cpu().numpy(), (theta / (theta + mu)).cpu().numpy()
    ours = IndependentNegativeBinomial(mu, theta, event_dims=0)
    # Less the 1e-8 of scvi-tools' formula.
    np.testing.assert_allclose(ours.log_prob(x).cpu(), stats.nbinom.logpmf(x.cpu().numpy(), n, p), rtol=1e-6)
    mean, variance = stats.nbinom.stats(n, p)
    np.testing.assert_allclose(ours.mean.cpu(), mean)
    np.testing.assert_allclose(ours.variance.cpu(), variance)


def test_moments_at_extreme_log_scales_do_not_overflow() -> None:
    far = torch.tensor([-300.0, 300.0], device=DEVICE)
    entropy = 0.5 * (1 + math.log(2 * math.pi) + far)
    close(DiagonalNormal(far, far, 0).entropy(), entropy)
    close(IndependentLaplace(far, far, 0).entropy(), 1 + math.log(2) + far)


@every
@pytest.mark.parametrize("method", ["sample", "rsample"])
def test_samples_have_the_moments(case: Case, method: str) -> None:
    parameters = case.draw((3,))
    ours = case.ours(**parameters)
    if method == "rsample" and not ours.has_rsample:
        with pytest.raises(NotImplementedError):
            ours.rsample()
        return
    x = getattr(ours, method)((100, 200))
    assert x.shape == (100, 200, 3) and x.requires_grad == (method == "rsample")
    torch.manual_seed(3)
    first = getattr(ours, method)((2,))
    torch.manual_seed(3)
    assert torch.equal(getattr(ours, method)((2,)), first)
    x = x.detach().flatten(0, 1)
    if case.ours is IndependentCategorical:
        x = torch.nn.functional.one_hot(x, CLASSES)
        mean, variance = ours.probs, ours.probs * (1 - ours.probs)
    else:
        mean, variance = ours.mean, ours.variance
    # Six standard errors; that of the variance by the samples' fourth moment.
    x, n = x.double(), len(x)
    assert ((x.mean(0) - mean).abs() < 6 * (variance / n).sqrt()).all()
    spread = (x - mean).detach() ** 2
    assert ((spread.mean(0) - variance).abs() < 6 * spread.std(0) / math.sqrt(n)).all()


@every
@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("event_dims", [0, 1, 2])
def test_sample_shapes(case: Case, sample_shape: tuple[int, ...], event_dims: int, backend: str) -> None:
    ours = case.ours(**case.draw((4, 7)), event_dims=event_dims)
    if 0 in sample_shape and case.ours is IndependentCategorical:
        with pytest.raises(RuntimeError):  # torch's own draws none either
            ours.sample(sample_shape)
        return
    assert ours.sample(sample_shape).shape == (*sample_shape, 4, 7)
    if ours.has_rsample:
        z = ours.rsample(torch.Size(sample_shape))
        assert z.shape == (*sample_shape, 4, 7) and z.requires_grad
        torch.autograd.grad(z.sum(), getattr(ours, next(iter(case.parameters))))


@pytest.mark.parametrize("sample_shape", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("event_dims", [0, 1, 2])
@pytest.mark.parametrize("shape", [(4, 7), (7,), ()], ids=str)
def test_rsample_is_differentiated(sample_shape, event_dims: int, shape: tuple[int, ...], backend: str) -> None:
    """By the noise that z tells of."""
    mu, logvar = normals(4, 7).requires_grad_(), normals(*shape).requires_grad_()
    z = DiagonalNormal(mu, logvar, event_dims).rsample(sample_shape)
    eps = ((z - mu) * torch.exp(-logvar / 2)).detach()
    same_with_gradients(z, mu + torch.exp(logvar / 2) * eps, mu, logvar)
    assert len(eps.unique()) == eps.numel()


@pytest.mark.parametrize("case", [CASES["bernoulli"], CASES["categorical"]], ids=["bernoulli", "categorical"])
def test_supports_are_enumerated(case: Case) -> None:
    parameters = case.draw((4, 3))
    for expand in (True, False):
        found = case.ours(**parameters, event_dims=0).enumerate_support(expand)
        assert torch.equal(found, case.namesake(parameters, 0).enumerate_support(expand))
    with pytest.raises(NotImplementedError, match="event_dims=0"):
        case.ours(**parameters).enumerate_support()


@pytest.mark.parametrize("case", [CASES["normal"], CASES["laplace"]], ids=["normal", "laplace"])
def test_cdf_and_its_inverse(case: Case) -> None:
    parameters, value = case.draw((4, 3)), case.values(4, 3)
    ours, theirs = case.ours(**parameters, event_dims=0), case.namesake(parameters, 0).base_dist
    close(ours.cdf(value), theirs.cdf(value))
    close(ours.icdf(ours.cdf(value)), value)
    for method in ("cdf", "icdf"):
        with pytest.raises(NotImplementedError, match="event_dims=0"):
            getattr(case.ours(**parameters), method)(value)


@pytest.mark.parametrize("dtype", [F16, BF16, F32, F64])
@every
def test_sums_are_float32_at_least(case: Case, dtype: torch.dtype, backend: str) -> None:
    parameters = {name: p.detach().to(dtype).requires_grad_() for name, p in case.draw((4, 33)).items()}
    value = case.values(3, 4, 33)
    value = value.to(dtype) if value.is_floating_point() else value
    log_prob = case.ours(**parameters).log_prob(value)
    assert log_prob.dtype == (F64 if dtype == F64 else F32)
    wide = {name: p.detach().double() for name, p in parameters.items()}
    wide_value = value.double() if value.is_floating_point() else value
    close(log_prob, case.namesake(wide, 1).log_prob(wide_value).to(log_prob.dtype))
    gradients = torch.autograd.grad(log_prob.sum(), parameters.values())
    assert {g.dtype for g in gradients} == {dtype}
    if "theta" not in parameters:
        entropy = case.ours(**parameters).entropy()
        assert entropy.dtype == log_prob.dtype
    if case.ours is DiagonalNormal:
        q = case.ours(**parameters)
        z, kl = q.rsample(), kl_divergence(q, DiagonalNormal.standard(33, device=DEVICE))
        assert z.dtype == dtype and kl.dtype == log_prob.dtype
        close(kl, kl_divergence(case.namesake(wide, 1), standard_normal(4, 33)).to(kl.dtype))


def test_targets_may_be_integers(backend: str) -> None:
    logits, x = normals(4, 7), normals(4, 7) > 0
    expected = IndependentBernoulli(logits).log_prob(x.double())
    for dtype in (torch.bool, torch.uint8, torch.int64, F16):
        assert torch.equal(IndependentBernoulli(logits).log_prob(x.to(dtype)), expected)
    classes = normals(4, 7, CLASSES)
    assert torch.equal(
        IndependentCategorical(classes).log_prob(x.double()),
        IndependentCategorical(classes).log_prob(x.to(torch.uint8)),
    )


# KL divergences.


def standard_normal(*shape: int) -> Independent:
    zeros = torch.zeros(shape, dtype=F64, device=DEVICE)
    return Independent(Normal(zeros, torch.ones_like(zeros)), 1)


def leaves(*shape: int) -> tuple[Tensor, Tensor]:
    return normals(*shape).requires_grad_(), normals(*shape).requires_grad_()


def independent(mu: Tensor, logvar: Tensor, event_dims: int = 1) -> Independent:
    return Independent(Normal(mu, torch.exp(logvar / 2)), event_dims)


KINDS = {
    "ours": DiagonalNormal,
    "independent": independent,
    "nested": lambda mu, logvar, n: Independent(independent(mu, logvar, 0), n),
    "ours within": lambda mu, logvar, n: Independent(DiagonalNormal(mu, logvar, 0), n),
}


@pytest.mark.parametrize(
    "kinds", [(q, p) for q in KINDS for p in KINDS if {q, p} & {"ours", "ours within"}], ids="-".join
)
@pytest.mark.parametrize("event_dims", [0, 1, 2])
@pytest.mark.parametrize(
    "shapes", [((5, 4, 7), (5, 4, 7)), ((5, 4, 7), (4, 7)), ((4, 7), (5, 4, 7)), ((5, 1, 7), (1, 4, 7))], ids=str
)
def test_kl_to_a_normal(kinds: tuple[str, str], event_dims: int, shapes, backend: str) -> None:
    (mu, logvar), (prior_mu, prior_logvar) = leaves(*shapes[0]), leaves(*shapes[1])
    q, p = KINDS[kinds[0]](mu, logvar, event_dims), KINDS[kinds[1]](prior_mu, prior_logvar, event_dims)
    q.rsample()
    expected = kl_divergence(
        independent(*(t.expand(5, 4, 7) for t in (mu, logvar)), event_dims),
        independent(*(t.expand(5, 4, 7) for t in (prior_mu, prior_logvar)), event_dims),
    )
    same_with_gradients(kl_divergence(q, p), expected, mu, logvar, prior_mu, prior_logvar)


def test_kl_beside_a_plain_normal(backend: str) -> None:
    mu, logvar = leaves(4, 7)
    q, p = DiagonalNormal(mu, logvar, 0), Normal(*(torch.tensor(v, dtype=F64, device=DEVICE) for v in (0.3, 1.7)))
    plain = Normal(mu, torch.exp(logvar / 2))
    same_with_gradients(kl_divergence(q, p), kl_divergence(plain, p), mu, logvar)
    same_with_gradients(kl_divergence(p, q), kl_divergence(p, plain), mu, logvar)


@pytest.mark.parametrize(
    "p",
    [DiagonalNormal(torch.zeros(4, 7), 0.0, 2), independent(torch.zeros(4, 7), torch.zeros(4, 7), 2), Normal(0.0, 1.0)],
)
def test_events_of_other_dims_have_no_kl(p: Distribution) -> None:
    q = DiagonalNormal(torch.zeros(4, 7), 0.0)
    for pair in ((q, p), (p, q)):
        with pytest.raises(NotImplementedError, match="dims"):
            kl_divergence(*pair)


def test_what_is_no_normal_has_no_kl() -> None:
    q = DiagonalNormal(torch.zeros(4, 7), 0.0)
    with pytest.raises(NotImplementedError, match="no KL divergence is known"):
        kl_divergence(q, Independent(distributions.Cauchy(torch.zeros(4, 7), 1.0), 1))
    with pytest.raises(NotImplementedError):
        kl_divergence(
            IndependentNegativeBinomial(torch.ones(4, 7), 1.0), IndependentNegativeBinomial(torch.ones(4, 7), 2.0)
        )


@pytest.mark.parametrize(
    "names", [("bernoulli",) * 2, ("laplace",) * 2, ("categorical",) * 2, ("normal", "laplace")], ids="-".join
)
def test_others_have_the_kl_that_torch_has(names: tuple[str, str]) -> None:
    q, p = (CASES[name] for name in names)
    of_q, of_p = q.draw((4, 3, 7)), p.draw((3, 7))
    whole = {name: value.expand(4, 3, 7, *p.classes) for name, value in of_p.items()}
    expected = kl_divergence(q.namesake(of_q, 1), p.namesake(whole, 1))
    same_with_gradients(kl_divergence(q.ours(**of_q), p.ours(**of_p)), expected, *of_q.values(), *of_p.values())
    with pytest.raises(NotImplementedError, match="dims"):
        kl_divergence(q.ours(**of_q), p.ours(**of_p, event_dims=2))


def test_the_kl_draws_nothing() -> None:
    mu, logvar = leaves(4, 7)
    before = torch.get_rng_state()
    kl_divergence(DiagonalNormal(mu, logvar), DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    assert torch.equal(torch.get_rng_state(), before)


# The KL that comes with a sample.

STANDARDS = {
    "standard": lambda: DiagonalNormal.standard(7, dtype=F64, device=DEVICE),
    "of a batch": lambda: DiagonalNormal.standard((7,), (4,), dtype=F64, device=DEVICE),
    "expanded": lambda: DiagonalNormal.standard(7, dtype=F32, device=DEVICE).expand((4,)),
}


@pytest.mark.parametrize("p", STANDARDS.values(), ids=STANDARDS)
@pytest.mark.parametrize("sample_shape", [(), (3,)], ids=str)
def test_a_sample_and_its_kl_are_one_kernel(p, sample_shape, kernel: str) -> None:
    mu, logvar = leaves(4, 7)
    with Ops() as ops:
        q = DiagonalNormal(mu, logvar, validate_args=False)
        z = q.rsample(sample_shape)
        kl = kl_divergence(q, p())
    assert ops.ours == ["latent_forward"]
    assert not [name for name in ops.names if "local_scalar" in name or "_is_all_true" in name or "equal" in name]
    eps = ((z - mu) * torch.exp(-logvar / 2)).detach()
    upstream = torch.randn_like(z)
    plain = kl_divergence(independent(mu, logvar), standard_normal(4, 7))
    close(kl, plain)
    with Ops() as ops:
        found = torch.autograd.grad((z * upstream).sum() + kl.sum(), (mu, logvar))
    assert ops.ours == ["latent_backward"]
    expected = torch.autograd.grad(((mu + torch.exp(logvar / 2) * eps) * upstream).sum() + plain.sum(), (mu, logvar))
    for have, want in zip(found, expected, strict=True):
        close(have, want)


def test_a_kept_kl_is_the_computed_one_to_the_bit(backend: str) -> None:
    mu, logvar = leaves(4, 700)
    q, p = DiagonalNormal(mu, logvar), DiagonalNormal.standard(700, dtype=F64, device=DEVICE)
    q.rsample()
    assert torch.equal(kl_divergence(q, p), kl_divergence(q, p))


def test_a_kept_kl_expands_to_the_prior_s_batch(kernel: str) -> None:
    mu, logvar = leaves(4, 7)
    q = DiagonalNormal(mu, logvar)
    with Ops() as ops:
        q.rsample()
        kl = kl_divergence(q, DiagonalNormal.standard(7, (3, 4), dtype=F64, device=DEVICE))
    assert ops.ours == ["latent_forward"] and kl.shape == (3, 4)
    same_with_gradients(kl, kl_divergence(independent(mu, logvar), standard_normal(3, 4, 7)), mu, logvar)


def test_a_kept_kl_is_handed_out_once(backend: str) -> None:
    """So that what is done to it in place concerns no other."""
    mu, logvar = leaves(4, 7)
    q, p = DiagonalNormal(mu, logvar), DiagonalNormal.standard(7, dtype=F64, device=DEVICE)
    q.rsample()
    kl_divergence(q, p).mul_(2)
    plain = kl_divergence(independent(mu, logvar), standard_normal(4, 7))
    same_with_gradients(kl_divergence(q, p), plain, mu, logvar)
    with torch.no_grad():
        q.sample()
        kl_divergence(q, p).mul_(2)
        close(kl_divergence(q, p), plain)


def test_events_broadcast_as_those_of_torch(backend: str) -> None:
    """An event of one element beside one of three, which counts it three times."""
    mu, logvar = leaves(4, 1)
    q = DiagonalNormal(mu, logvar)
    q.rsample()
    kl = kl_divergence(q, DiagonalNormal.standard(3, dtype=F64, device=DEVICE))
    same_with_gradients(kl, kl_divergence(independent(mu, logvar), standard_normal(4, 3)), mu, logvar)


NOT_STANDARD = {
    "another mean": lambda: DiagonalNormal(0.5, torch.zeros(7, dtype=F64, device=DEVICE)),
    "another variance": lambda: DiagonalNormal(torch.zeros(7, dtype=F64, device=DEVICE), 0.5),
    "zeros in tensors": lambda: DiagonalNormal(torch.zeros(7, dtype=F64, device=DEVICE), 0.0),
    "numbers": lambda: DiagonalNormal(0.5, 0.0, 0).expand((4, 7)),
    "torch's": lambda: standard_normal(7),
}


@pytest.mark.parametrize("p", NOT_STANDARD.values(), ids=NOT_STANDARD)
def test_for_another_prior_the_kl_is_computed(p, kernel: str) -> None:
    mu, logvar = leaves(4, 7)
    p = p()
    event_dims = len(p.event_shape)
    q = DiagonalNormal(mu, logvar, event_dims)
    with Ops() as ops:
        z = q.rsample()
        kl = kl_divergence(q, p)
    assert ops.ours == ["latent_forward", "latent_forward"]
    plain = p if isinstance(p, Independent) else independent(p.mu, p.logvar, event_dims)
    same_with_gradients(kl, kl_divergence(independent(mu, logvar, event_dims), plain), mu, logvar)
    with Ops() as ops:  # the kept one is still there
        kl = kl_divergence(q, DiagonalNormal.standard(q.event_shape, dtype=F64, device=DEVICE))
    assert not ops.ours and z.requires_grad
    same_with_gradients(
        kl, kl_divergence(independent(mu, logvar, event_dims), independent(0 * mu, 0 * logvar, event_dims)), mu, logvar
    )


def test_python_zeros_are_a_standard_normal(kernel: str) -> None:
    mu, logvar = leaves(4, 7)
    q, p = DiagonalNormal(mu, logvar, 0), DiagonalNormal(0, 0.0, 0)
    p._like = p._like.to(DEVICE)
    with Ops() as ops:
        q.rsample()
        kl = kl_divergence(q, p)
    assert ops.ours == ["latent_forward"]
    same_with_gradients(kl, kl_divergence(independent(mu, logvar, 0), independent(0 * mu, 0 * logvar, 0)), mu, logvar)


def test_a_wider_prior_widens_the_kl(kernel: str) -> None:
    mu, logvar = (t.detach().float() for t in leaves(4, 7))
    q = DiagonalNormal(mu, logvar)
    q.rsample()
    kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    assert kl.dtype == F64
    close(kl, kl_divergence(independent(mu.double(), logvar.double()), standard_normal(4, 7)))


def computes_anew(q: DiagonalNormal, *leaves: Tensor, between: Callable[[], None]) -> None:
    """What is done between leads to another kernel, and to the right KL."""
    z = q.rsample()
    between()
    with Ops() as ops:
        kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    assert ops.ours == ["latent_forward"] and z.shape == (4, 7)
    plain = kl_divergence(independent(q.mu, q.logvar), standard_normal(4, 7))
    if torch.is_grad_enabled():
        same_with_gradients(kl, plain, *leaves)
    else:
        close(kl, plain)
        assert not kl.requires_grad


def test_after_a_change_in_place(kernel: str) -> None:
    mu, logvar = leaves(4, 7)

    def change(t: Tensor) -> Callable[[], None]:
        def between() -> None:
            with torch.no_grad():
                t.add_(1)

        return between

    computes_anew(DiagonalNormal(mu, logvar), mu, logvar, between=change(mu))
    computes_anew(DiagonalNormal(mu, logvar), mu, logvar, between=change(logvar))
    moments = normals(4, 14).requires_grad_()
    computes_anew(DiagonalNormal(moments[:, :7], moments[:, 7:]), moments, between=change(moments))
    one = normals(7).requires_grad_()
    computes_anew(DiagonalNormal(mu, one), mu, one, between=change(one))


def test_where_gradients_are_recorded_otherwise(kernel: str) -> None:
    mu, logvar = leaves(4, 7)
    q = DiagonalNormal(mu, logvar)
    with torch.no_grad():
        q.rsample()
    kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    same_with_gradients(kl, kl_divergence(independent(mu, logvar), standard_normal(4, 7)), mu, logvar)
    q.sample()
    kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    same_with_gradients(kl, kl_divergence(independent(mu, logvar), standard_normal(4, 7)), mu, logvar)
    q.rsample()
    with torch.no_grad():
        kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    assert not kl.requires_grad
    constant = normals(4, 7)
    computes_anew(DiagonalNormal(constant, logvar), constant, logvar, between=constant.requires_grad_)


def test_without_gradients_too_it_is_one_kernel(kernel: str) -> None:
    q = DiagonalNormal(normals(4, 7), normals(4, 7))
    with torch.no_grad(), Ops() as ops:
        z = q.sample()
        kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    assert ops.ours == ["latent_forward"] and not z.requires_grad
    close(kl, kl_divergence(independent(q.mu, q.logvar), standard_normal(4, 7)))


def test_after_a_backward_pass_that_freed_its_graph(backend: str) -> None:
    mu, logvar = leaves(4, 7)
    q, p = DiagonalNormal(mu, logvar), DiagonalNormal.standard(7, dtype=F64, device=DEVICE)
    q.rsample().sum().backward()
    plain = kl_divergence(independent(mu, logvar), standard_normal(4, 7))
    same_with_gradients(kl_divergence(q, p), plain, mu, logvar)
    # Retained, the graph serves.
    z = q.rsample()
    z.sum().backward(retain_graph=True)
    with Ops() as ops:
        kl = kl_divergence(q, p)
    assert not ops.ours
    same_with_gradients(kl, plain, mu, logvar)
    # A second KL, after the backward pass through the first.
    q.rsample()
    kl_divergence(q, p).sum().backward()
    same_with_gradients(kl_divergence(q, p), plain, mu, logvar)


def test_one_after_the_other_backward_needs_a_retained_graph(kernel: str) -> None:
    """What the documentation says: z and the kept KL are results of one node."""
    mu, logvar = leaves(4, 7)
    q = DiagonalNormal(mu, logvar)
    z, kl = q.rsample(), kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    z.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        kl.sum().backward()


def test_in_inference_mode(kernel: str) -> None:
    with torch.inference_mode():
        q = DiagonalNormal(normals(4, 7), normals(4, 7))
        computes_anew(q, between=lambda: q.mu.add_(1))


def test_a_sampled_one_is_copied_without_its_kl(kernel: str) -> None:
    q = DiagonalNormal(*leaves(4, 7))
    q.rsample()
    for copied in (copy.deepcopy(q), copy.copy(q), pickle.loads(pickle.dumps(q)), q.expand((4,))):
        assert copied._kept is None
        assert torch.equal(copied.mu, q.mu) and (copied.batch_shape, copied.event_shape) == (
            q.batch_shape,
            q.event_shape,
        )
    assert q._kept is not None


def test_hooks_on_saved_tensors_are_not_called_for_a_look(kernel: str) -> None:
    def unpack(_: Tensor) -> Tensor:
        raise AssertionError("unpacked")

    q = DiagonalNormal(*leaves(4, 7))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        q.rsample()
    with Ops() as ops:
        kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    assert not ops.ours


# Compiled code and transforms.


@pytest.fixture
def as_compiled(validation: None) -> None:
    """Without validation, as a process is once it has compiled something: Dynamo traces none. Nor does it trace how torch
    finds the formula of a pair of classes that it has not met: the docs say so."""
    Distribution.set_default_validate_args(False)
    kl_divergence(DiagonalNormal.standard(1), DiagonalNormal.standard(1))


def terms(mu: Tensor, logvar: Tensor, logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    q = DiagonalNormal(mu, logvar)
    z = q.rsample()
    kl = kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))
    return z, kl, IndependentBernoulli(logits).log_prob(x) + q.log_prob(x)


@pytest.mark.parametrize("graph", ["aot_eager", "inductor"])
def test_compiled(graph: str, as_compiled: None) -> None:
    mu, logvar = leaves(4, 7)
    logits, x = normals(4, 7).requires_grad_(), (normals(3, 1, 7) > 0).double()
    z, kl, log_prob = torch.compile(terms, fullgraph=True, backend=graph)(mu, logvar, logits, x)
    eps = ((z - mu) * torch.exp(-logvar / 2)).detach()
    same_with_gradients(z, mu + torch.exp(logvar / 2) * eps, mu, logvar)
    same_with_gradients(kl, kl_divergence(independent(mu, logvar), standard_normal(4, 7)), mu, logvar)
    bernoulli = Independent(distributions.Bernoulli(logits=logits), 1)
    same_with_gradients(log_prob, bernoulli.log_prob(x) + independent(mu, logvar).log_prob(x), mu, logvar, logits)


def test_a_change_in_place_in_compiled_code(as_compiled: None) -> None:
    def changed(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        q = DiagonalNormal(mu, logvar)
        z = q.rsample()
        mu.add_(1)
        return z, kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))

    mu, logvar = normals(4, 7), normals(4, 7)
    expected = kl_divergence(independent(mu + 1, logvar), standard_normal(4, 7))
    close(torch.compile(changed, fullgraph=True, backend="aot_eager")(mu, logvar)[1], expected)


def test_a_sample_from_outside_of_compiled_code(as_compiled: None) -> None:
    mu, logvar = leaves(4, 7)
    q, p = DiagonalNormal(mu, logvar), DiagonalNormal.standard(7, dtype=F64, device=DEVICE)
    q.rsample()
    kl = torch.compile(lambda q: kl_divergence(q, p), fullgraph=True, backend="aot_eager")(q)
    same_with_gradients(kl, kl_divergence(independent(mu, logvar), standard_normal(4, 7)), mu, logvar)


def test_under_vmap_and_grad() -> None:
    mu, logvar = (t.detach() for t in leaves(4, 7))
    p = DiagonalNormal.standard(7, dtype=F64, device=DEVICE)

    def kl(mu: Tensor, logvar: Tensor) -> Tensor:
        q = DiagonalNormal(mu, logvar, validate_args=False)
        q.rsample()
        return kl_divergence(q, p)

    expected = kl_divergence(independent(mu, logvar), standard_normal(4, 7))
    close(vmap(kl, randomness="different")(mu, logvar), expected)
    close(vmap(grad(kl), randomness="different")(mu, logvar), mu)
    # Sampled outside, whose KL is not that of what is within.
    q = DiagonalNormal(mu, logvar)
    q.rsample()
    close(grad(lambda _: kl_divergence(q, p).sum())(mu), torch.zeros_like(mu))


def test_a_change_in_place_within_vmap(backend: str) -> None:
    """Of what it maps over, through the tensor itself: the mapped one does not count it."""
    mu = torch.zeros(4, 7, dtype=F64, device=DEVICE)

    def kl(one: Tensor) -> Tensor:
        q = DiagonalNormal(one, 0.0, validate_args=False)
        q.rsample()
        mu.add_(1)
        return kl_divergence(q, DiagonalNormal.standard(7, dtype=F64, device=DEVICE))

    close(vmap(kl, randomness="different")(mu), torch.full((4,), 3.5, dtype=F64, device=DEVICE))


# The package around them.


@pytest.mark.parametrize("name", ["", ".base", ".counts", ".kl", ".likelihoods", ".normal"])
def test_the_examples_run(name: str) -> None:
    module = importlib.import_module(f"vae_kernels.distributions{name}")
    failed, run = doctest.testmod(module)
    assert not failed and (run or name in (".base", ".kl"))


def test_the_examples_of_the_page_run() -> None:
    failed, run = doctest.testfile(str(ROOT / "docs/distributions.md"), module_relative=False)
    assert run and not failed


def test_importing_imports_no_other_package(tmp_path: Path) -> None:
    """Each would be an error."""
    for name in ("pyro", "scvi", "diffusers"):
        (tmp_path / f"{name}.py").write_text("raise AssertionError(__name__)")
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    code = """
import sys
import vae_kernels
before = [name for name in sys.modules if name.startswith("vae_kernels.distributions")]
import vae_kernels.distributions
try:
    import vae_kernels.distributions.pyro
except AssertionError as error:
    print(before, error)
"""
    assert python(code, **path) == "[] pyro"
