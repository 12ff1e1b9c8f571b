"""What an error message advises works: the call goes through, with the result that it has for plain dense tensors."""

import importlib.metadata
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fresh_process import python, skip_without_interpreter
from samples import DEVICE, I64, OPS, sample
from torch import Tensor

import vae_kernels as vk
from vae_kernels import checks

pytestmark = pytest.mark.around

Tensors = dict[str, Tensor]


def calls() -> dict[str, tuple[Callable[[Tensors], object], Tensors]]:
    """Each public op with every tensor that it takes, as a function of these; and good ones."""

    def of_tensors(name: str) -> Callable[[Tensors], object]:
        return lambda given: OPS[name].call(*given.values(), batch_dims=1)

    found = {name: (of_tensors(name), {k: t.detach() for k, t in sample(name, (3, 4)).make().items()}) for name in OPS}
    a, b, c, d = torch.randn(4, 3, 4, device=DEVICE)
    classes, seeds = (torch.tensor([0, 1, 1], device=DEVICE) for _ in range(2))
    prior = {"prior_mu": c, "prior_logvar": d}
    return found | {
        "packed": (lambda given: vk.reparameterize_kl_packed(**given), {"moments": a, "seed": seeds}),
        "prior": (lambda given: vk.reparameterize_kl(**given), {"mu": a, "logvar": b, **prior, "seed": seeds}),
        "categorical": (lambda given: vk.categorical_log_likelihood(**given), {"logits": a, "x": classes}),
        "multinomial": (lambda given: vk.multinomial_log_likelihood(**given), {"logits": a, "x": b.abs()}),
        "elbo": (lambda given: vk.elbo(**given), {"log_px": a, "kl": b}),
        "dreg": (
            lambda given: vk.importance_weighted_elbo(**given, gradient="dreg"), {"log_px": a, "kl": b, "z": c}
        ),
        "score_function": (lambda given: vk.score_function_elbo(**given), {"log_px": a, "kl": b, "log_q": c}),
    }  # fmt: skip


ARGUMENTS = [(name, argument) for name, (_, given) in calls().items() for argument in given]


def assert_same(found: object, want: object) -> None:
    pairs = zip(found, want, strict=True) if isinstance(found, tuple) else [(found, want)]
    assert all(torch.equal(a, b) for a, b in pairs)


def followed(message: str, name: str, value: Tensor) -> Tensor:
    """`value` after the method that the message says to call."""
    method, argument = re.search(rf"pass {name}\.(\w+)\(([^)]*)\)", message).groups()
    return getattr(value, method)(*map(float, filter(None, [argument])))


def nested(layout: torch.layout) -> Callable[[Tensor], Tensor]:
    return lambda t: torch.nested.as_nested_tensor([row for row in t.reshape(len(t), -1)], layout=layout)


STORED: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse_coo": Tensor.to_sparse,
    "sparse_csr": lambda t: t.reshape(len(t), -1).to_sparse_csr(),
    "sparse_csc": lambda t: t.reshape(len(t), -1).to_sparse_csc(),
    "sparse_bsr": lambda t: t.reshape(len(t), -1).to_sparse_bsr((1, 1)),
    "sparse_bsc": lambda t: t.reshape(len(t), -1).to_sparse_bsc((1, 1)),
    "nested_jagged": nested(torch.jagged),
    "nested_strided": nested(torch.strided),
    "mkldnn": Tensor.to_mkldnn,
    "quantized": lambda t: torch.quantize_per_tensor(t, 1 / 32, 128, torch.quint8),
    "quantized_by_channel": lambda t: torch.quantize_per_channel(
        t, torch.full((len(t),), 1 / 32), torch.full((len(t),), 128), 0, torch.quint8
    ),
}


@pytest.mark.filterwarnings("ignore")  # of torch, about prototypes
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_stored_otherwise(backend: str, name: str, argument: str, stored: str) -> None:
    call, given = calls()[name]
    plain = given[argument]
    if stored.startswith(("mkldnn", "quantized")):
        if DEVICE != "cpu" or not plain.is_floating_point():
            pytest.skip("torch has them of floats on the CPU")
        plain = (plain * 32).round().clamp(-128, 127) / 32
    want = call(given | {argument: plain})
    value = STORED[stored](plain)
    with pytest.raises(TypeError, match=rf"\b{argument} must") as caught:
        call(given | {argument: value})
    dense = followed(str(caught.value), argument, value)
    assert_same(call(given | {argument: dense.reshape(plain.shape)}), want)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
