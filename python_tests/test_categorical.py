"""The categorical likelihood: the error rule against mpmath, torch.distributions, gradients, layouts, classes that do not
exist."""

import json
import math
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import mpmath
import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F
from error_rule import Expected, check
from fresh_process import python
from samples import BF16, BOOL, DEVICE, F16, F32, F64, I64, LAYOUTS, U8
from test_backends import Recorder
from torch import Tensor

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


class Case(NamedTuple):
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

    def make(self) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        logits = VALUES[self.values](g, self.shape)
        first = torch.rand(self.shape[:-1], generator=g) < 0.25
        x = torch.where(first, 0, torch.randint(self.shape[-1], self.shape[:-1], generator=g)).to(self.x_dtype)
        logits, x = LAYOUTS[self.layout](logits.to(self.dtype).to(DEVICE)), LAYOUTS[self.x_layout](x.to(DEVICE))
        return logits.requires_grad_(), x

    def upstream(self) -> Tensor:
        g = torch.Generator().manual_seed(zlib.crc32(str(self).encode()) + 1)
        return torch.randn(self.shape[: self.batch_dims], generator=g, dtype=F64).to(self.sum_dtype).to(DEVICE)

    @property
    def sum_dtype(self) -> torch.dtype:
        return F64 if self.dtype == F64 else F32

    def results(self, function: Callable[..., Tensor] = vk.categorical_log_likelihood) -> dict[str, Tensor]:
        logits, x = self.make()
        log_px = function(logits, x, batch_dims=self.batch_dims).to(self.sum_dtype)
        return {"log_px": log_px, "grad logits": torch.autograd.grad(log_px, logits, self.upstream())[0]}


def plain(logits: Tensor, x: Tensor, *, batch_dims: int) -> Tensor:
    """What people write, in the dtype of the logits."""
    classes = logits.shape[-1]
    loss = F.cross_entropy(logits.reshape(-1, classes), x.reshape(-1).long(), reduction="none").view(x.shape)
    return -loss.flatten(batch_dims).sum(-1) if x.dim() > batch_dims else -loss


_exp, _log = np.frompyfunc(mpmath.exp, 1, 1), np.frompyfunc(mpmath.log, 1, 1)


