"""Bounds and gradient estimators on a linear-Gaussian model, against its exact log p(x) and gradients, by z-tests.

A z-test refuses a right estimator with probability `FALSE_ALARM` at most, all its coordinates together; the seeds are
fixed, so that it does so always or never. That it can refuse a wrong one is tested too.
"""

import math

import pytest
import torch
from linear_gaussian import LinearGaussian, exact_posterior
from scipy.stats import norm
from torch import Tensor

import vae_kernels as vk
from vae_kernels import objectives

FALSE_ALARM = 1e-6
SEEDS = 20_000


def z_scores(samples: Tensor, expected: Tensor) -> Tensor:
    """Of the mean over the leading dim."""
    return (samples.mean(0) - expected) / (samples.std(0) / math.sqrt(len(samples)))


def limit(coordinates: int) -> float:
    return norm.isf(FALSE_ALARM / (2 * coordinates))


def assert_mean(samples: Tensor, expected: Tensor) -> None:
    scores = z_scores(samples, expected)
    assert scores.abs().max() < limit(scores.numel()), scores


X = torch.tensor([0.7, -1.1]).double()
BIAS = torch.tensor([0.1, 0.2]).double()
WEIGHT = torch.tensor([[0.9], [-0.4]]).double()
MU, LOGVAR = 0.3, -0.6


def copies(n: int, mu: float = MU, logvar: float = LOGVAR) -> LinearGaussian:
    """One latent, and n copies of all parameters: what autograd gives for each is one draw of an estimator."""
    mu, logvar = (torch.full((n, 1), value, dtype=torch.float64, requires_grad=True) for value in (mu, logvar))
    return LinearGaussian(mu, logvar, WEIGHT.repeat(n, 1, 1).requires_grad_(), BIAS, -0.5)


def parameters(model: LinearGaussian) -> list[Tensor]:
    return [model.mu, model.logvar, model.weight]


def gradients(model: LinearGaussian, value: Tensor) -> Tensor:
    """Of each copy, `(n, 4)`: by mu, by logvar, by W. A decoder's parameter that takes no part has gradient 0."""
    found = torch.autograd.grad(value.sum(), parameters(model), materialize_grads=True)
    return torch.cat([g.flatten(1) for g in found], dim=1)


def sgvb(kl_estimator: str):
    def value(model: LinearGaussian, seed: int) -> Tensor:
        log_px, kl, _ = model.terms(X.expand(len(model.mu), 2), seed, kl_estimator=kl_estimator)
        return vk.elbo(log_px, kl, reduction="none")

    return value


def several(kl_estimator: str):
    def value(model: LinearGaussian, seed: int) -> Tensor:
        log_px, kl, _ = model.terms(X.expand(len(model.mu), 2), seed, kl_estimator=kl_estimator, num_samples=3)
        return vk.elbo(log_px, kl, reduction="none")

    return value


def weighted(samples: int, kl_estimator: str, gradient: str = "iwae"):
    def value(model: LinearGaussian, seed: int) -> Tensor:
        x = X.expand(len(model.mu), 2)
        log_px, kl, z = model.terms(x, seed, kl_estimator=kl_estimator, num_samples=samples)
        return vk.importance_weighted_elbo(log_px, kl, z=z, gradient=gradient)

    return value


def score_function(kl_estimator: str, baseline: float | None):
    def value(model: LinearGaussian, seed: int) -> Tensor:
        z, kl = vk.reparameterize_kl(model.mu, model.logvar, seed=seed, kl_estimator="analytic")
        z = z.detach()
        log_q = vk.gaussian_log_likelihood(model.mu, z, model.logvar)
        if kl_estimator == "monte_carlo":
            kl = log_q - vk.gaussian_log_likelihood(torch.zeros_like(z), z)
        log_px = model.log_px(X.expand(len(z), 2), z)
        return vk.score_function_elbo(log_px, kl, log_q, baseline=baseline, reduction="none")

    return value


ONE_SAMPLE = {
    "B": sgvb("analytic"),
    "A": sgvb("monte_carlo"),
    "sticking the landing": sgvb("path"),
    "B of three": several("analytic"),
    "A of three": several("monte_carlo"),
    "sticking the landing, weighted": weighted(1, "path"),
    "iwae of one": weighted(1, "monte_carlo"),
    "dreg of one": weighted(1, "path", "dreg"),
    "score function": score_function("analytic", None),
    "score function with a baseline": score_function("analytic", -4.0),
    "score function, kl of the sample": score_function("monte_carlo", -4.0),
}


