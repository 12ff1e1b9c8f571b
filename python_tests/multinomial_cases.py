"""Cases of the multinomial likelihood. True values come from mpmath."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import mpmath
import numpy as np
import reference
import torch
import torch.nn.functional as F
from cases import Case
from categorical_cases import VALUES as LOGITS
from error_rule import Expected
from samples import BF16, BOOL, DEVICE, F16, F32, F64, I64, LAYOUTS, U8
from torch import Tensor
from torch.distributions import Multinomial

import vae_kernels as vk


def _counts(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Mostly 0, and 1 to 6."""
    return torch.where(torch.rand(shape, generator=g) < 0.6, 0, torch.randint(1, 7, shape, generator=g)).double()


def _one_class(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    x = torch.zeros(shape, dtype=F64)
    return x.scatter_(-1, torch.randint(shape[-1], (*shape[:-1], 1), generator=g), 7.0)


def _far(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """The first logit is 80, and the others are -80 or -inf."""
    logits = torch.where(torch.rand(shape, generator=g) < 0.5, -80.0, -torch.inf).double()
    logits[..., 0] = 80
    return logits


def _weights(g: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(shape, generator=g, dtype=F64) * 3


# The logits and the counts. Where a logit is -inf, the count is 0.
VALUES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    **{name: (draw, _counts) for name, draw in LOGITS.items()},
    "far": (_far, _counts),
    "one_class": (LOGITS["random"], _one_class),
    "one_certain_class": (LOGITS["certain"], lambda g, shape: _one_class(g, (*shape[:-1], 1)) * _first(shape)),
    "no_counts": (LOGITS["random"], lambda g, shape: torch.zeros(shape, dtype=F64)),
    "bits": (LOGITS["random"], lambda g, shape: torch.randint(2, shape, generator=g).double()),
    "weights": (LOGITS["random"], _weights),
    "small_weights": (LOGITS["random"], lambda g, shape: _weights(g, shape) * 1e-3),
    "millions": (LOGITS["random"], lambda g, shape: (_counts(g, shape) * 1e6).round()),
}


def _first(shape: tuple[int, ...]) -> Tensor:
    return F.one_hot(torch.zeros((), dtype=I64), shape[-1]).double()


@dataclass(frozen=True)
class MultinomialCase(Case):
    """Logits, and counts of the same shape."""

    shape: tuple[int, ...]
    dtype: torch.dtype = F32
    values: str = "random"
    batch_dims: int = 1
    layout: str = "contiguous"
    x_layout: str = "contiguous"
    x_dtype: torch.dtype = F32
    coefficient: bool = True

    def __str__(self) -> str:
        dtypes = "_".join(str(d).removeprefix("torch.") for d in (self.dtype, self.x_dtype))
        shape, without = "x".join(map(str, self.shape)), "" if self.coefficient else "-without_coefficient"
        return f"{shape}-{dtypes}-{self.values}-{self.layout}_{self.x_layout}-keep{self.batch_dims}{without}"

    @property
    def output_dtypes(self) -> dict[str, torch.dtype]:
        return {"log_px": F64 if F64 in (self.dtype, self.x_dtype) else F32}

    @property
    def function(self) -> Callable[..., Tensor]:
        return partial(vk.multinomial_log_likelihood, coefficient=self.coefficient, batch_dims=self.batch_dims)

    def make(self) -> dict[str, Tensor]:
        g = self.generator()
        logits, x = (draw(g, self.shape) for draw in VALUES[self.values])
        x = torch.where(logits.isinf(), 0, x)
        logits, x = logits.to(self.dtype).to(DEVICE), x.to(self.x_dtype).to(DEVICE)
        logits, x = LAYOUTS[self.layout](logits), LAYOUTS[self.x_layout](x)
        return {"logits": logits.requires_grad_(), "x": x.requires_grad_(x.is_floating_point())}

    def plain(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        logits, x = tensors.values()
        dtype = torch.promote_types(logits.dtype, x.dtype)
        x, log_p = x.to(dtype), F.log_softmax(logits.to(dtype), -1)
        elements = x * log_p.masked_fill((x == 0) & log_p.isinf(), 0)
        log_px = elements.sum(-1)
        if self.coefficient:
            log_px = log_px + torch.lgamma(x.sum(-1) + 1) - torch.lgamma(x + 1).sum(-1)
        return {"log_px": self._summed(log_px)}

    def distribution(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The outputs by torch.distributions, in the dtype of the logits."""
        logits, x = tensors.values()
        return {"log_px": self._summed(Multinomial(logits=logits, validate_args=False).log_prob(x.to(logits.dtype)))}

    def _summed(self, elements: Tensor) -> Tensor:
        return elements.flatten(self.batch_dims).sum(-1) if elements.dim() > self.batch_dims else elements

    def in_float64(self) -> dict[str, Tensor]:
        """The results by torch.distributions in float64."""
        tensors = {name: t.detach().double().requires_grad_() for name, t in self.make().items()}
        return self.results(self.distribution, tensors)

    def terms(self) -> Tensor:
        """The sum of the absolute values of all terms, in float64, for one position per sample."""
        logits, x = (t.detach().double() for t in self.make().values())
        of_logits = (x * F.log_softmax(logits, -1)).abs().sum(-1)
        return of_logits + torch.lgamma(x.sum(-1) + 1).abs() + torch.lgamma(x + 1).abs().sum(-1)

    def expected(self, of_eager: bool = False) -> dict[str, Expected]:
        """The true results by mpmath. Each `x ln p`, each `ln Γ`, and each of the two terms of a gradient is one term.

        The two terms of a logit's gradient are x and N p; of a class with p > ½ they are N − x and N (1 − p), unless
        counts are weights, of which N − x loses digits.
        """
        logits, x = self.make().values()
        kept = self.shape[: self.batch_dims]
        upstream = self.upstream({"log_px": torch.empty(kept, dtype=self.output_dtypes["log_px"])})["log_px"]
        with mpmath.workdps(reference.DIGITS):
            l, x_exact = (reference.exact(t).reshape(-1, self.shape[-1]) for t in (logits, x))
            rows = len(l)
            weights = _exp(l - l.max(-1, keepdims=True))
            at = np.arange(rows), np.argmax(l, -1)
            others = weights.copy()
            others[at] = mpmath.mpf(0)
            total_minus_1 = others.sum(-1, keepdims=True)
            total = 1 + total_minus_1
            n = x_exact.sum(-1, keepdims=True)
            impossible = weights == 0
            log_p = np.where(impossible, 0, np.where(impossible, 0, l) - l.max(-1, keepdims=True)) - np.where(
                impossible, 0, _log1p(total_minus_1)
            )
            terms = [x_exact * log_p]
            slopes = [log_p]
            if self.coefficient:
                terms += [_log_gamma(n + 1), -_log_gamma(x_exact + 1)]
                slopes += [_digamma(n + 1) + 0 * x_exact, -_digamma(x_exact + 2), 1 / (x_exact + 1)]
            per_position = [np.asarray(part.sum(-1), dtype=object) for part in terms]
            value = sum(per_position).reshape((*kept, -1)).sum(-1)
            magnitude = sum(np.asarray(abs(part).sum(-1), dtype=object) for part in terms).reshape((*kept, -1)).sum(-1)
            upstream = reference.exact(upstream).reshape(-1, 1)
            g = np.repeat(upstream, max(1, rows // max(1, len(upstream))), axis=0)
            to_logits, sizes = x_exact - n * weights / total, x_exact + n * weights / total
            dominant = (weights == 1) & (total < 2)
            exact = n * total_minus_1 / total, n - x_exact
            to_logits = np.where(dominant, exact[0] - exact[1], to_logits)
            if "weights" not in self.values:
                sizes = np.where(dominant, exact[0] + exact[1], sizes)
            found = {
                "log_px": Expected.of(*(np.asarray(a, dtype=object) for a in (value, magnitude))),
                "grad logits": Expected.of((g * to_logits).reshape(self.shape), abs(g * sizes).reshape(self.shape)),
            }
            if x.requires_grad:
                sizes = sum(abs(g * part) for part in slopes)
                found["grad x"] = Expected.of((g * sum(slopes)).reshape(self.shape), sizes.reshape(self.shape))
            return found


def _function(f: Callable) -> Callable[[np.ndarray], np.ndarray]:
    return np.frompyfunc(f, 1, 1)


_exp, _log1p = _function(mpmath.exp), _function(mpmath.log1p)
_log_gamma, _digamma = _function(mpmath.loggamma), _function(mpmath.digamma)

CASES = [
    *(
        MultinomialCase((3, 5, 17), dtype, values, x_dtype=dtype, coefficient=coefficient)
        for dtype in (F64, F32, BF16, F16)
        for values in VALUES
        if values != "millions" or dtype in (F64, F32)
        # The kernels' ln Γ(x + 1) errs by some ulp of 1 where x is small.
        for coefficient in ((False,) if values == "small_weights" else (True, False) if dtype == F32 else (True,))
    ),
    *(MultinomialCase((2, 3, 70), values=values, x_dtype=I64) for values in VALUES if "weights" not in values),
    *(
        MultinomialCase(shape, dtype, batch_dims=batch_dims, x_dtype=dtype)
        for dtype in (F32, BF16)
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
            ((700, 2), 0),
        )
    ),
    *(
        MultinomialCase((2, 3, 4, classes), dtype, batch_dims=batch_dims, layout=layout, x_layout=x_layout)
        for dtype in (F32, BF16)
        for classes in (5, 70)
        for batch_dims, layout, x_layout in (
            (1, "transposed", "contiguous"),
            (1, "chunk", "transposed"),
            (2, "sliced", "offset"),
            (1, "offset", "channels_last"),
            (1, "expanded_rows", "expanded_columns"),
            (2, "expanded_columns", "expanded_rows"),
            (1, "channels_last", "channels_last"),
            (0, "chunk_of_channels", "boxed"),
            (2, "boxed", "chunk_of_channels"),
        )
    ),
    *(
        MultinomialCase((3, 4, 40), x_dtype=dtype, values="bits" if dtype == BOOL else "random")
        for dtype in (F64, BF16, U8, torch.int8, torch.int16, torch.int32, BOOL)
    ),
    MultinomialCase((3, 4, 2), BF16, "bits", x_dtype=BOOL),
]
