"""What is particular to one family of likelihoods: probabilities that add up, limits, arguments of its own."""

import math
import re
from collections.abc import Callable
from functools import partial

import mpmath
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from samples import DEVICE, F32, F64, OPS, sample
from torch.utils._python_dispatch import TorchDispatchMode

import vae_kernels as vk

EPS32 = torch.finfo(F32).eps


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("mean", "log_scale", "bins"), [(0.0, -2.0, 256), (0.97, -4.0, 256), (-3.0, 0.5, 7), (0.2, 0, 2)]
)
def test_probabilities_of_all_bins_add_up_to_1(backend: str, mean: float, log_scale: float, bins: int) -> None:
    x = torch.linspace(-1, 1, bins, dtype=F64, device=DEVICE)[:, None]
    log_p = vk.discretized_logistic_log_likelihood(torch.full_like(x, mean), x, log_scale, bins=bins)
    torch.testing.assert_close(log_p.exp().sum().item(), 1.0)


@pytest.mark.interpreted
@pytest.mark.parametrize(("mu", "theta"), [(3.0, 0.7), (0.01, 5.0), (40.0, 1000.0)])
@pytest.mark.parametrize("zero_logits", [None, -1.5])
def test_probabilities_of_all_counts_add_up_to_1(
    backend: str, mu: float, theta: float, zero_logits: float | None
) -> None:
    """They give the mean mu of the counts that are not dropped."""
    x = torch.arange(1000, dtype=F64, device=DEVICE)[:, None]
    rate = torch.full_like(x, mu)
    if zero_logits is None:
        p, kept = vk.negative_binomial_log_likelihood(rate, x, theta).exp(), 1.0
    else:
        p = vk.zero_inflated_negative_binomial_log_likelihood(rate, x, theta, zero_logits).exp()
        kept = 1 / (1 + np.exp(zero_logits))
    # What scvi-tools' 1e-8 in the rates adds, relative to mu and theta.
    slack = 2e-8 * (1 + 1 / mu + 1 / theta)
    torch.testing.assert_close(p.sum().item(), 1.0, rtol=slack, atol=0)
    torch.testing.assert_close((p * x[:, 0]).sum().item(), kept * mu, rtol=slack, atol=0)


@pytest.mark.parametrize("rate", [0.01, 3.0, 40.0])
def test_probabilities_of_all_counts_of_a_poisson_add_up_to_1(backend: str, rate: float) -> None:
    """They give the rate."""
    x = torch.arange(200, dtype=F64, device=DEVICE)[:, None]
    p = vk.poisson_log_likelihood(torch.full_like(x, math.log(rate)), x).exp()
    torch.testing.assert_close(p.sum().item(), 1.0, rtol=1e-14, atol=0)
    torch.testing.assert_close((p * x[:, 0]).sum().item(), rate, rtol=1e-13, atol=0)


@pytest.mark.parametrize("zero_logits", [-20.0, -1.5, 2.0])
def test_probabilities_of_all_counts_of_a_zero_inflated_poisson_add_up_to_1(backend: str, zero_logits: float) -> None:
    """They give the mean of the counts that are not dropped."""
    x = torch.arange(200, dtype=F64, device=DEVICE)[:, None]
    p = vk.zero_inflated_poisson_log_likelihood(torch.full_like(x, math.log(3)), x, zero_logits).exp()
    torch.testing.assert_close(p.sum().item(), 1.0, rtol=1e-14, atol=0)
    torch.testing.assert_close((p * x[:, 0]).sum().item(), 3 / (1 + math.exp(zero_logits)), rtol=1e-13, atol=0)


def test_continuous_density_integrates_to_1(backend: str) -> None:
    x = torch.linspace(0, 1, 20001, dtype=F64, device=DEVICE)[:, None]
    for logits in (0.0, 1e-5, -0.7, 1.9999, 2.0001, 30.0):
        density = vk.continuous_bernoulli_log_likelihood(torch.full_like(x, logits), x).exp()
        torch.testing.assert_close(torch.trapezoid(density, x[:, 0]).item(), 1.0, rtol=1e-5, atol=0)


