"""Cases of the categorical likelihood. True values come from mpmath."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mpmath
import numpy as np
import reference
import torch
import torch.nn.functional as F
from cases import Case
from error_rule import Expected
from samples import BF16, BOOL, DEVICE, F16, F32, F64, I64, LAYOUTS, U8
from torch import Tensor
from torch.distributions import Categorical

import vae_kernels as vk


def _normal(scale: float, shift: float = 0.0) -> Callable[[torch.Generator, tuple[int, ...]], Tensor]:
    return lambda g, shape: torch.randn(shape, generator=g, dtype=F64) * scale + shift


def _certain(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """The first class has nearly all of the probability: what the others have is far below the rounding of 1."""
    logits = torch.randn(shape, generator=g, dtype=F64)
    logits[..., 0] += 40
    return logits


def _ties(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.randint(2, shape, generator=g).double() * 3


VALUES = {
    "random": _normal(3),
    "certain": _certain,
    "ties": _ties,
    "shifted": _normal(1, 1000),
    "wide": lambda g, shape: (torch.rand(shape, generator=g, dtype=F64) - 0.5) * 200,
}


@dataclass(frozen=True)
class CategoricalCase(Case):
    """Logits, and classes of which one in four is the first."""

    shape: tuple[int, ...]
    dtype: torch.dtype = F32
    values: str = "random"
    batch_dims: int = 1
    layout: str = "contiguous"
    x_layout: str = "contiguous"
    x_dtype: torch.dtype = I64

    def __str__(self) -> str:
        dtypes = "_".join(str(d).removeprefix("torch.") for d in (self.dtype, self.x_dtype))
        shape = "x".join(map(str, self.shape))
        return f"{shape}-{dtypes}-{self.values}-{self.layout}_{self.x_layout}-keep{self.batch_dims}"

    @property
    def output_dtypes(self) -> dict[str, torch.dtype]:
        return {"log_px": F64 if self.dtype == F64 else F32}

    @property
    def function(self) -> Callable[..., Tensor]:
        return partial(vk.categorical_log_likelihood, batch_dims=self.batch_dims)

    def make(self) -> dict[str, Tensor]:
        g = self.generator()
        logits = VALUES[self.values](g, self.shape)
        first = torch.rand(self.shape[:-1], generator=g) < 0.25
        x = torch.where(first, 0, torch.randint(self.shape[-1], self.shape[:-1], generator=g)).to(self.x_dtype)
        logits, x = LAYOUTS[self.layout](logits.to(self.dtype).to(DEVICE)), LAYOUTS[self.x_layout](x.to(DEVICE))
        return {"logits": logits.requires_grad_(), "x": x}

    def plain(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, x = tensors.values()
        classes = logits.shape[-1]
        loss = F.cross_entropy(logits.reshape(-1, classes), x.reshape(-1).long(), reduction="none").view(x.shape)
        return {"log_px": -self._summed(loss)}

    def distribution(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by torch.distributions, in the dtype of the logits."""
        logits, x = tensors.values()
        return {"log_px": self._summed(Categorical(logits=logits, validate_args=False).log_prob(x.long()))}

    def _summed(self, elements: Tensor) -> Tensor:
        return elements.flatten(self.batch_dims).sum(-1) if elements.dim() > self.batch_dims else elements

    def in_float64(self) -> dict[str, Tensor]:
        """The results by torch.distributions in float64."""
        logits, x = self.make().values()
        return self.results(self.distribution, {"logits": logits.detach().double().requires_grad_(), "x": x})

    def expected(self, of_eager: bool = False) -> dict[str, Expected]:
        """The true results by mpmath. Each log-probability and each `[k = x] − p` is one term."""
        logits, x = self.make().values()
        kept = self.shape[: self.batch_dims]
        upstream = self.upstream({"log_px": torch.empty(kept, dtype=self.output_dtypes["log_px"])})["log_px"]
        with mpmath.workdps(reference.DIGITS):
            l = reference.exact(logits).reshape(-1, self.shape[-1])
            k = x.long().cpu().numpy().reshape(-1)
            at = np.arange(len(k))
            weights = _exp(l - l.max(-1, keepdims=True))
            others = weights.copy()
            others[at, k] = mpmath.mpf(0)
            total = weights.sum(-1, keepdims=True)
            log_p = _log(weights[at, k] / total[:, 0]).reshape((*kept, -1))
            upstream = reference.exact(upstream).reshape(-1, 1)
            g = np.repeat(upstream, max(1, len(k) // max(1, len(upstream))), axis=0)
            gradient = -g * weights / total
            gradient[at, k] = (g * others.sum(-1, keepdims=True) / total)[:, 0]
            return {
                "log_px": Expected.of(*(np.asarray(a.sum(-1), dtype=object) for a in (log_p, abs(log_p)))),
                "grad logits": Expected.of(gradient.reshape(self.shape), abs(gradient).reshape(self.shape)),
            }


_exp, _log = np.frompyfunc(mpmath.exp, 1, 1), np.frompyfunc(mpmath.log, 1, 1)

CASES = [
    *(CategoricalCase((3, 5, 17), dtype, values) for dtype in (F64, F32, BF16, F16) for values in VALUES),
    *(CategoricalCase((2, 3, 70), dtype, values) for dtype in (F64, F32, BF16) for values in VALUES),
    *(
        CategoricalCase(shape, dtype, batch_dims=batch_dims)
        for dtype in (F64, F32, BF16)
        for shape, batch_dims in (
            ((1,), 0),
            ((10,), 0),
            ((5, 2), 1),
            ((4, 10), 0),
            ((33, 16), 1),
            ((3, 1), 1),
            ((2, 40, 3), 1),
            ((2, 3, 64), 2),
            ((1, 2, 1024), 1),
            ((1, 2, 1025), 1),
            ((1, 1, 2100), 1),
            ((1, 4100), 1),
            ((1300, 2), 0),
        )
    ),
    *(
        CategoricalCase((2, 3, 4, classes), dtype, batch_dims=batch_dims, layout=layout)
        for dtype in (F32, BF16)
        for classes in (5, 40, 300)
        for batch_dims, layout in (
            (1, "transposed"),
            (1, "chunk"),
            (2, "sliced"),
            (1, "offset"),
            (1, "expanded_rows"),
            (2, "expanded_columns"),
            (1, "channels_last"),
            (0, "chunk_of_channels"),
            (2, "boxed"),
        )
    ),
    *(
        CategoricalCase((4, 20, 33), layout="transposed", x_layout=x_layout)
        for x_layout in ("transposed", "sliced", "boxed")
    ),
    *(
        CategoricalCase((4, 20, 9), x_layout=x_layout)
        for x_layout in ("chunk", "expanded_rows", "expanded_columns", "offset")
    ),
    *(CategoricalCase((3, 4, 250), x_dtype=dtype) for dtype in (U8, torch.int16, torch.int32)),
    CategoricalCase((3, 4, 100), x_dtype=torch.int8),
    CategoricalCase((3, 4, 2), BF16, x_dtype=BOOL),
]
