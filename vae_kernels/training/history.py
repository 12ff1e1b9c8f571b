"""The table of a run, with one line per epoch."""

import csv
from pathlib import Path
from typing import NamedTuple

from . import checkpoint

HISTORY = "history.csv"


class Row(NamedTuple):
    """A line of the history: means per picture, in nats. Those of the training are taken while the weights change."""

    epoch: int
    train_elbo: float
    train_log_px: float
    train_kl: float
    held_out_elbo: float
    held_out_log_px: float
    held_out_kl: float


def read(folder: Path) -> list[Row]:
    with checkpoint.reading(folder / HISTORY), (folder / HISTORY).open(newline="") as file:
        return [Row(int(epoch), *map(float, terms)) for epoch, *terms in list(csv.reader(file))[1:]]


def write(folder: Path, rows: list[Row]) -> None:
    with (folder / HISTORY).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows((row.epoch, *(f"{term:.6f}" for term in row[1:])) for row in rows)
