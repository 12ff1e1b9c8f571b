"""The categorical likelihood: the error rule against mpmath, torch.distributions, gradients, layouts, classes that do not
exist."""

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from categorical_cases import CASES, CategoricalCase
from recorded_ops import RecordedOps
from samples import BF16, DEVICE, F32, F64, I64, U8

import vae_kernels as vk


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_rule(backend: str, case: CategoricalCase) -> None:
    case.check_error_rule(backend)


@pytest.mark.around
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_dtype_and_layout(backend: str, case: CategoricalCase) -> None:
    logits, x = case.make().values()
    log_px = vk.categorical_log_likelihood(logits, x, batch_dims=case.batch_dims)
    assert (log_px.dtype, log_px.shape) == (case.output_dtypes["log_px"], case.shape[: case.batch_dims])
    (gradient,) = torch.autograd.grad(log_px.sum(), logits)
    assert (gradient.dtype, gradient.shape) == (logits.dtype, logits.shape)
    if backend != "eager":
        assert gradient.stride() == torch.empty_like(logits).stride()


@pytest.mark.parametrize("case", [c for c in CASES if c.dtype == F32 and c.values == "random"], ids=str)
def test_torch_distributions(kernel: str, case: CategoricalCase) -> None:
    """The results are those of float64 up to the rounding of float32 sums and of the gradients' terms."""
    got, want = case.results(), case.in_float64()
    eps = torch.finfo(F32).eps
    torch.testing.assert_close(got["log_px"].double(), want["log_px"], rtol=8 * eps, atol=0)
    torch.testing.assert_close(got["grad logits"].double(), want["grad logits"], rtol=0, atol=16 * eps)


SMALL = [
    CategoricalCase((2, 3, 4), F64),
    CategoricalCase((2, 3, 4), F64, batch_dims=0),
    CategoricalCase((2, 3, 4), F64, batch_dims=2, layout="transposed"),
    CategoricalCase((3, 33), F64, "ties"),
    CategoricalCase((2, 2, 3, 2), F64, layout="channels_last", x_dtype=U8),
    CategoricalCase((2,), F64, batch_dims=0),
    CategoricalCase((0, 3), F64),
    CategoricalCase((2, 0, 3), F64),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(backend: str, case: CategoricalCase) -> None:
    function, inputs = case.of_inputs()
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_functorch(backend: str) -> None:
    logits, x = CategoricalCase((4, 3, 5), F64).make().values()
    want = torch.autograd.grad(vk.categorical_log_likelihood(logits, x).sum(), logits)[0]
    got = torch.func.vmap(torch.func.grad(lambda l, x: vk.categorical_log_likelihood(l, x, batch_dims=0)))(logits, x)
    torch.testing.assert_close(got, want)


@pytest.mark.emulated
@pytest.mark.parametrize("shape", [(4, 3, 10), (4, 3, 300), (5, 2000)], ids=str)
def test_any_upstream(backend: str, shape: tuple[int, ...]) -> None:
    """The upstream gradient may be expanded or strided. No gradient may be needed at all."""
    logits, x = CategoricalCase(shape).make().values()
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


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize(("shape", "batch_dims"), [((0, 4), 1), ((2, 0, 3), 1), ((0, 3, 2), 2), ((0, 2), 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...], batch_dims: int, dtype: torch.dtype) -> None:
    logits = torch.zeros(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    x = torch.zeros(shape[:-1], dtype=I64, device=DEVICE)
    log_px = vk.categorical_log_likelihood(logits, x, batch_dims=batch_dims)
    assert torch.equal(log_px, torch.zeros(shape[:batch_dims], dtype=log_px.dtype, device=DEVICE))
    assert torch.autograd.grad(log_px.sum(), logits)[0].shape == shape


@pytest.mark.emulated
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
    """The elements are those of PyTorch in float64."""
    logits = torch.randn(shape, dtype=dtype, device=DEVICE, requires_grad=True)
    x = torch.randint(shape[-1], shape[:-1], device=DEVICE)
    found = vk.categorical_log_likelihood(logits, x, reduction="none")
    want = -F.cross_entropy(logits.double().reshape(-1, shape[-1]), x.flatten(), reduction="none").reshape(shape[:-1])
    upstream = torch.randn_like(found)
    rtol = 2 * torch.finfo(found.dtype).eps * math.log2(shape[-1])
    torch.testing.assert_close(found.double(), want, rtol=rtol, atol=0)
    gradients = [torch.autograd.grad(o, logits, g)[0] for o, g in ((found, upstream), (want, upstream.double()))]
    torch.testing.assert_close(*gradients, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(found.dtype).eps)


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("wrong", [-1, -100, 2**40, "classes"], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_a_class_that_does_not_exist(backend: str, classes: int, wrong: int | str) -> None:
    """Its sample is NaN, and so are the gradients of its position. Nothing else changes."""
    logits, x = CategoricalCase((3, 4, classes)).make().values()
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


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
@pytest.mark.parametrize("row", ["nan", "inf", "-inf", "x -inf", "all -inf", "two inf"])
def test_not_finite(backend: str, row: str, classes: int, dtype: torch.dtype) -> None:
    """An element that is not finite gives what it gives in float64 eager."""
    logits, x = CategoricalCase((3, 4, classes), dtype).make().values()
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
    logits, x = CategoricalCase((3, 4, classes), x_dtype=dtype).make().values()
    with vk.check_values():
        vk.categorical_log_likelihood(logits, x)
        x[1, 2] = wrong
        with pytest.raises(ValueError, match=rf"\bx\b.*\[0, {classes - 1}\].*\(1, 2\).*{wrong}"):
            vk.categorical_log_likelihood(logits, x, batch_dims=2)
        with pytest.raises(ValueError, match=r"logits.*NaN.*\(0,\)"):
            vk.categorical_log_likelihood(logits * math.nan, x)


MIXED = [
    CategoricalCase((3, 4, 7)),
    CategoricalCase((2, 3, 50), BF16, layout="transposed"),
    CategoricalCase((2, 3, 4, 9), F64, layout="channels_last"),
]


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("case", MIXED, ids=str)
def test_opcheck(kernel: str, case: CategoricalCase) -> None:
    with RecordedOps(kernel) as ops:
        case.results()
    assert len(ops) == 2
    ops.check()


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_compiled(backend: str, case: CategoricalCase) -> None:
    torch.compiler.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    for name, value in case.results(lambda tensors: case.call(tensors, compiled)).items():
        torch.testing.assert_close(value, case.results()[name])
