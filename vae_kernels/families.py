"""The families of likelihoods."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from . import checks, eager


class Family(NamedTuple):
    """One family of distributions.

    `arguments` are named in order. `log_prob` is the log-probability of an element in eager PyTorch. `ranges` are the
    values that `check_values` accepts. `numbers` are the arguments that must be numbers, never tensors.

    Kernels identify a family by its index in `FAMILIES`. The structs in csrc/formulas/likelihood.h have the same order.
    """

    arguments: tuple[str, ...]
    log_prob: Callable[..., Tensor]
    ranges: dict[str, checks.Range]
    numbers: tuple[str, ...] = ()


_COUNTS = {"mu": checks.NOT_NEGATIVE, "x": checks.NOT_NEGATIVE, "theta": checks.POSITIVE}

FAMILIES = {
    "bernoulli": Family(("logits", "x"), eager.bernoulli, {"x": checks.UNIT}),
    "gaussian": Family(("mean", "x", "logvar"), eager.gaussian, {}),
    "laplace": Family(("loc", "x", "log_scale"), eager.laplace, {}),
    "continuous_bernoulli": Family(("logits", "x"), eager.continuous_bernoulli, {"x": checks.UNIT}),
    "bernoulli_probs": Family(("probs", "x"), eager.bernoulli_probs, {"probs": checks.UNIT, "x": checks.UNIT}),
    "negative_binomial": Family(("mu", "x", "theta"), eager.negative_binomial, _COUNTS),
    "zero_inflated_negative_binomial": Family(
        ("mu", "x", "theta", "zero_logits"), eager.zero_inflated_negative_binomial, _COUNTS
    ),
    "discretized_logistic": Family(
        ("mean", "x", "log_scale", "bins"), eager.discretized_logistic, {"x": checks.SYMMETRIC_UNIT}, ("bins",)
    ),
    "poisson": Family(("log_rate", "x"), eager.poisson, {"x": checks.NOT_NEGATIVE}),
    "poisson_rate": Family(("rate", "x"), eager.poisson_rate, dict.fromkeys(("rate", "x"), checks.NOT_NEGATIVE)),
    "zero_inflated_poisson": Family(
        ("log_rate", "x", "zero_logits"), eager.zero_inflated_poisson, {"x": checks.NOT_NEGATIVE}
    ),
}

INDEX = {name: index for index, name in enumerate(FAMILIES)}
