"""A comparison of two runs: the changes beyond noise.

The noise is measured, not assumed. The baselines (copy, eager, torch.distributions, torch.compile) have the same code
in both runs, so the changes of their times are noise of the machine. The 99th percentile of these changes is the drift.
Any other cell has changed if its median moved by more than the drift, and by more than the sum of its spreads in both
runs. By chance this happens to at most one cell in a hundred. If the two runs have different versions of torch, the
baselines are no control, and are judged like all other cells.
"""

import math
from dataclasses import dataclass

import torch

from .contenders import UNCHANGED
from .results import Row
from .terminal import format_time

QUANTILE = 0.99


@dataclass(frozen=True)
class Move:
    """One cell in both runs."""

    old: Row
    new: Row

    @property
    def log_ratio(self) -> float:
        return math.log(self.new.median_us / self.old.median_us)

    @property
    def spread(self) -> float:
        return math.hypot(self.old.noise, self.new.noise)

    def beyond(self, drift: float) -> bool:
        return abs(self.log_ratio) > max(drift, self.spread)


@dataclass(frozen=True)
class Comparison:
    """`controls` have the same code in both runs. `other` are cells that only one run has, or whose status differs."""

    moves: list[Move]
    controls: list[Move]
    other: list[str]

    @property
    def drift(self) -> float:
        sizes = [abs(move.log_ratio) for move in self.controls]
        return torch.tensor(sizes, dtype=torch.float64).quantile(QUANTILE).item() if sizes else 0.0

    @property
    def changed(self) -> list[Move]:
        drift = self.drift
        return sorted((m for m in self.moves if m.beyond(drift)), key=lambda m: m.log_ratio)


def compare(old: list[Row], new: list[Row]) -> Comparison:
    """Compare two runs.

    Raises:
        ValueError: the runs are from different devices.
    """
    devices = {row.device for row in (*old, *new)}
    if len(devices) > 1:
        raise ValueError(f"only runs of one device can be compared, got {' and '.join(sorted(devices))}")
    before, after = ({row.key: row for row in rows} for rows in (old, new))
    both = [Move(before[key], after[key]) for key in before.keys() & after.keys()]
    timed = [move for move in both if move.old.timed and move.new.timed]
    controls = [move for move in timed if _is_control(move)]
    moves = [move for move in timed if not _is_control(move)]
    other = [f"{_name(move.old)}: {move.old.status} → {move.new.status}" for move in both if _status_differs(move)]
    other += [f"{_name(before[key])}: only in the old run" for key in before.keys() - after.keys()]
    other += [f"{_name(after[key])}: only in the new run" for key in after.keys() - before.keys()]
    return Comparison(moves, controls, sorted(other))


def report(old: list[Row], new: list[Row]) -> str:
    comparison = compare(old, new)
    changed, count = comparison.changed, len(comparison.moves)
    controls = len(comparison.controls)
    lines = [
        *(f"{name} {rows[0].date} {rows[0].commit} {rows[0].versions}" for name, rows in (("old", old), ("new", new))),
        f"drift {comparison.drift:.1%}: {QUANTILE:.0%} of {controls} cells of unchanged code moved by less",
        f"{len(changed)} of {count} other cells moved by more than drift and spread (by chance {count / 100:.1f}):",
        *(f"  {_describe(move)}" for move in changed),
        *comparison.other,
    ]
    return "\n".join(lines)


def _describe(move: Move) -> str:
    times = f"{format_time(move.old.median_us)} → {format_time(move.new.median_us)}"
    ratio = move.new.median_us / move.old.median_us
    return f"{_name(move.new)}: {times}, {ratio:.2f} times; spread {move.spread:.1%}"


def _is_control(move: Move) -> bool:
    """True for a baseline with the same versions in both runs, except for the package's own version."""
    old, new = ([v for v in row.versions.split(", ") if "vae_kernels" not in v] for row in (move.old, move.new))
    return move.old.contender in UNCHANGED and old == new


def _status_differs(move: Move) -> bool:
    return move.old.status.split()[0] != move.new.status.split()[0]


def _name(row: Row) -> str:
    return f"{row.suite} {row.op} {row.shape} {row.dtype} {row.mode} {row.threads} threads {row.contender}"
