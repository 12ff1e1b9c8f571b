"""A comparison of every op of a kernel backend with eager: `python -m benchmarks.smoke BACKEND DEVICE`.

It prints a line after each call. After a failure it goes on with the next call.
"""

import sys
import traceback
from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vae_kernels as vk
from vae_kernels import ops
from vae_kernels.families import FAMILIES

SHAPE = (6, 10, 4)
# A kernel's error is at most twice that of eager in the same dtype, plus 4 units in the last place of the largest
# number.
SLACK = 4

Call = Callable[..., Tensor | tuple[Tensor, ...]]


def _tensors(family: str) -> int:
    return len(set(FAMILIES[family].arguments) - set(FAMILIES[family].numbers))


def _with_x(family: str) -> Call:
    """The function itself: x gets a gradient too, which another kernel computes."""
    return getattr(vk, f"{family}_log_likelihood")


def _without_x(family: str) -> Call:
    return lambda first, x, *more: _with_x(family)(first, x.detach(), *more)


# Functions of tensors of SHAPE with values in (0.1, 0.9), which are in the range of all of them.
CALLS: dict[str, tuple[int, Call]] = {
    "latent": (2, lambda mu, logvar: vk.reparameterize_kl(mu, logvar, seed=_seed(mu))),
    "latent, prior": (
        4,
        lambda mu, logvar, m, v: vk.reparameterize_kl(mu, logvar, prior_mu=m, prior_logvar=v, seed=_seed(mu)),
    ),
    "latent, packed": (1, lambda moments: vk.reparameterize_kl_packed(moments, seed=_seed(moments))),
    "latent, packed, softplus": (
        1,
        lambda moments: vk.reparameterize_kl_packed(moments, scale="softplus", std_floor=1e-4, seed=_seed(moments)),
    ),
    "latent, 3 samples": (
        4,
        lambda mu, std, m, v: vk.reparameterize_kl(
            mu, std, prior_mu=m[0], prior_logvar=v[0, :, :1], scale="std", num_samples=3, kl_estimator="monte_carlo",
            seed=_seed(mu),
        ),
    ),
    **{name: (_tensors(name), _without_x(name)) for name in FAMILIES},
    **{f"{name}, x": (_tensors(name), _with_x(name)) for name in FAMILIES},
    "gaussian, column": (3, lambda mean, x, logvar: vk.gaussian_log_likelihood(mean, x.detach(), logvar[0])),
    "gaussian, number": (2, lambda mean, x: vk.gaussian_log_likelihood(mean, x.detach(), 0.3)),
    "categorical": (1, lambda logits: vk.categorical_log_likelihood(logits, _classes(logits))),
    "multinomial": (2, lambda logits, x: vk.multinomial_log_likelihood(logits, x.abs())),
}  # fmt: skip


def _seed(like: Tensor) -> Tensor:
    return torch.tensor([7], device=like.device)


def _classes(logits: Tensor) -> Tensor:
    return (torch.arange(logits[..., 0].numel(), device=logits.device) % logits.shape[-1]).view(logits.shape[:-1])


class Called(TorchDispatchMode):
    """Records the names of a namespace's ops that were called."""

    def __init__(self, namespace: str) -> None:
        super().__init__()
        self.namespace, self.names = namespace, set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == self.namespace:
            self.names.add(op._opname)
        return op(*args, **(kwargs or {}))


def results(call: Call, inputs: list[Tensor]) -> list[Tensor]:
    """Outputs, and gradients for upstream gradients that differ from element to element."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = call(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    upstream = [torch.linspace(0.5, 1.5, o.numel(), device=o.device).to(o.dtype).view(o.shape) for o in outputs]
    gradients = torch.autograd.grad(outputs, inputs, upstream, allow_unused=True)
    return [*(o.detach() for o in outputs), *(g for g in gradients if g is not None)]


def error(got: Tensor, want: Tensor) -> float:
    """The error in units in the last place of the largest number; infinite if any number is not finite."""
    difference = (got.double() - want).abs().max() / want.abs().max() / torch.finfo(got.dtype).eps
    return difference.nan_to_num(nan=torch.inf).item()


def check(backend: str, call: Call, inputs: list[Tensor]) -> float:
    """The largest error of a call.

    Raises:
        ValueError: the error is larger than allowed.
    """
    with vk.use_backend(backend):
        got = results(call, inputs)
    with vk.use_backend("eager"):
        eager, want = results(call, inputs), results(call, [t.double() for t in inputs])
    errors = [error(t, true) for t, true in zip(got, want, strict=True)]
    for mine, yardstick, true in zip(errors, eager, want, strict=True):
        allowed = 2 * error(yardstick, true) + SLACK
        if not mine <= allowed:
            raise ValueError(f"{mine:.3g} ulp off, {allowed:.3g} allowed")
    return max(errors)


def main(backend: str, device: str) -> int:
    """Run all calls. Returns the exit status: 1 if a call failed, or if an op of the backend was not called."""
    generator = torch.Generator().manual_seed(0)
    failed = 0
    with Called(f"vae_kernels_{backend}") as called:
        for name, (count, call) in CALLS.items():
            inputs = [(torch.rand(SHAPE, generator=generator) * 0.8 + 0.1).to(device) for _ in range(count)]
            began = perf_counter()
            try:
                outcome = f"ok, {check(backend, call, inputs):.2g} ulp"
            except Exception as problem:
                traceback.print_exc()
                outcome, failed = f"FAILED {type(problem).__name__}: {problem}", failed + 1
            print(f"{backend} {name}: {outcome}, {perf_counter() - began:.2f} s", flush=True)
    if missing := set(ops.SCHEMAS) - called.names:
        print(f"{backend}: FAILED, never called: {', '.join(sorted(missing))}")
    print(f"{backend}: {len(CALLS) - failed} of {len(CALLS)} calls passed")
    return int(failed > 0 or bool(missing))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
