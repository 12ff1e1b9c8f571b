"""A few calls of every kernel backend on a GPU, for compute-sanitizer: tails, strides, rows cut in pieces, sums."""

import torch
from torch import Tensor

import vae_kernels as vk


def both_ways(*outputs: Tensor) -> None:
    sum(o.float().square().sum() for o in outputs).backward()


def calls() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        for shape in ((3, 37), (130, 20), (2, 3, 5, 7), (1, 70001)):
            mu, logvar, x = (torch.randn(shape, device="cuda").to(dtype).requires_grad_() for _ in range(3))
            both_ways(*vk.reparameterize_kl(mu, logvar, seed=1))
            both_ways(*vk.reparameterize_kl(mu.transpose(0, -1), logvar.transpose(0, -1), seed=1))
            both_ways(vk.bernoulli_log_likelihood(mu, x.detach() > 0))
            both_ways(vk.gaussian_log_likelihood(mu, x, logvar))
            for spread in (torch.zeros((), device="cuda"), torch.zeros(shape[-1], device="cuda")):
                both_ways(vk.gaussian_log_likelihood(mu, x, spread.requires_grad_()))
            counts = torch.randint(5, shape, device="cuda")
            classes = torch.randint(shape[-1], shape[:-1], device="cuda")
            both_ways(vk.categorical_log_likelihood(mu, classes))
            both_ways(vk.categorical_log_likelihood(mu.transpose(0, -1).contiguous().transpose(0, -1), classes))
            both_ways(vk.negative_binomial_log_likelihood(mu.abs() + 1, counts, logvar.abs() + 1))
    torch.cuda.synchronize()


def main() -> None:
    for backend, state in vk.backends()["cuda"].items():
        if backend != "eager":
            if state == "available":
                with vk.use_backend(backend):
                    calls()
            print(f"{backend}: {state}")


if __name__ == "__main__":
    main()
