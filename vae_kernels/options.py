"""The options of the ops: numbers in the order of the op's schema, with None for a default."""

from enum import IntEnum
from typing import NamedTuple

# Members and their order are those of csrc/formulas/latent.h.
Scale = IntEnum("Scale", ["logvar", "logstd", "std", "variance", "softplus"], start=0)
KlEstimator = IntEnum("KlEstimator", ["analytic", "monte_carlo", "path"], start=0)
Reduction = IntEnum("Reduction", ["sum", "none"], start=0)


def choices(kind: type[IntEnum]) -> dict[str, int | None]:
    """The number of each name, with None for the first one, which is the default."""
    return {member.name: int(member) or None for member in kind}


SCALES, ESTIMATORS, REDUCTIONS = map(choices, (Scale, KlEstimator, Reduction))


class LatentOptions(NamedTuple):
    """The options of the latent step."""

    batch_dims: int
    packed_dim: int | None = None  # the dim along which one tensor holds both moments
    num_samples: int | None = None  # None: one z, without a dim for samples
    scale: int | None = None  # a Scale
    std_floor: float | None = None  # added to the standard deviation
    low: float | None = None  # lower bound of the log-variance
    high: float | None = None  # upper bound of the log-variance
    kl_estimator: int | None = None  # a KlEstimator
    kl_reduction: int | None = None  # a Reduction

    @property
    def sampled(self) -> bool:
        """True if the KL is estimated at each z."""
        return bool(self.kl_estimator)

    @property
    def kl_samples(self) -> int | None:
        """The size of the KL's leading dim; None if it has none."""
        return self.num_samples if self.kl_estimator else None

    @property
    def path(self) -> bool:
        return self.kl_estimator == KlEstimator.path

    @property
    def summed(self) -> bool:
        """True if the KL is summed per sample."""
        return not self.kl_reduction


class LikelihoodOptions(NamedTuple):
    """The options of a likelihood: the family, the parameters that are numbers, and the sum."""

    family: int
    number0: float | None
    number1: float | None
    batch_dims: int
    reduction: int | None = None  # a Reduction

    @property
    def summed(self) -> bool:
        """True if the log-likelihood is summed per sample."""
        return not self.reduction
