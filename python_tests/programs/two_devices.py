"""Tests of the second device of device_rehearsal.py: what it refuses as a GPU does, and what it takes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import vae_kernels as vk


@pytest.mark.parametrize(
    "make",
    [
        lambda g, c: g + c,
        lambda g, c: c[g > 0],
        lambda g, c: torch.equal(g, c),
        lambda g, c: torch.where(g > 0, g, c),
        lambda g, c: g.numpy(),
        lambda g, c: torch.randn(3, device="cuda", generator=torch.Generator()),
    ],
)
def test_refused(make: Callable[[Tensor, Tensor], object]) -> None:
    with pytest.raises((RuntimeError, TypeError)):
        make(torch.ones(3, device="cuda"), torch.ones(3))


def test_taken() -> None:
    g, c = torch.ones(3, device="cuda", requires_grad=True), torch.ones(3)
    assert (g * torch.tensor(2.0)).sum().item() == 6
    assert g[torch.tensor([0, 1])].shape == (2,)
    (g.cpu() + c).sum().backward()
    assert g.grad.device.type == "cuda"
    with vk.use_backend("cuda"), pytest.raises(RuntimeError, match=r"cuda.*cpu"):
        vk.bernoulli_log_likelihood(c, c)
