"""The contenders: the kernel backends, the code that people have today, and the floor, a copy of the same bytes."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

import vae_kernels as vk

from .cases import OPS, SAMPLE_COUNTS, Case
from .snippets import DISTRIBUTIONS, EAGER, by_levels

COPY = "copy"
# Another package, without our patch.
PUBLISHED = "published"


def _prior(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> tuple[Tensor, Tensor]:
    return vk.reparameterize_kl(mu, logvar, prior_mu=prior_mu, prior_logvar=prior_logvar)


def _only(function: Callable[..., Tensor]) -> Callable[..., tuple[Tensor]]:
    return lambda *arguments: (function(*arguments),)


KERNELS = {
    "latent": vk.reparameterize_kl,
    "latent-packed": vk.reparameterize_kl_packed,
    "latent-prior": _prior,
    "latent-hierarchy": by_levels(_prior),
    **{
        f"latent-samples-{count}": partial(vk.reparameterize_kl, num_samples=count, kl_estimator="monte_carlo")
        for count in SAMPLE_COUNTS
    },
    "bernoulli-samples": _only(partial(vk.bernoulli_log_likelihood, batch_dims=2)),
    "bernoulli": _only(vk.bernoulli_log_likelihood),
    "gaussian": _only(vk.gaussian_log_likelihood),
    "gaussian-fixed": _only(vk.gaussian_log_likelihood),
    "gaussian-scalar": _only(vk.gaussian_log_likelihood),
    "gaussian-column": _only(vk.gaussian_log_likelihood),
    "negative-binomial": _only(vk.negative_binomial_log_likelihood),
    "categorical": _only(vk.categorical_log_likelihood),
}


# torch.compile for each shape separately, which is its default, or once for all shapes.
_BASELINES = {
    "eager": EAGER.__getitem__,
    "distributions": DISTRIBUTIONS.__getitem__,
    "compile": lambda op: torch.compile(EAGER[op], dynamic=False),
    "compile-dynamic": lambda op: torch.compile(EAGER[op], dynamic=True),
}

# They do not depend on the package, so the changes of their times between two runs are noise of the machine.
UNCHANGED = (COPY, PUBLISHED, *_BASELINES)


@dataclass(frozen=True)
class Contender:
    """A way to compute the ops. `build(op)` returns a function of the op's inputs; `backend` is one of vae_kernels."""

    name: str
    build: Callable[[str], Callable[..., tuple[Tensor, ...]]]
    backend: str | None = None

    def chosen(self) -> contextlib.AbstractContextManager:
        """Context manager within which the functions of vae_kernels run on this contender's backend."""
        return vk.use_backend(self.backend) if self.backend else contextlib.nullcontext()


class Calls(NamedTuple):
    """A forward pass, and the backward pass of its results."""

    forward: Callable[[], tuple[Tensor, ...]]
    backward: Callable[[tuple[Tensor, ...]], object]


def named(name: str) -> Contender:
    """The contender with this name, even if it cannot run here."""
    if name in _BASELINES:
        return Contender(name, _BASELINES[name])
    return Contender(name, KERNELS.__getitem__, backend=name)


def contenders(device: str, *, dynamic: bool = False) -> tuple[list[Contender], dict[str, str]]:
    """The contenders that can run here, and the reasons of the others. `dynamic`: one torch.compile for all sizes."""
    reasons = {name: "" if state == "available" else state for name, state in vk.backends()[device].items()}
    del reasons["eager"]  # the package's own fallback; the baseline with this name is the code that people write
    if device == "cpu" and not reasons["triton"]:
        reasons["triton"] = "on a CPU it runs under Triton's interpreter, which is for tests"
    reasons |= {"eager": "", "distributions": "", "compile-dynamic" if dynamic else "compile": _why_not_compile(device)}
    return [named(n) for n, reason in reasons.items() if not reason], {n: r for n, r in reasons.items() if r}


def calls(function: Callable[..., tuple[Tensor, ...]], case: Case, tensors: dict[str, Tensor]) -> Calls:
    """Both passes of a contender's function on a case's tensors. The backward pass has random upstream gradients."""
    inputs = tuple(tensors.values())
    differentiated = tuple(tensors[name] for name in OPS[case.op].differentiated)
    upstream = case.upstream(function(*inputs))
    return Calls(
        forward=lambda: function(*inputs),
        backward=lambda outputs: torch.autograd.grad(outputs, differentiated, upstream),
    )


def copy_calls(case: Case, device: str) -> Calls:
    """The floor. It copies the number of bytes that the op must write, into the same number of fresh tensors. If the op
    must read more bytes, it sums the number of the additional ones, which only reads them."""
    forward, backward = (_mover(*case.moves(mode)[0], device) for mode in ("forward", "backward"))
    return Calls(forward, lambda _: backward())


def _mover(reads: list[int], writes: list[int], device: str) -> Callable[[], list[Tensor]]:
    # The sum of int64 is torch's fastest read on a CPU: 31 GB/s, and that of float32 17 to 25.
    sources = [_words(size, device) for size in writes]
    extra = _words(max(0, sum(reads) - sum(writes)), device)
    return lambda: [source.clone() for source in sources] + [extra.sum()]


def _words(size: int, device: str) -> Tensor:
    return torch.ones(-(-size // 8), dtype=torch.int64, device=device)


@cache
def _why_not_compile(device: str) -> str:
    """An empty string if torch.compile works here, else the reason. The cache is fresh, because a cached result would
    hide that there is no compiler."""
    from torch._inductor.utils import fresh_cache

    try:
        with fresh_cache():
            torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))
    except Exception as error:
        return first_line(error)
    return ""


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}"
