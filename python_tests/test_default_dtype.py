"""No result depends on `torch.set_default_dtype`: bit by bit what it is under float32, to second order."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from public_calls import CALLS, Call
from samples import BF16, DEVICE, F16, F32, F64
from torch import Tensor, nn

import vae_kernels as vk
from vae_kernels import train
from vae_kernels.models import LIKELIHOODS, MODELS
from vae_kernels.training import checkpoint

pytestmark = pytest.mark.around


@pytest.fixture(params=[F64, BF16, F16], ids=str)
def default(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    yield request.param
    torch.set_default_dtype(F32)


def draw(*shape: int, dtype: torch.dtype = F32, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=F64).to(dtype).to(DEVICE).requires_grad_()


def to_second_order(call: Call, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs, their gradients by the backend and by what can be differentiated again, and the gradients of these."""
    torch.manual_seed(0)
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    again = gradients(outputs, inputs, create_graph=True)
    return [*outputs, *gradients(outputs, inputs), *again, *gradients(again, inputs)]


def gradients(outputs: Sequence[Tensor], inputs: tuple[Tensor, ...], create_graph: bool = False) -> list[Tensor]:
    """Gradients of the inputs that an output depends on, under random upstream gradients."""
    outputs = [o for o in outputs if o.requires_grad]
    if not outputs:
        return []
    upstream = [draw(*o.shape, dtype=o.dtype, seed=i).detach() for i, o in enumerate(outputs)]
    found = torch.autograd.grad(
        outputs, inputs, upstream, create_graph=create_graph, retain_graph=True, allow_unused=True
    )
    return [g for g in found if g is not None]


def assert_same(found: list[Tensor], want: list[Tensor]) -> None:
    assert [t.dtype for t in found] == [t.dtype for t in want]
    for got, expected in zip(found, want, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.interpreted
@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=str)
@pytest.mark.parametrize("name", CALLS)
def test_results(backend: str, default: torch.dtype, name: str, dtype: torch.dtype) -> None:
    inputs = draw(6, 5, dtype=dtype, seed=1), draw(6, 5, dtype=dtype, seed=2)
    want = to_second_order(CALLS[name], inputs)
    torch.set_default_dtype(default)
    assert_same(to_second_order(CALLS[name], inputs), want)


@pytest.mark.parametrize("transform", ["vmap", "grad", "jvp"])
@pytest.mark.parametrize("name", [name for name in CALLS if name != "dreg"])  # whose hook no transform sees
def test_transforms(backend: str, default: torch.dtype, name: str, transform: str) -> None:
    def total(a: Tensor, b: Tensor) -> Tensor:
        outputs = CALLS[name](a, b)
        return sum(o.sum() for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if o.is_floating_point())

    a, b = (draw(6, 5, seed=seed).detach() for seed in (1, 2))
    apply = {
        "vmap": lambda: torch.func.vmap(total, randomness="same")(torch.stack((a, b)), torch.stack((b, a))),
        "grad": lambda: torch.func.grad(total)(a, b),
        "jvp": lambda: torch.func.jvp(total, (a, b), (b, a))[1],
    }[transform]
    found = []
    for dtype in (F32, default):
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)
        found.append([apply()])
    assert_same(*found)


@pytest.mark.parametrize("name", ["latent_std", "latent_samples", "categorical", "bernoulli_probs", "elbo_free_bits"])
def test_compiled(backend: str, default: torch.dtype, name: str) -> None:
    inputs = draw(6, 5, seed=1), draw(6, 5, seed=2)
    found = []
    for dtype in (F32, default):
        torch.set_default_dtype(dtype)
        torch.compiler.reset()
        outputs = torch.compile(CALLS[name], fullgraph=True, backend="aot_eager")(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found.append([*outputs, *gradients(outputs, inputs)])
    assert_same(*found)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("kind", MODELS)
def test_models(backend: str, default: torch.dtype, kind: str, likelihood: str) -> None:
    """The results of a model that was built before do not change. New weights have the default dtype, as those of
    `torch.nn`."""
    model = MODELS[kind]((1, 8, 8), (4,), 2, likelihood, -1.0).to(DEVICE)
    x = torch.rand(3, 1, 8, 8, device=DEVICE)
    found = []
    for dtype in (F32, default):
        torch.set_default_dtype(dtype)
        torch.manual_seed(0)
        terms = model.elbo(x, seed=0)
        gradients = torch.autograd.grad(terms.elbo.sum(), list(model.parameters()))
        marginal = vk.log_marginal_likelihood(model, x, num_samples=5, chunk=2)
        with torch.no_grad():
            sampled = model.sample(2)
        found.append([*terms, *gradients, *marginal, sampled, model.reconstruct(x)])
    assert_same(*found)
    built = MODELS[kind]((1, 8, 8), (4,), 2, likelihood, -1.0)
    assert {p.dtype for p in built.parameters()} == {default} == {nn.Linear(1, 1).weight.dtype}


def test_a_run(default: torch.dtype, tmp_path: Path) -> None:
    """The trainer's history, weights, figures and pictures."""
    arguments = (
        "--hidden 16 --latent-dim 2 --batch-size 500 --epochs 2 --evaluate 10 --likelihood gaussian --device cpu"
    )
    for dtype in (F32, default):
        torch.set_default_dtype(dtype)
        assert train.main([*arguments.split(), "--out", str(tmp_path / str(dtype))]) == 0
        assert torch.get_default_dtype() == dtype
    want, found = (tmp_path / str(dtype) for dtype in (F32, default))
    assert {path.name for path in found.iterdir()} == {path.name for path in want.iterdir()}
    for path in want.iterdir():
        if path.name != checkpoint.SETTINGS:  # which holds the folder
            assert (found / path.name).read_bytes() == path.read_bytes(), path.name
