"""What only a GPU has: graphs, streams, large tensors, cuRAND. For a run with VAE_KERNELS_TEST_DEVICE=cuda."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from error_rule import SLACK_ULP, Expected, check
from noise_cases import ulp_apart
from samples import BF16, DEVICE, F16, F32, KERNELS
from torch import Tensor

import vae_kernels as vk
from vae_kernels import noise

if DEVICE != "cuda":
    pytest.skip("for CUDA tensors", allow_module_level=True)

SMALL = [(128, 20), (128, 784), (4, 4, 64, 64), (16, 16, 32, 32), (8, 786432)]
# 2²⁶ elements: float64 eager takes several gigabytes.
SHAPES = [*SMALL, pytest.param((65536, 1024), marks=pytest.mark.slow)]


@pytest.fixture(autouse=True)
def memory_given_back() -> Iterator[None]:
    """The tests that run beside this one get the memory back."""
    yield
    torch.cuda.empty_cache()


def latent(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return vk.reparameterize_kl(mu, logvar, seed=7)


def bernoulli(logits: Tensor, x: Tensor) -> tuple[Tensor]:
    return (vk.bernoulli_log_likelihood(logits, x.sigmoid()),)


def gaussian(mean: Tensor, x: Tensor) -> tuple[Tensor]:
    return (vk.gaussian_log_likelihood(mean, x, (x * 0.1).detach()),)


def outcome(function: Callable, inputs: list[Tensor], upstream: list[Tensor]) -> dict[str, Tensor]:
    """The outputs and gradients by number."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    outputs = function(*inputs)
    gradients = torch.autograd.grad(outputs, inputs, [g.to(o.dtype) for g, o in zip(upstream, outputs, strict=True)])
    return {f"output {i}": o for i, o in enumerate(outputs)} | {f"gradient {i}": g for i, g in enumerate(gradients)}


def check_error_rule(function: Callable, inputs: list[Tensor], upstream: list[Tensor]) -> None:
    """Checks the results of the backend in use against eager in float64, on the scale of the largest element."""
    got = outcome(function, inputs, upstream)
    with vk.use_backend("eager"):
        yardstick = outcome(function, inputs, upstream)
        true = outcome(function, [t.double() for t in inputs], upstream)
    check(got, yardstick, {name: Expected.at_largest(t, t.abs()) for name, t in true.items()})