@pytest.mark.interpreted
def test_large_counts_and_theta_do_not_cancel(kernel: str) -> None:
    """float32 near the Poisson limit, where ln Γ(x + θ) − ln Γ(θ) loses every digit of ln p: an error on the scale of
    |x − mu|, at most the rounding of what enters, instead of that of θ ln θ."""
    generator = torch.Generator().manual_seed(3)
    mu = 10 ** (torch.rand(300, 1, generator=generator) * 5)
    x = torch.poisson(mu, generator=generator)
    theta = 10 ** (4 + torch.rand(300, 1, generator=generator) * 4)
    found = vk.negative_binomial_log_likelihood(*(t.to(DEVICE) for t in (mu, x, theta))).cpu()
    with mpmath.workdps(reference.DIGITS):
        values = {name: reference.exact(t) for name, t in (("mu", mu), ("x", x), ("theta", theta))}
        (want,) = reference.negative_binomial(values, {"log_px": values["mu"]})[0]["log_px"]
        error = abs(reference.exact(found) - want[:, 0]).astype(np.float64)
    scale = 1 + (x - mu).abs()[:, 0].numpy() + abs(want[:, 0].astype(np.float64))
    assert (error <= 4 * EPS32 * scale).all()


@pytest.mark.interpreted
def test_gradients_near_the_poisson_limit(kernel: str) -> None:
    """To mu and x as good as the rounding of what enters; to theta on the scale of 1/theta, the size of the pieces of
    the digamma functions, where a sum of three logarithms and two digammas would lose all of it."""
    generator = torch.Generator().manual_seed(3)
    mu = 10 ** (torch.rand(300, 1, generator=generator) * 5)
    x = torch.poisson(mu, generator=generator)
    theta = 10 ** (4 + torch.rand(300, 1, generator=generator) * 4)
    inputs = {name: t.to(DEVICE).requires_grad_() for name, t in (("mu", mu), ("x", x), ("theta", theta))}
    found = torch.autograd.grad(vk.negative_binomial_log_likelihood(*inputs.values()).sum(), list(inputs.values()))
    with mpmath.workdps(reference.DIGITS):
        values = {name: reference.exact(t) for name, t in inputs.items()}
        m, n, t = values.values()
        gradients = reference.negative_binomial(values, {"log_px": mpmath.mpf(1)})[1]
        want = {name: sum(parts) for name, (parts,) in gradients.items()}
        scale = {
            "mu": abs(want["mu"]),
            "x": abs(want["x"]) + (abs(n - m) + 1) / (n + 1),
            "theta": abs(want["theta"]) + ((n - m) ** 2 + n + m) / t**2 + 1 / t,
        }
        for name, gradient in zip(inputs, found, strict=True):
            error = abs(reference.exact(gradient) - want[name]) / scale[name]
            assert (error.astype(np.float64) <= 4 * EPS32).all(), name


def test_a_mean_of_zero_stays_finite(backend: str) -> None:
    """A softmax decoder reaches it; scvi-tools' constant keeps the loss and its gradient finite there."""
    mu = torch.zeros(2, 3, device=DEVICE, requires_grad=True)
    x = torch.tensor([[0, 1, 1000]] * 2, device=DEVICE)
    log_p = vk.negative_binomial_log_likelihood(mu, x, 2.0)
    assert log_p.isfinite().all()
    assert torch.autograd.grad(log_p.sum(), mu)[0].isfinite().all()


@pytest.mark.emulated
@pytest.mark.interpreted
def test_a_number_before_a_tensor(backend: str) -> None:
    """theta as a number, zero_logits as a tensor: not taken for each other."""
    mu, x = torch.rand(4, 5, device=DEVICE) + 0.5, torch.randint(4, (4, 5), device=DEVICE)
    logits = torch.randn(5, device=DEVICE, requires_grad=True)
    found = vk.zero_inflated_negative_binomial_log_likelihood(mu, x, 3.0, logits)
    want = vk.zero_inflated_negative_binomial_log_likelihood(mu, x, torch.tensor(3.0, device=DEVICE), logits)
    assert torch.equal(found, want)
    upstream = torch.randn_like(found)
    assert torch.equal(*(torch.autograd.grad(o, logits, upstream)[0] for o in (found, want)))
    both = vk.zero_inflated_negative_binomial_log_likelihood(mu, x, 3, -1)
    torch.testing.assert_close(
        both, vk.zero_inflated_negative_binomial_log_likelihood(mu, x, 3.0, torch.full_like(mu, -1.0))
    )


