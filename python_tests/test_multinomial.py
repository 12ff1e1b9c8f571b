"""The multinomial likelihood: the error rule against mpmath, torch.distributions, gradients, layouts, extremes."""

import math
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from multinomial_cases import CASES, MultinomialCase
from recorded_ops import RecordedOps
from samples import BF16, DEVICE, F32, F64, I64

import vae_kernels as vk


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("case", CASES, ids=str)
def test_error_rule(backend: str, case: MultinomialCase) -> None:
    case.check_error_rule(backend)


@pytest.mark.around
@pytest.mark.parametrize("case", CASES, ids=str)
def test_shape_dtype_and_layout(backend: str, case: MultinomialCase) -> None:
    tensors = case.make()
    log_px = case.call(tensors)["log_px"]
    assert (log_px.dtype, log_px.shape) == (case.output_dtypes["log_px"], case.shape[: case.batch_dims])
    inputs = [t for t in tensors.values() if t.requires_grad]
    for t, gradient in zip(inputs, torch.autograd.grad(log_px.sum(), inputs), strict=True):
        assert (gradient.dtype, gradient.shape) == (t.dtype, t.shape)
        if backend != "eager":
            assert gradient.stride() == torch.empty_like(tensors["logits"]).stride()


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.dtype == F32 and c.x_dtype != BF16 and c.values in ("random", "far") and c.coefficient],
    ids=str,
)
def test_torch_distributions(kernel: str, case: MultinomialCase) -> None:
    """The results are those of float64 up to the rounding of float32 terms, which the coefficient cancels in part."""
    got, want = case.results(), case.in_float64()
    assert set(got) <= set(want)
    for name, value in got.items():
        torch.testing.assert_close(value.double(), want[name], rtol=1e-5, atol=1e-5)


