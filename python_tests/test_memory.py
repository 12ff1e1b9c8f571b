"""What is kept for the backward pass: the caller's own tensors and a seed."""

import pytest
import torch
from samples import BROADCAST, DEVICE, EMPTY, LAID_OUT, SHAPED, VALUES, Sample, sample
from torch import Tensor

import vae_kernels as vk

KINDS = [s for s in VALUES if s.values == "random"] + SHAPED + LAID_OUT + BROADCAST + EMPTY


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


@pytest.mark.parametrize("case", KINDS, ids=str)
def test_nothing_but_inputs_is_kept(kernel: str, case: Sample) -> None:
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
