"""Results as lines of text during a run."""

from .contenders import COPY, PUBLISHED
from .results import Row

_CELL, _COLUMN = 44, 19


def format_time(us: float) -> str:
    for unit, scale in (("s", 1e6), ("ms", 1e3)):
        if us >= scale:
            return f"{us / scale:.3g} {unit}"
    return f"{us:.3g} µs"


def format_bytes(size: float) -> str:
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"


def ordered(contenders: set[str]) -> list[str]:
    """The contenders in the order of all tables: the copy, the kernels, the baselines."""
    last = (PUBLISHED, "eager", "distributions", "compile", "compile-dynamic")
    return sorted(
        contenders, key=lambda name: (name != COPY, name in last, last.index(name) if name in last else 0, name)
    )


def header(rows: list[Row]) -> str:
    names = ordered({row.contender for row in rows})
    return "".ljust(_CELL) + "".join(name.rjust(_COLUMN) for name in names)


def line(rows: list[Row]) -> str:
    """A line for a cell: each contender's median and, in brackets, its multiple of the copy's; then the failures."""
    by_name = {row.contender: row for row in rows}
    row = rows[0]
    threads = f" {row.threads} threads" if row.suite == "threads" else ""
    text = f"{row.op} {row.shape} {row.dtype} {row.mode}{threads}".ljust(_CELL)
    text += "".join(_figure(by_name[name]).rjust(_COLUMN) for name in ordered(set(by_name)))
    return "\n".join([text, *(f"  {row.contender}: {row.status}" for row in rows if row.status != "ok")])


def _figure(row: Row) -> str:
    if row.first_call_ms is not None:
        return format_time(row.first_call_ms * 1e3)
    if not row.timed:
        return row.status.split()[0]
    of_copy = f" ({1 / row.fraction_of_copy:.2f})" if row.fraction_of_copy else ""
    return format_time(row.median_us) + of_copy