SMALL = [
    MultinomialCase((2, 3, 4), F64, x_dtype=F64),
    MultinomialCase((2, 3, 4), F64, x_dtype=F64, batch_dims=0, coefficient=False),
    MultinomialCase((2, 3, 4), F64, "weights", x_dtype=F64, batch_dims=2, layout="transposed"),
    MultinomialCase((3, 33), F64, "ties", x_dtype=F64),
    MultinomialCase((2, 2, 3, 2), F64, layout="channels_last", x_dtype=I64),
    MultinomialCase((2,), F64, x_dtype=F64, batch_dims=0),
    MultinomialCase((0, 3), F64, x_dtype=F64),
    MultinomialCase((2, 0, 3), F64, x_dtype=F64),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(backend: str, case: MultinomialCase) -> None:
    function, inputs = case.of_inputs()
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_functorch(backend: str) -> None:
    logits, x = MultinomialCase((4, 3, 5), F64, x_dtype=F64).make().values()
    want = torch.autograd.grad(vk.multinomial_log_likelihood(logits, x).sum(), (logits, x))
    gradients = torch.func.grad(lambda l, x: vk.multinomial_log_likelihood(l, x, batch_dims=0), argnums=(0, 1))
    torch.testing.assert_close(torch.func.vmap(gradients)(logits, x), want)


@pytest.mark.emulated
@pytest.mark.parametrize("shape", [(4, 3, 10), (4, 3, 300), (5, 2000)], ids=str)
def test_any_upstream(backend: str, shape: tuple[int, ...]) -> None:
    """The upstream gradient may be expanded or strided, and each gradient may be needed alone, or none."""
    logits, x = MultinomialCase(shape).make().values()
    log_px = vk.multinomial_log_likelihood(logits, x)
    dense = torch.full((shape[0],), 0.7, device=DEVICE)
    want = torch.autograd.grad(log_px, (logits, x), dense, retain_graph=True)
    strided = torch.stack((dense, torch.full_like(dense, math.nan)), -1)[:, 0]
    for upstream in (dense[:1].expand(shape[0]), strided):
        got = torch.autograd.grad(log_px, (logits, x), upstream, retain_graph=True)
        assert all(map(torch.equal, got, want))
    assert not vk.multinomial_log_likelihood(logits.detach(), x.detach()).requires_grad
    for batch_dims in (0, len(shape) - 1):
        for inputs, needed in (((logits, x.detach()), 0), ((logits.detach(), x), 1)):
            sums = vk.multinomial_log_likelihood(*inputs, batch_dims=batch_dims)
            assert torch.equal(torch.autograd.grad(sums.sum() * 0.7, inputs[needed])[0], want[needed])


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize(("shape", "batch_dims"), [((0, 4), 1), ((2, 0, 3), 1), ((0, 3, 2), 2), ((0, 2), 0)], ids=str)
def test_empty(backend: str, shape: tuple[int, ...], batch_dims: int, dtype: torch.dtype) -> None:
    logits, x = (torch.zeros(shape, dtype=dtype, device=DEVICE, requires_grad=True) for _ in range(2))
    log_px = vk.multinomial_log_likelihood(logits, x, batch_dims=batch_dims)
    assert torch.equal(log_px, torch.zeros(shape[:batch_dims], dtype=log_px.dtype, device=DEVICE))
    assert all(g.shape == shape for g in torch.autograd.grad(log_px.sum(), (logits, x)))


@pytest.mark.emulated
@pytest.mark.parametrize("dtype", [F32, I64], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_several_samples_against_one_x(backend: str, classes: int, dtype: torch.dtype) -> None:
    """`x` of shape (B, …, classes) or (1, B, …, classes) under logits of shape (K, B, …, classes)."""
    logits = torch.randn(4, 3, 5, classes, device=DEVICE, requires_grad=True)
    x = MultinomialCase((3, 5, classes), x_dtype=dtype).make()["x"]
    full = x.detach().expand(4, 3, 5, classes).contiguous().requires_grad_(x.requires_grad)
    want = vk.multinomial_log_likelihood(logits, full, batch_dims=2)
    upstream = torch.randn_like(want)
    inputs = (logits, full) if x.requires_grad else (logits,)
    want_gradients = torch.autograd.grad(want, inputs, upstream)
    for target in (x, x[None]):
        got = vk.multinomial_log_likelihood(logits, target, batch_dims=2)
        assert torch.equal(got, want)
        gradients = torch.autograd.grad(got, (logits, x) if x.requires_grad else (logits,), upstream)
        assert torch.equal(gradients[0], want_gradients[0])
        if x.requires_grad:
            torch.testing.assert_close(gradients[1], want_gradients[1].sum(0), rtol=1e-5, atol=1e-4)


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("classes", [1, 7, 100, 3000])
def test_no_counts_give_nothing(backend: str, classes: int, dtype: torch.dtype) -> None:
    """Where all counts are 0, the log-likelihood and the gradient of the logits are 0."""
    logits = torch.randn(3, 2, classes, device=DEVICE).to(dtype).requires_grad_()
    log_px = vk.multinomial_log_likelihood(logits, torch.zeros(3, 2, classes, dtype=I64, device=DEVICE))
    (gradient,) = torch.autograd.grad(log_px.sum(), logits)
    assert torch.equal(log_px, torch.zeros_like(log_px))
    assert torch.equal(gradient, torch.zeros_like(gradient))


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
@pytest.mark.parametrize("count", [1, 2, 7, 10**6, 2**24])
def test_all_counts_in_one_class(backend: str, count: int, classes: int, dtype: torch.dtype) -> None:
    """The coefficient is 1, and the log-likelihood that of the categorical, `count` times."""
    logits = torch.randn(3, classes, dtype=dtype, device=DEVICE, requires_grad=True)
    k = torch.tensor([0, classes // 2, classes - 1], device=DEVICE)
    log_px = vk.multinomial_log_likelihood(logits, count * F.one_hot(k, classes))
    want = count * vk.categorical_log_likelihood(logits, k)
    torch.testing.assert_close(log_px, want, rtol=8 * torch.finfo(dtype).eps, atol=0)
    got, want = (torch.autograd.grad(t.sum(), logits)[0] for t in (log_px, want))
    torch.testing.assert_close(got, want, rtol=8 * torch.finfo(dtype).eps, atol=count * torch.finfo(dtype).eps)


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("classes", [7, 100, 3000])
def test_a_class_with_nearly_all_of_the_probability(kernel: str, classes: int) -> None:
    """The digits of what is left to the others are in the value and in the gradient."""
    logits = torch.full((2, classes), -40.0, device=DEVICE)
    logits[0, 0] = logits[1, -1] = 0
    logits.requires_grad_()
    x = torch.zeros(2, classes, device=DEVICE)
    x[0, 0] = x[1, -1] = 5
    left = (classes - 1) * math.exp(-40)
    log_px = vk.multinomial_log_likelihood(logits, x)
    (gradient,) = torch.autograd.grad(log_px.sum(), logits)
    want = torch.full_like(log_px, 5 * left)
    torch.testing.assert_close(-log_px, want, rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.stack((gradient[0, 0], gradient[1, -1])), want, rtol=1e-5, atol=0)


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("classes", [7, 100, 3000])
@pytest.mark.parametrize("spoilt", ["nan", "inf", "-inf", "-inf without count", "all -inf", "two inf", "x nan"])
def test_not_finite(backend: str, spoilt: str, classes: int, dtype: torch.dtype) -> None:
    """An element that is not finite gives what it gives in float64 eager, and changes no other sample."""
    tensors = MultinomialCase((3, 4, classes), dtype, x_dtype=dtype).make()
    clean = vk.multinomial_log_likelihood(*tensors.values())
    clean_gradients = torch.autograd.grad(clean.sum(), tuple(tensors.values()))
    logits, x = (t.detach().clone() for t in tensors.values())
    x[1, 2, 0], x[1, 2, 1] = 3, 0
    match spoilt:
        case "all -inf":
            logits[1, 2] = -math.inf
        case "two inf":
            logits[1, 2, :2] = math.inf
        case "-inf without count":
            logits[1, 2, 1] = -math.inf
        case "x nan":
            x[1, 2, 0] = math.nan
        case _:
            logits[1, 2, 0] = float(spoilt)
    inputs = logits.requires_grad_(), x.requires_grad_()
    got = vk.multinomial_log_likelihood(*inputs)
    gradients = torch.autograd.grad(got.sum(), inputs)
    with vk.use_backend("eager"):
        wide = tuple(t.detach().double().requires_grad_() for t in inputs)
        want = vk.multinomial_log_likelihood(*wide)
        want_gradients = torch.autograd.grad(want.sum(), wide)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0, equal_nan=True)
    for value, true in zip(gradients, want_gradients, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=8 * eps, atol=1e-5 + 20 * eps, equal_nan=True)
    others = torch.arange(3, device=DEVICE) != 1
    assert torch.equal(got[others], clean[others])
    for value, untouched in zip(gradients, clean_gradients, strict=True):
        assert torch.equal(value[others], untouched[others])


A = torch.zeros(2, 3, 5, device=DEVICE)

REFUSED = {
    "logits_number": (lambda: vk.multinomial_log_likelihood(0.0, A), TypeError, "logits", "float"),
    "logits_integer": (lambda: vk.multinomial_log_likelihood(A.long(), A), TypeError, "logits", "torch.int64"),
    "x_number": (lambda: vk.multinomial_log_likelihood(A, 1), TypeError, "x", "int"),
    "x_complex": (lambda: vk.multinomial_log_likelihood(A, A.cfloat()), TypeError, "x", "torch.complex64"),
    "x_device": (lambda: vk.multinomial_log_likelihood(A, A.to("meta")), ValueError, "x", "meta"),
    "x_shape": (lambda: vk.multinomial_log_likelihood(A, A[:, :1]), ValueError, "x", "(2, 3, 5)", "(2, 1, 5)"),
    "x_of_classes": (lambda: vk.multinomial_log_likelihood(A, A[..., 0]), ValueError, "x", "(2, 3, 5)", "(2, 3)"),
    "no_class": (lambda: vk.multinomial_log_likelihood(A[..., :0], A[..., :0]), ValueError, "logits", "(2, 3, 0)"),
    "no_dim": (lambda: vk.multinomial_log_likelihood(A[0, 0, 0], A[0, 0, 0]), ValueError, "logits", "()"),
    "coefficient": (lambda: vk.multinomial_log_likelihood(A, A, coefficient=1), TypeError, "coefficient", "int"),
    "batch_dims": (lambda: vk.multinomial_log_likelihood(A, A, batch_dims=3), ValueError, "batch_dims", "3", "2"),
    "batch_dims_type": (lambda: vk.multinomial_log_likelihood(A, A, batch_dims=1.0), TypeError, "batch_dims", "float"),
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


def test_values_are_checked_where_asked(backend: str) -> None:
    logits, x = (t.detach() for t in MultinomialCase((3, 4, 7)).make().values())
    with vk.check_values():
        vk.multinomial_log_likelihood(logits, x)
        for wrong in (-1.0, math.nan):
            x[1, 2, 3] = wrong
            with pytest.raises(ValueError, match=rf"\bx\b.*at least 0.*\(1, 2\).*{wrong}"):
                vk.multinomial_log_likelihood(logits, x, batch_dims=2)
        with pytest.raises(ValueError, match=r"logits.*NaN.*\(0,\)"):
            vk.multinomial_log_likelihood(logits * math.nan, x)


MIXED = [
    MultinomialCase((3, 4, 7)),
    MultinomialCase((2, 3, 50), BF16, layout="transposed", coefficient=False),
    MultinomialCase((2, 3, 4, 9), F64, layout="channels_last", x_dtype=I64),
    MultinomialCase((2, 3, 4, 9), x_layout="channels_last", x_dtype=F64),
]


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("case", MIXED, ids=str)
def test_opcheck(kernel: str, case: MultinomialCase) -> None:
    with RecordedOps(kernel) as ops:
        case.results()
    assert len(ops) == 2
    ops.check()


@pytest.mark.parametrize("case", MIXED, ids=str)
def test_compiled(backend: str, case: MultinomialCase) -> None:
    torch.compiler.reset()
    compiled = torch.compile(case.function, fullgraph=True, backend="aot_eager")
    for name, value in case.results(lambda tensors: case.call(tensors, compiled)).items():
        torch.testing.assert_close(value, case.results()[name])
