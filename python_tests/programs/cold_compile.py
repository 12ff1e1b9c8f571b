"""Compiles a loss before anything else has been computed.

python cold_compile.py BACKEND DEVICE
"""

import sys

import torch

import vae_kernels as vk

backend, device = sys.argv[1:]
vk.use_backend(backend)


def loss(mu, logvar, x, spread):
    z, kl = vk.reparameterize_kl(mu, logvar)
    return (kl - vk.bernoulli_log_likelihood(z, x) - vk.gaussian_log_likelihood(z, x, spread)).sum()


inputs = [torch.randn(3, 8, device=device, requires_grad=True) for _ in range(2)]
inputs += [torch.rand(3, 8, device=device), torch.zeros((), device=device, requires_grad=True)]
torch.compile(loss, fullgraph=True)(*inputs).backward()
assert all(t.grad.isfinite().all() for t in inputs if t.requires_grad)
print("compiled")
