"""Training in several processes that torchrun starts. Without torchrun there is one process.

Each process computes its part of every batch. All processes draw the same random numbers.
"""

import contextlib
import os
import time
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def group() -> "dist.ProcessGroup | None":
    """The group of all processes; None if there is only one."""
    return dist.group.WORLD if count() > 1 else None


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process, if `device` is "cuda" without an index."""
    if device.type == "cuda" and device.index is None and count() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Context manager within which the processes can communicate: by gloo, and for tensors on GPUs by NCCL."""
    if count() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()
        # Gives gloo's threads the GIL: one that still waits for it when Python ends aborts the process (pytorch #190489,
        # in one of eight runs of a second).
        time.sleep(0.1)


def part(batch: Tensor) -> Tensor:
    """This process's consecutive part of the batch. The sizes of two parts differ by at most one."""
    return batch.tensor_split(count())[rank()]


def distributed(module: nn.Module) -> nn.Module:
    """The module, with gradients that are averaged over all processes during the backward pass."""
    return nn.parallel.DistributedDataParallel(module) if count() > 1 else module


def total(tensor: Tensor) -> Tensor:
    """The sum of the tensors of all processes."""
    if count() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool) -> bool:
    """True if the flag is set in any process. All processes have to leave a loop in the same step."""
    return bool(total(torch.tensor(int(flag))))