def test_rows_of_several_lengths(backend: str, layout: torch.layout) -> None:
    """Padded, computed element by element, and masked: for each row what it gives by itself, gradients too."""
    rows = [torch.randn(length, device=DEVICE) for length in (3, 5, 1)]
    logits = torch.nested.nested_tensor(rows, layout=layout, requires_grad=True)
    with pytest.raises(TypeError, match=r"a nested tensor.* mask in the result") as caught:
        vk.bernoulli_log_likelihood(logits, logits)
    padded = followed(str(caught.value), "logits", logits)
    there = torch.arange(5, device=DEVICE) < torch.tensor([[3], [5], [1]], device=DEVICE)
    elements = vk.bernoulli_log_likelihood(padded, torch.full_like(padded, 0.3), batch_dims=2)
    log_px = torch.where(there, elements, 0).sum(1)
    upstream = torch.randn(3, device=DEVICE)
    (gradient,) = torch.autograd.grad(log_px, logits, upstream)
    for row, value, g, up in zip(rows, log_px, gradient.unbind(), upstream, strict=True):
        row.requires_grad_()
        want = vk.bernoulli_log_likelihood(row, torch.full_like(row, 0.3), batch_dims=0)
        torch.testing.assert_close(value, want)
        torch.testing.assert_close(g, torch.autograd.grad(want, row, up)[0])


DTYPES = sorted(
    {
        dtype
        for dtype in vars(torch).values()
        if isinstance(dtype, torch.dtype) and not re.search(r"\.(q?u?int\d$|bits|float4|q)", str(dtype))
    }
    | {torch.int8, torch.uint8},
    key=str,
)


@pytest.mark.filterwarnings("ignore:Casting complex values")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_dtype(backend: str, name: str, argument: str, dtype: torch.dtype) -> None:
    """Each dtype that torch has is taken, or refused with those that are; each of these goes through."""
    call, given = calls()[name]
    value = given[argument].to(dtype)
    try:
        call(given | {argument: value})
    except TypeError as error:
        named = [getattr(torch, word) for word in re.findall(r"torch\.(\w+)", str(error).rpartition(", got")[0])]
        assert dtype not in named and named
        for other in named:
            call(given | {argument: value.to(other)})
    else:
        assert dtype in checks.TARGETS


@pytest.mark.parametrize("shape", [(4,), (1, 4), (3, 1), (1, 1), (), (4, 3), (2, 4), (1, 3, 4), (12,), (0,)], ids=str)
def test_shape_of_logvar(backend: str, shape: tuple[int, ...]) -> None:
    """To broadcast is advised only where it can be done."""
    mu, logvar = torch.randn(3, 4, device=DEVICE), torch.randn(shape, device=DEVICE)
    with pytest.raises(ValueError, match="logvar must have the shape of mu") as caught:
        vk.reparameterize_kl(mu, logvar)
    if "expand_as" in str(caught.value):
        assert "logvar.expand_as(mu)" in str(caught.value)
        assert_same(
            vk.reparameterize_kl(mu, logvar.expand_as(mu), seed=1),
            vk.reparameterize_kl(mu, logvar.expand_as(mu).clone(), seed=1),
        )
    else:
        with pytest.raises(RuntimeError):
            logvar.expand_as(mu)


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_device(name: str, argument: str) -> None:
    """One of them is moved to where the other is: all go where the one that differs lies."""
    call, given = calls()[name]
    if argument == next(iter(given)):
        return
    elsewhere = given | {argument: given[argument].to("meta")}
    with pytest.raises(ValueError, match=f"{argument} is on meta, but .* is on {DEVICE}.*: move one of them"):
        call(elsewhere)
    call({k: t.to("meta") for k, t in given.items()})


def test_ranges_hold_at_their_ends(backend: str) -> None:
    mu = torch.randn(3, 4, device=DEVICE)
    for dims, given in ((2, {}), (1, {"logits": mu})):
        function = vk.categorical_log_likelihood if given else vk.reparameterize_kl
        tensors = (mu, torch.zeros(3, dtype=I64, device=DEVICE)) if given else (mu, mu)
        with pytest.raises(ValueError, match=f"batch_dims must be between 0 and {dims}"):
            function(*tensors, batch_dims=dims + 1)
        function(*tensors, batch_dims=0), function(*tensors, batch_dims=dims)
    for seed in (0, 2**63 - 1):
        vk.reparameterize_kl(mu, mu, seed=seed)
    for seeds in (1, 3):
        vk.reparameterize_kl(mu, mu, seed=torch.arange(seeds, device=DEVICE))
    for clamp in ((-float("inf"), 20), (-30, float("inf")), (1, 1)):
        vk.reparameterize_kl(mu, mu, logvar_clamp=clamp)
    vk.discretized_logistic_log_likelihood(mu, mu, bins=2)
    vk.reparameterize_kl(mu, mu, num_samples=1)


