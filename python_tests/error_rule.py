"""The error rule: a kernel errs at most twice as much as eager in the same dtype, plus 4 ulp."""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SLACK_ULP = 4


class Expected(NamedTuple):
    """The true values of one result, and the magnitude on whose scale its rounding errors are counted. Each value is
    the sum of two float64 numbers, `value` and `rest`."""

    value: Tensor
    rest: Tensor
    magnitude: Tensor

    @classmethod
    def of(cls, exact: np.ndarray, magnitude: np.ndarray) -> "Expected":
        """Converts numbers of mpmath."""
        value = np.asarray(exact, dtype=object).astype(np.float64)
        rest = np.where(np.isfinite(value), exact - np.nan_to_num(value), 0)
        return cls(*(torch.from_numpy(np.asarray(part).astype(np.float64)) for part in (value, rest, magnitude)))

    @classmethod
    def in_float64(cls, value: Tensor, magnitude: Tensor) -> "Expected":
        """Takes tensors of float64 as they are."""
        return cls(value.detach(), value.new_zeros(()), magnitude.detach())

    @classmethod
    def at_largest(cls, value: Tensor, magnitude: Tensor) -> "Expected":
        """Takes tensors of float64, and counts the errors of all elements on the scale of the largest. This is for
        values whose small elements are no more exact than the large ones."""
        return cls.in_float64(value, magnitude.max() if magnitude.numel() else magnitude)


def total(terms: list, shape: tuple[int, ...], leading: bool = False) -> tuple[Expected, Expected]:
    """Sums the terms to `shape`: over trailing dims, or over the dims that broadcasting added if `leading`. Returns the
    sum twice, with the magnitudes of the kernels' terms and with those of eager's."""
    parts = [term if isinstance(term, tuple) else (term,) for term in terms]
    whole = [sum(part) for part in parts]
    sizes = [abs(term).astype(np.float64) for term in whole]
    of_eager = [
        size
        for part, of_whole in zip(parts, sizes, strict=True)
        for size in ([of_whole] if len(part) == 1 else [abs(term).astype(np.float64) for term in part])
    ]

    def summed(terms: list[np.ndarray]) -> np.ndarray:
        total = np.asarray(sum(terms)[0])
        if leading:
            full = (1,) * (total.ndim - len(shape)) + shape
            axes = tuple(d for d in range(total.ndim) if full[d] == 1)
        else:
            axes = tuple(range(len(shape), total.ndim))
        return np.asarray(total.sum(axis=axes)).reshape(shape)

    value = summed(whole)
    return Expected.of(value, summed(sizes)), Expected.of(value, summed(of_eager))


def ulp(magnitude: Tensor, dtype: torch.dtype) -> Tensor:
    """The spacing of the numbers of a dtype at a magnitude. Subnormal magnitudes count as the smallest normal
    number."""
    info = torch.finfo(dtype)
    return info.eps * 2 ** magnitude.clamp(min=info.tiny).log2().floor()


def error(got: Tensor, want: Expected, dtype: torch.dtype | None = None) -> float:
    """The largest error in ulp of `dtype`, the result's own unless given, at the magnitude of the terms. What overflows
    must be infinite."""
    assert got.shape == want.value.shape
    if not got.numel():
        return 0.0
    got = got.detach().to(want.value.device)
    rounded = want.value.to(got.dtype)
    finite, beyond = rounded.isfinite(), ~got.isfinite()
    if not torch.equal(got[beyond].nan_to_num(7.0, 8.0, 9.0), rounded[beyond].nan_to_num(7.0, 8.0, 9.0)):
        return float("inf")
    if beyond[finite].any():
        return float("inf")
    difference = ((got.double() - want.value) - want.rest).abs()
    return torch.where(finite, difference / ulp(want.magnitude, dtype or got.dtype), 0).max().item()


def check(got: dict[str, Tensor], yardstick: dict[str, Tensor], want: dict[str, Expected]) -> None:
    """Checks the rule for every output and gradient. The errors of both count in ulp of the dtype of `got`."""
    assert set(got) == set(want)
    for name, value in got.items():
        mine, known = (error(results[name], want[name], value.dtype) for results in (got, yardstick))
        allowed = 2 * known + SLACK_ULP
        assert mine <= allowed, f"{name}: {mine:.4g} ulp off, {allowed:.4g} allowed"
