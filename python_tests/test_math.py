"""The functions of csrc/elementary.h and csrc/gamma.h against mpmath: the errors and ranges that their comments state."""

import ctypes
import math
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import mpmath
import numpy as np
import pytest
from function_errors import (
    Function,
    both_signs,
    digamma_tail,
    errors,
    excess,
    lgamma_tail,
    log_beyond,
    one,
    powers,
    sigmoid,
    slope,
    slope_difference,
    spread,
    stirling,
)

ROOT = Path(__file__).parents[1]


def turn(function: Callable[[mpmath.mpf], mpmath.mpf], word: mpmath.mpf) -> mpmath.mpf:
    """Sine or cosine of (word + ½) 2⁻³² turns."""
    return function(2 * mpmath.pi * (word + mpmath.mpf(0.5)) / 2**32)


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


NEAR = both_signs(powers(-12, 0))
LARGE32, LARGE64 = powers(-30, 37), powers(-300, 300)
POSITIVE = np.concatenate((powers(-6, 5), 1.5 + both_signs(powers(-9, -0.6))))
NONE = np.empty(0)
# Every word that a float32 can hold is a multiple of 256 where it is large: all quarters of a turn are met.
WORDS = np.floor(spread(0, 2**32 - 256))
GAMMA = np.concatenate((powers(-6, 5), spread(0.5, 9), np.arange(1.0, 40)))

FUNCTIONS = {
    "exp": Function(mpmath.exp, spread(-87, 88.7), spread(-700, 709), 1.1),
    "times_exp": Function(lambda t: 1.625 * mpmath.exp(t), spread(-87, 88), spread(-700, 708), 2),
    "log": Function(mpmath.log, LARGE32, LARGE64, 1),
    "log near 1": Function(mpmath.log, spread(0.6, 1.6), spread(0.6, 1.6), 1),
    "log_next_to_1": Function(mpmath.log1p, both_signs(powers(-9, -0.6)), both_signs(powers(-18, -0.6)), 1),
    "log_beyond": Function(log_beyond, both_signs(powers(-9, -0.6)), both_signs(powers(-9, -0.6)), 4),
    "log1p_unit": Function(mpmath.log1p, spread(0, 1), spread(0, 1), 1.5),
    "log1p_unit near 0": Function(mpmath.log1p, powers(-30, 0), powers(-300, 0), 1.5),
    "exp_minus_1_minus": Function(excess, spread(-1.5, 1.5), spread(-1.5, 1.5), 3),
    "exp_minus_1_minus near 0": Function(excess, NEAR, NEAR, 2),
    "exp_minus_1_minus, wide": Function(excess, spread(-80, 88), spread(-80, 700), 4),
    "exp_minus_1": Function(mpmath.expm1, spread(-1, 1), spread(-1, 1), 2),
    "exp_minus_1 near 0": Function(mpmath.expm1, NEAR, NEAR, 2),
    "exp_minus_1, wide": Function(mpmath.expm1, spread(-80, 88), spread(-80, 700), 2, one),
    "exp_minus_1_by_excess": Function(mpmath.expm1, spread(-80, 88), spread(-80, 700), 2.5, one),
    "exp_minus_1_by_excess near 0": Function(mpmath.expm1, spread(-1.5, 1.5), spread(-1.5, 1.5), 2.5),
    "sine": Function(lambda w: turn(mpmath.sin, w), WORDS, NONE, 3),
    "cosine": Function(lambda w: turn(mpmath.cos, w), WORDS, NONE, 3),
    "sigmoid": Function(sigmoid, spread(-80, 80), spread(-700, 80), 2.5),
    "softplus": Function(lambda x: mpmath.log1p(mpmath.exp(x)), spread(-80, 80), spread(-700, 80), 2),
    "lgamma_tail": Function(lgamma_tail, powers(-8, math.log10(0.5)), powers(-8, math.log10(0.125)), 1, one),
    "digamma_tail": Function(
        digamma_tail,
        powers(-8, math.log10(0.5)),
        powers(-8, math.log10(0.125)),
        1,
        one,
    ),
    "gamma_slope, 2 steps": Function(slope(2), powers(-6, math.log10(1.999)), NONE, 3),
    "gamma_slope, 8 steps": Function(slope(8), NONE, powers(-6, math.log10(7.999)), 9),
    "slope_difference, 2 steps": Function(slope_difference(2), POSITIVE, NONE, 5),
    "slope_difference, 8 steps": Function(slope_difference(8), NONE, POSITIVE, 5),
    # Its pieces put together.
    "log_gamma": Function(mpmath.loggamma, GAMMA, GAMMA, 2, stirling),
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
    error = errors(y, x, function.exact, dtype, function.magnitude)
    worst = np.argmax(error)
    assert error[worst] <= function.bound, f"{name}({x[worst]}) = {y[worst]}, {error[worst]:.3g} ulp off"


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
