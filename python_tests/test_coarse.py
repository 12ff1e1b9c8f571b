"""What the CUDA kernels compute more coarsely for half types, within the errors that are stated, wherever a GPU's
special-function unit is as far off as NVIDIA says it may be."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
NOISE = 2.0**-14  # vae_kernels/noise.py
FUNCTIONS = 2.0**-16  # csrc/cuda/coarse.h


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    if shutil.which("g++") is None:
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("coarse") / "coarse_functions.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-DVK_EMULATED", "-shared", "-fPIC"]
    subprocess.run(["g++", *flags, "python_tests/coarse_functions.cpp", "-o", path], cwd=ROOT, check=True)
    return ctypes.CDLL(str(path))


def normals(word0: np.ndarray, word1: np.ndarray) -> np.ndarray:
    """The definition, in float64."""
    u = (word0.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64)
    turns = (word1 + 0.5) * 2.0**-32
    return np.sqrt(-2 * np.log(u)) * np.stack((np.sin(2 * np.pi * turns), np.cos(2 * np.pi * turns)))


def drawn(library: ctypes.CDLL, word0: np.ndarray, word1: np.ndarray) -> np.ndarray:
    words = [np.ascontiguousarray(w, dtype=np.uint32) for w in (word0, word1)]
    lanes = [np.empty(words[0].size, np.float32) for _ in range(2)]
    library.box_muller(*(ctypes.c_void_p(a.ctypes.data) for a in (*words, *lanes)), ctypes.c_long(words[0].size))
    return np.stack(lanes)


LAST = 2**32 - 1
ENDS = np.array([0, 1, 2, 3, 2**8, 2**24, 2**30, 2**31 - 1, 2**31, 2**31 + 1, 3 * 2**30, LAST - 2**20, LAST - 1, LAST])


def test_normals_at_the_ends(library: ctypes.CDLL) -> None:
    """Both words at the ends of their range, next to the axes, and all u down to 1 - 2⁻¹⁰, where the logarithm is least
    exact and the root makes more of it."""
    near_1 = LAST - np.arange(0, 2**22, 127)
    angles = np.concatenate((ENDS, np.arange(0, 2**32, 2**29 - 12345)))
    for words in (ENDS, near_1, np.geomspace(1, 2**32 - 1, 3000).astype(np.int64)):
        word0, word1 = (w.ravel() for w in np.meshgrid(words, angles))
        assert abs(drawn(library, word0, word1) - normals(word0, word1)).max() <= NOISE


def test_normals(library: ctypes.CDLL) -> None:
    word0, word1 = np.random.default_rng(0).integers(0, 2**32, (2, 4_000_000))
    assert abs(drawn(library, word0, word1) - normals(word0, word1)).max() <= NOISE


def relative_error(library: ctypes.CDLL, name: str, x: np.ndarray, exact: Callable[[np.ndarray], np.ndarray]) -> float:
    x = x.astype(np.float32)
    y = np.empty_like(x)
    getattr(library, name)(ctypes.c_void_p(x.ctypes.data), ctypes.c_void_p(y.ctypes.data), ctypes.c_long(x.size))
    want = exact(x.astype(np.float64))
    return float((abs(y - want) / abs(want)).max())


def both_signs(x: np.ndarray) -> np.ndarray:
    return np.concatenate((x, -x))


def test_functions(library: ctypes.CDLL) -> None:
    near, far = both_signs(np.geomspace(1e-30, 2, 30_000)), np.linspace(-80, 80, 30_001)
    assert relative_error(library, "exp_half_of", np.concatenate((near, 2 * far)), lambda x: np.exp(x / 2)) <= FUNCTIONS
    assert relative_error(library, "expm1_of", np.concatenate((near, far[far != 0])), np.expm1) <= FUNCTIONS
    assert relative_error(library, "times_exp_of", np.concatenate((near, far)), lambda t: 3 * np.exp(t)) <= FUNCTIONS
