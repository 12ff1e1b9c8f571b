"""What a CUDA graph can capture: calls that neither copy from the host's memory nor wait for the device."""

from collections.abc import Callable

import pytest
import torch
from samples import DEVICE, OPS, sample
from torch import Tensor
from torch.overrides import TorchFunctionMode

import vae_kernels as vk

# Of pageable memory; torch.full and products with numbers copy nothing.
COPIES = (torch.tensor, torch.as_tensor, torch.asarray, torch.from_numpy, Tensor.cuda, Tensor.cpu)
WAITS = (Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__float__, Tensor.__int__, Tensor.nonzero, torch.equal)


class Capturing(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        assert function not in COPIES + WAITS, f"{function.__name__} cannot be captured"
        return function(*args, **(kwargs or {}))


def of_first(name: str) -> Callable[[Tensor], object]:
    count = len(OPS[name].arguments) - 1
    return lambda a: OPS[name].call(a, *[torch.full_like(a, 0.5)] * count, batch_dims=1)


CALLS: dict[str, Callable[[Tensor], object]] = {name: of_first(name) for name in OPS} | {
    "int seed": lambda a: vk.reparameterize_kl(a, a, seed=2**40 + 3),
    "int seed, packed": lambda a: vk.reparameterize_kl_packed(torch.cat((a, a), 1), seed=5, logvar_clamp=(-1, 0.5)),
    "int seed, samples": lambda a: vk.reparameterize_kl(a, a, seed=5, num_samples=3, kl_estimator="path"),
    "prior": lambda a: vk.reparameterize_kl(
        a, a, prior_mu=a[0], prior_logvar=a[0], seed=5, logvar_clamp=(-1, 0.5), scale="std"
    ),
    "number": lambda a: vk.gaussian_log_likelihood(a, a, 0.5),
    "number before a tensor": lambda a: vk.zero_inflated_negative_binomial_log_likelihood(a, a, 2.0, a),
    "bins": lambda a: vk.discretized_logistic_log_likelihood(a, a, 0.5, bins=16),
    "categorical": lambda a: vk.categorical_log_likelihood(a, torch.zeros_like(a[:, 0], dtype=torch.int64)),
    "multinomial": lambda a: vk.multinomial_log_likelihood(a, a.detach()),
    "objectives": lambda a: vk.elbo(a[:, 0], a, beta=0.5, free_bits=0.1),
    "importance weights": lambda a: vk.importance_weighted_elbo(a, a),
}


@pytest.mark.parametrize("name", CALLS)
def test_nothing_comes_from_the_host(backend: str, name: str) -> None:
    """Forward and backward."""
    values = next(iter(sample(name if name in OPS else "laplace", (4, 6)).make().values()))
    leaf = (values.detach().abs() * 0.1 + 0.1).requires_grad_()
    with Capturing():
        outputs = CALLS[name](leaf)
        total = sum(o.sum() for o in ((outputs,) if isinstance(outputs, Tensor) else outputs))
        torch.autograd.grad(total, leaf)
    assert leaf.device.type == DEVICE
