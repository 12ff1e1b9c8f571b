"""`check_values` where code is batched, traced or differentiated: an error where values can be read, else none."""

import itertools
from collections.abc import Callable

import pytest
import torch
from functorch.compile import aot_function
from samples import DEVICE, KERNELS, OPS, sample
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

import vae_kernels as vk

pytestmark = pytest.mark.around

Function = Callable[[Tensor], Tensor]


def calls() -> dict[str, tuple[Function, Tensor]]:
    """Each op as a function of its first argument alone, with every kind of check; and good values of that."""

    def of_first(name: str) -> Function:
        count = len(OPS[name].arguments) - 1
        return lambda a: _total(OPS[name].call(a, *[torch.full_like(a, 0.5)] * count, batch_dims=1))

    found = {name: (of_first(name), next(iter(sample(name, (4, 3)).make().values())).detach()) for name in OPS}
    positive = torch.rand(4, 6, device=DEVICE) + 0.5
    return found | {
        "std": (lambda a: _total(vk.reparameterize_kl_packed(a, scale="std", seed=3)), positive),
        "categorical": (lambda a: vk.categorical_log_likelihood(a, torch.zeros_like(a[:, 0]).long()), positive),
        "multinomial": (lambda a: vk.multinomial_log_likelihood(a, torch.ones_like(a)), positive),
        "number": (lambda a: vk.negative_binomial_log_likelihood(a, torch.ones_like(a), theta=2.0), positive),
    }


def _total(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    return outputs[0].sum(-1) - outputs[1] if isinstance(outputs, tuple) else outputs


def fake(outside: bool) -> Callable[[Function, Tensor], object]:
    def run(f: Function, a: Tensor) -> object:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            tensor = mode.from_tensor(a)
            if not outside:
                return f(tensor)
        return f(tensor)

    return run


def dual(f: Function, a: Tensor) -> object:
    with forward_ad.dual_level():
        return f(forward_ad.make_dual(a, a))


class Module(torch.nn.Module):
    def __init__(self, f: Function) -> None:
        super().__init__()
        self.f = f

    def forward(self, a: Tensor) -> Tensor:
        return self.f(a)


def traced_by_jit(f: Function, a: Tensor) -> object:
    found = torch.jit.trace(f, a, check_trace=False)
    assert "isnan" not in str(found.graph)
    return found


def on_meta(f: Function, a: Tensor) -> object:
    with vk.use_backend("auto"):
        return f(a.to("meta"))


def compiled(f: Function, a: Tensor) -> object:
    torch.compiler.reset()
    return torch.compile(f, fullgraph=True, backend="aot_eager")(a)


def sum_of(f: Function) -> Function:
    return lambda a: f(a).sum()


READ: dict[str, Callable[[Function, Tensor], object]] = {
    "grad": lambda f, a: grad(sum_of(f))(a),
    "vjp": lambda f, a: vjp(f, a),
    "jvp": lambda f, a: jvp(f, (a,), (a,)),
    "jacrev": lambda f, a: jacrev(f)(a),
    "jacfwd": lambda f, a: jacfwd(f)(a),
    "hessian": lambda f, a: hessian(sum_of(f))(a),
    "dual": dual,
    "linearize": lambda f, a: linearize(f, a),  # which runs the function, then traces it
    "checkpoint": lambda f, a: torch.utils.checkpoint.checkpoint(f, a.requires_grad_(), use_reentrant=False),
}
UNREAD: dict[str, Callable[[Function, Tensor], object]] = {
    "vmap": lambda f, a: vmap(f)(a[None]),
    "vmap_of_grad": lambda f, a: vmap(grad(sum_of(f)))(a[None]),
    "grad_of_vmap": lambda f, a: grad(lambda b: vmap(f)(b[None]).sum())(a),
    "vmap_of_jvp": lambda f, a: vmap(lambda b: jvp(f, (b,), (b,)))(a[None]),
    "functionalize": lambda f, a: functionalize(f)(a),
    "make_fx": lambda f, a: make_fx(f)(a),
    "make_fx_symbolic": lambda f, a: make_fx(f, tracing_mode="symbolic")(a),
    "make_fx_before_dispatch": lambda f, a: make_fx(f, pre_dispatch=True)(a),
    "aot": lambda f, a: aot_function(f, lambda graph, _: graph)(a),
    "fake": fake(outside=False),
    "fake_outside_its_mode": fake(outside=True),
    "export": lambda f, a: torch.export.export(Module(f), (a,)),
    "export_strict": lambda f, a: torch.export.export(Module(f), (a,), strict=True),
    "jit_trace": traced_by_jit,
    "meta": on_meta,
    "compile": compiled,
}


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize(
    ("backend", "name"),
    [*itertools.product(KERNELS, (*OPS, "std", "categorical", "number")), ("eager", "latent"), ("eager", "number")],
    indirect=["backend"],
)
@pytest.mark.parametrize("how", [*READ, *UNREAD])
def test_transform(backend: str, name: str, how: str) -> None:
    function, good = calls()[name]
    bad = good.clone()
    bad[2, 1] = torch.nan
    apply = (READ | UNREAD)[how]
    with vk.check_values():
        apply(function, good.clone())
        if how in UNREAD:
            apply(function, bad)
        else:
            with pytest.raises(ValueError, match=r"free of NaN, but sample \(2,\) holds nan"):
                apply(function, bad)
