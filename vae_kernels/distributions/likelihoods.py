"""Distributions of pixels and tokens: Bernoulli, Laplace and categorical."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Bernoulli, Categorical, Laplace, constraints

from ..categorical import categorical_log_likelihood
from ..likelihood import bernoulli_log_likelihood, laplace_log_likelihood
from ..rows import compute_dtype
from .base import IndependentElements, parameter


class IndependentBernoulli(IndependentElements):
    """Independent Bernoulli elements. It corresponds to `Independent(Bernoulli(logits=logits), event_dims)`.

        log_prob(x) = Σ x · a − softplus(a),    a = logits        [nats]

    Args:
        logits: log-odds of 1, a tensor of float64, float32, bfloat16 or float16, or a number.
        event_dims: the number of trailing dims that form one event; `log_prob` and `entropy` sum over them. 0: none.
        validate_args: as in torch. Logits must not be NaN, and values must be 0 or 1. Pass False for grey values in
            [0, 1], for which the formula holds too.

    Raises:
        TypeError: `logits` is neither a tensor nor a number, or its dtype is not listed here; `event_dims` is not an
            int.
        ValueError: `logits` has fewer dims than `event_dims`, or validation fails.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1.

    >>> import torch
    >>> from vae_kernels.distributions import IndependentBernoulli
    >>> IndependentBernoulli(torch.zeros(2, 3)).log_prob(torch.ones(2, 3))
    tensor([-2.0794, -2.0794])
    """

    arg_constraints: ClassVar = {"logits": constraints.real}
    _element_support = constraints.boolean
    _enumerable = True
    _log_likelihood = staticmethod(bernoulli_log_likelihood)

    logits = parameter("logits")

    def __init__(self, logits: Tensor | float, event_dims: int = 1, validate_args: bool | None = None) -> None:
        super().__init__(event_dims, validate_args, logits=logits)

    def _elements(self) -> Bernoulli:
        return Bernoulli(logits=self.logits, validate_args=False)

    @property
    def probs(self) -> Tensor:
        """The probabilities of 1."""
        return self._elements().probs


class IndependentLaplace(IndependentElements):
    """Independent Laplace elements. It corresponds to `Independent(Laplace(loc, exp(log_scale)), event_dims)`.

        log_prob(x) = Σ −|x − loc| · exp(−log_scale) − log_scale − ln 2        [nats]

    Args:
        loc: medians: a number or a tensor of float64, float32, bfloat16 or float16.
        log_scale: natural logarithms of the scales b (the variance is 2 b²): a number or a tensor, as for loc. Both
            broadcast against each other.
        event_dims: the number of trailing dims that form one event; `log_prob` and `entropy` sum over them. 0: none.
        validate_args: as in torch. Parameters and values are checked for NaN, which waits for the device.

    Raises:
        TypeError: a parameter is neither a tensor nor a number, or its dtype is not listed here; `event_dims` is not an
            int.
        ValueError: shapes do not broadcast, have fewer dims than `event_dims`, or validation fails.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", exercise 2.43 with q = 1.

    >>> import torch
    >>> from vae_kernels.distributions import IndependentLaplace
    >>> IndependentLaplace(torch.zeros(2, 3), 0.0).log_prob(torch.zeros(2, 3))
    tensor([-2.0794, -2.0794])
    """

    arg_constraints: ClassVar = {"loc": constraints.real, "log_scale": constraints.real}
    has_rsample = True
    _element_support = constraints.real
    _log_likelihood = staticmethod(laplace_log_likelihood)

    loc, log_scale = parameter("loc"), parameter("log_scale")

    def __init__(
        self, loc: Tensor | float, log_scale: Tensor | float, event_dims: int = 1, validate_args: bool | None = None
    ) -> None:
        super().__init__(event_dims, validate_args, loc=loc, log_scale=log_scale)

    def _elements(self) -> Laplace:
        return Laplace(self.loc, torch.exp(self.log_scale), validate_args=False)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._elements().rsample(torch.Size(sample_shape))

    def entropy(self) -> Tensor:
        log_scale = self.log_scale.to(compute_dtype(self.log_scale))
        return self._sum_event(log_scale + (1 + math.log(2)))


class IndependentCategorical(IndependentElements):
    """Independent elements with one of K classes.

    It corresponds to `Independent(Categorical(logits=logits), event_dims)`.

        log_prob(x) = Σ aₓ − ln Σₖ exp(aₖ),    a = logits, k over their last dim        [nats]

    `logits` are kept as passed. (torch's class subtracts their log-sum-exp first.)

    Args:
        logits: a tensor of float64, float32, bfloat16 or float16. Its last dim holds the classes, and belongs neither
            to the batch nor to the event.
        event_dims: the number of trailing dims, before the classes, that form one event; `log_prob` and `entropy` sum
            over them. 0: none.
        validate_args: as in torch. Logits must not be NaN, and values must be valid classes.

    Raises:
        TypeError: `logits` is not a tensor, or its dtype is not listed here; `event_dims` is not an int.
        ValueError: `logits` has fewer dims than `event_dims` + 1, or validation fails.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", equations 4.104 and 4.108.

    >>> import torch
    >>> from vae_kernels.distributions import IndependentCategorical
    >>> IndependentCategorical(torch.zeros(2, 3, 10)).log_prob(torch.tensor([[0, 4, 9]] * 2))
    tensor([-6.9078, -6.9078])
    """

    arg_constraints: ClassVar = {"logits": constraints.real_vector}
    _enumerable = True
    _log_likelihood = staticmethod(categorical_log_likelihood)

    logits = parameter("logits")

    def __init__(self, logits: Tensor, event_dims: int = 1, validate_args: bool | None = None) -> None:
        super().__init__(event_dims, validate_args, logits=logits)

    @property
    def _element_support(self) -> constraints.Constraint:
        return constraints.integer_interval(0, self._like.shape[-1] - 1)

    def _elements(self) -> Categorical:
        return Categorical(logits=self.logits, validate_args=False)

    @property
    def probs(self) -> Tensor:
        """The probabilities of the classes."""
        return self._elements().probs

    def log_prob(self, value: Tensor) -> Tensor:
        # torch also accepts classes of a floating-point dtype.
        floating = isinstance(value, Tensor) and value.is_floating_point()
        return super().log_prob(value.long() if floating else value)