@pytest.mark.parametrize(("bins", "error"), [(1, ValueError), (0, ValueError), (256.0, TypeError), (True, TypeError)])
def test_bins_refused(backend: str, bins: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="bins"):
        vk.discretized_logistic_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), bins=bins)


def _spoilt(value: float) -> torch.Tensor:
    tensor = torch.full((4, 3), 0.5, device=DEVICE)
    tensor[2, 1] = value
    return tensor


GOOD = _spoilt(0.5)
COUNTS = torch.ones(4, 3, dtype=torch.int64, device=DEVICE)

# The call, the argument's name, what is needed, and what the third sample holds.
BAD_VALUES = {
    "probs": (lambda: vk.bernoulli_probs_log_likelihood(_spoilt(1.5), GOOD), "probs", "[0, 1]", "(2,) holds 1.5"),
    "x": (lambda: vk.continuous_bernoulli_log_likelihood(GOOD, _spoilt(-1)), "x", "[0, 1]", "(2,) holds -1"),
    "pixel": (lambda: vk.discretized_logistic_log_likelihood(GOOD, _spoilt(2)), "x", "[-1, 1]", "(2,) holds 2"),
    "scale": (lambda: vk.laplace_log_likelihood(GOOD, GOOD, _spoilt(math.nan)), "log_scale", "NaN", "(2,) holds nan"),
    **{
        f"{name} {argument}": (call, argument, need, f"(2,) holds {value}")
        for name, function, more in (
            ("negative_binomial", vk.negative_binomial_log_likelihood, ()),
            ("zero_inflated", vk.zero_inflated_negative_binomial_log_likelihood, (0.0,)),
        )
        for argument, need, value, call in (
            ("mu", "at least 0", -0.5, lambda f=function, m=more: f(_spoilt(-0.5), COUNTS, 1.0, *m)),
            ("theta", "positive", 0.0, lambda f=function, m=more: f(GOOD, COUNTS, _spoilt(0), *m)),
            ("x", "at least 0", -1, lambda f=function, m=more: f(GOOD, _spoilt(-1).long(), 1.0, *m)),
        )
    },
    "zero_inflated_poisson x": (
        *(lambda: vk.zero_inflated_poisson_log_likelihood(GOOD, _spoilt(-1).long(), 0.0), "x", "at least 0"),
        "(2,) holds -1",
    ),
}


