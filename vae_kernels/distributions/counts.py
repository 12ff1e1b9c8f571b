"""Distributions of counts: negative binomial and zero-inflated negative binomial, by mean and inverse dispersion."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import NegativeBinomial, constraints

from ..likelihood import negative_binomial_log_likelihood, zero_inflated_negative_binomial_log_likelihood
from .base import IndependentElements, parameter


class IndependentNegativeBinomial(IndependentElements):
    """Independent negative binomial elements with mean mu and variance mu + mu²/theta.

    It corresponds to `Independent(NegativeBinomial(theta, logits=log(mu) − log(theta)), event_dims)`, and to
    scvi-tools' `NegativeBinomial(mu=mu, theta=theta)`.

    `log_prob` is `negative_binomial_log_likelihood`, with the ε = 1e-8 of scvi-tools, which keeps it finite at mu = 0.

    Args:
        mu: means, not negative: a number or a tensor of float64, float32, bfloat16 or float16.
        theta: inverse dispersions, positive: a number or a tensor, as for mu. Both broadcast against each other.
        event_dims: the number of trailing dims that form one event; `log_prob` sums over them. 0: none.
        validate_args: as in torch. The ranges of parameters and values are checked, which waits for the device.

    Raises:
        TypeError: a parameter is neither a tensor nor a number, or its dtype is not listed here; `event_dims` is not an
            int.
        ValueError: shapes do not broadcast, have fewer dims than `event_dims`, or validation fails.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15, methods.

    >>> import torch
    >>> from vae_kernels.distributions import IndependentNegativeBinomial
    >>> IndependentNegativeBinomial(torch.ones(2, 3), theta=1.0).log_prob(torch.tensor([[0, 1, 2]] * 2))
    tensor([-4.1589, -4.1589])
    """

    arg_constraints: ClassVar = {"mu": constraints.nonnegative, "theta": constraints.positive}
    _element_support = constraints.nonnegative_integer
    _log_likelihood = staticmethod(negative_binomial_log_likelihood)

    mu, theta = parameter("mu"), parameter("theta")

    def __init__(
        self, mu: Tensor | float, theta: Tensor | float, event_dims: int = 1, validate_args: bool | None = None
    ) -> None:
        super().__init__(event_dims, validate_args, mu=mu, theta=theta)

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def variance(self) -> Tensor:
        return self.mu + self.mu**2 / self.theta

    def _elements(self) -> NegativeBinomial:
        return _negative_binomial(self.mu, self.theta)


class IndependentZeroInflatedNegativeBinomial(IndependentElements):
    """Independent negative binomial elements, each replaced by 0 with the probability sigmoid(zero_logits).

    It corresponds to scvi-tools' `ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=zero_logits)`.

    `log_prob` is `zero_inflated_negative_binomial_log_likelihood`. torch has no such distribution.

    Args:
        mu: means before zero inflation, not negative: a number or a tensor of float64, float32, bfloat16 or float16.
        theta: inverse dispersions, positive: a number or a tensor, as for mu.
        zero_logits: log-odds of a replacement by 0: a number or a tensor, as for mu. All broadcast against each other.
        event_dims: the number of trailing dims that form one event; `log_prob` sums over them. 0: none.
        validate_args: as in torch. The ranges of parameters and values are checked, which waits for the device.

    Raises:
        TypeError: a parameter is neither a tensor nor a number, or its dtype is not listed here; `event_dims` is not an
            int.
        ValueError: shapes do not broadcast, have fewer dims than `event_dims`, or validation fails.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15, methods.

    >>> import torch
    >>> from vae_kernels.distributions import IndependentZeroInflatedNegativeBinomial
    >>> counts = IndependentZeroInflatedNegativeBinomial(torch.ones(2, 3), theta=1.0, zero_logits=0.0)
    >>> counts.log_prob(torch.tensor([[0, 1, 2]] * 2))
    tensor([-5.1397, -5.1397])
    """

    arg_constraints: ClassVar = {
        "mu": constraints.nonnegative,
        "theta": constraints.positive,
        "zero_logits": constraints.real,
    }
    _element_support = constraints.nonnegative_integer
    _log_likelihood = staticmethod(zero_inflated_negative_binomial_log_likelihood)

    mu, theta, zero_logits = parameter("mu"), parameter("theta"), parameter("zero_logits")

    def __init__(
        self,
        mu: Tensor | float,
        theta: Tensor | float,
        zero_logits: Tensor | float,
        event_dims: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        super().__init__(event_dims, validate_args, mu=mu, theta=theta, zero_logits=zero_logits)

    @property
    def mean(self) -> Tensor:
        return self._kept_fraction() * self.mu

    @property
    def variance(self) -> Tensor:
        mu = self.mu
        return self._kept_fraction() * (mu + mu**2 / self.theta + torch.sigmoid(self.zero_logits) * mu**2)

    def _kept_fraction(self) -> Tensor:
        return torch.sigmoid(-self.zero_logits)

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            counts = _negative_binomial(self.mu, self.theta).sample(torch.Size(sample_shape))
            return counts * torch.bernoulli(self._kept_fraction().expand(counts.shape))


def _negative_binomial(mu: Tensor, theta: Tensor) -> NegativeBinomial:
    return NegativeBinomial(theta, logits=torch.log(mu) - torch.log(theta), validate_args=False)
