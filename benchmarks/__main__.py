"""The command: `python -m benchmarks --help`."""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from . import compare, first_call, integrations, machine, markdown, required, results, suites, terminal, training
from .contenders import contenders
from .results import Row
from .suites import Plan
from .timing import Effort

RESULTS = Path(__file__).resolve().parent / "results"
TABLE = "results.csv"

SUITES = (*suites.SUITES, "training", "first_call")

# This suite runs only if it is named: it needs other packages, and takes longer than all other suites.
INTEGRATIONS, ITS_TABLE = "integrations", "integrations.csv"


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 1 if a contender gave a wrong result or failed."""
    options = _parser().parse_args(arguments)
    try:
        return options.command(options)
    except (OSError, ValueError, RuntimeError) as error:
        sys.exit(f"benchmarks: {error}")


def _run(options: argparse.Namespace) -> int:
    began = time.monotonic()
    plan = Plan(options.device, options.all, tuple(options.only), Effort(**_rounds(options.rounds)))
    work = list(_work(plan, options.suite))
    if not work:
        raise ValueError(f"no case of the suites {', '.join(options.suite)} is called {' or '.join(options.only)}")
    print(f"{machine.device_name(plan.device)}; {machine.versions()}")
    reasons = integrations.left_out() if INTEGRATIONS in options.suite else contenders(plan.device)[1]
    for name, reason in reasons.items():
        print(f"left out: {name}: {reason}")
    print("medians; in brackets, times the copy of the same bytes, where there is one")
    folder = options.out or Path("out/benchmarks") / machine.folder_name(plan.device)
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    table = ITS_TABLE if options.suite == [INTEGRATIONS] else TABLE
    complete = (table == ITS_TABLE or set(options.suite) == set(SUITES)) and not options.only
    with results.Table(folder / table) as written:
        try:
            for found in _measure(work):
                rows += found
                written.add(found)
        except KeyboardInterrupt:
            complete = False
            print("interrupted")
    if complete and not options.out:  # only a complete run replaces a machine's committed results
        measured, folder = folder / table, RESULTS / machine.folder_name(plan.device)
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(measured, folder / table)
    drawn = _draw(folder, rows)
    print(f"{time.monotonic() - began:.0f} s", folder / table, *drawn, sep="\n")
    return int(any(row.status != "ok" for row in rows))


def _measure(work: list[tuple[int, Callable[[], Iterator[list[Row]]]]]) -> Iterator[list[Row]]:
    """Do the work, and print a line for each cell."""
    columns, total, before = "", sum(size for size, _ in work), 0
    for size, start in work:
        done = 0
        for found in start():
            if (head := terminal.header(found)) != columns:
                columns = head
                print(head)
            print(terminal.line(found), flush=True)
            yield found
            if found[0].mode in ("both", "step", "training"):
                done += 1
                print(f"{before + done} of {total} cases", file=sys.stderr, flush=True)
        before += size


def _draw(folder: Path, rows: list[Row]) -> list[Path | str]:
    if find_spec("matplotlib") is None:
        return ["no pictures: there is no matplotlib"]
    from . import plots

    return [*plots.draw(folder, rows)]


def _work(plan: Plan, chosen: list[str]) -> Iterator[tuple[int, Callable[[], Iterator[list[Row]]]]]:
    """For each suite: its number of cases, and the function that starts it."""
    for suite, cells_of in suites.SUITES.items():
        cells = [cell for cell in cells_of(plan) if plan.wants(cell.case.name)]
        if suite in chosen and cells:
            yield len(cells), lambda suite=suite, cells=cells: suites.run(suite, cells, plan)
    trainings = [t for t in training.TRAININGS if plan.wants(str(t))]
    if "training" in chosen and trainings:
        yield len(trainings), lambda: training.run(trainings, plan)
    works = [
        work for work in integrations.WORKS if work.package not in integrations.left_out() and plan.wants(str(work))
    ]
    if INTEGRATIONS in chosen and works:
        yield len(works), lambda: integrations.run(works, plan)
    cases = [case for case in first_call.FIRST_CALL_CASES if plan.wants(case.name)]
    if "first_call" in chosen and cases:
        yield len(cases), lambda: first_call.run(cases, plan)


def _rounds(rounds: int | None) -> dict[str, int]:
    return {} if rounds is None else {"rounds": rounds, "at_least": min(rounds, Effort.at_least)}


def _table(path: Path | None) -> list[Row]:
    """The rows of a CSV file; by default of this machine's committed results."""
    if path is None:
        path = RESULTS / machine.folder_name(_default_device()) / TABLE
    return results.read(path)


def _compare(options: argparse.Namespace) -> int:
    print(compare.report(results.read(options.old), results.read(options.new)))
    return 0


def _required(options: argparse.Namespace) -> int:
    print(required.report(_table(options.table)))
    return 0


def _markdown(options: argparse.Namespace) -> int:
    print(markdown.report(_table(options.table), options.section))
    return 0


def _plot(options: argparse.Namespace) -> int:
    print(*_draw(options.table.parent, _table(options.table)), sep="\n")
    return 0


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure the kernels against what people have today and against a copy of the same bytes. On a CPU "
        "the default takes at most ten minutes on two cores; on a GPU all cases are run.",
    )
    parser.set_defaults(command=_run)
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default=_default_device(), help="(cuda if there is one)")
    choices = (*SUITES, INTEGRATIONS)
    add("--suite", choices=choices, nargs="+", default=list(SUITES), help=f"(all but {INTEGRATIONS})")
    add(
        "--only",
        nargs="+",
        default=[],
        help="cases whose name has the words of one of these in it, such as 'latent 128×20'",
    )
    add("--all", action="store_true", help="on a CPU too, every op in every shape and dtype")
    add("--rounds", type=int, help="at most so many rounds for each cell")
    add("--out", type=Path, help="folder for the CSV and the pictures (benchmarks/results/<machine>)")
    commands = parser.add_subparsers(title="other commands")
    command = commands.add_parser("compare", help="what changed between two runs beyond noise")
    command.set_defaults(command=_compare)
    command.add_argument("old", type=Path)
    command.add_argument("new", type=Path)
    for name, function, about in (
        ("required", _required, "the required ratios, met or missed"),
        ("markdown", _markdown, "tables for the README"),
        ("plot", _plot, "draw the pictures of a CSV again, beside it"),
    ):
        command = commands.add_parser(name, help=about)
        command.set_defaults(command=function)
        command.add_argument("table", type=Path, nargs=None if name == "plot" else "?", help="a run's results.csv")
        if name == "markdown":
            sections = list(markdown.SECTIONS)
            command.add_argument("--section", choices=sections, nargs="+", default=sections)
    return parser


if __name__ == "__main__":
    sys.exit(main())
