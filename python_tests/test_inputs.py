"""What the public functions refuse, and the sizes at the two ends: nothing, and more than 2³¹ elements."""

import itertools
import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import reference
import torch
from samples import BF16, DEVICE, EMPTY, F32, F64, U8, Sample

import vae_kernels as vk

A = torch.zeros(2, 3, device=DEVICE)
META = torch.zeros(2, 3, device="meta")
LONG = torch.zeros(2, 3, dtype=torch.int64, device=DEVICE)
COMPLEX = torch.zeros(2, 3, dtype=torch.complex64, device=DEVICE)
OTHER = torch.zeros(3, 2, device=DEVICE)
SEED = torch.zeros(1, dtype=torch.int64, device=DEVICE)


def latent(mu=A, logvar=A, **given):
    return lambda: vk.reparameterize_kl(mu, logvar, **given)


def bernoulli(logits=A, x=A, **given):
    return lambda: vk.bernoulli_log_likelihood(logits, x, **given)


def gaussian(mean=A, x=A, logvar=0.0, **given):
    return lambda: vk.gaussian_log_likelihood(mean, x, logvar, **given)


# The call, the error, and what its message must hold: the argument's name first, then what came and what is needed.
REFUSED = {
    "mu_number": (latent(mu=1.0), TypeError, "mu", "float"),
    "mu_integer": (latent(mu=LONG, logvar=LONG), TypeError, "mu", "torch.int64", "torch.float32"),
    "mu_complex": (latent(mu=COMPLEX), TypeError, "mu", "torch.complex64"),
    "mu_list": (latent(mu=[[0.0]]), TypeError, "mu", "list"),
    "logvar_number": (latent(logvar=0.0), TypeError, "logvar", "float"),
    "logvar_none": (latent(logvar=None), TypeError, "logvar", "NoneType"),
    "logvar_integer": (latent(logvar=LONG), TypeError, "logvar", "torch.int64"),
    "logvar_shape": (latent(logvar=OTHER), ValueError, "logvar", "(2, 3)", "(3, 2)"),
    "logvar_broadcast": (latent(logvar=A[:1]), ValueError, "logvar", "(2, 3)", "(1, 3)"),
    "logvar_device": (latent(logvar=META), ValueError, "logvar", "meta", DEVICE),
    "eps_number": (latent(eps=0.5), TypeError, "eps", "float"),
    "eps_integer": (latent(eps=LONG), TypeError, "eps", "torch.int64"),
    "eps_shape": (latent(eps=OTHER), ValueError, "eps", "(2, 3)", "(3, 2)"),
    "eps_device": (latent(eps=META), ValueError, "eps", "meta"),
    "seed_float": (latent(seed=1.0), TypeError, "seed", "float"),
    "seed_bool": (latent(seed=True), TypeError, "seed", "bool"),
    "seed_negative": (latent(seed=-1), ValueError, "seed", "-1"),
    "seed_too_large": (latent(seed=2**63), ValueError, "seed", str(2**63)),
    "seed_dtype": (latent(seed=SEED.int()), TypeError, "seed", "torch.int32", "torch.int64"),
    "seed_float_tensor": (latent(seed=SEED.float()), TypeError, "seed", "torch.float32", "torch.int64"),
    "seed_elements": (latent(seed=SEED.expand(3)), ValueError, "seed", "(3,)", "2 samples"),
    "seed_empty": (latent(seed=SEED[:0]), ValueError, "seed", "(0,)"),
    "seed_device": (latent(seed=SEED.to("meta")), ValueError, "seed", "meta"),
    "seed_numpy_float": (latent(seed=np.float64(1)), TypeError, "seed", "float64", "an int or an int64 tensor"),
    "generator_type": (latent(generator=3), TypeError, "generator", "int"),
    "seed_and_eps": (latent(seed=1, eps=A), ValueError, "seed", "eps"),
    "seed_and_generator": (latent(seed=1, generator=torch.Generator()), ValueError, "seed", "generator"),
    "latent_batch_dims_float": (latent(batch_dims=1.0), TypeError, "batch_dims", "float"),
    "latent_batch_dims_bool": (latent(batch_dims=True), TypeError, "batch_dims", "bool"),
    "latent_batch_dims_negative": (latent(batch_dims=-1), ValueError, "batch_dims", "-1"),
    "latent_batch_dims_too_many": (latent(batch_dims=3), ValueError, "batch_dims", "3", "2"),
    "latent_batch_dims_of_a_number": (latent(A[0, 0], A[0, 0]), ValueError, "batch_dims", "1", "0"),
    "prior_mu_number": (latent(prior_mu=0.0), TypeError, "prior_mu", "float"),
    "prior_logvar_integer": (latent(prior_logvar=LONG), TypeError, "prior_logvar", "torch.int64"),
    "prior_mu_shape": (latent(prior_mu=A[:, :2]), ValueError, "prior_mu", "(2, 3)", "(2, 2)"),
    "prior_mu_more_dims": (latent(prior_mu=A[None]), ValueError, "prior_mu", "(2, 3)", "(1, 2, 3)"),
    "prior_logvar_device": (latent(prior_logvar=META), ValueError, "prior_logvar", "meta"),
    "num_samples_float": (latent(num_samples=2.0), TypeError, "num_samples", "float"),
    "num_samples_zero": (latent(num_samples=0), ValueError, "num_samples", "0"),
    "eps_without_samples": (latent(num_samples=2, eps=A), ValueError, "eps", "(2, 2, 3)", "(2, 3)"),
    "kl_estimator_unknown": (latent(kl_estimator="mc"), ValueError, "kl_estimator", "'mc'", "monte_carlo"),
    "kl_reduction_unknown": (latent(kl_reduction="mean"), ValueError, "kl_reduction", "'mean'", "none"),
    "scale_unknown": (latent(scale="sigma"), ValueError, "scale", "'sigma'", "logstd"),
    "std_floor_negative": (latent(std_floor=-1e-4), ValueError, "std_floor", "-0.0001", "at least 0"),
    "std_floor_infinite": (latent(std_floor=math.inf), ValueError, "std_floor", "inf", "finite"),
    "std_floor_nan": (latent(std_floor=math.nan), ValueError, "std_floor", "nan"),
    "std_floor_none": (latent(std_floor=None), TypeError, "std_floor", "NoneType", "a number"),
    "std_floor_bool": (latent(std_floor=False), TypeError, "std_floor", "bool"),
    "std_floor_tensor": (latent(std_floor=A[0, 0]), TypeError, "std_floor", "Tensor"),
    "logvar_clamp_one": (latent(logvar_clamp=(1.0,)), ValueError, "logvar_clamp", "(1.0,)"),
    "logvar_clamp_nothing_between": (
        latent(logvar_clamp=(math.inf, math.inf)),
        ValueError,
        "logvar_clamp",
        "(inf, inf)",
    ),
    "logvar_clamp_reversed": (latent(logvar_clamp=(2, 1)), ValueError, "logvar_clamp", "(2, 1)"),
    "logvar_clamp_nan": (latent(logvar_clamp=(0, float("nan"))), ValueError, "logvar_clamp", "nan"),
    "logvar_clamp_open": (latent(logvar_clamp=(None, 20)), TypeError, "logvar_clamp", "None", "-inf"),
    "logvar_clamp_words": (latent(logvar_clamp=("a", "b")), TypeError, "logvar_clamp", "'a'", "numbers"),
    "logvar_clamp_number": (latent(logvar_clamp=3.0), TypeError, "logvar_clamp", "float"),
    "moments_number": (lambda: vk.reparameterize_kl_packed(0.0), TypeError, "moments", "float"),
    "moments_odd": (lambda: vk.reparameterize_kl_packed(A), ValueError, "moments", "(2, 3)", "even"),
    "packed_dim_of_the_batch": (lambda: vk.reparameterize_kl_packed(A, dim=0), ValueError, "dim", "0"),
    "packed_dim_too_large": (lambda: vk.reparameterize_kl_packed(A, dim=2), ValueError, "dim", "2"),
    "packed_dim_float": (lambda: vk.reparameterize_kl_packed(A, dim=1.0), TypeError, "dim", "float"),
    "logits_number": (bernoulli(logits=0.0), TypeError, "logits", "float"),
    "logits_integer": (bernoulli(logits=LONG), TypeError, "logits", "torch.int64"),
    "x_number": (bernoulli(x=1.0), TypeError, "x", "float"),
    "x_complex": (bernoulli(x=COMPLEX), TypeError, "x", "torch.complex64"),
    "logits_sparse": (bernoulli(logits=A.to_sparse()), TypeError, "logits", "torch.sparse_coo", "to_dense"),
    "x_sparse": (bernoulli(x=A.to_sparse_csr()), TypeError, "x", "torch.sparse_csr", "to_dense"),
    "x_shape": (bernoulli(x=OTHER), ValueError, "x", "(2, 3)", "(3, 2)"),
    "x_more_dims": (bernoulli(x=A[None]), ValueError, "x", "(2, 3)", "(1, 2, 3)"),
    "x_broadcast_over_columns": (bernoulli(x=A[:, :1]), ValueError, "x", "(2, 3)", "(2, 1)"),
    "x_lacks_a_summed_dim": (bernoulli(x=A[0], batch_dims=0), ValueError, "x", "(2, 3)", "(3,)"),
    "x_device": (bernoulli(x=META), ValueError, "x", "meta"),
    "bernoulli_batch_dims_float": (bernoulli(batch_dims=1.0), TypeError, "batch_dims", "float"),
    "bernoulli_batch_dims_too_many": (bernoulli(batch_dims=3), ValueError, "batch_dims", "3", "2"),
    "mean_integer": (gaussian(mean=LONG), TypeError, "mean", "torch.int64"),
    "gaussian_x_shape": (gaussian(x=OTHER), ValueError, "x", "(2, 3)", "(3, 2)"),
    "gaussian_logvar_none": (gaussian(logvar=None), TypeError, "logvar", "NoneType", "a number or"),
    "gaussian_logvar_bool": (gaussian(logvar=True), TypeError, "logvar", "bool"),
    "gaussian_logvar_integer": (gaussian(logvar=LONG), TypeError, "logvar", "torch.int64"),
    "gaussian_logvar_shape": (gaussian(logvar=A[:, :2]), ValueError, "logvar", "(2, 3)", "(2, 2)"),
    "gaussian_logvar_more_dims": (gaussian(logvar=A[None]), ValueError, "logvar", "(2, 3)", "(1, 2, 3)"),
    "gaussian_logvar_one_element_more_dims": (gaussian(logvar=A[:1, :1, None]), ValueError, "logvar", "(1, 1, 1)"),
    "gaussian_logvar_device": (gaussian(logvar=META), ValueError, "logvar", "meta"),
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


def test_keywords_only(backend: str) -> None:
    """A batch_dims or a seed by position would be taken for something else in another function."""
    for call in (lambda: vk.reparameterize_kl(A, A, 1), lambda: vk.bernoulli_log_likelihood(A, A, 1)):
        with pytest.raises(TypeError, match="positional"):
            call()


def _with(value: float, *index: int) -> torch.Tensor:
    tensor = torch.zeros(4, 3, 2, device=DEVICE)
    tensor[index] = value
    return tensor


GOOD = torch.zeros(4, 3, 2, device=DEVICE)
NAN = _with(math.nan, 2, 1, 0)

# The call, the argument's name, the first offending sample, and what it holds.
BAD_VALUES = {
    "mu": (lambda **k: vk.reparameterize_kl(NAN, GOOD, **k), "mu", "nan"),
    "logvar": (lambda **k: vk.reparameterize_kl(GOOD, NAN, **k), "logvar", "nan"),
    "eps": (lambda **k: vk.reparameterize_kl(GOOD, GOOD, eps=NAN, **k), "eps", "nan"),
    "logits": (lambda **k: vk.bernoulli_log_likelihood(NAN, GOOD, **k), "logits", "nan"),
    "x_nan": (lambda **k: vk.bernoulli_log_likelihood(GOOD, NAN, **k), "x", "nan"),
    "x_negative": (lambda **k: vk.bernoulli_log_likelihood(GOOD, _with(-0.5, 2, 1, 0), **k), "x", "-0.5"),
    "x_too_large": (lambda **k: vk.bernoulli_log_likelihood(GOOD, _with(255, 2, 1, 0).to(U8), **k), "x", "255"),
    "mean": (lambda **k: vk.gaussian_log_likelihood(NAN, GOOD, **k), "mean", "nan"),
    "gaussian_x": (lambda **k: vk.gaussian_log_likelihood(GOOD, NAN, **k), "x", "nan"),
    "gaussian_logvar": (lambda **k: vk.gaussian_log_likelihood(GOOD, GOOD, NAN, **k), "logvar", "nan"),
}


@pytest.mark.parametrize(("call", "name", "value"), BAD_VALUES.values(), ids=BAD_VALUES)
@pytest.mark.parametrize(("batch_dims", "which"), [(1, "(2,)"), (2, "(2, 1)"), (3, "(2, 1, 0)")])
def test_values_are_checked_where_asked(backend, call, name, value, batch_dims, which) -> None:
    call(batch_dims=batch_dims)
    with vk.check_values(), pytest.raises(ValueError, match=rf"\b{name}\b.*{re.escape(which)}.*{value}"):
        call(batch_dims=batch_dims)
    call(batch_dims=batch_dims)


def test_checks_of_values_let_good_ones_pass(backend: str) -> None:
    with vk.check_values():
        vk.reparameterize_kl(GOOD, GOOD)
        vk.bernoulli_log_likelihood(GOOD, torch.ones_like(GOOD, dtype=torch.bool))
        vk.gaussian_log_likelihood(GOOD, GOOD, torch.zeros(2, device=DEVICE))
        for shape in ((0, 3), (3, 0)):
            empty = torch.zeros(shape, device=DEVICE)
            vk.reparameterize_kl(empty, empty)
            vk.bernoulli_log_likelihood(empty, empty)
            vk.gaussian_log_likelihood(empty, empty)


def test_checks_of_values_where_tensors_are_elsewhere() -> None:
    """The default checks, and all of them, pass over tensors that have no values."""
    with vk.check_values():
        with torch.device("meta"):
            assert vk.gaussian_log_likelihood(GOOD, GOOD, 0.3).shape == (4,)
        assert vk.bernoulli_log_likelihood(META, META).shape == (2,)


@pytest.mark.parametrize("scale", ["std", "variance"])
def test_a_spread_must_be_positive(backend: str, scale: str) -> None:
    ones = torch.ones(4, 3, 2, device=DEVICE)
    with vk.check_values():
        vk.reparameterize_kl(GOOD, ones, scale=scale)
        with pytest.raises(ValueError, match=rf"logvar must be positive, being a {scale}, but sample \(0,\) holds 0"):
            vk.reparameterize_kl(GOOD, GOOD, scale=scale)
        with pytest.raises(ValueError, match=rf"moments must be positive, being a {scale}, but sample \(0,\) holds 0"):
            vk.reparameterize_kl_packed(torch.cat((ones, GOOD), 1), scale=scale)


@pytest.mark.parametrize("scale", ["std", "variance"])
def test_a_spread_above_a_floor_may_be_zero(backend: str, scale: str) -> None:
    with vk.check_values():
        kl = vk.reparameterize_kl(GOOD, GOOD, scale=scale, std_floor=0.5)[1]
        with pytest.raises(
            ValueError, match=rf"logvar must be at least 0, being a {scale}, but sample \(2,\) holds -1"
        ):
            vk.reparameterize_kl(GOOD, _with(-1, 2, 1, 0), scale=scale, std_floor=0.5)
    torch.testing.assert_close(kl, torch.full_like(kl, 6 * (0.125 - 0.5 + math.log(2))))


def test_numbers_of_numpy(backend: str) -> None:
    """Lengths, argmaxes and seeds may be numbers of NumPy."""
    one, two = np.int64(1), np.int32(2)
    mu = torch.randn(4, 3, 2, device=DEVICE)
    for found, want in zip(
        vk.reparameterize_kl(mu, mu, seed=two, batch_dims=one, num_samples=two),
        vk.reparameterize_kl(mu, mu, seed=2, batch_dims=1, num_samples=2),
        strict=True,
    ):
        assert torch.equal(found, want)
    z, _ = vk.reparameterize_kl_packed(mu, dim=two, seed=two, logvar_clamp=(np.float32(-1), two))
    assert torch.equal(z, vk.reparameterize_kl_packed(mu, dim=2, seed=2, logvar_clamp=(-1, 2))[0])
    found = vk.gaussian_log_likelihood(mu, mu, np.float32(0.5), batch_dims=two)
    assert torch.equal(found, vk.gaussian_log_likelihood(mu, mu, 0.5, batch_dims=2))
    assert vk.categorical_log_likelihood(mu, torch.zeros(4, 3, device=DEVICE).long(), batch_dims=two).shape == (4, 3)
    found = vk.discretized_logistic_log_likelihood(mu, mu, bins=two)
    assert torch.equal(found, vk.discretized_logistic_log_likelihood(mu, mu, bins=2))


def test_checks_of_values_come_after_those_of_shapes(backend: str) -> None:
    with vk.check_values():
        for function in (vk.bernoulli_log_likelihood, vk.gaussian_log_likelihood):
            with pytest.raises(ValueError, match="x must have the shape"):
                function(GOOD, NAN[0, 0])
            with pytest.raises(TypeError, match="batch_dims"):
                function(GOOD, NAN, batch_dims="1")


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("sample", EMPTY, ids=str)
def test_empty(backend: str, sample: Sample) -> None:
    """No samples: no results. Samples without elements: sums of zero, and gradients that are there."""
    tensors = sample.make()
    outputs = sample.call(tensors)
    for name, dtype in sample.output_dtypes.items():
        shape = sample.shapes[0] if name == "z" else sample.shapes[0][: sample.keep]
        assert torch.equal(outputs[name], torch.zeros(shape, dtype=dtype, device=DEVICE))
    gradients = torch.autograd.grad(sum(o.sum() for o in outputs.values()), list(tensors.values()))
    assert all(torch.equal(g, torch.zeros_like(t)) for g, t in zip(gradients, tensors.values(), strict=True))


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
@pytest.mark.parametrize("dtype", [F64, F32, BF16], ids=str)
@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (3, 0, 2), (1, 0, 2)], ids=str)
def test_empty_with_a_parameter(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The gradient of a broadcast logvar is a sum over nothing: zero, not whatever was in memory."""
    empty = torch.zeros(shape, dtype=dtype, device=DEVICE)
    for sizes in itertools.product(*((1, size) for size in shape)):
        for missing, batch_dims in itertools.product(range(len(shape) + 1), repeat=2):
            logvar = torch.ones(sizes[missing:], dtype=dtype, device=DEVICE, requires_grad=True)
            log_px = vk.gaussian_log_likelihood(empty, empty, logvar, batch_dims=batch_dims)
            assert torch.equal(log_px, torch.zeros_like(log_px))
            (gradient,) = torch.autograd.grad(log_px.sum(), logvar)
            assert torch.equal(gradient, torch.zeros_like(logvar))


@pytest.mark.emulated
@pytest.mark.interpreted_accuracy
def test_empty_with_noise(backend: str) -> None:
    for shape in ((0, 4), (4, 0), (0,), (2, 0, 3)):
        for batch_dims in range(len(shape) + 1):
            mu = torch.zeros(shape, device=DEVICE, requires_grad=True)
            for given in ({}, {"seed": 1}):
                z, kl = vk.reparameterize_kl(mu, mu, batch_dims=batch_dims, **given)
                assert (z.shape, kl.shape) == (mu.shape, mu.shape[:batch_dims])
                assert torch.equal(kl, torch.zeros_like(kl))
                assert torch.autograd.grad(z.sum() + kl.sum(), mu)[0].shape == mu.shape


# Of tensors (2, …, 3) that need a gradient; `n` dims of them are kept.
MANY_DIMS = {
    "latent": lambda a, b, c, n: vk.reparameterize_kl(a, b, seed=1, batch_dims=n),
    "packed": lambda a, b, c, n: vk.reparameterize_kl_packed(torch.cat((a, b), -1), dim=-1, seed=1, batch_dims=n),
    "samples": lambda a, b, c, n: vk.reparameterize_kl(
        a, b, seed=1, num_samples=4, kl_estimator="path", batch_dims=n, prior_mu=c
    ),
    "elements": lambda a, b, c, n: vk.reparameterize_kl(a, b, eps=c, kl_reduction="none", batch_dims=n),
    "prior": lambda a, b, c, n: vk.reparameterize_kl(a, b, seed=1, prior_mu=c, prior_logvar=c, batch_dims=n),
    "shared prior": lambda a, b, c, n: vk.reparameterize_kl(a, b, seed=1, prior_mu=c.reshape(2, 3)[0], batch_dims=n),
    "no family's own": lambda a, b, c, n: vk.bernoulli_log_likelihood(a, b, batch_dims=n),
    "number": lambda a, b, c, n: vk.gaussian_log_likelihood(a, b, 0.5, batch_dims=n),
    "parameter": lambda a, b, c, n: vk.gaussian_log_likelihood(a, b, c, batch_dims=n),
    "column": lambda a, b, c, n: vk.laplace_log_likelihood(a, b, c.reshape(2, 3)[0], batch_dims=n),
    "one": lambda a, b, c, n: vk.laplace_log_likelihood(a, b, c.flatten()[0], batch_dims=n),
    "row": lambda a, b, c, n: vk.gaussian_log_likelihood(a, b, c[..., :1], batch_dims=n),
    "categorical": lambda a, b, c, n: vk.categorical_log_likelihood(
        a, torch.arange(2, device=DEVICE).view(a.shape[:-1]), batch_dims=n
    ),
}


def _reversed(tensor: torch.Tensor) -> torch.Tensor:
    """The same values in a layout whose first dim is the fastest."""
    backwards = range(tensor.dim())[::-1]
    return tensor.permute(*backwards).contiguous().permute(*backwards)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("layout", [torch.Tensor.contiguous, _reversed], ids=["contiguous", "reversed"])
@pytest.mark.parametrize("dims", [8, 9, 64, 65, 90])
@pytest.mark.parametrize("call", MANY_DIMS)
def test_any_number_of_dims(backend: str, call: str, dims: int, layout: Callable) -> None:
    """Dims of one element change nothing, however many they are; torch itself sums no more than 64."""

    def results(dims: int, batch_dims: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(4)
        given = [
            layout(torch.randn(2, 3, generator=generator).to(DEVICE).view(2, *[1] * (dims - 2), 3)) for _ in range(3)
        ]
        given = [t.requires_grad_() for t in given]
        outputs = MANY_DIMS[call](*given, batch_dims)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        upstream = [layout(torch.randn(o.numel(), generator=generator).to(o).view(o.shape)) for o in outputs]
        gradients = torch.autograd.grad(outputs, given, upstream, materialize_grads=True)
        return [t.flatten() for t in (*outputs, *gradients)]

    for batch_dims in (1, dims - 1):
        want = results(2, 1)
        try:
            got = results(dims, batch_dims)
        except RuntimeError as error:
            assert "only tensors with up to 64 dims are supported" in str(error)
            assert backend == "eager" and call in ("samples", "shared prior", "column", "one", "row")  # autograd sums
            continue
        for found, wanted in zip(got, want, strict=True):
            if backend == "eager":  # sums may be in another order
                torch.testing.assert_close(found, wanted)
            else:
                assert torch.equal(found, wanted)


MORE_THAN_INT32 = 2**31 + 1024


@pytest.mark.slow
def test_one_row_of_more_than_2_31_elements(kernel: str) -> None:
    """6.4 GB of inputs: real addresses beyond 2³¹ in both inputs, the last element among them."""
    logits = torch.zeros(1, MORE_THAN_INT32, dtype=BF16, device=DEVICE)
    x = torch.zeros(1, MORE_THAN_INT32, dtype=U8, device=DEVICE)
    logits[0, -1], x[0, -1] = 2.0**30, 3
    want = torch.tensor([2.0**31 - (MORE_THAN_INT32 - 1) * math.log(2)], dtype=F64)
    torch.testing.assert_close(vk.bernoulli_log_likelihood(logits, x).double().cpu(), want, rtol=1e-6, atol=0)


@pytest.mark.slow
def test_rows_beyond_2_31_elements(kernel: str) -> None:
    """4.3 GB for z; mu and logvar are one expanded row. The noise of the last rows is theirs."""
    rows = MORE_THAN_INT32 // 1024
    mu = torch.full((1024,), 0.5, dtype=BF16, device=DEVICE)
    z, kl = vk.reparameterize_kl(mu.expand(rows, 1024), torch.zeros_like(mu).expand(rows, 1024), seed=1)
    noise = torch.from_numpy(reference.normals(1, 2, 1024, first_row=rows - 2))
    torch.testing.assert_close(z[-2:].cpu().double(), 0.5 + noise, atol=2**-6, rtol=0)
    assert torch.equal(kl, torch.full((rows,), 128.0, device=DEVICE))
