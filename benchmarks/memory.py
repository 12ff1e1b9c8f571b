"""The memory that a call uses."""

import contextlib
import os
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from .contenders import Calls


def saved_bytes(calls: Calls, inputs: list[Tensor]) -> int:
    """The bytes that are kept for the backward pass, without inputs and outputs."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = calls.forward()
    known = {t.untyped_storage().data_ptr() for t in (*inputs, *outputs)}
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
    return sum(size for pointer, size in storages.items() if pointer not in known)


def peak_bytes(calls: Calls, device: str) -> int:
    """The largest number of bytes that torch's allocator held at one time during a forward and a backward pass."""
    return _peak_on_cuda(calls) if device == "cuda" else _peak_on_cpu(calls)


def _peak_on_cuda(calls: Calls) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    calls.backward(calls.forward())
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_on_cpu(calls: Calls) -> int:
    """The peak from the profiler's record of allocations and releases, because torch has no statistics on a CPU."""
    with profiler_silenced(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        calls.backward(calls.forward())
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def profiler_silenced() -> Iterator[None]:
    """Silence the profiler of torch 2.13, which writes two lines to the standard error each time."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
