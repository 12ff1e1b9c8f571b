"""Runs in each of two processes, which share a batch. The local parts of DTensors give the loss and the gradients of
the whole batch. A DTensor itself is refused."""

import torch
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh

import vae_kernels as vk
from vae_kernels.training import processes


def main():
    mesh = init_device_mesh("cpu", (2,))
    shard, replicate = [Shard(0)], [Replicate()]
    generator = torch.Generator().manual_seed(0)
    mu, logvar, prior, spread, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 4), (6, 4), (4,), (4,), (6,))
    )
    x, seeds = torch.rand(6, 4, generator=generator, dtype=torch.float64), torch.arange(6)

    def loss(mu, logvar, prior, spread, x, seeds):
        z, kl = vk.reparameterize_kl(mu, logvar, prior_mu=prior, seed=seeds)
        return kl - vk.gaussian_log_likelihood(z, x, spread)

    def distributed(tensor, placements):
        return distribute_tensor(tensor, mesh, placements).requires_grad_(tensor.is_floating_point())

    whole = [t.clone().requires_grad_() for t in (mu, logvar, prior, spread)]
    want = loss(*whole, x, seeds)
    wanted = torch.autograd.grad((want * weight).sum(), whole)

    parts = [*(distributed(t, shard) for t in (mu, logvar)), *(distributed(t, replicate) for t in (prior, spread))]
    local = [t.to_local() for t in parts[:2]] + [t.to_local(grad_placements=[Partial()]) for t in parts[2:]]
    part = loss(*local, distributed(x, shard).to_local(), distributed(seeds, shard).to_local())
    found = DTensor.from_local(part, mesh, shard)
    gradients = torch.autograd.grad((found * distributed(weight, shard)).sum(), parts)
    for got, expected in zip((found, *gradients), (want, *wanted), strict=True):
        torch.testing.assert_close(got.full_tensor(), expected)

    plain = [mu, logvar, prior, spread, x, seeds]
    names = ["mu", "logvar", "prior_mu", "logvar", "x", "seed"]
    for i, name in enumerate(names):
        try:
            loss(*plain[:i], distributed(plain[i], replicate), *plain[i + 1 :])
        except TypeError as error:
            assert str(error).startswith(f"{name} must be a plain tensor, got a DTensor"), error
            assert f"{name}.to_local()" in str(error)
        else:
            raise AssertionError(name)


with processes.joined(torch.device("cpu")):
    main()
