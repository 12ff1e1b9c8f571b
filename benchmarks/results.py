"""The table of results: its columns and its CSV file."""

import csv
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from types import UnionType
from typing import get_args

from . import machine


@dataclass
class Row:
    """One contender in one cell. None, which is an empty field in the CSV, means not measured here.

    `status` is "ok", or the reason if there is no time: "wrong …" if the values differ, "failed …" if it raised.
    """

    suite: str
    op: str
    contender: str
    mode: str
    dtype: str
    shape: str
    threads: int
    status: str = "ok"
    samples: int | None = None
    p20_us: float | None = None
    median_us: float | None = None
    p80_us: float | None = None
    ideal_bytes: int | None = None
    gb_per_s: float | None = None
    fraction_of_copy: float | None = None
    host_us: float | None = None
    saved_bytes: int | None = None
    peak_bytes: int | None = None
    first_call_ms: float | None = None
    device: str = ""
    versions: str = ""
    date: str = ""
    commit: str = ""

    @property
    def cell(self) -> tuple[str, str, str, str, str, int]:
        """The cell, within which contenders are compared."""
        return self.suite, self.op, self.mode, self.dtype, self.shape, self.threads

    @property
    def key(self) -> tuple[str | int, ...]:
        """The key of a row, by which runs are compared."""
        return (*self.cell, self.contender)

    @property
    def timed(self) -> bool:
        return self.median_us is not None

    @property
    def noise(self) -> float:
        """The spread within the run: from the 20th to the 80th percentile, as a fraction of the median."""
        return (self.p80_us - self.p20_us) / self.median_us


@cache
def provenance(device: str) -> dict[str, str]:
    """The last columns, which are equal in all rows of a run."""
    return {
        "device": machine.device_name(device),
        "versions": machine.versions(),
        "date": machine.date(),
        "commit": machine.commit(),
    }


class Table:
    """The CSV file. Rows are appended as they are measured, so that a run that ends early keeps its results."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, [field.name for field in fields(Row)], lineterminator="\n")
        self._writer.writeheader()
        self._file.flush()

    def add(self, rows: Iterable[Row]) -> None:
        self._writer.writerows({name: _text(value) for name, value in asdict(row).items()} for row in rows)
        self._file.flush()

    def __enter__(self) -> "Table":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def read(path: Path) -> list[Row]:
    """Read a CSV file.

    Raises:
        ValueError: the columns are not those of `Row`.
    """
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != [field.name for field in fields(Row)]:
            raise ValueError(f"{path} is no table of results: its columns are {reader.fieldnames}")
        return [Row(**{field.name: _value(line[field.name], field.type) for field in fields(Row)}) for line in reader]


def _text(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value


def _value(text: str, kind: type | UnionType) -> object:
    """The text as `str`, `int`, `int | None` or `float | None`."""
    optional = isinstance(kind, UnionType)
    return None if optional and not text else (get_args(kind)[0] if optional else kind)(text)
