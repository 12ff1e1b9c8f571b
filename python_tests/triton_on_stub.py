"""What Triton hands to the driver when the kernels are launched: for a process with a stub of it, see test_rehearsal.py."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from stubbed_driver import STREAM, launches
from torch import Tensor
from triton_calls import CALLS, Make

from vae_kernels.triton import launch
from vae_kernels.triton.tile import THREADS

MAX_GRID = (2**31 - 1, 65535, 65535)
SHARED_BYTES = 227 * 1024


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kernels of all launches, each launch being checked as it is made."""
    names: list[str] = []
    run = launch.Launch._run

    def run_and_check(self: launch.Launch, tensors: tuple[Any, ...]) -> None:
        launches()
        run(self, tensors)
        (given,) = launches()
        names.append(given["kernel"])
        _check(self, tensors, given)

    monkeypatch.setattr(launch, "_plans", {})
    monkeypatch.setattr(launch.Launch, "_run", run_and_check)
    return names


def _check(self: launch.Launch, tensors: tuple[Any, ...], given: dict[str, Any]) -> None:
    kernel = self._compiled
    arguments = [*tensors, *self._arguments]
    signature = list(kernel.src.signature.values())
    found = _parameters(signature, arguments)
    # Behind the kernel's own there are two for memory that Triton may ask for.
    assert given["parameters"] == [*found, [8, 0], [8, 0]]
    for path, hints in kernel.src.attrs.items():
        for hint, divisor in hints:
            assert hint == "tt.divisibility"
            assert _number(_at(arguments, path)) % divisor == 0, (given["kernel"], path)
    assert given["kernel"] == self._kernel.__name__
    assert given["grid"] == list(self._grid)
    assert all(1 <= n <= most for n, most in zip(given["grid"], MAX_GRID, strict=True))
    assert given["threads"] == THREADS
    assert given["stream"] == STREAM
    assert kernel.metadata.shared <= SHARED_BYTES


def _parameters(signature: Any, arguments: Any) -> list[list[int]]:
    """Size and value of all that is not part of the kernel's code."""
    found = []
    assert len(signature) == len(arguments)
    for type_, argument in zip(signature, arguments, strict=True):
        if isinstance(type_, tuple):
            found += _parameters(type_, argument)
        elif type_ == "fp32":
            found.append([4, struct.unpack("I", struct.pack("f", argument))[0]])
        elif type_ != "constexpr":
            found.append([4 if type_ == "i32" else 8, _number(argument)])
            assert type_ in ("i32", "i64") or type_[0] == "*"
    return found


def _at(arguments: Any, path: tuple[int, ...]) -> Any:
    for i in path:
        arguments = arguments[i]
    return arguments


def _number(argument: Tensor | int) -> int:
    return argument.data_ptr() if isinstance(argument, Tensor) else argument


@pytest.mark.parametrize("name", CALLS)
def test_launches(name: str, launched: list[str]) -> None:
    """The first, that compiles, and the second, that does not."""
    CALLS[name](torch.empty)
    first = launched.copy()
    CALLS[name](torch.empty)
    assert launched == first * 2
    assert first


def _behind_an_element(*shape: Any, dtype: torch.dtype = torch.float32) -> Tensor:
    size = torch.Size(shape[0] if shape and not isinstance(shape[0], int) else shape)
    return torch.empty(size.numel() + 1, dtype=dtype)[1:].view(size)


@pytest.mark.parametrize("name", ["tails", "packed, clamped", "a prior for each column", "mixed dtypes", "positions"])
def test_launches_on_tensors_that_are_not_aligned(name: str, launched: list[str]) -> None:
    makes: tuple[Make, ...] = (torch.empty, _behind_an_element, torch.empty)
    for make in makes:
        CALLS[name](make)
    assert len(launched) >= 6