def expected(case: Case) -> dict[str, Expected]:
    """By mpmath: each log-probability and each `[k = x] − p` is one term."""
    logits, x = case.make()
    positions = case.shape[:-1]
    with mpmath.workdps(reference.DIGITS):
        l = reference.exact(logits).reshape(-1, case.shape[-1])
        k = x.long().cpu().numpy().reshape(-1)
        at = np.arange(len(k))
        weights = _exp(l - l.max(-1, keepdims=True))
        others = weights.copy()
        others[at, k] = mpmath.mpf(0)
        total = weights.sum(-1, keepdims=True)
        log_p = _log(weights[at, k] / total[:, 0]).reshape((*positions[: case.batch_dims], -1))
        upstream = reference.exact(case.upstream()).reshape(-1, 1)
        g = np.repeat(upstream, max(1, len(k) // max(1, len(upstream))), axis=0)
        gradient = -g * weights / total
        gradient[at, k] = (g * others.sum(-1, keepdims=True) / total)[:, 0]
        return {
            "log_px": Expected.of(*(np.asarray(a.sum(-1), dtype=object) for a in (log_p, abs(log_p)))),
            "grad logits": Expected.of(gradient.reshape(case.shape), abs(gradient).reshape(case.shape)),
        }


CASES = [
    *(Case((3, 5, 17), dtype, values) for dtype in (F64, F32, BF16, F16) for values in VALUES),
    *(Case((2, 3, 70), dtype, values) for dtype in (F64, F32, BF16) for values in VALUES),
    *(
        Case(shape, dtype, batch_dims=batch_dims)
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
        Case((2, 3, 4, classes), dtype, batch_dims=batch_dims, layout=layout)
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
    *(Case((4, 20, 33), layout="transposed", x_layout=x_layout) for x_layout in ("transposed", "sliced", "boxed")),
    *(Case((4, 20, 9), x_layout=x_layout) for x_layout in ("chunk", "expanded_rows", "expanded_columns", "offset")),
    *(Case((3, 4, 250), x_dtype=dtype) for dtype in (U8, torch.int16, torch.int32)),
    Case((3, 4, 100), x_dtype=torch.int8),
    Case((3, 4, 2), BF16, x_dtype=BOOL),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_rule(backend: str, case: Case) -> None:
    got = case.results()
    with vk.use_backend("eager"):
        yardstick = case.results(plain) if backend == "eager" else case.results()
    check(got, yardstick, expected(case))


@pytest.mark.around
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_dtype_and_layout(backend: str, case: Case) -> None:
    logits, x = case.make()
    log_px = vk.categorical_log_likelihood(logits, x, batch_dims=case.batch_dims)
    assert (log_px.dtype, log_px.shape) == (case.sum_dtype, case.shape[: case.batch_dims])
    (gradient,) = torch.autograd.grad(log_px.sum(), logits)
    assert (gradient.dtype, gradient.shape) == (logits.dtype, logits.shape)
    if backend != "eager":
        assert gradient.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("case", [c for c in CASES if c.dtype == F32 and c.values == "random"], ids=str)
def test_torch_distributions(kernel: str, case: Case) -> None:
    """In float64, up to the rounding of float32 sums and of the gradients' terms."""
    got = case.results()
    logits, x = case.make()
    wide = logits.detach().double().requires_grad_()
    elements = torch.distributions.Categorical(logits=wide, validate_args=False).log_prob(x.long())
    log_px = elements.flatten(case.batch_dims).sum(-1) if x.dim() > case.batch_dims else elements
    (gradient,) = torch.autograd.grad(log_px, wide, case.upstream().double())
    eps = torch.finfo(F32).eps
    torch.testing.assert_close(got["log_px"].double(), log_px, rtol=8 * eps, atol=0)
    torch.testing.assert_close(got["grad logits"].double(), gradient, rtol=0, atol=16 * eps)


SMALL = [
    Case((2, 3, 4), F64),
    Case((2, 3, 4), F64, batch_dims=0),
    Case((2, 3, 4), F64, batch_dims=2, layout="transposed"),
    Case((3, 33), F64, "ties"),
    Case((2, 2, 3, 2), F64, layout="channels_last", x_dtype=U8),
    Case((2,), F64, batch_dims=0),
    Case((0, 3), F64),
    Case((2, 0, 3), F64),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(backend: str, case: Case) -> None:
    logits, x = case.make()

    def function(logits: Tensor) -> Tensor:
        return vk.categorical_log_likelihood(logits, x, batch_dims=case.batch_dims)

    assert torch.autograd.gradcheck(function, logits, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, logits)


def test_functorch(backend: str) -> None:
    logits, x = Case((4, 3, 5), F64).make()
    want = torch.autograd.grad(vk.categorical_log_likelihood(logits, x).sum(), logits)[0]
    got = torch.func.vmap(torch.func.grad(lambda l, x: vk.categorical_log_likelihood(l, x, batch_dims=0)))(logits, x)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [(4, 3, 10), (4, 3, 300), (5, 2000)], ids=str)
def test_any_upstream(backend: str, shape: tuple[int, ...]) -> None:
    """Expanded, strided, and not needed at all."""
    logits, x = Case(shape).make()
    log_px = vk.categorical_log_likelihood(logits, x)
    dense = torch.full((shape[0],), 0.7, device=DEVICE)
    (want,) = torch.autograd.grad(log_px, logits, dense, retain_graph=True)
    strided = torch.stack((dense, torch.full_like(dense, math.nan)), -1)[:, 0]
    for upstream in (dense[:1].expand(shape[0]), strided):
        assert torch.equal(torch.autograd.grad(log_px, logits, upstream, retain_graph=True)[0], want)
    assert not vk.categorical_log_likelihood(logits.detach(), x).requires_grad
    for batch_dims in (0, len(shape) - 1):
        assert torch.equal(
            torch.autograd.grad(vk.categorical_log_likelihood(logits, x, batch_dims=batch_dims).sum() * 0.7, logits)[0],
            want,
        )


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize(("shape", "batch_dims"), [((0, 4), 1), ((2, 0, 3), 1), ((0, 3, 2), 2), ((0, 2), 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...], batch_dims: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    x = torch.zeros(shape[:-1], dtype=I64, device=DEVICE)
    log_px = vk.categorical_log_likelihood(logits, x, batch_dims=batch_dims)
    assert torch.equal(log_px, torch.zeros(shape[:batch_dims], dtype=log_px.dtype, device=DEVICE))
    assert torch.autograd.grad(log_px.sum(), logits)[0].shape == shape


@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_several_samples_against_one_x(backend: str, classes: int) -> None:
    """`x` of shape (B, …) or (1, B, …) under logits of shape (K, B, …, classes)."""
    logits = torch.randn(4, 3, 5, classes, device=DEVICE, requires_grad=True)
    x = torch.randint(classes, (3, 5), device=DEVICE)
    want = vk.categorical_log_likelihood(logits, x.expand(4, 3, 5).contiguous(), batch_dims=2)
    upstream = torch.randn_like(want)
    (want_gradient,) = torch.autograd.grad(want, logits, upstream)
    for target in (x, x[None]):
        got = vk.categorical_log_likelihood(logits, target, batch_dims=2)
        assert torch.equal(got, want)
        assert torch.equal(torch.autograd.grad(got, logits, upstream)[0], want_gradient)


@pytest.mark.parametrize("shape", [(7,), (4, 7), (2, 3, 4, 100)], ids=str)
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
def test_elements(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Those of PyTorch in float64, for each position."""
    logits = torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    x = torch.randint(shape[-1], shape[:-1], device=DEVICE)
    found = vk.categorical_log_likelihood(logits, x, reduction="none")
    want = -F.cross_entropy(logits.double().reshape(-1, shape[-1]), x.flatten(), reduction="none").reshape(shape[:-1])
    upstream = torch.randn_like(found)
    rtol = 2 * torch.finfo(found.dtype).eps * math.log2(shape[-1])
    torch.testing.assert_close(found.double(), want, rtol=rtol, atol=0)
    gradients = [torch.autograd.grad(o, logits, g)[0] for o, g in ((found, upstream), (want, upstream.double()))]
    torch.testing.assert_close(*gradients, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(found.dtype).eps)


@pytest.mark.parametrize("wrong", [-1, -100, 2**40, "classes"], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_a_class_that_does_not_exist(backend: str, classes: int, wrong: int | str) -> None:
    """NaN in its sample, and in the gradients of its position alone."""
    logits, x = Case((3, 4, classes)).make()
    clean = vk.categorical_log_likelihood(logits, x)
    (clean_gradient,) = torch.autograd.grad(clean.sum(), logits)
    x[1, 2] = classes if wrong == "classes" else wrong
    log_px = vk.categorical_log_likelihood(logits, x)
    (gradient,) = torch.autograd.grad(log_px.sum(), logits)
    others = torch.arange(3, device=DEVICE) != 1
    assert log_px[1].isnan()
    assert torch.equal(log_px[others], clean[others])
    assert gradient[1, 2].isnan().all()
    gradient[1, 2] = clean_gradient[1, 2]
    assert torch.equal(gradient, clean_gradient)


@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
@pytest.mark.parametrize("row", ["nan", "inf", "-inf", "x -inf", "all -inf", "two inf"])
def test_not_finite(backend: str, row: str, classes: int, dtype: torch.dtype) -> None:
    """What float64 eager gives, and that in its sample alone."""
    logits, x = Case((3, 4, classes), dtype).make()
    spoilt = logits.detach().clone()
    k = int(x[1, 2])
    other = (k + 1) % classes
    if row == "all -inf":
        spoilt[1, 2] = -math.inf
    elif row == "two inf":
        spoilt[1, 2, [k, other]] = math.inf
    else:
        spoilt[1, 2, k if row == "x -inf" else other] = float(row.removeprefix("x "))
    spoilt.requires_grad_()
    got = vk.categorical_log_likelihood(spoilt, x)
    (gradient,) = torch.autograd.grad(got.sum(), spoilt)
    with vk.use_backend("eager"):
        wide = spoilt.detach().double().requires_grad_()
        want = vk.categorical_log_likelihood(wide, x)
        (want_gradient,) = torch.autograd.grad(want.sum(), wide)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0, equal_nan=True)
    torch.testing.assert_close(gradient.double(), want_gradient, rtol=torch.finfo(dtype).eps, atol=1e-5, equal_nan=True)


A = torch.zeros(2, 3, 5, device=DEVICE)
X = torch.zeros(2, 3, dtype=I64, device=DEVICE)

REFUSED = {
    "logits_number": (lambda: vk.categorical_log_likelihood(0.0, X), TypeError, "logits", "float"),
    "logits_integer": (lambda: vk.categorical_log_likelihood(A.long(), X), TypeError, "logits", "torch.int64"),
    "x_float": (lambda: vk.categorical_log_likelihood(A, X.float()), TypeError, "x", "torch.float32", "torch.int64"),
    "x_device": (lambda: vk.categorical_log_likelihood(A, X.to("meta")), ValueError, "x", "meta"),
    "x_shape": (lambda: vk.categorical_log_likelihood(A, X[:, :1]), ValueError, "x", "(2, 3)", "(2, 1)"),
    "x_with_classes": (lambda: vk.categorical_log_likelihood(A, A.long()), ValueError, "x", "(2, 3)", "(2, 3, 5)"),
    "no_class": (lambda: vk.categorical_log_likelihood(A[..., :0], X), ValueError, "logits", "(2, 3, 0)"),
    "no_dim": (lambda: vk.categorical_log_likelihood(A[0, 0, 0], X[0, 0]), ValueError, "logits", "()"),
    "batch_dims": (lambda: vk.categorical_log_likelihood(A, X, batch_dims=3), ValueError, "batch_dims", "3", "2"),
    "batch_dims_type": (lambda: vk.categorical_log_likelihood(A, X, batch_dims=1.0), TypeError, "batch_dims", "float"),
}


@pytest.mark.parametrize(
    ("call", "error", "name", "words"), [(c, e, n, w) for c, e, n, *w in REFUSED.values()], ids=REFUSED
)
def test_refused(backend: str, call: Callable, error: type[Exception], name: str, words: list[str]) -> None:
    with pytest.raises(error) as caught:
        call()
    message = str(caught.value)
    assert re.search(rf"\b{name}\b", message)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(("classes", "dtype", "wrong"), [(5, I64, 5), (5, I64, -1), (256, I64, 256), (200, U8, 255)])
def test_values_are_checked_where_asked(backend: str, classes: int, dtype: torch.dtype, wrong: int) -> None:
    logits, x = Case((3, 4, classes), x_dtype=dtype).make()
    with vk.check_values():
        vk.categorical_log_likelihood(logits, x)
        x[1, 2] = wrong
        with pytest.raises(ValueError, match=rf"\bx\b.*\[0, {classes - 1}\].*\(1, 2\).*{wrong}"):
            vk.categorical_log_likelihood(logits, x, batch_dims=2)
        with pytest.raises(ValueError, match=r"logits.*NaN.*\(0,\)"):
            vk.categorical_log_likelihood(logits * math.nan, x)


MIXED = [Case((3, 4, 7)), Case((2, 3, 50), BF16, layout="transposed"), Case((2, 3, 4, 9), F64, layout="channels_last")]


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_opcheck(kernel: str, case: Case) -> None:
    with Recorder(f"vae_kernels_{kernel}") as recorder:
        case.results()
    assert len(recorder.calls) == 2
    for function, args in recorder.calls:
        torch.library.opcheck(function, tuple(a.detach() if isinstance(a, Tensor) else a for a in args))


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_compiled(backend: str, case: Case) -> None:
    compiled = torch.compile(vk.categorical_log_likelihood, fullgraph=True, backend="aot_eager")
    for name, value in case.results(compiled).items():
        torch.testing.assert_close(value, case.results()[name])


DIGESTS = """
import hashlib, json, sys
import torch
import vae_kernels as vk

sys.path.insert(0, sys.argv[1])
from test_categorical import BF16, CASES, Case, F32, F64

large = [Case(shape, dtype) for dtype in (F64, F32, BF16) for shape in ((64, 50, 9), (8, 1000, 40), (4, 7, 9000))]
vk.use_backend("cpp")
found = {"isa": torch.ops.vae_kernels_cpp.isa()}
for threads in (1, 2):
    torch.set_num_threads(threads)
    found[threads] = {
        f"{case} {name}": hashlib.sha256(t.detach().contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
        for case in [*CASES, *large] if case.batch_dims for name, t in case.results().items()
    }
print(json.dumps(found))
"""


@pytest.mark.skipif("cpp" not in vk.backends()[DEVICE], reason="of the CPU kernels")
def test_threads_and_instruction_sets_change_no_bit() -> None:
    found = []
    best = {"AVX512": 3, "AVX2": 2}.get(torch.backends.cpu.get_cpu_capability(), 1)
    for isa in ("baseline", "avx2", "avx512")[:best]:
        here = str(Path(__file__).parent)
        digests = json.loads(python(DIGESTS, here, VAE_KERNELS_ISA=isa, OMP_NUM_THREADS="2"))
        assert digests["isa"] == isa
        found += [digests["1"], digests["2"]]
    assert all(digests == found[0] for digests in found)
