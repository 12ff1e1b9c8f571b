"""A few calls of every kernel backend of a device, for compute-sanitizer: tails, strides, rows cut in pieces, sums.

    python short_gpu_run.py DEVICE [--processes N]

N processes share the calls. All that the kernels read is copied from the host or written by them.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import vae_kernels as vk

F32, BF16 = torch.float32, torch.bfloat16


def run(call: Callable[..., Tensor | tuple[Tensor, ...]], device: str, *inputs: Tensor) -> None:
    """Forward and backward; inputs and upstream gradients keep their layout."""
    inputs = [t.to(device).requires_grad_(t.is_floating_point()) for t in inputs]
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.ones(o.shape, dtype=o.dtype).to(device) for o in outputs]
    torch.autograd.grad(outputs, [t for t in inputs if t.requires_grad], upstream)


def transposed(tensor: Tensor) -> Tensor:
    """The same shape, the first dim the fastest."""
    return tensor.transpose(0, -1).contiguous().transpose(0, -1)


def calls(device: str) -> Iterator[Callable[[], None]]:
    """Calls with 1, 2 and 3 dims of columns, and with a row that several blocks share."""
    for shape, dtype in (((3, 37), F32), ((130, 20), BF16), ((2, 3, 5, 7), BF16), ((1, 70001), F32)):
        generator = torch.Generator().manual_seed(0)
        a, b, c = (torch.rand(shape, generator=generator).to(dtype) for _ in range(3))
        seed = torch.tensor([1]).to(device)
        column, one = torch.rand(shape[-1], generator=generator), torch.rand((), generator=generator)
        counts = torch.randint(5, shape, generator=generator)
        classes = torch.randint(shape[-1], shape[:-1], generator=generator)
        latent = lambda *t, s=seed: vk.reparameterize_kl(t[0], t[1], seed=s)  # noqa: E731
        prior = lambda *t, s=seed: vk.reparameterize_kl(  # noqa: E731
            t[0], t[1], prior_mu=t[2], prior_logvar=t[3], num_samples=2, kl_estimator="monte_carlo", seed=s
        )
        for call, *inputs in (
            (latent, a, b),
            (latent, transposed(a), transposed(b)),
            (prior, a, b, c, column),
            (vk.bernoulli_log_likelihood, a, (b > 0.5)),
            (vk.gaussian_log_likelihood, a, b, c),
            (vk.gaussian_log_likelihood, a, b, one),
            (vk.gaussian_log_likelihood, a, b, column),
            (vk.categorical_log_likelihood, a, classes),
            (vk.categorical_log_likelihood, transposed(a), classes),
            (vk.multinomial_log_likelihood, a, counts),
            (vk.negative_binomial_log_likelihood, a + 1, counts, column + 1),
        ):
            yield lambda call=call, inputs=inputs: run(call, device, *inputs)


def main(device: str, option: str = "--processes", processes: str = "1", part: str = "") -> int:
    """Returns the exit status."""
    if int(processes) > 1 and not part:
        command = [sys.executable, __file__, device, option, processes]
        running = [subprocess.Popen([*command, str(k)]) for k in range(int(processes))]
        return max([abs(process.wait()) for process in running])
    mine = slice(int(part or 0), None, int(processes))
    for backend, state in vk.backends()[device].items():
        if backend != "eager" and state == "available":
            with vk.use_backend(backend):
                chosen = list(calls(device))[mine]
                for call in chosen:
                    call()
            if device == "cuda":
                torch.cuda.synchronize()
            # In one piece: without a buffer the processes' lines and their ends mix.
            print(f"{backend}: {len(chosen)} calls\n", end="", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
