"""functorch transforms and forward-mode AD, compiled and not, against the same transforms of what people write."""

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from samples import DEVICE, F64, OPS, sample
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import vae_kernels as vk
from vae_kernels import noise, transforms

pytestmark = pytest.mark.around

SHAPE = (3, 4)


def plain_latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    eps = noise.normal_like(torch.empty(mu.shape, device=DEVICE), torch.tensor([5], device=DEVICE), 1)
    return OPS["latent"].plain(mu, logvar, eps, batch_dims=1)


# Each function with its inputs, as the package has it and as people write it.
PAIRS: dict[str, tuple[str, Callable[..., Tensor], Callable[..., Tensor]]] = {
    "latent": (
        "latent",
        lambda mu, logvar: _combine(*vk.reparameterize_kl(mu, logvar, seed=5)),
        lambda mu, logvar: _combine(*plain_latent(mu, logvar)),
    ),
    "latent_eps": (
        "latent",
        lambda mu, logvar: _combine(*vk.reparameterize_kl(mu, logvar, eps=mu * 0 + 0.3)),
        lambda mu, logvar: _combine(*OPS["latent"].plain(mu, logvar, mu * 0 + 0.3, batch_dims=1)),
    ),
    "bernoulli": (
        "bernoulli",
        lambda logits, x: vk.bernoulli_log_likelihood(logits, x),
        lambda logits, x: OPS["bernoulli"].plain(logits, x, batch_dims=1),
    ),
    "gaussian": (
        "gaussian",
        lambda mean, x: vk.gaussian_log_likelihood(mean, x, mean.tanh()),
        lambda mean, x: OPS["gaussian"].plain(mean, x, mean.tanh(), batch_dims=1),
    ),
}


def _combine(z: Tensor, kl: Tensor) -> Tensor:
    return (z**3).sum(-1) - kl


TRANSFORMS: dict[str, Callable[[Callable], Callable]] = {
    "vmap": lambda f: vmap(f),
    "grad": lambda f: grad(lambda a, b: f(a, b).sum(), argnums=(0, 1)),
    "vjp": lambda f: lambda a, b: vjp(f, a, b)[1](torch.ones_like(a[..., 0])),
    "jvp": lambda f: lambda a, b: jvp(f, (a, b), (b, a)),
    "jacrev": lambda f: jacrev(f, argnums=(0, 1)),
    "jacfwd": lambda f: jacfwd(f),
    "hessian": lambda f: hessian(lambda a, b: f(a, b).sum()),
    "per_sample_grad": lambda f: vmap(grad(lambda a, b: f(a[None], b[None]).sum())),
}


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> Callable[[str, str], tuple[Tensor, Tensor]]:
    def make(op: str, transform: str) -> tuple[Tensor, Tensor]:
        shape = (2, *SHAPE) if transform == "vmap" else SHAPE
        first, second, *_ = sample(op, shape, dtypes=F64).make().values()
        return first.detach(), second.detach()

    return make


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", PAIRS)
def test_transform(backend: str, inputs: Callable, name: str, transform: str) -> None:
    op, ours, plain = PAIRS[name]
    apply = TRANSFORMS[transform]
    torch.testing.assert_close(apply(ours)(*inputs(op, transform)), apply(plain)(*inputs(op, transform)))


@pytest.fixture
def no_compiler_state() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("transform", [t for t in TRANSFORMS if t not in ("hessian", "jacfwd")])
@pytest.mark.parametrize("name", ["latent", "bernoulli", "gaussian"])
def test_compiled_transform(backend: str, no_compiler_state: None, inputs: Callable, name: str, transform: str) -> None:
    op, ours, plain = PAIRS[name]
    apply = TRANSFORMS[transform]
    compiled = torch.compile(apply(ours), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs(op, transform)), apply(plain)(*inputs(op, transform)))


def test_transform_inside_a_compiled_function(backend: str, no_compiler_state: None) -> None:
    """A compiled step with a `grad` within and ordinary autograd around it."""
    logits, x = (t.detach() for t in sample("bernoulli", SHAPE, dtypes=F64).make().values())

    def step(function: Callable, logits: Tensor) -> Tensor:
        inner = grad(lambda a: function(a, x).sum())(logits)
        return (inner**2).sum() + function(logits, x).sum()

    found = []
    for function in (PAIRS["bernoulli"][1], PAIRS["bernoulli"][2]):
        run = torch.compile(functools.partial(step, function), fullgraph=True, backend="aot_eager")
        leaf = logits.clone().requires_grad_()
        found.append((run(leaf), *torch.autograd.grad(run(leaf), leaf)))
    torch.testing.assert_close(*found)


def test_forward_mode(backend: str) -> None:
    """Dual numbers without torch.func."""
    for op, ours, plain in PAIRS.values():
        first, second, *_ = (t.detach() for t in sample(op, SHAPE, dtypes=F64).make().values())
        found = []
        for function in (ours, plain):
            with forward_ad.dual_level():
                dual = forward_ad.make_dual(first, second)
                found.append(forward_ad.unpack_dual(function(dual, second)).tangent.clone())
        torch.testing.assert_close(*found)


def test_vmap_over_drawn_noise(backend: str) -> None:
    """`randomness="different"` draws for each entry, "same" once, and without it vmap refuses."""
    mu = torch.zeros(4, *SHAPE, device=DEVICE)

    def draw(mu: Tensor) -> Tensor:
        return vk.reparameterize_kl(mu, mu)[0]

    different = vmap(draw, randomness="different")(mu)
    assert len({tuple(z.flatten().tolist()) for z in different}) == 4
    same = vmap(draw, randomness="same")(mu)
    assert all(torch.equal(z, same[0]) for z in same)
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(draw)(mu)


def test_the_guard_knows_every_transform() -> None:
    """What decides that only eager is right."""
    seen = []

    def watch(x: Tensor) -> Tensor:
        seen.append(transforms.active())
        return x.sin().sum()

    x = torch.randn(3)
    watch(x)
    with torch.no_grad():
        watch(x)
    torch.autograd.functional.jacobian(watch, x)
    assert not any(seen)
    seen.clear()
    vmap(watch)(torch.randn(2, 3))
    grad(watch)(x)
    jvp(watch, (x,), (x,))
    jacrev(watch)(x)
    torch.func.functionalize(watch)(x)
    with forward_ad.dual_level():
        watch(x)
    assert len(seen) == 6
    assert all(seen)
    seen.clear()
    watch(x)
    assert not any(seen)
