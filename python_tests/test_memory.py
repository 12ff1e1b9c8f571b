"""What is kept for the backward pass: the caller's own tensors and a seed."""

from collections.abc import Callable

import pytest
import torch
from cases import Case
from multinomial_cases import MultinomialCase
from samples import BF16, BROADCAST, DEVICE, ELEMENTS, EMPTY, LAID_OUT, LAYOUTS, SHAPED, U8, VALUES, sample
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import vae_kernels as vk
from benchmarks import memory as peak_memory

pytestmark = pytest.mark.around

KINDS = [s for s in VALUES if s.values == "random"] + SHAPED + LAID_OUT + BROADCAST + EMPTY + ELEMENTS
COUNTS = [MultinomialCase((4, 3, 10)), MultinomialCase((4, 3, 10), BF16, layout="transposed", x_dtype=U8)]


def kept_bytes(outputs: tuple[Tensor, ...], kept: list[Tensor], inputs: list[Tensor]) -> int:
    """Bytes in storages that neither inputs nor outputs hold; a Function may also hold tensors as attributes."""
    for node in {o.grad_fn for o in outputs}:
        kept += [v for v in vars(node).values() if isinstance(v, Tensor)] if hasattr(node, "__dict__") else []
    own = {t.untyped_storage().data_ptr() for t in (*inputs, *outputs)}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept}
    return sum(size for pointer, size in storages.items() if pointer not in own)


def watch(kept: list[Tensor]) -> torch.autograd.graph.saved_tensors_hooks:
    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


@pytest.mark.parametrize("case", [*KINDS, *COUNTS], ids=str)
def test_nothing_but_inputs_is_kept(kernel: str, case: Case) -> None:
    """With the noise handed in; for any dtypes, layouts and broadcasting: no copy in another dtype or shape."""
    tensors, kept = case.make(), []
    with watch(kept):
        outputs = tuple(case.call(tensors).values())
    assert kept
    assert kept_bytes(outputs, kept, list(tensors.values())) == 0


@pytest.mark.parametrize(
    "given", [{}, {"seed": 3}, {"generator": torch.Generator(DEVICE)}], ids=["drawn", "seed", "generator"]
)
def test_of_the_noise_only_a_seed_is_kept(kernel: str, given: dict[str, object]) -> None:
    mu, logvar, _ = sample("latent", (128, 784)).make().values()
    kept: list[Tensor] = []
    with watch(kept):
        outputs = vk.reparameterize_kl(mu, logvar, **given)
    assert kept_bytes(outputs, kept, [mu, logvar]) == torch.int64.itemsize


def test_the_measure_sees_what_eager_keeps() -> None:
    """Eager keeps at least the noise and the standard deviation, so a measure that finds nothing there is blind."""
    mu, logvar, _ = sample("latent", (128, 784)).make().values()
    kept: list[Tensor] = []
    with vk.use_backend("eager"), watch(kept):
        outputs = vk.reparameterize_kl(mu, logvar)
    assert kept_bytes(outputs, kept, [mu, logvar]) >= 2 * mu.nbytes


def _channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(
        memory_format=torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    )


# What encoders hand over: both moments as views, and how many leading dims are batch.
MODEL_LAYOUTS = {
    "chunk of channels": (lambda: torch.randn(2, 8, 5, 6).chunk(2, 1), 1),
    "chunk of channels_last": (lambda: _channels_last(2, 8, 5, 6).chunk(2, 1), 1),
    "chunk of channels_last_3d": (lambda: _channels_last(2, 8, 3, 5, 6).chunk(2, 1), 1),
    "chunk of video": (lambda: torch.randn(2, 8, 3, 5, 6).chunk(2, 1), 1),
    "channels_last": (lambda: (_channels_last(2, 4, 5, 6), _channels_last(2, 4, 5, 6)), 1),
    "chunk of a sequence": (lambda: torch.randn(2, 7, 12).chunk(2, -1), 1),
    "chunk of tokens": (lambda: torch.randn(2, 7, 12).chunk(2, -1), 2),
    "pairs": (lambda: torch.randn(5, 6, 2).unbind(-1), 1),
    "expanded": (lambda: (torch.randn(6).expand(4, 6), torch.randn(1).expand(4, 6)), 1),
    "transposed": (lambda: (torch.randn(6, 4).t(), torch.randn(6, 4).t()), 1),
    "time first": (lambda: [t.transpose(0, 1) for t in torch.randn(7, 2, 12).chunk(2, -1)], 1),
}


def allocated(call: Callable[[], object]) -> list[int]:
    """The sizes of all memory that a call takes from torch's allocator."""
    with peak_memory.profiler_silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        kept = call()  # noqa: F841  freed only afterwards
    events = record.profiler.kineto_results.events()
    return sorted(event.nbytes() for event in events if event.name() == "[memory]" and event.nbytes() > 0)


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the allocator rounds up")
@pytest.mark.parametrize("layout", MODEL_LAYOUTS)
def test_no_copy_of_views(layout: str) -> None:
    """Forward takes memory for z and the KL, backward for the two gradients, and nothing else."""
    build, batch_dims = MODEL_LAYOUTS[layout]
    mu, logvar = (t.detach().requires_grad_() for t in build())
    seed = torch.tensor([1])
    size, rows = mu.numel() * 4, mu.shape[:batch_dims].numel() * 4
    with vk.use_backend("cpp"):
        z, kl = vk.reparameterize_kl(mu, logvar, seed=seed, batch_dims=batch_dims)
        upstream = torch.randn_like(z), torch.randn_like(kl)
        forward = allocated(lambda: vk.reparameterize_kl(mu, logvar, seed=seed, batch_dims=batch_dims))
        backward = allocated(lambda: torch.autograd.grad((z, kl), (mu, logvar), upstream))
    assert forward == sorted((size, rows))
    assert backward == [size, size]


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the allocator rounds up")
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_no_copy_of_packed_moments(layout: str) -> None:
    """The gradient is the one thing that backward takes memory for."""
    moments = LAYOUTS[layout](torch.randn(2, 8, 6, 6)).requires_grad_()
    with vk.use_backend("cpp"):
        z, kl = vk.reparameterize_kl_packed(moments, seed=1)
        upstream = torch.randn_like(z), torch.randn_like(kl)
        backward = allocated(lambda: torch.autograd.grad((z, kl), moments, upstream))
    assert backward == [moments.nbytes]


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the allocator rounds up")
def test_many_samples_against_one_x() -> None:
    """50 decoded samples share one x, in memory too."""
    logits, x = torch.randn(50, 4, 30, requires_grad=True), torch.rand(4, 30)
    with vk.use_backend("cpp"):
        log_px = vk.bernoulli_log_likelihood(logits, x, batch_dims=2)
        upstream = torch.randn_like(log_px)
        assert allocated(lambda: vk.bernoulli_log_likelihood(logits, x, batch_dims=2)) == [log_px.nbytes]
        assert allocated(lambda: torch.autograd.grad(log_px, logits, upstream)) == [logits.nbytes]
