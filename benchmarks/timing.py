"""The time of a call. Contenders alternate; the results are percentiles over all rounds."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from .contenders import Calls

Sampler = Callable[[], list[float]]


@dataclass(frozen=True)
class Effort:
    """The duration of the measurement of one cell (a case in one mode, with all contenders).

    It has `rounds` rounds, but after `at_least` rounds it ends when `seconds` have passed.
    """

    rounds: int = 15
    at_least: int = 5
    seconds: float = 0.5


class Percentiles(NamedTuple):
    """Seconds per call."""

    p20: float
    median: float
    p80: float
    samples: int


def alternate(samplers: dict[str, Sampler], effort: Effort) -> dict[str, Percentiles]:
    """Sample all contenders in turn. Each round has another order, so that no contender always follows the same one,
    and disturbances of the machine affect all of them equally."""
    order = random.Random(0)
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    began = perf_counter()
    for done in range(effort.rounds):
        if done >= effort.at_least and perf_counter() - began > effort.seconds:
            break
        for name in order.sample(list(samplers), len(samplers)):
            samples[name] += samplers[name]()
    return {name: percentiles(times) for name, times in samples.items()}


def percentiles(times: list[float]) -> Percentiles:
    quantiles = torch.tensor(times, dtype=torch.float64).quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64))
    return Percentiles(*quantiles.tolist(), len(times))


def sampler(calls: Calls, mode: str, device: str, threads: int) -> Sampler:
    """A sampler for a mode. Each call of it returns a few times, in seconds."""
    return CudaSampler(calls, mode) if device == "cuda" else _cpu_sampler(calls, mode, threads)


class Stopwatch:
    """A clock for `Timer` that stops while the graph for a backward pass is built. It is built for each pass, because
    torch.compile cannot reuse the buffers of a graph that is run twice."""

    def __init__(self) -> None:
        self.stood = self.paused_at = 0.0

    def __call__(self) -> float:
        return perf_counter() - self.stood

    def pause(self) -> None:
        self.paused_at = perf_counter()

    def resume(self) -> None:
        self.stood += perf_counter() - self.paused_at


_STATEMENTS = {
    "forward": "forward()",
    "backward": "clock.pause(); outputs = forward(); clock.resume(); backward(outputs)",
    "both": "backward(forward())",
}


def _cpu_sampler(calls: Calls, mode: str, threads: int) -> Sampler:
    clock = Stopwatch()
    timer = Timer(_STATEMENTS[mode], globals=calls._asdict() | {"clock": clock}, timer=clock, num_threads=threads)
    # The first runs are not counted; they bring this contender's tensors back into the cache. 10 ms are several blocks
    # of a fast contender, and one call of a slow one.
    return lambda: list(timer.blocked_autorange(min_run_time=0.01).times)


class CudaSampler:
    """Device time between two events. Before each call the L2 cache holds none of the tensors.

    The device is kept busy while the host enqueues the call. The events therefore measure the kernels without gaps, and
    not the host's launches. The host's time is measured separately.
    """

    per_round = 5

    def __init__(self, calls: Calls, mode: str) -> None:
        self.calls, self.mode = calls, mode
        # Clock cycles of the device that last twice as long as the host needs, at 2 GHz.
        self.head_start = int(2 * percentiles(host_times(calls, mode)).median * 2e9)

    def __call__(self) -> list[float]:
        events = [self._one() for _ in range(self.per_round)]
        torch.cuda.synchronize()
        return [start.elapsed_time(end) * 1e-3 for start, end in events]

    def _one(self) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        call = _prepared(self.calls, self.mode)
        _larger_than_l2().sum()  # a read, because clean cache lines need no write-back while the call is timed
        torch.cuda._sleep(self.head_start)
        start.record()
        kept = call()
        end.record()
        del kept
        return start, end


@cache
def _larger_than_l2() -> Tensor:
    size = 4 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.zeros(size // 8, dtype=torch.int64, device="cuda")


def host_times(calls: Calls, mode: str, samples: int = 20) -> list[float]:
    """Seconds that the host needs to enqueue one call. The device is idle before, so that no queue is full."""
    times = []
    for _ in range(samples + 3):
        call = _prepared(calls, mode)
        torch.cuda.synchronize()
        began = perf_counter()
        kept = call()
        times.append(perf_counter() - began)
        del kept
    torch.cuda.synchronize()
    return times[3:]


def _prepared(calls: Calls, mode: str) -> Callable[[], object]:
    """The call that is timed. For a backward pass, its graph is built here."""
    if mode == "forward":
        return calls.forward
    if mode == "both":
        return lambda: calls.backward(calls.forward())
    outputs = calls.forward()
    return lambda: calls.backward(outputs)
