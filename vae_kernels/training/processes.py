"""Training in several processes, as torchrun starts them; without it there is one.

Each works on its part of every batch. Whatever is drawn at random is drawn alike in all of them.
"""

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def count() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def group() -> "dist.ProcessGroup | None":
    """All of them, or None for one alone."""
    return dist.group.WORLD if count() > 1 else None


def own_device(device: torch.device) -> torch.device:
    """The GPU of this process where "cuda" names none."""
    if device.type == "cuda" and device.index is None and count() > 1:
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within it the processes can talk: over gloo, and over NCCL about tensors on GPUs."""
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


def part(batch: Tensor) -> Tensor:
    """This process's part: consecutive, and at most one longer than another's."""
    return batch.tensor_split(count())[rank()]


def distributed(module: nn.Module) -> nn.Module:
    """The module with its gradients averaged over the processes as they are computed."""
    return nn.parallel.DistributedDataParallel(module) if count() > 1 else module


def total(tensor: Tensor) -> Tensor:
    """The sum of all processes' tensors."""
    if count() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor)
    return tensor


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process: what ends a loop must end it in all of them at once."""
    return bool(total(torch.tensor(int(flag))))
