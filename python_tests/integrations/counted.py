"""How often our ops ran."""

from collections import Counter

from torch.utils._python_dispatch import TorchDispatchMode


class CountedOps(TorchDispatchMode):
    """Within it, `self.calls` counts our ops by name, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        if op.namespace.startswith("vae_kernels"):
            self.calls[op._opname] += 1
        return op(*args, **(kwargs or {}))