def test_quadrature_is_exact() -> None:
    """The yardstick of K = 2 against the closed form of K = 1, and against itself with more nodes."""
    model = copies(1)
    x = X.expand(1, 2)
    torch.testing.assert_close(model.quadrature_bound(x, 1), model.exact_elbo(x), rtol=1e-10, atol=0)
    torch.testing.assert_close(model.quadrature_bound(x, 2), model.quadrature_bound(x, 2, nodes=60), rtol=1e-10, atol=0)


@pytest.mark.parametrize("name", ONE_SAMPLE)
def test_gradients_of_the_elbo_are_unbiased(name: str) -> None:
    model = copies(SEEDS)
    value = ONE_SAMPLE[name](model, 1)
    x = X.expand(SEEDS, 2)
    assert_mean(value.detach(), model.exact_elbo(x)[0].detach())
    exact = gradients(model, model.exact_elbo(x))[0]
    assert_mean(gradients(model, value), exact)


@pytest.mark.parametrize(("samples", "kl_estimator", "gradient"), [(2, "monte_carlo", "iwae"), (2, "path", "dreg")])
def test_gradients_of_the_weighted_bound_are_unbiased(samples: int, kl_estimator: str, gradient: str) -> None:
    model, one = copies(SEEDS), copies(1)
    bound = one.quadrature_bound(X.expand(1, 2), samples)
    value = weighted(samples, kl_estimator, gradient)(model, 2)
    assert_mean(value.detach(), bound[0].detach())
    assert_mean(gradients(model, value), gradients(one, bound)[0])


@pytest.mark.parametrize(
    ("samples", "kl_estimator", "gradient"),
    [(2, "path", "iwae"), (2, "monte_carlo", "dreg")],
    ids=["sticking the landing with two samples", "dreg with a full gradient"],
)
def test_the_z_test_refuses_what_is_biased(
    monkeypatch: pytest.MonkeyPatch, samples: int, kl_estimator: str, gradient: str
) -> None:
    """Tucker et al. 2019, section 3: sticking the landing is biased for K > 1."""
    model, one = copies(SEEDS), copies(1)
    exact = gradients(one, one.quadrature_bound(X.expand(1, 2), samples))[0]
    monkeypatch.setattr(objectives, "kl_estimator_of", lambda kl: None)  # it would be refused
    scores = z_scores(gradients(model, weighted(samples, kl_estimator, gradient)(model, 2)), exact).abs()
    assert scores[:2].max() > 2 * limit(4)  # of the encoder
    assert scores[2:].max() < limit(4)  # the decoder's are those of every estimator


def variance(model: LinearGaussian, value: Tensor) -> Tensor:
    return gradients(model, value).var(0)


@pytest.mark.parametrize("samples", [1, 2, 10, 50])
def test_path_gradients_vary_less_near_the_posterior(samples: int) -> None:
    """Of the encoder; the decoder's gradient is the same sample by sample."""
    mean, logvar = exact_posterior(WEIGHT, BIAS, -0.5, X)
    n = SEEDS // samples
    model = copies(n, mean.item() + 0.1, logvar.item() + 0.2)
    plain = variance(model, weighted(samples, "monte_carlo")(model, 3))
    dreg = variance(model, weighted(samples, "path", "dreg")(model, 3))
    assert (dreg[:2] < plain[:2] / 4).all()
    torch.testing.assert_close(dreg[2:], plain[2:])
    if samples == 1:
        assert (variance(model, weighted(1, "path")(model, 3))[:2] < plain[:2] / 4).all()


