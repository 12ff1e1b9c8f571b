"""The error rule: a kernel errs at most twice as much as eager in the same dtype, plus 4 ulp."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import mpmath
import numpy as np
import reference
import torch
from samples import OPS, Sample
from torch import Tensor

import vae_kernels as vk

SLACK_ULP = 4


class Expected(NamedTuple):
    """True values of one result, each a float64 and the rest of it, as exact as two of them can be; and the magnitude on
    whose scale rounding errors are counted."""

    value: np.ndarray
    rest: np.ndarray
    magnitude: np.ndarray

    @classmethod
    def of(cls, exact: np.ndarray, magnitude: np.ndarray) -> "Expected":
        """From numbers of mpmath."""
        value = np.asarray(exact, dtype=object).astype(np.float64)
        rest = np.where(np.isfinite(value), exact - np.nan_to_num(value), 0)
        return cls(value, rest.astype(np.float64), np.asarray(magnitude).astype(np.float64))


def results(sample: Sample, call: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Outputs, and gradients as `grad <argument>`, under the sample's upstream gradients."""
    tensors = sample.make()
    outputs = call(tensors)
    upstream = sample.upstream(outputs)
    wanted = {name: t for name, t in tensors.items() if t.requires_grad}
    gradients = torch.autograd.grad(tuple(outputs.values()), tuple(wanted.values()), tuple(upstream.values()))
    return outputs | {f"grad {name}": g for name, g in zip(wanted, gradients, strict=True)}


def plain_results(sample: Sample) -> dict[str, Tensor]:
    """The same from what people write in these dtypes, handed over in the dtypes that the contract promises."""
    dtypes = output_dtypes(sample)
    return results(sample, lambda tensors: {k: v.to(dtypes[k]) for k, v in sample.plain(tensors).items()})


def yardstick(sample: Sample, backend: str) -> dict[str, Tensor]:
    """The results whose errors count: eager's; for eager itself those of what people write, and for counts too, since there
    eager's terms are put together as the kernels' are (test_extremes.py bounds the errors of both)."""
    if backend == "eager" or "theta" in OPS[sample.op].arguments:
        return plain_results(sample)
    with vk.use_backend("eager"):
        return results(sample, sample.call)


def output_dtypes(sample: Sample) -> dict[str, torch.dtype]:
    """`z` has the dtype of `mu`; a sum is float64 if an input is, else float32."""
    total = torch.float64 if torch.float64 in sample.dtypes else torch.float32
    return {name: sample.dtypes[0] if name == "z" else total for name in OPS[sample.op].outputs}


def expected(sample: Sample, of_eager: bool = False) -> dict[str, Expected]:
    """The true values, by mpmath; their magnitudes for kernels, or for eager."""
    return {name: both[of_eager] for name, both in _expected(sample).items()}


@cache
def _expected(sample: Sample) -> dict[str, tuple[Expected, Expected]]:
    op, shape, keep = OPS[sample.op], sample.shapes[0], sample.keep
    dtypes = output_dtypes(sample)
    empty = {name: torch.empty(shape if name == "z" else shape[:keep], dtype=dtypes[name]) for name in op.outputs}
    upstream = {
        name: np.broadcast_to(_pad(reference.exact(g), len(shape) - g.dim()), shape)[None]
        for name, g in sample.upstream(empty).items()
    }
    tensors = sample.make()
    with mpmath.workdps(reference.DIGITS):
        # The leading dim of one: NumPy makes a number of an object array without dims.
        values = {name: np.broadcast_to(reference.exact(t), shape)[None] for name, t in tensors.items()}
        outputs, gradients = op.reference(values, upstream)
        found = {name: total(terms, shape if name == "z" else shape[:keep]) for name, terms in outputs.items()}
        for name, shape_of in zip(op.arguments, sample.shapes, strict=True):
            if tensors[name].requires_grad:
                found[f"grad {name}"] = total(gradients[name], shape_of, leading=name not in op.arguments[:2])
    return found


def _pad(array: np.ndarray, dims: int) -> np.ndarray:
    return array.reshape(array.shape + (1,) * dims)


def total(terms: list, shape: tuple[int, ...], leading: bool = False) -> tuple[Expected, Expected]:
    """Sums the terms to `shape`: over trailing dims, or over those that broadcasting added if `leading`. With the
    magnitudes for kernels, and for eager."""
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


def error(got: Tensor, want: Expected) -> float:
    """The largest error in ulp of the result's dtype at the magnitude of the terms; what overflows must be infinite."""
    assert tuple(got.shape) == want.value.shape
    if not got.numel():
        return 0.0
    got = got.detach().cpu()
    info = torch.finfo(got.dtype)
    rounded = torch.from_numpy(np.atleast_1d(want.value)).to(got.dtype).reshape(got.shape)
    if not torch.equal(
        got[~got.isfinite()].nan_to_num(7.0, 8.0, 9.0), rounded[~got.isfinite()].nan_to_num(7.0, 8.0, 9.0)
    ):
        return float("inf")
    if not got.isfinite()[rounded.isfinite()].all():
        return float("inf")
    finite = rounded.isfinite().numpy()
    unit = info.eps * 2.0 ** np.floor(np.log2(np.maximum(want.magnitude, info.tiny)[finite]))
    with np.errstate(over="ignore"):
        difference = abs((got.double().numpy()[finite] - want.value[finite]) - want.rest[finite])
        return float((difference / unit).max(initial=0))


def check(got: dict[str, Tensor], yardstick: dict[str, Tensor], want: dict[str, Expected]) -> None:
    """The rule for every output and gradient."""
    assert set(got) == set(want)
    for name, value in got.items():
        mine, allowed = error(value, want[name]), 2 * error(yardstick[name], want[name]) + SLACK_ULP
        assert mine <= allowed, f"{name}: {mine:.4g} ulp off, {allowed:.4g} allowed"
