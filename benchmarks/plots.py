"""Pictures of a run: bars per case against the floor, and curves over N."""

from math import prod
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .cases import parse_shape
from .contenders import COPY
from .results import Row
from .terminal import ordered

# Okabe & Ito's palette, whose colours colour-blind people can distinguish.
_COLOURS = {
    "cpp": "#0072B2",
    "cuda": "#0072B2",
    "triton": "#009E73",
    "eager": "#D55E00",
    "distributions": "#E69F00",
    "compile": "#CC79A7",
    "compile-dynamic": "#CC79A7",
    COPY: "#000000",
}


def draw(folder: Path, rows: list[Row]) -> list[Path]:
    """Draw all pictures for which there are rows into the folder."""
    drawn = []
    for dtype in ("float32", "bfloat16"):
        chosen = [r for r in rows if (r.suite, r.mode, r.dtype) == ("ops", "both", dtype) and r.fraction_of_copy]
        if chosen:
            drawn.append(_save(_bars(chosen, dtype), folder / f"bars-{dtype}.png"))
    if chosen := [r for r in rows if r.suite == "scaling" and r.timed]:
        drawn.append(_save(_curves(chosen), folder / "curves.png"))
    return drawn


def _save(figure: Figure, path: Path) -> Path:
    figure.savefig(path, dpi=120, bbox_inches="tight")
    return path


def _bars(rows: list[Row], dtype: str) -> Figure:
    cells = list(dict.fromkeys((r.op, r.shape) for r in rows))
    names = [name for name in ordered({r.contender for r in rows}) if name != COPY]
    times = {(r.op, r.shape, r.contender): 1 / r.fraction_of_copy for r in rows}
    figure = Figure(figsize=(9, 1 + 0.13 * len(cells) * (len(names) + 1)))
    axes = figure.subplots()
    height = 1 / (len(names) + 1)
    for i, name in enumerate(names):
        having = [(k, times[(*cell, name)]) for k, cell in enumerate(cells) if (*cell, name) in times]
        bars = axes.barh(
            [k + i * height for k, _ in having], [t for _, t in having], height, color=_COLOURS[name], label=name
        )
        axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=6)
    axes.axvline(1, color=_COLOURS[COPY], linewidth=1, label="copy of the same bytes")
    axes.set_xscale("log")
    axes.set_yticks(
        [k + height * (len(names) - 1) / 2 for k in range(len(cells))], [" ".join(cell) for cell in cells], fontsize=8
    )
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("time, as a multiple of the copy's")
    axes.set_title(f"Forward and backward, {dtype}, {rows[0].device}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _curves(rows: list[Row]) -> Figure:
    ops = list(dict.fromkeys(r.op for r in rows))
    figure = Figure(figsize=(5 * len(ops), 4))
    panels = figure.subplots(1, len(ops), sharex=True, sharey=True, squeeze=False)[0]
    for axes, op in zip(panels, ops, strict=True):
        _curves_of(axes, op, [r for r in rows if r.op == op])
    panels[0].set_ylabel("µs, forward and backward")
    panels[-1].legend(fontsize=8)
    figure.suptitle(f"float32, {rows[0].device}; bands: 20th to 80th percentile", fontsize=10)
    return figure


def _curves_of(axes: Axes, op: str, rows: list[Row]) -> None:
    for name in ordered({r.contender for r in rows}):
        points = sorted(
            (prod(parse_shape(r.shape)), r.median_us, r.p20_us, r.p80_us) for r in rows if r.contender == name
        )
        n, median, p20, p80 = zip(*points, strict=True)
        axes.plot(n, median, marker=".", color=_COLOURS[name], label=name, linestyle="--" if name == COPY else "-")
        axes.fill_between(n, p20, p80, color=_COLOURS[name], alpha=0.2, linewidth=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.grid(alpha=0.3)
    axes.set_xlabel("N, elements")
    axes.set_title(op, fontsize=10)
