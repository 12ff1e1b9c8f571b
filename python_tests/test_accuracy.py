"""The error rule for every op, dtype and edge, against mpmath; what holds exactly is compared bit by bit."""

import math

import pytest
import torch
from samples import BF16, DEVICE, EMPTY, F16, F32, F64, LAID_OUT, OPS, SAMPLES, VALUES, Sample, sample
from torch import Tensor

import vae_kernels as vk

# mpmath takes 0.2 ms per element; larger samples are compared with torch.distributions.
SMALL = [s for s in SAMPLES if math.prod(s.shapes[0]) <= 4000]


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("sample", SMALL, ids=str)
def test_error_rule(backend: str, sample: Sample) -> None:
    """The yardstick of kernels is eager; that of eager is what people write in the same dtypes."""
    sample.check_error_rule(backend)


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("number", [0.0, -1.5, 3, 20.0])
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
def test_logvar_as_a_number_is_that_of_a_tensor(backend: str, dtype: torch.dtype, number: float) -> None:
    mean, x, _ = sample("gaussian", (4, 50), dtypes=dtype).make().values()
    by_number = vk.gaussian_log_likelihood(mean, x, number)
    by_tensor = vk.gaussian_log_likelihood(mean, x, torch.tensor(float(number), dtype=dtype, device=DEVICE))
    assert torch.equal(by_number, by_tensor)
    upstream = torch.randn_like(by_number)
    gradients = (torch.autograd.grad(o, (mean, x), upstream) for o in (by_number, by_tensor))
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


HALF = [s for s in VALUES + LAID_OUT if set(s.dtypes) in ({BF16}, {F16})]


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("sample", HALF, ids=str)
def test_half_precision_rounds_once(backend: str, sample: Sample) -> None:
    """Half types are computed in float32 and rounded on store. The results are those of the same numbers in float32."""

    def widened(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        outputs = sample.call({name: t.float() for name, t in tensors.items()})
        return {name: outputs[name].to(dtype) for name, dtype in sample.output_dtypes.items()}

    narrow, wide = sample.results(), sample.results(widened)
    for name, value in narrow.items():
        assert torch.equal(value, wide[name]), name


@pytest.mark.around
@pytest.mark.parametrize("sample", SAMPLES + EMPTY, ids=str)
def test_shape_dtype_and_layout(backend: str, sample: Sample) -> None:
    tensors = sample.make()
    outputs = sample.call(tensors)
    first = next(iter(tensors.values()))
    for name, dtype in sample.output_dtypes.items():
        shape = first.shape if name == "z" else first.shape[: sample.keep]
        assert (outputs[name].dtype, outputs[name].shape) == (dtype, shape)
    if "z" in outputs and sample.layouts[0] in ("contiguous", "offset", "transposed", "channels_last"):
        assert outputs["z"].stride() == torch.empty_like(first).stride()
    wanted = [t for t in tensors.values() if t.requires_grad]
    for tensor, gradient in zip(
        wanted, torch.autograd.grad(sum(o.sum() for o in outputs.values()), wanted), strict=True
    ):
        assert (gradient.dtype, gradient.shape) == (tensor.dtype, tensor.shape)


SPECIAL = (math.inf, -math.inf, math.nan)


@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16, F16], ids=str)
@pytest.mark.parametrize("value", SPECIAL, ids=str)
@pytest.mark.parametrize(("op", "argument"), [(op, a) for op in OPS for a in OPS[op].arguments])
def test_not_finite(backend: str, op: str, argument: str, value: float, dtype: torch.dtype) -> None:
    """An element that is not finite gives what it gives in float64 eager, and changes no other sample."""
    case = sample(op, (5, 70), dtypes=dtype)

    def spoilt(dtype: torch.dtype) -> dict[str, Tensor]:
        def call(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            mask = torch.zeros(5, 70, dtype=torch.bool, device=DEVICE)
            mask[2, 33] = True
            tensors = {name: t.to(dtype) for name, t in tensors.items()}
            tensors[argument] = tensors[argument].masked_fill(mask, value)
            return {name: o.to(case.output_dtypes[name]) for name, o in case.call(tensors).items()}

        return case.results(call)

    clean, got = case.results(), spoilt(dtype)
    with vk.use_backend("eager"):
        want = spoilt(F64)
    others = torch.arange(5, device=DEVICE) != 2
    for name in got:
        assert torch.equal(got[name][others], clean[name][others]), name
        assert torch.equal(_kind(got[name][2]), _kind(want[name][2])), name


def _kind(tensor: Tensor) -> Tensor:
    """The kind of each element: 0 if finite, 1 if inf, -1 if -inf, 2 if NaN."""
    return torch.where(tensor.isfinite(), 0.0, tensor.double()).nan_to_num(2, 1, -1)


@pytest.mark.interpreted_accuracy
def test_kl_is_never_negative(backend: str) -> None:
    """The direct formula gives either sign for collapsed latents."""
    for dtype in (F64, F32, BF16, F16):
        size = 10 ** torch.linspace(-30, 2, 4000, dtype=F64)
        logvar = torch.cat((size, -size)).to(dtype).to(DEVICE)
        mu = torch.zeros_like(logvar)
        kl = vk.reparameterize_kl(mu, logvar, eps=mu)[1]
        assert (kl >= 0).all()
        assert (vk.reparameterize_kl(mu, logvar, eps=mu, batch_dims=0)[1] >= 0).all()
        assert torch.equal(vk.reparameterize_kl(mu, mu, eps=mu)[1], torch.zeros_like(kl))


@pytest.mark.interpreted_accuracy
def test_float16_with_logvar_beyond_its_exponential(backend: str) -> None:
    """exp(12) is no float16; the KL must not notice."""
    logvar = torch.tensor([[12.0, 30.0, 80.0]], dtype=F16, device=DEVICE)
    kl = vk.reparameterize_kl(torch.zeros_like(logvar), logvar, eps=torch.zeros_like(logvar))[1]
    want = sum(0.5 * (math.exp(l) - 1 - l) for l in (12, 30, 80))
    torch.testing.assert_close(kl.item(), want, rtol=4 * torch.finfo(F32).eps, atol=0)


@pytest.mark.interpreted_accuracy
def test_target_may_lack_batch_dims(backend: str) -> None:
    """Several samples of z against one x: `x` of shape (B, D) or (1, B, D) under logits of shape (K, B, D)."""
    logits = torch.randn(4, 3, 10, device=DEVICE, requires_grad=True)
    x = torch.rand(3, 10, device=DEVICE, requires_grad=True)
    want = vk.bernoulli_log_likelihood(logits, x.expand(4, 3, 10).contiguous(), batch_dims=2)
    for target in (x, x[None]):
        got = vk.bernoulli_log_likelihood(logits, target, batch_dims=2)
        assert torch.equal(got, want)
        upstream = torch.randn_like(got)
        for a, b in zip(
            *(torch.autograd.grad(o, (logits, x), upstream, retain_graph=True) for o in (got, want)), strict=True
        ):
            torch.testing.assert_close(a, b)
