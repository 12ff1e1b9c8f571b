"""Tables for the README, made from a run's CSV."""

from collections.abc import Callable

from . import required
from .contenders import COPY, UNCHANGED
from .results import Row
from .terminal import format_bytes, format_time, ordered

_TITLES = {
    "distributions": "torch.distributions",
    "compile": "torch.compile",
    "compile-dynamic": "torch.compile, dynamic",
}


def report(rows: list[Row], sections: list[str]) -> str:
    first = rows[0]
    origin = f"{first.device}; {first.versions}; {first.date[:10]}, commit {first.commit}."
    return "\n\n".join([origin, *(text for name in sections if (text := SECTIONS[name](rows)))])


def _ops(rows: list[Row]) -> str:
    note = (
        "Forward and backward, medians; in brackets, times the copy, which moves the same bytes (kernels), "
        "and times the fastest kernel (baselines)."
    )
    return _section(note, ("op", "shape", "dtype"), [r for r in rows if (r.suite, r.mode) == ("ops", "both")], _against)


def _floor(rows: list[Row]) -> str:
    """The cases that are so far from the copy that a profile has to explain them."""
    cells = _by_cell([r for r in rows if (r.suite, r.mode) == ("ops", "both")])
    lines = []
    for cell in cells:
        kernels = [r for r in cell.values() if r.contender not in UNCHANGED and r.fraction_of_copy]
        if kernels and (best := max(kernels, key=lambda r: r.fraction_of_copy)).fraction_of_copy < 1 / required.FAR:
            times = (
                f"{format_time(best.median_us)} | {format_time(cell[COPY].median_us)} | {1 / best.fraction_of_copy:.2f}"
            )
            lines.append(f"| {best.op} | {best.shape} | {best.dtype} | {best.contender} | {times} |")
    head = [
        f"Forward and backward, further than {required.FAR} times from the copy of the same bytes:",
        "",
        "| op | shape | dtype | backend | time | copy | ratio |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(head + lines) if lines else ""


def _required(rows: list[Row]) -> str:
    return required.report(rows)


def _training(rows: list[Row]) -> str:
    note = "A whole training step, float32; in brackets, times the fastest with kernels."
    return _section(note, ("op", "shape"), [r for r in rows if r.suite == "training"], _against)


def _integrations(rows: list[Row]) -> str:
    note = "With and without `vk.patch`; in brackets, times the fastest with it."
    return _section(note, ("op", "shape", "dtype"), [r for r in rows if r.suite == "integrations"], _against)


def _host(rows: list[Row]) -> str:
    note = "One element, so that nothing but Python, autograd, the dispatcher and the launch is left."
    return _section(note, ("op", "mode"), [r for r in rows if r.suite == "host"], _against)


def _first_call(rows: list[Row]) -> str:
    note = "The first forward and backward pass in a fresh process, with empty compiler caches."
    text = lambda row, _: format_time(row.first_call_ms * 1e3)  # noqa: E731
    return _section(note, ("op", "shape"), [r for r in rows if r.suite == "first_call"], text)


def _memory(rows: list[Row]) -> str:
    note = "Saved for the backward pass beyond inputs and outputs / most allocated at one time in forward and backward."
    chosen = [
        r for r in rows if (r.suite, r.shape) in {("ops", "512×4096"), ("ops", "128×784")} and r.peak_bytes is not None
    ]
    text = lambda row, _: f"{format_bytes(row.saved_bytes)} / {format_bytes(row.peak_bytes)}"  # noqa: E731
    return _section(note, ("op", "shape", "dtype"), chosen, text)


def _threads(rows: list[Row]) -> str:
    note = "Forward and backward by number of threads, 512×4096, float32."
    return _section(note, ("op", "threads"), [r for r in rows if r.suite == "threads"], _against)


SECTIONS: dict[str, Callable[[list[Row]], str]] = {
    "ops": _ops,
    "required": _required,
    "training": _training,
    "integrations": _integrations,
    "memory": _memory,
    "host": _host,
    "first_call": _first_call,
    "threads": _threads,
    "floor": _floor,
}


def _section(note: str, labels: tuple[str, ...], rows: list[Row], text: Callable[[Row, dict[str, Row]], str]) -> str:
    """A table with one line per cell and one column per contender."""
    if not rows:
        return ""
    names = ordered({row.contender for row in rows})
    head = [*labels, *(_TITLES.get(name, name) for name in names)]
    lines = [note, "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for cell in _by_cell(rows):
        some = next(iter(cell.values()))
        figures = [
            (text(cell[n], cell) if cell[n].status == "ok" else cell[n].status) if n in cell else "" for n in names
        ]
        lines.append(f"| {' | '.join([*(str(getattr(some, label)) for label in labels), *figures])} |")
    return "\n".join(lines)


def _by_cell(rows: list[Row]) -> list[dict[str, Row]]:
    cells: dict[tuple, dict[str, Row]] = {}
    for row in rows:
        cells.setdefault(row.cell, {})[row.contender] = row
    return list(cells.values())


def _against(row: Row, cell: dict[str, Row]) -> str:
    kernels = [r.median_us for r in cell.values() if r.contender not in UNCHANGED and r.timed]
    time = format_time(row.median_us)
    if row.contender == COPY:
        return time
    if row.contender not in UNCHANGED:
        return f"**{time}** ({1 / row.fraction_of_copy:.1f})" if row.fraction_of_copy else f"**{time}**"
    return f"{time} ({row.median_us / min(kernels):.1f})" if kernels else time
