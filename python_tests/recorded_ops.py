"""The calls of a backend's ops, recorded and then checked one by one."""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class RecordedOps(TorchDispatchMode):
    """Records the calls of one backend's ops as the dispatcher sees them."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self._namespace = f"vae_kernels_{backend}"
        self._calls: list[tuple] = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace == self._namespace:
            self._calls.append((op, args))
        return op(*args, **(kwargs or {}))

    def __len__(self) -> int:
        return len(self._calls)

    def check(self) -> None:
        """Checks the schema, the fake and the strides of each recorded op, with the very arguments that it got."""
        for op, args in self._calls:
            torch.library.opcheck(op, tuple(_detached(a) for a in args))


def _detached(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_detached(v) for v in value]
    return value.detach() if isinstance(value, Tensor) else value
