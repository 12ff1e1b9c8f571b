"""Which of the samples compile a Triton kernel that no other sample has compiled."""

from collections.abc import Callable

import pytest
from samples import VALUES, Sample

WHOLE = {"latent", "bernoulli", "gaussian"}
EVERY_VALUE = set(VALUES)


class Variants:
    """Chooses what Triton runs of the tests that all backends share: every kind of values in every dtype of every op.
    Shapes and layouts of few ops suffice, because all families have one kernel for them."""

    def __init__(self) -> None:
        self._met: set[tuple[Callable, str | None]] = set()

    def add(self, item: pytest.Item) -> bool:
        """Whether the test is one of them."""
        case = next((p for p in item.callspec.params.values() if isinstance(p, Sample)), None)
        key = item.function, case and case.op
        first = key not in self._met
        self._met.add(key)
        return case is None or first or case.op in WHOLE or case in EVERY_VALUE
