"""A pytest plugin: one part of the tests on a GPU, each outcome written as soon as it is known.

    pytest -p gpu_part --part PART --outcomes FOLDER

Parts: a kernel backend, for the tests of that backend; `rest`, those of eager and of no backend; `slow`, all that are
marked so, which are in no other part. `triton` leaves out what compiles in other shapes what others compile
(variants.py), and what is marked `around`. A worker of xdist that met an error of CUDA is replaced. In the folder `<part>-outcomes.txt` has a line for each test, `<part>-failures.txt` what failed and why.
"""

import os
import re
from collections import Counter
from pathlib import Path

import pytest
from variants import Variants


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu_part")
    group.addoption("--part", required=True)
    group.addoption("--outcomes", type=Path, required=True)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # of xdist, whose workers report to one process
        config.pluginmanager.register(Renewal())
    else:
        config.pluginmanager.register(Outcomes(config.getoption("part"), config.getoption("outcomes")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, variants = config.getoption("part"), Variants()
    kept = [item for item in items if part == _part(item) and (part != "triton" or _compiles(item, variants))]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _part(item: pytest.Item) -> str:
    if item.get_closest_marker("slow"):
        return "slow"
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    backend = parameters.get("backend", parameters.get("kernel"))
    if item.path.name == "cuda_grids.py":
        backend = "cuda"
    return "rest" if backend in (None, "eager") else backend


def _compiles(item: pytest.Item, variants: Variants) -> bool:
    return variants.add(item) and not item.get_closest_marker("around")


class Renewal:
    """Ends a worker after an error of CUDA: all later calls of the process may fail, where a new worker goes on."""

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and re.search(r"CUDA error|Triton Error \[CUDA\]", report.longreprtext):
            os._exit(1)


class Outcomes:
    """Writes them."""

    def __init__(self, part: str, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.outcomes, self.failures = (
            (folder / f"{part}-{kind}.txt").open("w", encoding="utf-8", buffering=1)
            for kind in ("outcomes", "failures")
        )
        self.counts: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when != "call" and report.passed:
            return
        self.counts[report.outcome] += 1
        print(report.outcome, f"{report.duration:.2f}", report.nodeid, file=self.outcomes)
        if report.failed:
            print(f"=== {report.when} of {report.nodeid}\n{report.longreprtext}", file=self.failures)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.counts["failed"] += 1
            print(f"=== collection of {report.nodeid}\n{report.longreprtext}", file=self.failures)

    def pytest_sessionfinish(self) -> None:
        print(*(f"{count} {outcome}" for outcome, count in self.counts.items()), sep=", ", file=self.outcomes)
