"""What an op is told beside its tensors, as numbers, in the order of its schema; None is the usual choice."""

from enum import IntEnum
from typing import NamedTuple

# The members are as csrc/formulas/latent.h has them.
Scale = IntEnum("Scale", ["logvar", "logstd", "std", "variance", "softplus"], start=0)
KlEstimator = IntEnum("KlEstimator", ["analytic", "monte_carlo", "path"], start=0)
Reduction = IntEnum("Reduction", ["sum", "none"], start=0)


def choices(kind: type[IntEnum]) -> dict[str, int | None]:
    """The number of each name; None for the first, the usual one."""
    return {member.name: int(member) or None for member in kind}


SCALES, ESTIMATORS, REDUCTIONS = map(choices, (Scale, KlEstimator, Reduction))


class LatentOptions(NamedTuple):
    """How the latent step is computed."""

    batch_dims: int
    packed_dim: int | None = None  # along which mu and what is passed for the spread lie in one tensor
    num_samples: int | None = None  # None: one z, without a dim of its own
    scale: int | None = None  # a Scale
    std_floor: float | None = None  # what is added to the standard deviation
    low: float | None = None  # the log-variance is at least this
    high: float | None = None  # and at most this
    kl_estimator: int | None = None  # a KlEstimator
    kl_reduction: int | None = None  # a Reduction

    @property
    def sampled(self) -> bool:
        """Whether the KL is estimated at each z."""
        return bool(self.kl_estimator)

    @property
    def kl_samples(self) -> int | None:
        """The leading dim of the KL, if it has one."""
        return self.num_samples if self.kl_estimator else None

    @property
    def path(self) -> bool:
        return self.kl_estimator == KlEstimator.path

    @property
    def summed(self) -> bool:
        """Whether the KL is summed per sample."""
        return not self.kl_reduction


class LikelihoodOptions(NamedTuple):
    """Which likelihood is computed, of its parameters those that are numbers, and what is summed."""

    family: int
    number0: float | None
    number1: float | None
    batch_dims: int
    reduction: int | None = None  # a Reduction

    @property
    def summed(self) -> bool:
        """Whether the log-likelihood is summed per sample."""
        return not self.reduction
