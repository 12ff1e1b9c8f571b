"""The reference VAEs: shapes, terms against torch.distributions, and what they refuse."""

import json
from dataclasses import asdict

import pytest
import torch
from fresh_process import python
from torch.distributions import Bernoulli, Normal, kl_divergence

from vae_kernels.models import LIKELIHOODS, MLPVAE, MODELS, ConvVAE, GaussianPerElement, VAESettings

SETTINGS = [
    VAESettings("mlp", (13,), (7, 5), 3, "bernoulli", 0.0),
    VAESettings("mlp", (2, 3, 5), (), 1, "gaussian", -0.5),
    VAESettings("mlp", (1, 8, 8), (9,), 2, "gaussian-learned", -1.0),
    VAESettings("conv", (3, 64, 64), (4, 4, 4, 4), 5, "bernoulli", 0.0),
    VAESettings("conv", (2, 8, 12), (3, 5), 4, "gaussian-per-element", -2.0),
]


@pytest.fixture(params=SETTINGS, ids=lambda s: f"{s.model}-{s.likelihood}")
def model(request):
    torch.manual_seed(0)
    return request.param.build().double()


@pytest.fixture
def x(model):
    return torch.rand(6, *model.settings.input_shape, dtype=torch.float64)


def px(model, parameters):
    """p(x|z) of a model as torch.distributions has it."""
    if model.settings.likelihood == "bernoulli":
        return Bernoulli(logits=parameters[0], validate_args=False)
    logvar = {
        "gaussian": lambda: torch.tensor(model.settings.logvar).double(),
        "gaussian-learned": lambda: model.likelihood.logvar,
        "gaussian-per-element": lambda: parameters[1],
    }[model.settings.likelihood]()
    return Normal(parameters[0], (logvar / 2).exp())


