"""The loss that a run minimises. Model and objective are one module, so that several processes can share it."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..latent import reparameterize_kl
from ..likelihood import gaussian_log_likelihood
from ..models import VAE, Elbo
from ..objectives import elbo, importance_weighted_elbo, score_function_elbo


class Objective(NamedTuple):
    """One of `OBJECTIVES`: the options of the latent step, and the value per sample that is maximised."""

    kl_estimator: str
    value: Callable[..., Tensor]
    num_samples: int = 1
    """The default."""
    weighs_kl: bool = True
    """True if beta is defined for it. Free bits and capacity are defined if the KL is analytic as well."""


def _importance_weighted(gradient: str) -> Callable[..., Tensor]:
    def value(log_px: Tensor, kl: Tensor, z: Tensor, **_) -> Tensor:
        return importance_weighted_elbo(log_px, kl, z=z, gradient=gradient)

    return value


def _elbo(log_px: Tensor, kl: Tensor, z: Tensor, **weights) -> Tensor:
    return elbo(log_px, kl, reduction="none", **weights)


OBJECTIVES = {
    "elbo": Objective("analytic", _elbo),
    "elbo-monte-carlo": Objective("monte_carlo", _elbo),
    "elbo-path": Objective("path", _elbo),
    "iwae": Objective("monte_carlo", _importance_weighted("iwae"), num_samples=5, weighs_kl=False),
    "dreg": Objective("path", _importance_weighted("dreg"), num_samples=5, weighs_kl=False),
    "score-function": Objective("analytic", score_function_elbo, num_samples=5, weighs_kl=False),
}


class Loss(nn.Module):
    """Minus the objective, summed over the batch and divided by `size`, and the terms of its ELBO.

    Args of the call:
        x: `(B, *input_shape)`: this process's part of the batch.
        seed: one seed for each x. The noise of x depends on nothing else.
        size: the size of the batch. If processes share it, the average size of a part, because gradients are averaged.
        beta, capacity: the weights of this step, tensors of one element. capacity may be None.
    """

    def __init__(
        self,
        model: VAE,
        objective: str,
        num_samples: int,
        free_bits: float | None = None,
        free_bits_per: str = "dimension",
        capacity_per: str = "sample",
        process_group: "torch.distributed.ProcessGroup | None" = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.num_samples = num_samples
        self.free_bits, self.free_bits_per = free_bits, free_bits_per
        self.capacity_per = capacity_per
        self.process_group = process_group

    def forward(
        self, x: Tensor, seed: Tensor, size: float, beta: Tensor, capacity: Tensor | None = None
    ) -> tuple[Tensor, Elbo]:
        if self.objective == "score-function":
            value, log_px, kl = self._score_function(x, seed)
        else:
            value, log_px, kl = self._reparameterized(x, seed, beta, capacity)
        log_px, kl = (t.detach().mean(0) if t.dim() == 2 else t.detach() for t in (log_px, kl))
        return -value.sum() / size, Elbo(log_px - kl, log_px, kl)

    def _reparameterized(self, x: Tensor, seed: Tensor, beta: Tensor, capacity: Tensor | None):
        objective = OBJECTIVES[self.objective]
        by_dimension = self.free_bits is not None and self.free_bits_per == "dimension"
        z, kl, parameters = self.model(
            x,
            # Without a leading dim of one there are fewer views and means: 0.1 to 0.2 of 4.7 ms per step on the digits.
            num_samples=None if self.num_samples == 1 and objective.weighs_kl else self.num_samples,
            kl_estimator=objective.kl_estimator,
            kl_reduction="none" if by_dimension else "sum",
            seed=seed,
        )
        log_px = self.model.likelihood.log_px(x, *parameters)
        value = objective.value(
            log_px,
            kl,
            z,
            beta=beta,
            free_bits=self.free_bits,
            free_bits_per=self.free_bits_per,
            capacity=capacity,
            capacity_per=self.capacity_per,
            process_group=self.process_group,
        )
        return value, log_px, kl.sum(-1) if by_dimension else kl

    def _score_function(self, x: Tensor, seed: Tensor):
        """The baseline of each sample is the mean over the other samples (Kool et al. 2019, "Buy 4 REINFORCE Samples,
        Get a Baseline for Free!")."""
        mu, logvar = self.model.encode(x)
        z, kl = reparameterize_kl(mu, logvar, num_samples=self.num_samples, seed=seed)
        z = z.detach()
        log_px = self.model.log_px(x, z)
        log_q = gaussian_log_likelihood(mu.expand_as(z), z, logvar.expand_as(z), batch_dims=2)
        others = (log_px.sum(0) - log_px) / max(self.num_samples - 1, 1) - kl
        value = score_function_elbo(log_px, kl, log_q, baseline=others, reduction="none")
        return value, log_px, kl