@pytest.mark.parametrize("packed", [False, True], ids=["apart", "packed"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("function", [latent, bernoulli, gaussian], ids=lambda f: f.__name__)
def test_shapes(kernel: str, function: Callable, shape: tuple[int, ...], dtype: torch.dtype, packed: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    both = torch.randn((shape[0], 2 * shape[1], *shape[2:]), generator=generator, device="cuda").to(dtype)
    inputs = [half if packed else half.contiguous() for half in both.chunk(2, dim=1)]
    with torch.no_grad():
        upstream = [torch.randn(o.shape, generator=generator, device="cuda") for o in function(*inputs)]
    upstream = [g.to(dtype) for g in upstream]
    check_error_rule(function, inputs, upstream)


CLASSES = [(64, 784, 2), (16, 3072, 256), (16, 50, 10000), (4, 50, 50257), (4, 128256)]
CLASSES += [pytest.param((300, 128256), marks=pytest.mark.slow)]


@pytest.mark.parametrize("apart", [False, True], ids=["contiguous", "classes apart"])
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@pytest.mark.parametrize("shape", CLASSES, ids=str)
def test_classes(kernel: str, shape: tuple[int, ...], dtype: torch.dtype, apart: bool) -> None:
    generator = torch.Generator("cuda").manual_seed(1)
    logits = 3 * torch.randn(shape, generator=generator, device="cuda").to(dtype)
    logits = logits.transpose(-1, -2).contiguous().transpose(-1, -2) if apart else logits
    x = torch.randint(shape[-1], shape[:-1], generator=generator, device="cuda")
    upstream = [torch.randn(shape[0], generator=generator, device="cuda")]

    def function(logits: Tensor) -> tuple[Tensor]:
        return (vk.categorical_log_likelihood(logits, x),)

    check_error_rule(function, [logits], upstream)


@pytest.mark.parametrize("shape", SMALL, ids=str)
def test_backends_agree(shape: tuple[int, ...]) -> None:
    """The noise is the same within 4 ulp, whichever backend makes it."""
    zero = torch.zeros(shape, device="cuda")
    with vk.use_backend("eager"):
        want = vk.reparameterize_kl(zero, zero, seed=2**40 + 3)[0]
    for name in KERNELS:
        with vk.use_backend(name):
            got = vk.reparameterize_kl(zero, zero, seed=2**40 + 3)[0]
        assert ulp_apart(got, want.double().cpu().numpy()) <= SLACK_ULP


def test_runs_are_the_same_bit_by_bit(kernel: str) -> None:
    for shape in SMALL:
        inputs = [torch.randn(shape, device="cuda") for _ in range(2)]
        for function in (latent, bernoulli, gaussian):
            with torch.no_grad():
                upstream = [torch.randn_like(o) for o in function(*inputs)]
            first, second = (outcome(function, inputs, upstream) for _ in range(2))
            assert all(torch.equal(value, second[name]) for name, value in first.items())


def step(mu: Tensor, logvar: Tensor, x: Tensor, generator: torch.Generator | None) -> list[Tensor]:
    z, kl = vk.reparameterize_kl(mu, logvar, generator=generator)
    loss = (kl - vk.bernoulli_log_likelihood(z, x)).sum()
    return [z.detach(), kl.detach(), *torch.autograd.grad(loss, (mu, logvar))]


@pytest.mark.parametrize("own_generator", [False, True], ids=["default", "registered"])
def test_a_replayed_graph_draws_fresh_noise(kernel: str, own_generator: bool) -> None:
    """The gradients are those of the noise that the graph drew."""
    mu, logvar = (torch.randn(128, 20, device="cuda", requires_grad=True) for _ in range(2))
    x = torch.rand(128, 20, device="cuda")
    generator = torch.Generator("cuda") if own_generator else None
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step(mu, logvar, x, generator)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    if generator is not None:
        graph.register_generator_state(generator)
    with torch.cuda.graph(graph):
        captured = step(mu, logvar, x, generator)

    def replay() -> list[Tensor]:
        graph.replay()
        return [t.clone() for t in captured]

    seeded = generator if generator is not None else torch.cuda
    seeded.manual_seed(5)
    first, second = replay(), replay()
    seeded.manual_seed(5)
    again = replay()
    assert not torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    for z, kl, grad_mu, grad_logvar in (first, second):
        eps = ((z - mu) * torch.exp(-logvar / 2)).detach()
        with vk.use_backend("eager"):
            found, want_kl = vk.reparameterize_kl(mu, logvar, eps=eps)
            loss = (want_kl - vk.bernoulli_log_likelihood(found, x)).sum()
        torch.testing.assert_close(kl, want_kl.detach())
        want = torch.autograd.grad(loss, (mu, logvar))
        torch.testing.assert_close((grad_mu, grad_logvar), want, rtol=1e-4, atol=1e-4)


def test_graphs_of_inductor_draw_fresh_noise(kernel: str) -> None:
    torch.compiler.reset()
    mu, logvar = (torch.randn(128, 20, device="cuda") for _ in range(2))
    run = torch.compile(lambda m, l: vk.reparameterize_kl(m, l)[0], fullgraph=True, mode="reduce-overhead")
    drawn = [run(mu, logvar).clone() for _ in range(6)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_on_a_stream_of_its_own(kernel: str) -> None:
    """The kernels run on the current stream. On another one they would read what is not there yet."""
    want = latent(torch.ones(4096, 4096, device="cuda"), torch.zeros(4096, 4096, device="cuda"))
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        mu = torch.full((4096, 4096), float("nan"), device="cuda")
        torch.cuda._sleep(10**8)
        mu.fill_(1)
        got = latent(mu, torch.zeros_like(mu))
    stream.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_nothing_waits_for_the_device(kernel: str) -> None:
    """A call enqueues its work and returns."""
    inputs = [torch.randn(64, 300, device="cuda") for _ in range(2)]
    parameter = torch.zeros((), device="cuda", requires_grad=True)
    seed = torch.tensor([1], device="cuda")

    def everything() -> None:
        mu, logvar = (t.detach().requires_grad_() for t in inputs)
        for given in ({}, {"seed": seed}):
            z, kl = vk.reparameterize_kl(mu, logvar, **given)
            log_px = vk.gaussian_log_likelihood(z, inputs[0], parameter)
            torch.autograd.grad((kl - log_px).sum(), (mu, logvar, parameter))

    everything()
    torch.cuda.set_sync_debug_mode("error")
    try:
        everything()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
def test_gradients_beyond_2_31_elements(kernel: str) -> None:
    """The last row is as good as the first."""
    rows, cols = 2**21 + 3, 1024
    mu = torch.full((rows, cols), 0.25, dtype=BF16, device="cuda", requires_grad=True)
    logvar = torch.zeros_like(mu, requires_grad=True)
    z, kl = vk.reparameterize_kl(mu, logvar, seed=3)
    grad_mu, grad_logvar = torch.autograd.grad((z, kl), (mu, logvar), (z.detach(), torch.ones_like(kl)))
    assert torch.equal(kl, kl[:1].expand_as(kl))
    last = slice(rows - 2, rows)
    eps = noise.box_muller(*_words(rows - 2, cols))
    torch.testing.assert_close(z[last, 0::4][0].float(), 0.25 + eps[0], atol=2**-6, rtol=0)
    torch.testing.assert_close(grad_mu[last].float(), z[last].float() + 0.25, atol=2**-5, rtol=0)
    want = 0.5 * z[last].float() * (z[last].float() - 0.25)
    torch.testing.assert_close(grad_logvar[last].float(), want, atol=2**-4, rtol=2**-6)


def _words(row: int, cols: int) -> tuple[Tensor, Tensor]:
    """The first two words of each four columns."""
    quads = torch.arange(cols // 4, device="cuda")
    return noise.philox(torch.tensor(3, device="cuda"), torch.tensor(row, device="cuda"), quads)[:2]


@pytest.mark.slow
def test_a_sum_over_more_than_2_31_elements(kernel: str) -> None:
    """So is the gradient of a parameter that all elements share."""
    rows, cols = 2**12 + 1, 2**19
    mean = torch.zeros(1, device="cuda", dtype=BF16).expand(rows, cols)
    logvar = torch.zeros((), device="cuda", requires_grad=True)
    log_px = vk.gaussian_log_likelihood(mean, mean, logvar)
    torch.testing.assert_close(log_px, torch.full_like(log_px, -0.5 * cols * 1.8378770664093453))
    (gradient,) = torch.autograd.grad(log_px.sum(), logvar)
    torch.testing.assert_close(gradient.item(), -0.5 * rows * cols)


@pytest.fixture(scope="module")
def curand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        pytest.skip("no nvcc")
    program = tmp_path_factory.mktemp("curand") / "curand_normals"
    source = Path(__file__).with_name("curand_normals.cu")
    done = subprocess.run([nvcc, "-arch=native", source, "-o", program], capture_output=True, text=True)
    if "curand_kernel.h" in done.stderr:
        pytest.skip("no curand_kernel.h")
    assert done.returncode == 0, done.stderr
    return program


@pytest.mark.parametrize("seed", [0, 42, 2**32 + 1, 2**63 - 1])
def test_noise_is_that_of_curand(kernel: str, curand: Path, seed: int) -> None:
    """They are 1e-4 apart at most, since cuRAND takes the fast sine, whose absolute error is 2^-21 and more. From other
    words the noise would be off by 1."""
    rows, quads = 37, 300
    printed = subprocess.run([curand, str(seed), "0", str(rows), str(quads)], capture_output=True, check=True).stdout
    want = np.frombuffer(printed, dtype=np.float32).reshape(rows, 4 * quads)
    zero = torch.zeros(rows, 4 * quads, device="cuda")
    got = vk.reparameterize_kl(zero, zero, seed=seed)[0].cpu().numpy()
    assert abs(got - want).max() < 1e-4