@pytest.mark.parametrize(("call", "name", "need", "where"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_are_checked_where_asked(backend: str, call: Callable, name: str, need: str, where: str) -> None:
    call()
    with vk.check_values(), pytest.raises(ValueError, match=rf"^{name} .*{re.escape(need)}.*{re.escape(where)}"):
        call()


@pytest.mark.parametrize("theta", [0.0, -1.0, torch.tensor([1.0, -1.0, 2.0], device=DEVICE)], ids=str)
def test_parameters_of_all_samples_are_checked_too(backend: str, theta: float | torch.Tensor) -> None:
    """The message names no sample, because all share the parameter."""
    with vk.check_values(), pytest.raises(ValueError, match=r"^theta must be positive, but it holds (-1|0)"):
        vk.negative_binomial_log_likelihood(GOOD, COUNTS, theta)


def test_checks_of_values_let_the_edges_pass(backend: str) -> None:
    zero, one = torch.zeros(4, 3, device=DEVICE), torch.ones(4, 3, device=DEVICE)
    with vk.check_values():
        vk.negative_binomial_log_likelihood(zero, zero, 1e-30)
        vk.zero_inflated_negative_binomial_log_likelihood(zero, zero.bool(), one[0], zero[0])
        vk.bernoulli_probs_log_likelihood(zero, one)
        vk.bernoulli_probs_log_likelihood(one, zero.to(torch.uint8))
        vk.discretized_logistic_log_likelihood(zero, -one)


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [torch.float64, F32, torch.bfloat16, torch.float16], ids=str)
def test_constant_pixels_under_a_tiny_variance(backend: str, dtype: torch.dtype) -> None:
    """A decoder with a learned variance reaches this: the density is large there, and only the variance has a gradient."""
    mean = torch.zeros(1, 1, dtype=dtype, device=DEVICE, requires_grad=True)
    logvar = torch.full_like(mean, -100).requires_grad_()
    log_px = vk.gaussian_log_likelihood(mean, torch.zeros_like(mean), logvar)
    want = torch.distributions.Normal(0.0, math.exp(-50)).log_prob(torch.zeros((), dtype=torch.float64)).item()
    torch.testing.assert_close(log_px.item(), want, rtol=4 * EPS32, atol=0)
    gradients = torch.autograd.grad(log_px.sum(), (mean, logvar))
    assert [g.item() for g in gradients] == [0.0, -0.5]
    log_px = vk.laplace_log_likelihood(mean, torch.zeros_like(mean), logvar)
    torch.testing.assert_close(log_px.item(), 100 - math.log(2), rtol=4 * EPS32, atol=0)
    assert [g.item() for g in torch.autograd.grad(log_px.sum(), (mean, logvar))] == [0.0, -1.0]


@pytest.mark.interpreted_accuracy
def test_a_poissons_limit(backend: str) -> None:
    """θ as far as float32 goes; and under transforms, where eager's formula answers."""
    theta = torch.tensor([[1e8], [1e20], [1e37]], device=DEVICE, requires_grad=True)
    mu, x = torch.full_like(theta, 3), torch.full_like(theta, 2)
    want = torch.distributions.Poisson(torch.tensor(3.0, dtype=F64)).log_prob(torch.tensor(2.0, dtype=F64)).item()
    for call in (
        vk.negative_binomial_log_likelihood,
        torch.func.vmap(partial(vk.negative_binomial_log_likelihood, batch_dims=0)),
    ):
        log_px = call(mu, x, theta)
        torch.testing.assert_close(log_px.flatten().tolist(), [want] * 3, rtol=16 * EPS32, atol=0)
        assert torch.autograd.grad(log_px.sum(), theta)[0].isfinite().all()


def test_poisson(backend: str) -> None:
    """Against torch.distributions in float64; a rate of 0; counts up to 1e15, where lgamma alone loses every digit."""
    rate = torch.tensor([[0.0, 1e-7, 0.3, 8.0, 97.3, 1e6]], dtype=F64, device=DEVICE)
    x = torch.tensor([[0, 3, 1, 8, 100, 1001000]], device=DEVICE)
    want = torch.distributions.Poisson(rate, validate_args=False).log_prob(x.double())
    found = vk.poisson_rate_log_likelihood(rate, x, reduction="none")
    torch.testing.assert_close(found, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(vk.poisson_log_likelihood(rate.clamp(min=1e-300).log(), x, reduction="none"), found)
    zero = torch.zeros(1, 2, device=DEVICE, requires_grad=True)
    log_px = vk.poisson_rate_log_likelihood(zero, torch.tensor([[0, 2]], device=DEVICE), reduction="none")
    assert log_px.tolist() == [[0, -math.inf]]
    (gradient,) = torch.autograd.grad(log_px.sum(), zero)
    assert gradient.tolist() == [[-1, math.inf]]
    # ln r − ψ(x + 1) is −1/2x there.
    large = torch.tensor([[1e15]], dtype=F64, device=DEVICE)
    x = large.clone().requires_grad_()
    log_px = vk.poisson_rate_log_likelihood(large, x)
    torch.testing.assert_close(log_px.item(), -0.5 * math.log(2 * math.pi * 1e15), rtol=1e-14, atol=0)
    torch.testing.assert_close(torch.autograd.grad(log_px.sum(), x)[0].item(), -0.5e-15, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("theta_shape", [(), (7,), (5, 7)], ids=str)
def test_mixture_of_negative_binomials(backend: str, theta_shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Against mpmath, value and gradients, summed and not, of parameters of several shapes."""
    shapes = {"mu1": (5, 7), "x": (5, 7), "mu2": (7,), "theta": theta_shape, "mixture_logits": (5, 1)}
    given = {
        name: torch.randn(shape, dtype=F64)
        if name == "mixture_logits"
        else torch.exp(2 * torch.randn(shape, dtype=F64))
        for name, shape in shapes.items()
    }
    given["x"] = torch.poisson(given["x"])
    given = {name: v.to(dtype).to(DEVICE).requires_grad_() for name, v in given.items()}
    for reduction in ("none", "sum"):
        log_px = vk.negative_binomial_mixture_log_likelihood(*given.values(), reduction=reduction)
        upstream = torch.randn_like(log_px)
        gradients = torch.autograd.grad(log_px, list(given.values()), upstream)
        with mpmath.workdps(reference.DIGITS):
            values = {name: np.broadcast_to(reference.exact(v), (5, 7)) for name, v in given.items()}
            full = upstream if reduction == "none" else upstream[:, None].expand(5, 7)
            outputs, slopes = reference.negative_binomial_mixture(values, {"log_px": reference.exact(full)})
            (elements,) = outputs["log_px"]
            want = elements if reduction == "none" else elements.sum(1)
            found = {"log_px": (log_px, want, abs(elements).sum())}
            for (name, tensor), gradient in zip(given.items(), gradients, strict=True):
                parts = [part for term in slopes[name] for part in (term if isinstance(term, tuple) else (term,))]
                total = torch.tensor(sum(parts).astype(np.float64)).sum_to_size(tensor.shape)
                found[name] = gradient, total.numpy(), sum(abs(part).sum() for part in parts)
        for name, (got, want, size) in found.items():
            error = abs(got.detach().cpu().double().numpy() - np.asarray(want).astype(np.float64))
            assert error.max() <= 16 * torch.finfo(dtype).eps * float(size), name


def test_what_a_mixture_of_negative_binomials_refuses() -> None:
    mu = torch.ones(2, 3)
    call = partial(vk.negative_binomial_mixture_log_likelihood, mu, mu)
    with pytest.raises(TypeError, match=r"mu2 must be a number or a torch\.Tensor, got str"):
        call("1", 1.0, 0.0)
    with pytest.raises(ValueError, match=r"mixture_logits .*\(2, 3\), got \(4,\)"):
        call(1.0, 1.0, torch.ones(4))
    with pytest.raises(ValueError, match="reduction must be one of sum, none"):
        call(1.0, 1.0, 0.0, reduction="mean")


@pytest.mark.interpreted_accuracy
def test_below_1e_8_a_count_is_zero(backend: str) -> None:
    """As in scvi-tools, whose formula is written out here: value and gradients do not depend on such an x."""
    for count in (-0.5, 0.0, 9e-9):
        mu, theta, logits = (torch.tensor([[v]], dtype=F64, device=DEVICE, requires_grad=True) for v in (1.0, 2.0, 0.3))
        x = torch.tensor([[count]], dtype=F64, device=DEVICE, requires_grad=True)
        log_px = vk.zero_inflated_negative_binomial_log_likelihood(mu, x, theta, logits)
        zero = theta * (torch.log(theta + 1e-8) - torch.log(theta + mu + 1e-8))
        want = torch.nn.functional.softplus(zero - logits) - torch.nn.functional.softplus(-logits)
        torch.testing.assert_close(log_px, want[0])
        found = torch.autograd.grad(log_px.sum(), (mu, theta, logits, x))
        assert found[3].item() == 0
        torch.testing.assert_close(found[:3], torch.autograd.grad(want.sum(), (mu, theta, logits)))
    torch.testing.assert_close(log_px.item(), -0.269738, rtol=1e-5, atol=0)


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, torch.bfloat16, torch.float16], ids=str)
def test_zeros_under_a_rate_beyond_its_type(backend: str, dtype: torch.dtype) -> None:
    """Where the rate overflows, a zero is an excess one, unless there are none; where it underflows, it is certain."""
    log_rate = torch.tensor([[1e4, 1e4, 1e4, 1e4, -1e4, -1e4]], dtype=dtype, device=DEVICE, requires_grad=True)
    logits = torch.tensor([[0.3, -1e4, 1e4, -math.inf, 0.3, -1e4]], dtype=dtype, device=DEVICE, requires_grad=True)
    x = torch.tensor([[0, 9e-9, -0.5, 0, 0, 0]], dtype=dtype, device=DEVICE, requires_grad=True)
    log_px = vk.zero_inflated_poisson_log_likelihood(log_rate, x, logits, reduction="none")
    to_log_rate, to_x, to_logits = torch.autograd.grad(log_px.sum(), (log_rate, x, logits))
    ordinary, least = logits.detach()[0, :2].double().cpu()
    want = torch.tensor([[F.logsigmoid(ordinary), least, 0, -math.inf, 0, 0]]).to(log_px)
    torch.testing.assert_close(log_px, want, rtol=4 * torch.finfo(log_px.dtype).eps, atol=0)
    assert to_log_rate.tolist() == [[0, 0, 0, -math.inf, 0, 0]] and not to_x.any()
    want = torch.tensor([[torch.sigmoid(-ordinary), 1, 0, 0, 0, 0]]).to(to_logits)
    torch.testing.assert_close(to_logits, want, rtol=4 * torch.finfo(dtype).eps, atol=0)


# Arguments outside the usual domain, where the formula still has a value.
OUTSIDE = {
    "bernoulli": ((0.7, -2.5), (-0.7, 3.0), (2.0, 255.0)),
    "gaussian": ((0.3, -200.0, -30.0), (1e5, -1e5, 20.0)),
    "laplace": ((0.3, -200.0, -30.0), (1e5, -1e5, 20.0)),
    "continuous_bernoulli": ((0.7, -2.5), (-3.0, 1.5), (40.0, 2.0)),
    "bernoulli_probs": ((0.3, -2.5), (0.9, 1.5)),
    "negative_binomial": ((1.0, -0.5, 2.0), (3.0, 0.4, 0.7), (1.0, -0.9, 1.5), (0.2, 1e-6, 3.0)),
    "zero_inflated_negative_binomial": ((1.0, -0.5, 2.0, 0.3), (3.0, 0.4, 0.7, -5.0), (3.0, -7.0, 0.7, 2.0)),
    "zero_inflated_poisson": ((0.0, -0.5, 0.3), (1.0, 0.4, -5.0), (1.0, -7.0, 2.0)),
    "discretized_logistic": ((0.3, 1.7, -1.0), (0.2, -2.0, 0.0), (3.0, 0.3, -2.0), (0.1, 0.1234, -3.0)),
}


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize(("family", "arguments"), [(f, a) for f, rows in OUTSIDE.items() for a in rows])
def test_the_gradient_is_that_of_the_value(backend: str, family: str, arguments: tuple[float, ...]) -> None:
    """The gradient agrees with differences of the value."""
    call = OPS[family].call
    inputs = [torch.tensor([[v]], dtype=F64, device=DEVICE, requires_grad=True) for v in arguments]
    gradients = torch.autograd.grad(call(*inputs, batch_dims=1).sum(), inputs)
    for i, gradient in enumerate(gradients):
        step = 1e-5 * max(abs(arguments[i]), 1e-2)
        sides = ([t.detach() + (side * step if i == j else 0) for j, t in enumerate(inputs)] for side in (1, -1))
        above, below = (call(*side, batch_dims=1).item() for side in sides)
        torch.testing.assert_close(gradient.item(), (above - below) / (2 * step), rtol=1e-5, atol=1e-7)


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize(
    "arguments", [(1.0, -1.5, 3.0), (1.0, -2.5, 4.0), (1.0, -0.5, 0.25), (1.0, 2.0, -0.5), (-1.0, 2.0, 1.0)]
)
def test_counts_that_no_formula_has_are_nan(backend: str, arguments: tuple[float, ...]) -> None:
    """Where a gamma function or a logarithm is of a negative number, even where two of them would hide it."""
    inputs = [torch.tensor([[v]], dtype=F64, device=DEVICE) for v in arguments]
    assert vk.negative_binomial_log_likelihood(*inputs).isnan().all()


class Names(TorchDispatchMode):
    """The ops that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.called.add(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", [op for op in OPS if op != "latent"])
def test_autocast_forbids_nothing(backend: str, family: str) -> None:
    """On CUDA it refuses `binary_cross_entropy`, in either direction."""
    inputs = sample(family).make()
    with Names() as names:
        torch.autograd.grad(OPS[family].call(*inputs.values(), batch_dims=1).sum(), list(inputs.values()))
    assert names.called
    assert not {name for name in names.called if name.startswith("binary_cross_entropy") and "logits" not in name}
