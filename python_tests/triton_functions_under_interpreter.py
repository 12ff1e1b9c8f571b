"""The functions of vae_kernels/triton/math.py and gamma.py against mpmath: the errors that their docstrings state, over the
ranges they name; and where tensors lie. For a process with TRITON_INTERPRET=1, see test_triton.py."""

import math as m
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
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

from vae_kernels.triton import gamma, math, tile


@triton.jit
def _map_kernel(x, y, size, FUNCTION: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    result = FUNCTION(tl.load(x + i, i < size, 0))
    tl.store(y + i, result, i < size)


def apply(function: object, x: np.ndarray) -> np.ndarray:
    given = torch.from_numpy(x)
    y = torch.full(given.shape, m.nan, dtype=torch.float64 if given.dtype == torch.int64 else given.dtype)
    _map_kernel[(triton.cdiv(x.size, 4096),)](given, y, x.size, function, 4096)
    return y.numpy()


@triton.jit
def _std(x):
    return math.std_and_excess(x)[0]


@triton.jit
def _excess(x):
    return math.std_and_excess(x)[1]


@triton.jit
def _expm1(x):
    return math.std_and_expm1(x)[1]


@triton.jit
def _excess_from(x):
    return math.excess_from(x, math.exp(x))


@triton.jit
def _expm1_from(x):
    return math.expm1_from(x, math.exp(x))


@triton.jit
def _times_exp(x):
    return math.times_exp(x * 0.0 + 1.625, x)


@triton.jit
def _sigmoid(x):
    return math.sigmoid(x, math.exp_minus_abs(x))


@triton.jit
def _softplus(x):
    return math.softplus(x, math.exp_minus_abs(x))


@triton.jit
def _log_next_to_1(f):
    return math.log_ratio(1.0 + f, f)[0]


@triton.jit
def _log_beyond(f):
    return math.log_ratio(1.0 + f, f)[1]


@triton.jit
def _gamma_slope(a):
    return gamma.gamma_terms(a, a.dtype)[4]


@triton.jit
def _slope_difference(a):
    """The difference from the slope at 1.5."""
    b = a * 0.0 + 1.5
    return gamma.slope_difference(a, b, a - b, a.dtype)


@triton.jit
def _log_gamma(a):
    terms = gamma.gamma_terms(a, a.dtype)
    z = terms[1]
    stirling = (z - 0.5) * math.log(z) - z + 0.9189385332046727
    return stirling + gamma.lgamma_tail(terms[2]) - math.log(terms[3])


@triton.jit
def _power(a):
    return gamma.gamma_terms(a, a.dtype)[5]


@triton.jit
def _sine(x):
    return math.sin_cos_turns(x.to(tl.uint32))[0].to(tl.float64)


@triton.jit
def _cosine(x):
    return math.sin_cos_turns(x.to(tl.uint32))[1].to(tl.float64)


def _of_minus_size(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(-abs(x))


def _minus_2_log(u: mpmath.mpf) -> mpmath.mpf:
    return -2 * mpmath.log(u)


def _root_of_exp(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.exp(x / 2)


def _softplus_of(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.log1p(mpmath.exp(x))


def _shifted_power(steps: int) -> Callable[[mpmath.mpf], mpmath.mpf]:
    return lambda a: (a + steps) ** steps if a < steps else mpmath.mpf(1)


NONE = np.empty(0)
NEAR = both_signs(powers(-12, 0))
NEXT_TO_1 = both_signs(powers(-9, -0.6))
POSITIVE = np.concatenate((powers(-6, 5), 1.5 + NEXT_TO_1))
GAMMA = np.concatenate((powers(-6, 5), spread(0.5, 9), np.arange(1.0, 40)))

FUNCTIONS = {
    "exp": (math.exp, Function(mpmath.exp, spread(-104, 88.72), spread(-700, 709, 500), 1.2)),
    "times_exp": (_times_exp, Function(lambda t: 1.625 * mpmath.exp(t), spread(-87, 88), NONE, 2)),
    "times_exp in float64": (_times_exp, Function(lambda t: 1.625 * mpmath.exp(t), NONE, spread(-700, 708, 500), 4)),
    "sigmoid": (_sigmoid, Function(sigmoid, spread(-80, 80), spread(-700, 80, 500), 2.5)),
    "softplus": (_softplus, Function(_softplus_of, spread(-80, 80), NONE, 3)),
    "softplus in float64": (_softplus, Function(_softplus_of, NONE, spread(-700, 80, 500), 4)),
    "exp near 0": (math.exp, Function(mpmath.exp, spread(-1, 1), NONE, 1.2)),
    "exp_minus_abs": (math.exp_minus_abs, Function(_of_minus_size, spread(-104, 104), NONE, 1.2)),
    "exp_minus_abs in float64": (math.exp_minus_abs, Function(_of_minus_size, NONE, spread(-700, 700, 500), 4)),
    "log1p_unit": (math.log1p_unit, Function(mpmath.log1p, spread(0, 1), NONE, 2)),
    "log1p_unit near 0": (math.log1p_unit, Function(mpmath.log1p, powers(-37, 0), NONE, 2)),
    "log1p_unit in float64": (math.log1p_unit, Function(mpmath.log1p, NONE, spread(0, 1, 500), 4)),
    "log1p_unit near 0 in float64": (math.log1p_unit, Function(mpmath.log1p, NONE, powers(-300, 0, 500), 4)),
    "minus_2_log": (math.minus_2_log, Function(_minus_2_log, spread(2**-33, 1), NONE, 2)),
    "minus_2_log near 0": (math.minus_2_log, Function(_minus_2_log, powers(-9.9, 0), NONE, 2)),
    "minus_2_log near 1": (math.minus_2_log, Function(_minus_2_log, 1 - powers(-7.2, -1), NONE, 2)),
    "std": (_std, Function(_root_of_exp, spread(-208, 177.4), NONE, 1)),
    "std in float64": (_std, Function(_root_of_exp, NONE, spread(-1400, 1418, 500), 1)),
    "excess_from": (_excess_from, Function(excess, spread(-3, 3), spread(-3, 3, 500), 4)),
    "expm1_from": (_expm1_from, Function(mpmath.expm1, spread(-3, 3), spread(-3, 3, 500), 4)),
    "excess": (_excess, Function(excess, spread(-3, 3), spread(-3, 3, 500), 4)),
    "excess near 0": (_excess, Function(excess, NEAR, NONE, 4)),
    "excess, wide": (_excess, Function(excess, spread(-200, 88.7), NONE, 4)),
    "expm1": (_expm1, Function(mpmath.expm1, spread(-3, 3), spread(-3, 3, 500), 4)),
    "expm1 near 0": (_expm1, Function(mpmath.expm1, both_signs(powers(-30, 0)), NONE, 4)),
    "expm1, wide": (_expm1, Function(mpmath.expm1, spread(-200, 88.7), NONE, 4)),
    "log": (math.log, Function(mpmath.log, powers(-44, 38), powers(-320, 308), 2)),
    "log near 1": (math.log, Function(mpmath.log, spread(0.6, 1.6), spread(0.6, 1.6), 2)),
    "log next to 1": (_log_next_to_1, Function(mpmath.log1p, NEXT_TO_1, both_signs(powers(-18, -0.6)), 2)),
    "log beyond": (_log_beyond, Function(log_beyond, NEXT_TO_1, NEXT_TO_1, 4)),
    "expm1_negative": (math.expm1_negative, Function(mpmath.expm1, spread(-1, 0), spread(-1, 0), 4)),
    "expm1_negative near 0": (math.expm1_negative, Function(mpmath.expm1, -powers(-30, 0), -powers(-300, 0), 4)),
    "expm1_negative, wide": (math.expm1_negative, Function(mpmath.expm1, spread(-80, -1), spread(-700, -1), 1, one)),
    "lgamma_tail": (
        gamma.lgamma_tail,
        Function(lgamma_tail, powers(-8, m.log10(0.5)), powers(-8, m.log10(0.125)), 1, one),
    ),
    "digamma_tail": (
        gamma.digamma_tail,
        Function(digamma_tail, powers(-8, m.log10(0.5)), powers(-8, m.log10(0.125)), 1, one),
    ),
    "slope, 2 steps": (_gamma_slope, Function(slope(2), powers(-6, m.log10(1.999)), NONE, 3)),
    "slope, 8 steps": (_gamma_slope, Function(slope(8), NONE, powers(-6, m.log10(7.999)), 9)),
    "slope_difference, 2 steps": (_slope_difference, Function(slope_difference(2), POSITIVE, NONE, 5)),
    "slope_difference, 8 steps": (_slope_difference, Function(slope_difference(8), NONE, POSITIVE, 5)),
    "power, 2 steps": (_power, Function(_shifted_power(2), GAMMA, NONE, 3)),
    "power, 8 steps": (_power, Function(_shifted_power(8), NONE, GAMMA, 15)),
    # Its pieces put together.
    "log_gamma": (_log_gamma, Function(mpmath.loggamma, GAMMA, GAMMA, 2, stirling)),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(n, t) for n, (_, f) in FUNCTIONS.items() for t in (np.float32, np.float64) if getattr(f, t.__name__).size],
)
def test_bounds(name: str, dtype: type[np.floating]) -> None:
    mapped, function = FUNCTIONS[name]
    x = getattr(function, dtype.__name__).astype(dtype)
    y = apply(mapped, x)
    error = errors(y, x, function.exact, dtype, function.magnitude)
    worst = np.argmax(error)
    assert error[worst] <= function.bound, f"{name}({x[worst]}) = {y[worst]}, {error[worst]:.3g} ulp off"


SPECIAL = {
    "log": (math.log, {0.0: -np.inf, -1.0: np.nan, np.inf: np.inf, 1.0: 0, np.nan: np.nan}),
    "expm1_negative": (math.expm1_negative, {0.0: 0, -np.inf: -1}),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name: str, dtype: type[np.floating]) -> None:
    mapped, values = SPECIAL[name]
    y = apply(mapped, np.array([*values], dtype=dtype))
    assert np.array_equal(y, np.array([*values.values()], dtype=dtype), equal_nan=True)


def test_sine_and_cosine_of_every_kind_of_angle() -> None:
    near_axes = np.arange(-300, 300)[:, None] + np.arange(0, 9) * 2**29
    words = np.append(near_axes.flatten() % 2**32, np.random.default_rng(0).integers(2**32, size=4000))
    for function, exact in ((_sine, mpmath.sin), (_cosine, mpmath.cos)):
        error = errors(
            apply(function, words),
            words,
            lambda w: exact(2 * mpmath.pi * (w + 0.5) / 2**32),  # noqa: B023
            np.float32,
        )
        assert error.max() <= 3


@triton.jit
def _offsets_kernel(
    row, col, out, strides, inner_rows, inner_cols, VEC: tl.constexpr, R: tl.constexpr, C: tl.constexpr
):
    r, c = tl.arange(0, R)[:, None], tl.arange(0, C)[None, :]
    found = tile.offsets(tl.load(row + r), tl.load(col + c), strides, inner_rows, inner_cols, VEC)
    tl.store(out + r * C + c, found.to(tl.int64))


@pytest.mark.parametrize("vec", [1, 16])
@pytest.mark.parametrize(
    "strides",
    [(2**27 + 1,), (2**28 + 3, 2**27 + 1), (2**28 + 7, 2**28 + 3, 2**27 + 1), (2**28 + 7, 2**28 + 3, 2**27 + 1, 5)],
    ids=len,
)
def test_offsets_beyond_32_bits(strides: tuple[int, ...], vec: int) -> None:
    """Strides and sizes are numbers of 32 bits, and their products are not."""
    inner_rows, inner_cols = 3, 2**27 + 5
    rows = [0, 1, 2, 3, 7, 2**20, 2**30 + 5, 2**31 + 9]
    cols = [0, 1, inner_cols * vec - 1, inner_cols * vec, 2 * inner_cols * vec + 3, 2**31 - 1, 2**31, 2**33 + 7]

    def want(row: int, col: int) -> int:
        if len(strides) == 1:
            return row * strides[0] * vec + col
        first = (row // inner_rows * strides[0] + row % inner_rows * strides[1]) * vec
        if len(strides) == 2:
            return first + col
        outer, inner = divmod(col, inner_cols * vec)
        return first + outer * strides[2] * vec + inner * (strides[3] if len(strides) == 4 else 1)

    found = torch.zeros(8, 8, dtype=torch.int64)
    _offsets_kernel[(1,)](torch.tensor(rows), torch.tensor(cols), found, strides, inner_rows, inner_cols, vec, 8, 8)
    assert found.tolist() == [[want(row, col) for col in cols] for row in rows]
