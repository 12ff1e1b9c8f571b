"""What is particular to one family of likelihoods: probabilities that add up, limits, arguments of its own."""

import math
import re
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import reference
import torch
from samples import DEVICE, F32, F64

import vae_kernels as vk

EPS32 = torch.finfo(F32).eps


@pytest.mark.parametrize(
    ("mean", "log_scale", "bins"), [(0.0, -2.0, 256), (0.97, -4.0, 256), (-3.0, 0.5, 7), (0.2, 0, 2)]
)
def test_probabilities_of_all_bins_add_up_to_1(backend: str, mean: float, log_scale: float, bins: int) -> None:
    x = torch.linspace(-1, 1, bins, dtype=F64, device=DEVICE)[:, None]
    log_p = vk.discretized_logistic_log_likelihood(torch.full_like(x, mean), x, log_scale, bins=bins)
    torch.testing.assert_close(log_p.exp().sum().item(), 1.0)


@pytest.mark.parametrize(("mu", "theta"), [(3.0, 0.7), (0.01, 5.0), (40.0, 1000.0)])
@pytest.mark.parametrize("zero_logits", [None, -1.5])
def test_probabilities_of_all_counts_add_up_to_1(
    backend: str, mu: float, theta: float, zero_logits: float | None
) -> None:
    """And give the mean mu, of the counts that are not dropped."""
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


def test_continuous_density_integrates_to_1(backend: str) -> None:
    x = torch.linspace(0, 1, 20001, dtype=F64, device=DEVICE)[:, None]
    for logits in (0.0, 1e-5, -0.7, 1.9999, 2.0001, 30.0):
        density = vk.continuous_bernoulli_log_likelihood(torch.full_like(x, logits), x).exp()
        torch.testing.assert_close(torch.trapezoid(density, x[:, 0]).item(), 1.0, rtol=1e-5, atol=0)


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
}


@pytest.mark.parametrize(("call", "name", "need", "where"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_values_are_checked_where_asked(backend: str, call: Callable, name: str, need: str, where: str) -> None:
    call()
    with vk.check_values(), pytest.raises(ValueError, match=rf"^{name} .*{re.escape(need)}.*{re.escape(where)}"):
        call()


@pytest.mark.parametrize("theta", [0.0, -1.0, torch.tensor([1.0, -1.0, 2.0], device=DEVICE)], ids=str)
def test_parameters_of_all_samples_are_checked_too(backend: str, theta: float | torch.Tensor) -> None:
    """And no sample is named that would be innocent."""
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