def test_more_samples_drown_the_iwae_gradient_but_not_that_of_dreg() -> None:
    """Rainforth et al. 2018: the encoder's signal-to-noise ratio falls as 1/√K, here from 2 to 50 to a fifth; that of
    DReG rises as √K."""
    mean, logvar = exact_posterior(WEIGHT, BIAS, -0.5, X)
    ratios = []
    for samples in (2, 50):
        model = copies(SEEDS // samples, mean.item() + 0.1, logvar.item() + 0.2)
        draws = (
            gradients(model, value(model, 9))[:, :2]
            for value in (weighted(samples, "monte_carlo"), weighted(samples, "path", "dreg"))
        )
        plain, dreg = (d.std(0) for d in draws)
        # Both estimate the same, and DReG's mean is by far the better known.
        signal = gradients(model, weighted(samples, "path", "dreg")(model, 10))[:, :2].mean(0).abs()
        ratios.append((signal / plain, signal / dreg))
    (plain_of_2, dreg_of_2), (plain_of_50, dreg_of_50) = ratios
    assert (plain_of_50 < plain_of_2 / 3).all() and (dreg_of_50 > dreg_of_2 * 3).all()


def test_at_the_posterior_the_path_gradient_is_zero() -> None:
    """Roeder et al. 2017: w is p(x) whatever z, so nothing is left to vary; the plain gradient still does."""
    mean, logvar = exact_posterior(WEIGHT, BIAS, -0.5, X)
    model = copies(100, mean.item(), logvar.item())
    for value in (weighted(1, "path"), weighted(5, "path", "dreg")):
        encoder = gradients(model, value(model, 4))[:, :2]
        torch.testing.assert_close(encoder, torch.zeros_like(encoder), rtol=0, atol=1e-12)
    assert gradients(model, weighted(5, "monte_carlo")(model, 4))[:, :2].var() > 1e-2


def test_the_score_function_varies_more_and_a_baseline_helps() -> None:
    model = copies(SEEDS)
    reparameterized, plain, with_baseline = (
        variance(model, ONE_SAMPLE[name](model, 5))[:2]
        for name in ("B", "score function", "score function with a baseline")
    )
    assert (reparameterized < with_baseline).all() and (with_baseline < plain / 2).all()


def test_dreg_by_hand(backend: str) -> None:
    """Two samples, one latent: every factor written out."""
    model = copies(1)
    value = weighted(2, "path", "dreg")(model, 6)
    with torch.no_grad():
        _, _, z = model.terms(X.expand(1, 2), 6, num_samples=2)
    z = z.flatten().tolist()
    s, v, weight = math.exp(LOGVAR / 2), math.exp(-0.5), WEIGHT.flatten().tolist()
    log_w, by_z, by_weight = [], [], []
    for z_k in z:
        errors = [x - w * z_k - b for x, w, b in zip(X.tolist(), weight, BIAS.tolist(), strict=True)]
        log_px = sum(-0.5 * (-0.5 + e * e / v + math.log(2 * math.pi)) for e in errors)
        log_w.append(log_px - 0.5 * z_k**2 + 0.5 * (LOGVAR + ((z_k - MU) / s) ** 2))
        by_z.append(sum(w * e for w, e in zip(weight, errors, strict=True)) / v - z_k + (z_k - MU) / s**2)
        by_weight.append([z_k * e / v for e in errors])
    total = sum(map(math.exp, log_w))
    weights = [math.exp(l) / total for l in log_w]
    expected = [
        sum(w**2 * d for w, d in zip(weights, by_z, strict=True)),
        sum(w**2 * d * 0.5 * (z_k - MU) for w, d, z_k in zip(weights, by_z, z, strict=True)),
        *(sum(w * d[i] for w, d in zip(weights, by_weight, strict=True)) for i in range(2)),
    ]
    torch.testing.assert_close(value, torch.tensor([math.log(total / 2)]).double())
    torch.testing.assert_close(gradients(model, value)[0], torch.tensor(expected).double())


def six_dimensional(offset: float = 0.3) -> tuple[LinearGaussian, Tensor]:
    """Three x, two latents, and a posterior that is off by `offset`: the ELBO is below log p(x)."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator).double() for shape in ((6, 2), (3, 6)))
    weight[:, 1] -= weight[:, 0] * (weight[:, 0] @ weight[:, 1]) / (weight[:, 0] @ weight[:, 0])
    mu, logvar = exact_posterior(weight, torch.zeros(6).double(), 0.0, x)
    return LinearGaussian(mu + offset, logvar + offset, weight, torch.zeros(6).double(), 0.0), x


def repeated(model: LinearGaussian, x: Tensor, n: int) -> tuple[LinearGaussian, Tensor]:
    mu, logvar = (t.repeat(n, 1) for t in (model.mu, model.logvar))
    return LinearGaussian(mu, logvar, model.weight, model.bias, model.x_logvar), x.repeat(n, 1)


def test_the_bounds_rise_to_log_px() -> None:
    """ELBO < IWAE of 2 < 4 < 16 < log p(x), all from the same draws; of 256, what is missing is near nothing."""
    model, x = six_dimensional()
    many, xs = repeated(model, x, 300)
    log_px, kl, _ = many.terms(xs, 8, num_samples=256, kl_estimator="monte_carlo")

    def bound(samples: int) -> Tensor:
        grouped = (t.view(-1, samples, 900).transpose(0, 1).flatten(1) for t in (log_px, kl))
        return vk.importance_weighted_elbo(*grouped).view(-1, 300, 3).mean(0)

    exact, bounds = model.exact_log_px(x), [bound(samples) for samples in (1, 2, 4, 16)]
    assert_mean(bounds[0], model.exact_elbo(x))
    for lower, higher in zip(bounds, [*bounds[1:], exact.expand(300, 3)], strict=True):
        assert (z_scores(higher - lower, torch.zeros(3).double()) > limit(3)).all()
    missing = exact - bound(256).mean(0)
    assert (missing.abs() < (exact - bounds[0].mean(0)) / 20).all()


def test_a_and_b_agree_in_the_mean() -> None:
    model, x = six_dimensional()
    many, xs = repeated(model, x, SEEDS // 4)
    b, a = (
        vk.elbo(*many.terms(xs, 7, kl_estimator=kind)[:2], reduction="none").view(-1, 3)
        for kind in ("analytic", "monte_carlo")
    )
    for draws in (a, b):
        assert_mean(draws, model.exact_elbo(x))
    assert (a - b).abs().max() > 0.1  # not the same estimator


@pytest.mark.parametrize(("proposal", "samples"), [("posterior", 2000), ("prior", 20_000)])
def test_log_marginal_likelihood_and_its_error(proposal: str, samples: int) -> None:
    """Over many repetitions the value is log p(x), and its spread is the stated error."""
    model, x = six_dimensional()
    many, xs = repeated(model, x, 40)
    value, error = vk.log_marginal_likelihood(
        many, xs, num_samples=samples, chunk=700, proposal=proposal, generator=torch.Generator().manual_seed(1)
    )
    value, error, exact = value.view(40, 3), error.view(40, 3), model.exact_log_px(x)
    # The estimate's bias is −½ of its variance.
    assert_mean(value + 0.5 * error**2, exact)
    spread = value.std(0) / error.mean(0)
    # 40 repetitions: the standard deviation is known to 1/√(2·39).
    assert ((spread - 1).abs() < limit(3) / math.sqrt(78)).all()


def test_a_good_proposal_needs_fewer_samples_than_the_prior() -> None:
    """From the posterior itself every weight is p(x)."""
    model, x = six_dimensional(offset=0.0)
    (value, error), (_, of_prior) = (
        vk.log_marginal_likelihood(
            model, x, num_samples=100, chunk=30, proposal=proposal, generator=torch.Generator().manual_seed(2)
        )
        for proposal in ("posterior", "prior")
    )
    torch.testing.assert_close(value, model.exact_log_px(x))
    assert error.max() < 1e-7 and of_prior.min() > 1e-2


def test_the_chunk_bounds_memory_and_changes_nothing_else() -> None:
    """No more than `chunk` samples are decoded at once; every sample counts, in a last smaller chunk too."""
    model, x = six_dimensional()
    decoded, log_px = [], model.log_px

    def watched(x: Tensor, z: Tensor) -> Tensor:
        decoded.append(z)
        return log_px(x, z)

    model.log_px = watched
    value, error = vk.log_marginal_likelihood(
        model, x, num_samples=25, chunk=10, generator=torch.Generator().manual_seed(3)
    )
    assert [len(z) for z in decoded] == [10, 10, 5]
    z = torch.cat(decoded)
    q = torch.distributions.Normal(model.mu, (model.logvar / 2).exp())
    log_w = log_px(x, z) + (torch.distributions.Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
    torch.testing.assert_close(value, log_w.exp().mean(0).log())
    torch.testing.assert_close(error, log_w.exp().std(0) / log_w.exp().mean(0) / 5)
