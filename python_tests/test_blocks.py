"""`use_backend` and `check_values` as blocks: each for its own thread and async context, in compiled code too."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event

import pytest
import torch
from samples import BACKENDS, DEVICE
from torch import Tensor

import vae_kernels as vk
from vae_kernels.backends import current_backend

DEFAULT = current_backend(DEVICE)


def here() -> str:
    return current_backend(DEVICE)


@pytest.fixture
def back_to_the_default() -> Iterator[None]:
    yield
    vk.use_backend("auto")


def in_threads(*functions: Callable[[], object]) -> list[object]:
    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result() for future in [pool.submit(function) for function in functions]]


def test_blocks_of_threads_overlap(back_to_the_default: None) -> None:
    """The first to enter is the first to leave."""
    both_in, first_out = Barrier(2), Event()

    def first() -> list[str]:
        with vk.use_backend("eager"):
            both_in.wait()
            seen = [here()]
        first_out.set()
        return [*seen, here()]

    def second() -> list[str]:
        with vk.use_backend(DEFAULT):
            both_in.wait()
            first_out.wait()
            seen = [here()]
        return [*seen, here()]

    assert in_threads(first, second) == [["eager", DEFAULT], [DEFAULT, DEFAULT]]
    assert here() == DEFAULT


def test_no_thread_sees_the_block_of_another() -> None:
    """Not even for the moment between making a block and entering it."""
    done = Event()

    def blocks() -> set[str]:
        seen = set()
        for _ in range(20_000):
            with vk.use_backend("eager"):
                seen.add(here())
        done.set()
        return seen

    def outside() -> set[str]:
        seen = set()
        while not done.is_set():
            seen.add(here())
        return seen

    assert in_threads(blocks, outside) == [{"eager"}, {DEFAULT}]


def test_a_block_belongs_to_its_task() -> None:
    async def task(name: str) -> set[str]:
        seen = set()
        with vk.use_backend(name):
            for _ in range(10):
                seen.add(here())
                await asyncio.sleep(0)
        return seen

    async def all_tasks() -> list[set[str]]:
        return await asyncio.gather(*map(task, BACKENDS))

    assert asyncio.run(all_tasks()) == [{name} for name in BACKENDS]
    assert here() == DEFAULT


def test_one_object_may_be_entered_again_and_by_others() -> None:
    eager = vk.use_backend("eager")
    with eager:
        with eager:
            assert here() == "eager"
        assert here() == "eager"
        assert in_threads(here) == [DEFAULT]
    assert here() == DEFAULT

    def enter() -> str:
        with eager:
            return here()

    assert in_threads(*[enter] * 4) == ["eager"] * 4


def test_the_function_is_for_all_threads(back_to_the_default: None) -> None:
    vk.use_backend("eager")
    assert in_threads(here) == ["eager"]
    assert in_threads(lambda: vk.use_backend("auto") and None) == [None]
    assert in_threads(here) == [here()] == [DEFAULT]


def test_a_choice_that_is_kept_but_not_entered_is_for_all_threads(back_to_the_default: None) -> None:
    """As a notebook keeps the value of a cell's last line."""
    kept = vk.use_backend("eager")
    assert here() == "eager"
    assert in_threads(here) == ["eager"]
    vk.use_backend("auto")
    del kept
    assert in_threads(here) == [DEFAULT]


def test_within_a_block_its_choice_comes_first(back_to_the_default: None) -> None:
    with vk.use_backend(DEFAULT):
        vk.use_backend("eager")
        assert here() == DEFAULT
        assert in_threads(here) == ["eager"]
    assert here() == "eager"


def step(logits: Tensor, x: Tensor) -> Tensor:
    return vk.bernoulli_log_likelihood(logits, x)


class Graphs:
    """A backend of torch.compile that keeps what it is given."""

    def __init__(self) -> None:
        self.code: list[str] = []
        self.ran: set[tuple[str, bool]] = set()  # the backend of the block, and whether the code that ran has kernels

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.code.append(graph.code)

        def run(*inputs: Tensor) -> object:
            self.ran.add((here(), "vae_kernels_" in graph.code))
            return graph(*inputs)

        return run

    def with_kernels(self, kernel: str) -> list[bool]:
        return [f"vae_kernels_{kernel}" in code for code in self.code]


def test_compiled_code_follows_the_block_of_its_thread(kernel: str) -> None:
    graphs, zero = Graphs(), torch.zeros(2, 3, device=DEVICE)
    run = torch.compile(step, fullgraph=True, backend=graphs)

    def call(name: str) -> None:
        with vk.use_backend(name):
            for _ in range(5):
                run(zero, zero)

    for name in (kernel, "eager") * 2:
        call(name)
    assert graphs.with_kernels(kernel) == [True, False]
    in_threads(*[lambda name=name: call(name) for name in (kernel, "eager")] * 3)
    assert graphs.ran == {(kernel, True), ("eager", False)}


@pytest.mark.parametrize("fullgraph", [True, False])
def test_a_block_within_compiled_code(kernel: str, fullgraph: bool) -> None:
    """Where the graph breaks within it, too."""
    graphs, zero = Graphs(), torch.zeros(2, 3, device=DEVICE)
    seen = []

    def look() -> None:
        torch._dynamo.graph_break()
        seen.append(here())

    @torch.compile(fullgraph=fullgraph, backend=graphs)
    def run(logits: Tensor, x: Tensor) -> Tensor:
        with vk.use_backend("eager"), vk.check_values():
            total = step(logits, x)
            if not fullgraph:
                look()
        if not fullgraph:
            look()
        return total + step(x, x)

    for _ in range(2):
        torch.testing.assert_close(run(zero, zero), 2 * step(zero, zero))
    if fullgraph:
        assert [code.count(f"vae_kernels_{kernel}") for code in graphs.code] == [1]
    assert seen == ([] if fullgraph else ["eager", kernel] * 2)
    assert here() == kernel


def refused() -> bool:
    nan = torch.full((2, 3), float("nan"), device=DEVICE)
    try:
        step(nan, nan)
    except ValueError:
        return True
    return False


def test_checks_of_threads_overlap() -> None:
    both_in, first_out = Barrier(2), Event()

    def first() -> list[bool]:
        with vk.check_values():
            both_in.wait()
            seen = [refused()]
        first_out.set()
        return [*seen, refused()]

    def second() -> list[bool]:
        with vk.check_values():
            both_in.wait()
            first_out.wait()
            seen = [refused()]
        return [*seen, refused()]

    assert in_threads(first, second) == [[True, False]] * 2
    assert not refused()


def test_checks_may_be_entered_again() -> None:
    checking = vk.check_values()
    with checking:
        with checking:
            assert refused()
        assert refused()
        assert in_threads(refused) == [False]
    assert not refused()
