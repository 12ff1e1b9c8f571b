"""Errors of elementary functions against mpmath, in units in the last place (ulp), and where to look for them."""

from collections.abc import Callable
from typing import NamedTuple

import mpmath
import numpy as np
import reference

Exact = Callable[[mpmath.mpf], mpmath.mpf]


def spread(low: float, high: float, count: int = 1500) -> np.ndarray:
    """Random numbers between two bounds, and both."""
    return np.append(np.random.default_rng(0).uniform(low, high, count), [low, high])


def powers(low: float, high: float, count: int = 1500) -> np.ndarray:
    """Random powers of ten with exponents between the bounds."""
    return 10.0 ** spread(low, high, count)


def both_signs(x: np.ndarray) -> np.ndarray:
    return np.concatenate((x, -x))


def own(value: mpmath.mpf, _: mpmath.mpf) -> mpmath.mpf:
    return abs(value)


def one(value: mpmath.mpf, _: mpmath.mpf) -> mpmath.mpf:
    return max(abs(value), mpmath.mpf(1))


def stirling(_: mpmath.mpf, a: mpmath.mpf) -> mpmath.mpf:
    """The size of the terms that Stirling's series of log Γ(a) adds up, at a shifted argument where a is small."""
    z = max(a, mpmath.mpf(8)) + 8
    return z * mpmath.log(z)


class Function(NamedTuple):
    """What it should be, where, the bound in ulp for float32 and float64, and the magnitude that an ulp is taken of."""

    exact: Exact
    float32: np.ndarray
    float64: np.ndarray
    bound: float
    magnitude: Callable[[mpmath.mpf, mpmath.mpf], mpmath.mpf] = own


def errors(
    y: np.ndarray, x: np.ndarray, exact: Exact, dtype: type[np.floating], magnitude: Callable = own
) -> np.ndarray:
    """The error of each y in ulp of `dtype`. Subnormal numbers are spaced as the smallest normal one."""
    info = np.finfo(dtype)
    with mpmath.workdps(reference.DIGITS):
        given = [mpmath.mpf(v) for v in x.tolist()]
        want = [exact(v) for v in given]
        size = np.array([float(magnitude(w, v)) for w, v in zip(want, given, strict=True)])
        error = np.array([float(abs(mpmath.mpf(g) - w)) for g, w in zip(y.tolist(), want, strict=True)])
    return error / (float(info.eps) * 2.0 ** np.floor(np.log2(np.maximum(size, float(info.tiny)))))


def lgamma_tail(u: mpmath.mpf) -> mpmath.mpf:
    """log Γ(z) − ((z − ½) log z − z + ½ log 2π), u = 1/z."""
    z = 1 / u
    return mpmath.loggamma(z) - ((z - 0.5) * mpmath.log(z) - z + mpmath.log(2 * mpmath.pi) / 2)


def digamma_tail(u: mpmath.mpf) -> mpmath.mpf:
    """ψ(z) − log z, u = 1/z."""
    return mpmath.psi(0, 1 / u) - mpmath.log(1 / u)


def log_beyond(f: mpmath.mpf) -> mpmath.mpf:
    return mpmath.log1p(f) - f


def excess(x: mpmath.mpf) -> mpmath.mpf:
    return mpmath.expm1(x) - x


def slope(steps: int) -> Exact:
    """The derivative of log a (a + 1) … (a + steps − 1)."""
    return lambda a: sum(1 / (a + k) for k in range(steps))


def slope_difference(steps: int) -> Exact:
    """The slope at 1.5 less the slope at a."""
    return lambda a: slope(steps)(mpmath.mpf(1.5)) - slope(steps)(a)


def sigmoid(x: mpmath.mpf) -> mpmath.mpf:
    return 1 / (1 + mpmath.exp(-x))
