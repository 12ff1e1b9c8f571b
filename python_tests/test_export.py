"""torch.export and AOTInductor: programs that hold the ops, saved and loaded again."""

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from samples import DEVICE, OPS, sample
from torch import Tensor

import vae_kernels as vk

pytestmark = pytest.mark.around

INF = math.inf


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


class Program(torch.nn.Module):
    """A function as a module that gives a tuple."""

    def __init__(self, function: Callable[..., object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        outputs = self.function(*tensors)
        return outputs if isinstance(outputs, tuple) else (outputs,)


# Every option, of two tensors (4, 6) and one with values in (0, 1).
CALLS = {
    f"packed, {clamp}, {estimator}": lambda a, b, x, clamp=clamp, estimator=estimator: vk.reparameterize_kl_packed(
        a, dim=-1, seed=1, logvar_clamp=clamp, kl_estimator=estimator
    )
    for clamp in (None, (-30, 20), (-INF, 20), (-30, INF), (-INF, INF))
    for estimator in ("analytic", "monte_carlo")
}
CALLS |= {
    f"{scale}, {clamp}": lambda a, b, x, clamp=clamp, scale=scale: vk.reparameterize_kl(
        a, b.exp(), seed=1, scale=scale, logvar_clamp=clamp
    )
    for clamp in (None, (-1, INF), (-INF, 1))
    for scale in ("logvar", "logstd", "std", "variance")
}
CALLS |= {
    f"softplus, {floor}": lambda a, b, x, floor=floor: vk.reparameterize_kl(
        a, b, seed=1, scale="softplus", std_floor=floor
    )
    for floor in (0, 1e-4)
}
CALLS |= {
    "drawn": lambda a, b, x: vk.reparameterize_kl(a, b)[1],
    "eps": lambda a, b, x: vk.reparameterize_kl(a, b, eps=x),
    "seeds": lambda a, b, x: vk.reparameterize_kl(a, b, seed=torch.arange(4, device=x.device)),
    "prior": lambda a, b, x: vk.reparameterize_kl(a, b, seed=1, prior_mu=b, prior_logvar=a),
    "half a prior": lambda a, b, x: vk.reparameterize_kl(a, b, seed=1, prior_logvar=b[0]),
    "samples": lambda a, b, x: vk.reparameterize_kl(a, b, seed=1, num_samples=3, kl_estimator="path"),
    "elements": lambda a, b, x: vk.reparameterize_kl(a, b, seed=1, kl_reduction="none"),
    "elements of a likelihood": lambda a, b, x: vk.gaussian_log_likelihood(a, x, b[0], reduction="none"),
    "categorical": lambda a, b, x: vk.categorical_log_likelihood(a, torch.arange(4, device=x.device)),
    "multinomial": lambda a, b, x: vk.multinomial_log_likelihood(a, b.exp()),
    "elbo": lambda a, b, x: vk.elbo(a, b, capacity=3.0),
    "free bits": lambda a, b, x: vk.elbo(a[:, 0], b, free_bits=INF),
    "importance weighted": lambda a, b, x: vk.importance_weighted_elbo(a, b),
    "score function": lambda a, b, x: vk.score_function_elbo(a, b, x, baseline=-INF),
    "bins": lambda a, b, x: vk.discretized_logistic_log_likelihood(a, x, bins=32),
}
for number in (0.3, INF, -INF, math.nan):
    CALLS |= {
        f"logvar {number}": lambda a, b, x, n=number: vk.gaussian_log_likelihood(a, x, n),
        f"log_scale {number}": lambda a, b, x, n=number: vk.laplace_log_likelihood(a, x, n),
        f"theta {number}": lambda a, b, x, n=number: vk.negative_binomial_log_likelihood(a.exp(), x, n),
        f"theta {number} and a tensor": lambda a, b, x, n=number: vk.zero_inflated_negative_binomial_log_likelihood(
            a.exp(), x, n, b
        ),
        f"zero_logits {number}": lambda a, b, x, n=number: vk.zero_inflated_negative_binomial_log_likelihood(
            a.exp(), x, 1.0, n
        ),
    }
CALLS |= {
    op: lambda *tensors, op=op: OPS[op].call(*(t.clone() for t in tensors[: len(OPS[op].arguments)]), batch_dims=1)
    for op in OPS
}


def inputs_of(call: str) -> tuple[Tensor, ...]:
    if call in OPS:
        return tuple(t.detach() for t in sample(call, (4, 6)).make().values())
    return *(torch.randn(4, 6, device=DEVICE) for _ in range(2)), torch.rand(4, 6, device=DEVICE)


def _numbers(arguments: object) -> Iterator[float]:
    if isinstance(arguments, float):
        yield arguments
    elif isinstance(arguments, list | tuple):
        for argument in arguments:
            yield from _numbers(argument)


@pytest.mark.parametrize("call", CALLS)
def test_exported(kernel: str, call: str, tmp_path: Path) -> None:
    """No op is given a number that JSON does not have; what is loaded computes the same."""
    program, inputs = Program(CALLS[call]), inputs_of(call)
    exported = torch.export.export(program, inputs)
    for node in exported.graph.nodes:
        if "vae_kernels" in str(node.target):
            assert all(map(math.isfinite, _numbers(node.args))), node.format_node()
    torch.export.save(exported, tmp_path / "program.pt2")
    found, want = torch.export.load(tmp_path / "program.pt2").module()(*inputs), program(*inputs)
    if call != "drawn":
        assert all(torch.equal(a.nan_to_num(7), b.nan_to_num(7)) for a, b in zip(found, want, strict=True))


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler")
def test_packaged_by_aot_inductor(kernel: str, tmp_path: Path) -> None:
    """All of them as one package."""
    calls = [call for call in CALLS if call not in (*OPS, "drawn")]
    inputs = inputs_of(calls[0])

    def together(*tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(t for call in calls for t in Program(CALLS[call])(*tensors))

    exported = torch.export.export(Program(together), inputs)
    path = torch._inductor.aoti_compile_and_package(exported, package_path=str(tmp_path / "package.pt2"))
    for got, want in zip(torch._inductor.aoti_load_package(path)(*inputs), together(*inputs), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5, equal_nan=True)