def test_terms_and_gradients_are_those_of_torch_distributions(model, x):
    eps = torch.randn(6, model.settings.latent_dim, dtype=torch.float64)
    weight = torch.randn(6, dtype=torch.float64)
    terms = model.elbo(x, eps=eps)
    mu, logvar = model.encode(x)
    q = Normal(mu, (logvar / 2).exp())
    distribution = px(model, model.decode(mu + q.scale * eps))
    log_px = distribution.log_prob(x).flatten(1).sum(1)
    kl = kl_divergence(q, Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(terms.log_px, log_px)
    torch.testing.assert_close(terms.kl, kl)
    torch.testing.assert_close(terms.elbo, log_px - kl)
    got = torch.autograd.grad(terms.elbo @ weight, list(model.parameters()))
    want = torch.autograd.grad((log_px - kl) @ weight, list(model.parameters()))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_several_samples_are_as_many_passes(model, x):
    """Of every family and architecture; x is not repeated."""
    eps = torch.randn(4, 6, model.settings.latent_dim, dtype=torch.float64)
    z, kl, parameters = model(x, num_samples=4, kl_estimator="monte_carlo", eps=eps)
    log_px = model.likelihood.log_px(x, *parameters)
    assert z.shape == eps.shape and kl.shape == log_px.shape == (4, 6)
    torch.testing.assert_close(model.log_px(x, z), log_px)
    for k in range(4):
        one = model(x, kl_estimator="monte_carlo", eps=eps[k])
        torch.testing.assert_close(z[k], one.z)
        torch.testing.assert_close(kl[k], one.kl)
        torch.testing.assert_close(log_px[k], model.likelihood.log_px(x, *one.parameters))
    assert model(x, kl_reduction="none").kl.shape == (6, model.settings.latent_dim)


def test_shapes(model, x):
    shape, latent_dim = model.settings.input_shape, model.settings.latent_dim
    mu, logvar = model.encode(x)
    assert mu.shape == logvar.shape == (6, latent_dim)
    parameters = model.decode(mu)
    assert len(parameters) == model.likelihood.outputs
    assert all(p.shape == x.shape for p in parameters)
    out = model(x)
    assert out.z.shape == (6, latent_dim) and out.kl.shape == (6,)
    assert all(term.shape == (6,) for term in model.elbo(x))
    sample, reconstruction = model.sample(4), model.reconstruct(x)
    assert sample.shape == (4, *shape) and reconstruction.shape == x.shape
    assert not sample.requires_grad and not reconstruction.requires_grad
    assert model.elbo(x[:0]).elbo.shape == (0,)


def test_reconstruction_is_the_mean_at_mu(model, x):
    mu, _ = model.encode(x)
    torch.testing.assert_close(model.reconstruct(x), px(model, model.decode(mu)).mean)


def test_noise_comes_from_where_it_is_said_to(model, x):
    def z(**noise):
        return model(x, **noise).z

    def generator():
        return torch.Generator().manual_seed(5)

    assert torch.equal(z(seed=3), z(seed=torch.tensor([3])))
    assert not torch.equal(z(seed=3), z(seed=4))
    assert torch.equal(z(generator=generator()), z(generator=generator()))
    assert torch.equal(model.sample(3, generator=generator()), model.sample(3, generator=generator()))
    assert torch.equal(z(eps=torch.zeros(6, model.settings.latent_dim).double()), model.encode(x)[0])


def test_settings_survive_json(model):
    settings = VAESettings(**json.loads(json.dumps(asdict(model.settings))))
    assert settings == model.settings
    again = settings.build().double()
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize("name", LIKELIHOODS)
@pytest.mark.parametrize("kind", MODELS)
def test_one_step_of_adam_raises_the_elbo(name, kind):
    torch.manual_seed(1)
    model = MODELS[kind]((1, 8, 8), (16,), 2, name, -1.0)
    x = torch.rand(32, 1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    before = model.elbo(x, seed=0).elbo.mean()
    (-before).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    optimizer.step()
    assert model.elbo(x, seed=0).elbo.mean() > before


def test_targets_of_another_dtype():
    model = MLPVAE(10, (4,), 2)
    x = torch.randint(0, 2, (5, 10))
    want = model.elbo(x.float(), seed=0)
    for dtype in (torch.uint8, torch.bool):
        got = model.elbo(x.to(dtype), seed=0)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w)


def test_bfloat16_autocast():
    model = ConvVAE((3, 16, 16), (4, 8), 3, "gaussian-per-element")
    x = torch.rand(4, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).z.dtype == torch.bfloat16
        terms = model.elbo(x, seed=0)
    assert all(term.dtype == torch.float32 for term in terms)
    terms.elbo.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("settings", [SETTINGS[1], SETTINGS[4]], ids=lambda s: s.model)
def test_compiles_in_one_graph(settings):
    """With a seed tensor, as the trainer passes it; another seed and another batch size do not break the graph."""
    torch.manual_seed(0)
    model = settings.build()
    compiled = torch.compile(model.elbo, fullgraph=True, backend="aot_eager")
    for n, seed in ((4, 1), (4, 2), (3, 3)):
        x, seed = torch.rand(n, *settings.input_shape), torch.tensor([seed])
        for g, w in zip(compiled(x, seed=seed), model.elbo(x, seed=seed), strict=True):
            torch.testing.assert_close(g, w)


def test_per_element_logvar_is_bounded_below_only():
    likelihood = GaussianPerElement(SETTINGS[4])
    raw = torch.tensor([-1e6, -20.0, 0.0, 5.0])
    _, logvar = likelihood(torch.stack((torch.zeros(4), raw)).unsqueeze(0))
    assert (logvar >= GaussianPerElement.floor).all()
    # Above the floor the decoder's output passes, shifted to where it is to start: softplus(a) - a = log1p(exp(-a)).
    above = raw[2:] + SETTINGS[4].logvar - GaussianPerElement.floor
    torch.testing.assert_close(logvar[0, 2:], raw[2:] + SETTINGS[4].logvar + torch.log1p(torch.exp(-above)))


def test_defaults():
    assert MLPVAE(784).settings == VAESettings("mlp", (784,), (400, 400), 20, "bernoulli", 0.0)
    assert ConvVAE().settings == VAESettings("conv", (3, 64, 64), (32, 64, 128, 256), 20, "bernoulli", 0.0)
    for size, channels in ((28, (32, 64)), (8, (32,)), (7, ()), (128, (32, 64, 128, 256))):
        assert ConvVAE((1, size, size)).settings.hidden == channels


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPVAE(()), r"input_shape must hold positive sizes, got \(\)"),
        (lambda: MLPVAE((3, 0)), r"input_shape .* got \(3, 0\)"),
        (lambda: MLPVAE(3, hidden=(0,)), r"hidden must hold positive sizes, got \(0,\)"),
        (lambda: MLPVAE(3, latent_dim=0), "latent_dim must be at least 1, got 0"),
        (lambda: MLPVAE(3, likelihood="cauchy"), "likelihood must be one of bernoulli, .* got 'cauchy'"),
        (lambda: ConvVAE((64, 64)), r"input_shape must be \(channels, height, width\), got \(64, 64\)"),
        (lambda: ConvVAE((3, 10, 8), (4, 4)), r"halved 2 times, .* got \(3, 10, 8\)"),
        (lambda: VAESettings("gan", (3,), (), 1, "gaussian", 0.0).build(), "model must be one of mlp, conv, got 'gan'"),
        (lambda: MLPVAE(3).elbo(torch.zeros(2, 4)), r"x must have the shape \(B, 3\), got \(2, 4\)"),
        (lambda: MLPVAE(3).decode(torch.zeros(20)), r"z must have the shape \(B, 20\) or \(K, B, 20\), got \(20,\)"),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_import_takes_torch_only():
    heavy = ["triton", "matplotlib", "sklearn", "PIL", "safetensors"]
    code = f"import sys, vae_kernels.models; print([m for m in {heavy} if m in sys.modules])"
    assert python(code) == "[]"
