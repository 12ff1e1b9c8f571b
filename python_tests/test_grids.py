"""How the CUDA kernels spread rows over the blocks of a GPU: csrc/cuda/rows.h, run on the host."""

import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MULTIPROCESSORS = 132

Launched = tuple[int, int, int]  # blocks, the most packs that one thread takes, packs that were not taken once


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[list[tuple[int, int]], bool], list[Launched]]:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    program = tmp_path_factory.mktemp("grids") / "grids"
    flags = ["-std=c++17", "-O1", "-Wno-psabi", "-DVK_EMULATED"]
    subprocess.run(["g++", *flags, "python_tests/grids.cpp", "-o", program], cwd=ROOT, check=True)

    def launch(shapes: list[tuple[int, int]], summed: bool) -> list[Launched]:
        lines = "".join(f"{rows} {cols} {int(summed)}\n" for rows, cols in shapes)
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
        return [tuple(map(int, line.split())) for line in done.stdout.splitlines()]

    return launch


def some_shapes(least: int, most: int) -> list[tuple[int, int]]:
    """Of numbers of elements between the two, of few rows and of many."""
    draw = random.Random(1)
    shapes = []
    for _ in range(40):
        elements = 2 ** draw.uniform(least, most)
        rows = int(2 ** draw.uniform(0, least))
        shapes.append((rows, max(1, int(elements / rows))))
    return shapes


@pytest.mark.parametrize("summed", [False, True], ids=["backward", "forward"])
def test_every_pack_is_taken_once(launched: Callable, summed: bool) -> None:
    shapes = [(1, 1), (128, 20), (3, 4097), (2, 16385), (5, 20001), *some_shapes(4, 16)]
    assert [wrong for _, _, wrong in launched(shapes, summed)] == [0] * len(shapes)


@pytest.mark.parametrize("summed", [False, True], ids=["backward", "forward"])
def test_from_2_14_elements_up_a_gpu_is_full(launched: Callable, summed: bool) -> None:
    """A block for each multiprocessor, or one pack for each thread; where sums are wanted up to seven, which take less
    time than a second launch."""
    shapes = [
        (4, 4 * 64 * 64),
        (16, 16 * 32 * 32),
        (128, 784),
        (16, 1024),
        (1, 2**14),
        (1, 2**18),
        *some_shapes(14, 18),
    ]
    for shape, (blocks, packs, _) in zip(shapes, launched(shapes, summed), strict=True):
        assert blocks >= MULTIPROCESSORS or packs <= (7 if summed else 1), shape


def test_known_shapes(launched: Callable) -> None:
    """Large ones with as few blocks as before, whose threads take 16 packs each."""
    shapes = [(16, 16 * 32 * 32), (4, 4 * 64 * 64), (128, 784), (128, 20), (600, 16384)]
    assert [got[:2] for got in launched(shapes, True)] == [(512, 1), (512, 1), (128, 7), (32, 1), (600, 16)]
