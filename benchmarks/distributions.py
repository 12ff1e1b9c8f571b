"""Forward and backward passes with `vae_kernels.distributions`, and with the corresponding classes of torch.

    python -m benchmarks.distributions

It prints a table of medians, from alternating measurements, and how many times faster ours is, without and with
validation of arguments.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, distributions
from torch.distributions import Independent, kl_divergence

from vae_kernels.distributions import (
    DiagonalNormal,
    IndependentBernoulli,
    IndependentCategorical,
    IndependentLaplace,
    IndependentNegativeBinomial,
)

from .contenders import Calls
from .timing import Effort, alternate, sampler

Draw = Callable[..., Tensor]
Function = Callable[..., Tensor | tuple[Tensor, ...]]


class Pair(NamedTuple):
    """Two functions of the same arguments: parameters, which get gradients, and for some a value."""

    theirs: Function
    ours: Function
    parameters: tuple[Draw, ...]
    value: Draw | None
    shapes: tuple[tuple[int, ...], ...]


def _positive(*shape: int) -> Tensor:
    return torch.randn(shape).exp()


def _sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    q = Independent(distributions.Normal(mu, torch.exp(logvar / 2)), 1)
    p = Independent(distributions.Normal(torch.zeros_like(mu), torch.ones_like(mu)), 1)
    return q.rsample(), kl_divergence(q, p)


def _our_sample_and_kl(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    q = DiagonalNormal(mu, logvar)
    return q.rsample(), kl_divergence(q, DiagonalNormal.standard(mu.shape[1:]))


def _scored(distribution: Callable[..., distributions.Distribution]) -> Function:
    return lambda *arguments: distribution(*arguments[:-1]).log_prob(arguments[-1])


_LATENTS, _PIXELS = ((128, 20), (512, 4096)), ((128, 784), (512, 4096))

PAIRS = {
    "`rsample` and `kl_divergence`": Pair(
        _sample_and_kl, _our_sample_and_kl, (torch.randn, torch.randn), None, _LATENTS
    ),
    "normal `log_prob`": Pair(
        _scored(lambda m, l: Independent(distributions.Normal(m, torch.exp(l / 2)), 1)),
        _scored(DiagonalNormal),
        (torch.randn, torch.randn),
        torch.randn,
        _PIXELS,
    ),
    "Laplace `log_prob`": Pair(
        _scored(lambda m, s: Independent(distributions.Laplace(m, torch.exp(s)), 1)),
        _scored(IndependentLaplace),
        (torch.randn, torch.randn),
        torch.randn,
        _PIXELS,
    ),
    "Bernoulli `log_prob`": Pair(
        _scored(lambda a: Independent(distributions.Bernoulli(logits=a), 1)),
        _scored(IndependentBernoulli),
        (torch.randn,),
        lambda *shape: (torch.randn(shape) > 0).float(),
        _PIXELS,
    ),
    "categorical `log_prob`, 256 classes": Pair(
        _scored(lambda a: Independent(distributions.Categorical(logits=a), 1)),
        _scored(IndependentCategorical),
        (lambda *shape: torch.randn((*shape, 256)),),
        lambda *shape: torch.randint(256, shape),
        ((16, 784),),
    ),
    "negative binomial `log_prob`": Pair(
        _scored(lambda m, t: Independent(distributions.NegativeBinomial(t, logits=torch.log(m) - torch.log(t)), 1)),
        _scored(IndependentNegativeBinomial),
        (_positive, _positive),
        lambda *shape: torch.poisson(_positive(*shape)),
        ((128, 2000),),
    ),
}


def _calls(function: Function, parameters: list[Tensor], value: list[Tensor]) -> Calls:
    def forward() -> tuple[Tensor, ...]:
        outputs = function(*parameters, *value)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    upstream = [torch.randn_like(o) for o in forward()]
    return Calls(forward, lambda outputs: torch.autograd.grad(outputs, parameters, upstream))


def ratio(pair: Pair, shape: tuple[int, ...], effort: Effort) -> float:
    """How many times faster ours is: the ratio of the medians."""
    parameters = [draw(*shape).requires_grad_() for draw in pair.parameters]
    value = [pair.value(*shape)] if pair.value else []
    samplers = {
        name: sampler(_calls(function, parameters, value), "both", "cpu", torch.get_num_threads())
        for name, function in (("theirs", pair.theirs), ("ours", pair.ours))
    }
    medians = alternate(samplers, effort)
    return medians["theirs"].median / medians["ours"].median


def main() -> None:
    effort = Effort(rounds=40, at_least=20, seconds=4)
    print("| float32, forward and backward | shape | validated | not validated |\n| --- | --- | --- | --- |")
    for name, pair in PAIRS.items():
        for shape in pair.shapes:
            ratios = []
            for validate in (True, False):
                distributions.Distribution.set_default_validate_args(validate)
                ratios.append(ratio(pair, shape, effort))
            print(f"| {name} | {'×'.join(map(str, shape))} | {' | '.join(f'{r:.1f}' for r in ratios)} |", flush=True)


if __name__ == "__main__":
    main()