NAMES = {
    "reduction of a likelihood": lambda name: vk.bernoulli_log_likelihood(
        torch.rand(3, 4), torch.rand(3, 4), reduction=name
    ),
    "scale": lambda name: vk.reparameterize_kl(torch.rand(3, 4), torch.rand(3, 4) + 0.5, scale=name),
    "kl_estimator": lambda name: vk.reparameterize_kl(torch.rand(3, 4), torch.rand(3, 4), kl_estimator=name),
    "kl_reduction": lambda name: vk.reparameterize_kl(torch.rand(3, 4), torch.rand(3, 4), kl_reduction=name),
    "reduction of a bound": lambda name: vk.elbo(torch.rand(3), torch.rand(3), reduction=name),
    "free_bits_per": lambda name: vk.elbo(torch.rand(3), torch.rand(3, 4), free_bits=0.1, free_bits_per=name),
    "capacity_per": lambda name: vk.elbo(torch.rand(3), torch.rand(3), capacity=0.1, capacity_per=name),
    "gradient": lambda name: vk.importance_weighted_elbo(
        torch.rand(2, 3), torch.rand(2, 3), z=torch.rand(2, 3, 4), gradient=name
    ),
}


@pytest.mark.parametrize("option", NAMES)
def test_names(option: str) -> None:
    with pytest.raises(ValueError, match=rf"^{option.split()[0]} must be one of") as caught:
        NAMES[option]("no such name")
    names = re.search(r"one of (.*), got", str(caught.value))[1].split(", ")
    for name in names:
        NAMES[option](name)


def test_objectives() -> None:
    """Which terms of the latent step a message asks for."""
    mu = torch.randn(3, 4, requires_grad=True)
    log_px = torch.rand(2, 3)

    def terms(**given: object) -> tuple[Tensor, Tensor]:
        return vk.reparameterize_kl(mu, mu, num_samples=2, **given)

    z, kl = terms()
    with pytest.raises(ValueError, match=r'one for each sample, by kl_estimator="monte_carlo" or "path"'):
        vk.importance_weighted_elbo(log_px, kl)
    for estimator in ("monte_carlo", "path"):
        vk.importance_weighted_elbo(log_px, terms(kl_estimator=estimator)[1])
    z, kl = terms(kl_estimator="monte_carlo")
    with pytest.raises(ValueError, match='gradient="dreg" needs z'):
        vk.importance_weighted_elbo(log_px, kl, gradient="dreg")
    with pytest.raises(ValueError, match='kl must be given by kl_estimator="path"'):
        vk.importance_weighted_elbo(log_px, kl, z=z, gradient="dreg")
    z, kl = terms(kl_estimator="path")
    vk.importance_weighted_elbo(log_px, kl, z=z, gradient="dreg")
    for function in (lambda kl: vk.elbo(log_px, kl, free_bits=0.1), vk.kl_per_dimension):
        with pytest.raises(ValueError, match=r'\*latent\), with kl_reduction="none"'):
            function(terms()[1])
        function(terms(kl_reduction="none")[1])


def test_triton_in_its_interpreter() -> None:
    code = "import torch, vae_kernels as vk; vk.use_backend('triton'); print(vk.bernoulli_log_likelihood(*torch.zeros(2, 2, 3)))"
    states = vk.backends()["cpu"]
    if "TRITON_INTERPRET=1" not in states["triton"]:
        pytest.skip(f"triton: {states['triton']}")
    skip_without_interpreter()
    assert "-2.0794" in python(code, TRITON_INTERPRET="1")


def test_the_extra_holds_what_is_required() -> None:
    """`pip install 'vae_kernels[train]'`, as a missing package is answered."""
    root = Path(vk.__file__).parent
    required = {m for path in root.glob("*.py") for m in re.findall(r'require\("(\w+)', path.read_text())}
    extra = re.search(r"^train = \[(.*)\]", (root.parent / "pyproject.toml").read_text(), re.MULTILINE)[1]
    distributions = importlib.metadata.packages_distributions()
    assert required
    for module in required:
        assert {name.lower() for name in distributions[module]} & set(re.findall(r'"([\w-]+)"', extra)), module
