"""The functions of csrc/math.h against mpmath: the errors that their comments state, over the ranges they name."""

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import reference

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++")
    path = tmp_path_factory.mktemp("math") / "math_functions.so"
    # As the kernels are built, so that every operation is one IEEE operation.
    flags = ["-std=c++17", "-O2", "-fno-math-errno", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "python_tests/math_functions.cpp", "-o", path], cwd=ROOT, check=True)
    return ctypes.CDLL(str(path))


def spread(low: float, high: float, count: int = 1500) -> np.ndarray:
    """Random numbers between two bounds, and both."""
    return np.append(np.random.default_rng(0).uniform(low, high, count), [low, high])


def powers(low: float, high: float, count: int = 1500) -> np.ndarray:
    """Random powers of ten with exponents between the bounds."""
    return 10.0 ** spread(low, high, count)


def both_signs(x: np.ndarray) -> np.ndarray:
    return np.concatenate((x, -x))


def _own(value: mpmath.mpf, _: mpmath.mpf) -> mpmath.mpf:
    return abs(value)


def _one(value: mpmath.mpf, _: mpmath.mpf) -> mpmath.mpf:
    return max(abs(value), mpmath.mpf(1))


def _stirling(_: mpmath.mpf, a: mpmath.mpf) -> mpmath.mpf:
    """The size of the terms that Stirling's series adds up, at a shifted argument where a is small."""
    z = max(a, mpmath.mpf(8)) + 8
    return z * mpmath.log(z)


class Function(NamedTuple):
    """What it should be, where, the bound in ulp for float32 and float64, and the magnitude that an ulp is taken of."""

    exact: Callable[[mpmath.mpf], mpmath.mpf]
    float32: np.ndarray
    float64: np.ndarray
    bound: float
    magnitude: Callable[[mpmath.mpf, mpmath.mpf], mpmath.mpf] = _own


def _lgamma_tail(u: mpmath.mpf) -> mpmath.mpf:
    z = 1 / u
    return mpmath.loggamma(z) - ((z - 0.5) * mpmath.log(z) - z + mpmath.log(2 * mpmath.pi) / 2)


def _excess(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.expm1(x) - x


def _slope(steps: int) -> Callable[[mpmath.mpf], mpmath.mpf]:
    """Of ln a (a + 1) … (a + steps − 1)."""
    return lambda a: sum(1 / (a + k) for k in range(steps))


def _sigmoid(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-x))


NEAR = both_signs(powers(-12, 0))
LARGE32, LARGE64 = powers(-30, 37), powers(-300, 300)
NONE = np.empty(0)
GAMMA = np.concatenate((powers(-6, 5), spread(0.5, 9), np.arange(1.0, 40)))

FUNCTIONS = {
    "exp": Function(mpmath.exp, spread(-87, 88.7), spread(-700, 709), 1),
    "log": Function(mpmath.log, LARGE32, LARGE64, 1),
    "log near 1": Function(mpmath.log, spread(0.6, 1.6), spread(0.6, 1.6), 1),
    "log_next_to_1": Function(mpmath.log1p, both_signs(powers(-9, -0.6)), both_signs(powers(-18, -0.6)), 1),
    "log_beyond": Function(
        lambda f: mpmath.log1p(f) - f, both_signs(powers(-9, -0.6)), both_signs(powers(-9, -0.6)), 4
    ),
    "log1p_unit": Function(mpmath.log1p, spread(0, 1), spread(0, 1), 1.5),
    "log1p_unit near 0": Function(mpmath.log1p, powers(-30, 0), powers(-300, 0), 1.5),
    "exp_minus_1_minus": Function(_excess, spread(-1.5, 1.5), spread(-1.5, 1.5), 3),
    "exp_minus_1_minus near 0": Function(_excess, NEAR, NEAR, 2),
    "exp_minus_1_minus, wide": Function(_excess, spread(-80, 88), spread(-80, 700), 4),
    "exp_minus_1": Function(mpmath.expm1, spread(-1, 1), spread(-1, 1), 2),
    "exp_minus_1 near 0": Function(mpmath.expm1, NEAR, NEAR, 2),
    "exp_minus_1, wide": Function(mpmath.expm1, spread(-80, 88), spread(-80, 700), 1.5, _one),
    "sigmoid": Function(_sigmoid, spread(-80, 80), spread(-700, 80), 2),
    "softplus": Function(lambda x: mpmath.log1p(mpmath.exp(x)), spread(-80, 80), spread(-700, 80), 2),
    "lgamma_tail": Function(_lgamma_tail, powers(-8, math.log10(0.5)), powers(-8, math.log10(0.125)), 1, _one),
    "digamma_tail": Function(
        lambda u: mpmath.psi(0, 1 / u) - mpmath.log(1 / u),
        powers(-8, math.log10(0.5)),
        powers(-8, math.log10(0.125)),
        1,
        _one,
    ),
    "gamma_slope, 2 steps": Function(_slope(2), powers(-6, math.log10(1.999)), NONE, 3),
    "gamma_slope, 8 steps": Function(_slope(8), NONE, powers(-6, math.log10(7.999)), 9),
    # Its pieces put together.
    "log_gamma": Function(mpmath.loggamma, GAMMA, GAMMA, 2, _stirling),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, t) for n, f in FUNCTIONS.items() for t in (np.float32, np.float64) if getattr(f, t.__name__).size],
)
def test_bounds(library: ctypes.CDLL, name: str, dtype: type[np.floating]) -> None:
    function = FUNCTIONS[name]
    x = getattr(function, dtype.__name__).astype(dtype)
    y = np.full_like(x, np.nan)
    mapped = getattr(library, f"{name.replace(',', ' ').split()[0]}_{dtype.__name__}")
    mapped(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(x.size))
    info = np.finfo(dtype)
    with mpmath.workdps(reference.DIGITS):
        given = [mpmath.mpf(float(v)) for v in x]
        want = [function.exact(v) for v in given]
        size = np.array([float(function.magnitude(w, v)) for w, v in zip(want, given, strict=True)])
        error = np.array([float(abs(mpmath.mpf(float(g)) - w)) for g, w in zip(y, want, strict=True)])
    ulp = float(info.eps) * 2.0 ** np.floor(np.log2(np.maximum(size, float(info.tiny))))
    worst = np.argmax(error / ulp)
    assert (error / ulp)[worst] <= function.bound, (
        f"{name}({x[worst]}) = {y[worst]}, {(error / ulp)[worst]:.3g} ulp off"
    )


SPECIAL = {
    "exp": {-np.inf: 0, np.inf: np.inf, -200 * 100: 0, 1e4: np.inf},
    "log": {0.0: -np.inf, -1.0: np.nan, np.inf: np.inf, 1.0: 0},
    "log1p_unit": {0.0: 0},
    "sigmoid": {-np.inf: 0, np.inf: 1, 0.0: 0.5},
    "softplus": {-np.inf: 0, np.inf: np.inf},
    "exp_minus_1_minus": {0.0: 0, -np.inf: np.inf},
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(library: ctypes.CDLL, name: str, dtype: type[np.floating]) -> None:
    x = np.array([*SPECIAL[name], np.nan], dtype=dtype)
    y = np.full_like(x, 7)
    mapped = getattr(library, f"{name}_{dtype.__name__}")
    mapped(x.ctypes.data_as(ctypes.c_void_p), y.ctypes.data_as(ctypes.c_void_p), ctypes.c_long(x.size))
    assert np.array_equal(y, np.array([*SPECIAL[name].values(), np.nan], dtype=dtype), equal_nan=True)
