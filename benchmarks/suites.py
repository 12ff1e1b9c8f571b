"""The suites of single ops: their cells and rows. Values are checked before times are measured."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from . import checking, memory, required, timing
from .cases import HOST_CASES, MODES, SCALING_CASES, THREADS_CASES, Case, cases, format_shape
from .contenders import COPY, Calls, Contender, calls, contenders, copy_calls, first_line
from .results import Row, provenance
from .timing import Effort, Percentiles

Function = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Plan:
    """The options of a run. `only` is compared by complete words: `128×20` does not select `128×2000`."""

    device: str
    everything: bool
    only: tuple[str, ...]
    effort: Effort

    def wants(self, name: str) -> bool:
        """True if the run includes the case with this name."""
        return not self.only or any(f" {words} " in f" {name} " for words in self.only)


@dataclass(frozen=True)
class Cell:
    """A piece of work: a case, and the modes in which it is measured."""

    case: Case
    modes: tuple[str, ...]
    threads: int


def ops(plan: Plan) -> list[Cell]:
    """The cells of the suite. On a GPU, those with a required ratio come first, because the time is short."""
    chosen = cases(plan.device, plan.everything)
    if plan.device == "cuda":
        chosen.sort(key=lambda case: not required.on_gpu(case))
    return [Cell(case, MODES, torch.get_num_threads()) for case in chosen]


def host(plan: Plan) -> list[Cell]:
    return [Cell(case, MODES, torch.get_num_threads()) for case in HOST_CASES]


def scaling(plan: Plan) -> list[Cell]:
    return [Cell(case, ("both",), torch.get_num_threads()) for case in SCALING_CASES]


def threads(plan: Plan) -> list[Cell]:
    """The cells for 1, 2, 4, … and all threads; none for a GPU."""
    if plan.device == "cuda":
        return []
    most = torch.get_num_threads()
    counts = sorted({2**k for k in range(most.bit_length()) if 2**k <= most} | {most})
    return [Cell(case, ("both",), count) for case in THREADS_CASES for count in counts]


SUITES: dict[str, Callable[[Plan], list[Cell]]] = {"ops": ops, "host": host, "scaling": scaling, "threads": threads}


class Entrant(NamedTuple):
    """A contender with correct values, ready to be timed."""

    contender: Contender
    calls: Calls


def run(suite: str, cells: list[Cell], plan: Plan) -> Iterator[list[Row]]:
    """The rows of each cell, as one list per mode, as soon as they are measured."""
    dynamic = suite == "scaling"  # one compilation for all sizes, because one per size would take most of the run
    competing, _ = contenders(plan.device, dynamic=dynamic)
    if suite in ("scaling", "threads"):
        competing = [c for c in competing if c.name != "distributions"]  # its curve is that of eager, a little higher
    functions, built_for = {}, None
    for cell in cells:
        # Otherwise each cell is compiled anew, without the guards of earlier compilations.
        build_for = cell.case.op if dynamic else cell
        if build_for != built_for:
            torch.compiler.reset()
            functions, built_for = {c.name: c.build(cell.case.op) for c in competing}, build_for
        with _threads(cell.threads):
            yield from _measure(suite, cell, plan, competing, functions)


def _measure(
    suite: str, cell: Cell, plan: Plan, competing: list[Contender], functions: dict[str, Function]
) -> Iterator[list[Row]]:
    case, device = cell.case, plan.device
    tensors = case.inputs(device)
    entrants, status = prepare(competing, functions, case, tensors)
    held = {name: _held(e, tensors, device) for name, e in entrants.items()} if suite == "ops" else {}
    if suite != "host":
        entrants[COPY], status[COPY] = Entrant(Contender(COPY, lambda op: None), copy_calls(case, device)), "ok"
    for mode in cell.modes:
        times = timing.alternate({name: _sampler(e, mode, cell, device) for name, e in entrants.items()}, plan.effort)
        rows = []
        for name, state in status.items():
            row = Row(suite, case.op, name, mode, case.dtype, format_shape(case.shape), cell.threads, state)
            vars(row).update(provenance(device))
            if name in times:
                fill_times(row, times[name], times.get(COPY), case.ideal_bytes(mode))
                row.host_us = _host_us(suite, row, entrants[name], mode, device)
            if name in held and mode == "both":
                row.saved_bytes, row.peak_bytes = held[name]
            rows.append(row)
        yield rows


def prepare(
    competing: list[Contender], functions: dict[str, Function], case: Case, tensors: dict[str, Tensor]
) -> tuple[dict[str, Entrant], dict[str, str]]:
    """The contenders with correct values, and the status of all. Eager is first: its errors limit the kernels'."""
    entrants, status, yardstick = {}, {}, {}
    for contender in sorted(competing, key=lambda c: c.name != "eager"):
        try:
            with contender.chosen():
                entrant = Entrant(contender, calls(functions[contender.name], case, tensors))
                outputs = entrant.calls.forward()
                got = checking.results(case, outputs, entrant.calls.backward(outputs))
            errors = checking.errors(case, tensors, got)
        except Exception as error:
            status[contender.name] = f"failed {first_line(error)}"
            continue
        wrong = checking.verdict(case, got, errors, yardstick if contender.backend else None)
        if contender.name == "eager":
            yardstick = {name: checking.Error() if wrong else error for name, error in errors.items()}
        status[contender.name] = wrong or "ok"
        if not wrong:
            entrants[contender.name] = entrant
    return entrants, {c.name: status[c.name] for c in competing}


def fill_times(row: Row, times: Percentiles, copy: Percentiles | None, ideal_bytes: int | None) -> None:
    row.samples = times.samples
    row.p20_us, row.median_us, row.p80_us = (seconds * 1e6 for seconds in times[:3])
    if copy:
        row.ideal_bytes = ideal_bytes
        row.gb_per_s = ideal_bytes / times.median * 1e-9
        row.fraction_of_copy = copy.median / times.median


def _sampler(entrant: Entrant, mode: str, cell: Cell, device: str) -> timing.Sampler:
    with entrant.contender.chosen():
        sample = timing.sampler(entrant.calls, mode, device, cell.threads)

    def sample_on_backend() -> list[float]:
        with entrant.contender.chosen():
            return sample()

    return sample_on_backend


def _held(entrant: Entrant, tensors: dict[str, Tensor], device: str) -> tuple[int, int]:
    with entrant.contender.chosen():
        return (
            memory.saved_bytes(entrant.calls, list(tensors.values())),
            memory.peak_bytes(entrant.calls, device),
        )


def _host_us(suite: str, row: Row, entrant: Entrant, mode: str, device: str) -> float | None:
    """The host's time. On a CPU, where a call returns when its work is done, only one element shows it."""
    if device != "cuda":
        return row.median_us if suite == "host" else None
    with entrant.contender.chosen():
        return timing.percentiles(timing.host_times(entrant.calls, mode)).median * 1e6


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
