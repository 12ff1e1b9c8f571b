"""Gradients to any order, under every kind of upstream gradient and every way of calling backward."""

import functools
import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from error_rule import check
from samples import BF16, DEVICE, F32, F64, LAYOUTS, OPS, U8, Sample, sample
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.utils.checkpoint import checkpoint

import vae_kernels as vk

SMALL = [
    sample(op, shape, dtypes=F64, batch_dims=batch_dims, layouts=layout)
    for op in OPS
    for shape, batch_dims, layout in (
        ((2, 3), 1, "contiguous"),
        ((1, 5), 1, "contiguous"),
        ((3, 2), 1, "transposed"),
        ((3, 2), 1, "chunk"),
        ((3, 2), 0, "contiguous"),
        ((3, 2), 2, "contiguous"),
        ((2, 2, 1, 3), 1, "channels_last"),
        ((2, 2, 1, 3), 2, "channels_last"),
        ((), 0, "contiguous"),
        ((0, 3), 1, "contiguous"),
        ((2, 0), 1, "contiguous"),
    )
]
SMALL += [sample("latent", (2, 5), values=values, dtypes=F64) for values in ("collapsed", "thresholds")]
SMALL += [sample("bernoulli", (2, 5), values=values, dtypes=F64) for values in ("binary", "zeros", "outside")]
SMALL += [
    sample("gaussian", (2, 3, 2, 2), dtypes=F64, parameter=parameter, batch_dims=batch_dims)
    for parameter in ((), (1,), (2,), (2, 1), (3, 1, 1), (3, 1, 2), (2, 1, 1, 1), (2, 3, 1, 1), (1, 1, 1, 2))
    for batch_dims in (0, 1, 2)
]
SMALL += [
    sample("bernoulli", (2, 3), dtypes=(F64, U8)),
    sample("gaussian", (2, 3), dtypes=(F64, U8, F64)),
    sample("gaussian", (2, 3), dtypes=F64, parameter=(3,), reduction="none"),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradcheck(backend: str, case: Sample) -> None:
    assert torch.autograd.gradcheck(*case.of_inputs(), check_forward_ad=True)


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_gradgradcheck(backend: str, case: Sample) -> None:
    assert torch.autograd.gradgradcheck(*case.of_inputs())


@pytest.mark.parametrize("shape", [(2, 3), (2, 2, 1, 3)], ids=str)
def test_gradcheck_with_a_seed(backend: str, shape: tuple[int, ...]) -> None:
    mu, logvar = (torch.randn(shape, dtype=F64, device=DEVICE, requires_grad=True) for _ in range(2))
    function = functools.partial(vk.reparameterize_kl, seed=3)
    assert torch.autograd.gradcheck(function, (mu, logvar))
    assert torch.autograd.gradgradcheck(function, (mu, logvar))
    if len(shape) == 4:
        last = [t.detach().contiguous(memory_format=torch.channels_last).requires_grad_() for t in (mu, logvar)]
        assert torch.autograd.gradcheck(function, last)
        assert torch.autograd.gradgradcheck(function, last)


MEDIUM = [
    sample("latent", (6, 37)),
    sample("bernoulli", (6, 37)),
    sample("gaussian", (6, 37)),
    sample("gaussian", (6, 37), parameter=(37,)),
    sample("gaussian", (6, 37), parameter=()),
    sample("latent", (6, 37), dtypes=(BF16, F32, F32)),
    sample("bernoulli", (6, 37), dtypes=(BF16, U8)),
    sample("gaussian", (6, 37), dtypes=(BF16, BF16, F32), parameter=(1,)),
    sample("latent", (2, 3, 4, 5), layouts="channels_last"),
    sample("bernoulli", (2, 3, 4, 5), batch_dims=2),
]


def gradients(case: Sample, upstream: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The gradients under upstream gradients that `upstream` lays out."""
    function, inputs = case.of_inputs()
    outputs = function(*inputs)
    given = case.upstream(case.named(outputs))
    return list(torch.autograd.grad(outputs, inputs, [upstream(g) for g in given.values()]))


def _every_second(tensor: Tensor) -> Tensor:
    return torch.stack((tensor, torch.full_like(tensor, float("nan"))), dim=-1)[..., 0]


def _reversed_strides(tensor: Tensor) -> Tensor:
    return tensor.permute(*range(tensor.dim())[::-1]).contiguous().permute(*range(tensor.dim())[::-1])


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("layout", [_every_second, _reversed_strides], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", MEDIUM, ids=str)
def test_strided_upstream(kernel: str, case: Sample, layout: Callable[[Tensor], Tensor]) -> None:
    for strided, contiguous in zip(gradients(case, layout), gradients(case, Tensor.contiguous), strict=True):
        assert torch.equal(strided, contiguous)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("case", MEDIUM, ids=str)
def test_expanded_upstream(backend: str, case: Sample) -> None:
    """`.sum().backward()` sends one number with strides of zero; a mean over rows, a row of them."""

    def one(tensor: Tensor) -> Tensor:
        return torch.full((), 0.7, dtype=tensor.dtype, device=DEVICE).expand_as(tensor)

    def columns(tensor: Tensor) -> Tensor:
        return tensor[..., :1].clone().expand_as(tensor)

    for expand in (one, columns):
        copied = gradients(case, lambda tensor, expand=expand: expand(tensor).contiguous())
        for expanded, contiguous in zip(gradients(case, expand), copied, strict=True):
            assert torch.equal(expanded, contiguous)


# How an upstream gradient may come, from a dense one of the same values.
UPSTREAM = {
    "sparse": Tensor.to_sparse,
    "sparse rows": lambda g: g.to_sparse(1),
    "not coalesced": lambda g: torch.sparse_coo_tensor(
        g.to_sparse().indices().repeat(1, 2), (g.to_sparse().values() / 2).repeat(2), g.shape, check_invariants=True
    ),
    "negated view": lambda g: torch._neg_view(-g),
    "conjugated": lambda g: torch.complex(torch.zeros_like(g), -g).conj().imag,
    "float64": Tensor.double,
    "a parameter": torch.nn.Parameter,
}


class _SendsBack(torch.autograd.Function):
    """The identity, whose gradient comes in another form."""

    @staticmethod
    def forward(ctx, value, form):
        ctx.form = form
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return ctx.form(gradient), None


# Each op of the latent step, and the terms of objectives, of tensors of (4, 6) that need a gradient.
MORE_CALLS = {
    "latent by a seed": lambda a, b, c: vk.reparameterize_kl(a, b, seed=1),
    "prior": lambda a, b, c: vk.reparameterize_kl(a, b, seed=1, prior_mu=c, prior_logvar=c),
    "shared prior": lambda a, b, c: vk.reparameterize_kl(a, b, seed=1, prior_mu=c[0]),
    "packed": lambda a, b, c: vk.reparameterize_kl_packed(a, dim=-1, seed=1),
    "samples": lambda a, b, c: vk.reparameterize_kl(a, b, seed=1, num_samples=3, kl_estimator="path"),
    "elements": lambda a, b, c: vk.reparameterize_kl(a, b, seed=1, kl_reduction="none"),
    "elements of a likelihood": lambda a, b, c: vk.gaussian_log_likelihood(a, b, c[0], reduction="none"),
    "a number": lambda a, b, c: vk.gaussian_log_likelihood(a, b, 0.5),
    "every element kept": lambda a, b, c: vk.gaussian_log_likelihood(a, b, c, batch_dims=2),
    "categorical": lambda a, b, c: vk.categorical_log_likelihood(a, torch.arange(4, device=DEVICE)),
    "multinomial": lambda a, b, c: vk.multinomial_log_likelihood(a, b.exp()),
    "elbo": lambda a, b, c: vk.elbo(a, b, reduction="none"),
    "free bits": lambda a, b, c: vk.elbo(a[:, 0], b, free_bits=0.1, reduction="none"),
    "importance weighted": lambda a, b, c: vk.importance_weighted_elbo(a, b),
    "doubly reparameterized": lambda a, b, c: vk.importance_weighted_elbo(a, b, z=c, gradient="dreg"),
    "score function": lambda a, b, c: vk.score_function_elbo(a, b, c, reduction="none"),
}


# Triton's interpreter is slow: it runs only these.
INTERPRETED = {
    ("latent", "sparse"),
    ("latent", "negated view"),
    ("latent", "float64"),
    ("samples", "a parameter"),
    ("gaussian", "float64"),
    ("categorical", "float64"),
}


@pytest.mark.parametrize(
    ("call", "form"),
    [
        pytest.param(call, form, marks=[pytest.mark.interpreted] if (call, form) in INTERPRETED else [])
        for call in (*OPS, *MORE_CALLS)
        for form in UPSTREAM
    ],
)
def test_upstream_of_another_form(backend: str, call: str, form: str) -> None:
    """An upstream gradient may be handed to autograd or sent back by a later op, for one output or for all. The
    gradients are dense, and those that a dense upstream gradient gives."""
    if call in OPS:
        function, inputs = sample(call, (4, 6)).of_inputs()
    else:
        function = MORE_CALLS[call]
        inputs = tuple(torch.randn(4, 6, device=DEVICE, requires_grad=True) for _ in range(3))

    def run() -> tuple[Tensor, ...]:
        outputs = function(*inputs)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    upstream = [torch.randn_like(o) for o in run()]
    for chosen in (slice(None), slice(1), slice(1, None))[: 2 * len(upstream) - 1]:
        given = upstream[chosen]
        pull_back = functools.partial(torch.autograd.grad, inputs=inputs, materialize_grads=True)
        want = pull_back(run()[chosen], grad_outputs=given)
        formed = [UPSTREAM[form](g) for g in given]
        for found in (
            pull_back(run()[chosen], grad_outputs=formed),
            pull_back([_SendsBack.apply(o, UPSTREAM[form]) for o in run()[chosen]], grad_outputs=given),
            pull_back(run()[chosen], grad_outputs=formed, create_graph=True),
        ):
            for got, wanted in zip(found, want, strict=True):
                assert got.layout is torch.strided
                torch.testing.assert_close(got, wanted)


def test_upstream_zeros_that_take_no_memory(backend: str) -> None:
    for call in MORE_CALLS.values():
        inputs = tuple(torch.randn(4, 6, device=DEVICE, requires_grad=True) for _ in range(3))
        outputs = call(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        zeros = [torch._efficientzerotensor(o.shape, dtype=o.dtype, device=DEVICE) for o in outputs]
        found = torch.autograd.grad(outputs, inputs, zeros, materialize_grads=True)
        assert all(torch.equal(g + 0, torch.zeros_like(t)) for g, t in zip(found, inputs, strict=True))


def test_an_embedding_of_the_samples(backend: str) -> None:
    """`F.embedding(sparse=True)` looks up rows of z. Its gradients are those of an index."""
    mu, logvar = (torch.randn(4, 6, device=DEVICE, requires_grad=True) for _ in range(2))
    index, upstream = torch.tensor([2, 0, 2], device=DEVICE), torch.randn(3, 6, device=DEVICE)
    found = []
    for look_up in (lambda z: F.embedding(index, z, sparse=True), lambda z: z[index]):
        z, kl = vk.reparameterize_kl(mu, logvar, seed=1)
        found.append(torch.autograd.grad((look_up(z) * upstream).sum() + kl.sin().sum(), (mu, logvar)))
    for sparse, dense in zip(*found, strict=True):
        torch.testing.assert_close(sparse, dense)


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("case", [c for c in MEDIUM if c.op == "latent"], ids=str)
@pytest.mark.parametrize("used", ["z", "kl"])
def test_unused_output(backend: str, case: Sample, used: str) -> None:
    """An output that nothing used counts as zero."""
    tensors = case.make()
    upstream = case.upstream(case.call(tensors))
    absent = torch.autograd.grad(
        case.call(tensors)[used], list(tensors.values()), upstream[used], materialize_grads=True
    )
    zero = {name: g if name == used else torch.zeros_like(g) for name, g in upstream.items()}
    want = torch.autograd.grad(list(case.call(tensors).values()), list(tensors.values()), list(zero.values()))
    assert all(torch.equal(a, b) for a, b in zip(absent, want, strict=True))


@pytest.mark.interpreted
def test_unused_output_that_overflowed(backend: str) -> None:
    """The KL of a logvar of 100 is infinite in float32. It must not show in the gradient of z alone, with noise of
    zero."""
    mu = torch.ones(2, 3, device=DEVICE, requires_grad=True)
    logvar = torch.full((2, 3), 100.0, device=DEVICE, requires_grad=True)
    z, kl = vk.reparameterize_kl(mu, logvar, eps=torch.zeros(2, 3, device=DEVICE))
    assert kl.isinf().all()
    upstream = torch.randn(2, 3, device=DEVICE)
    grad_mu, grad_logvar = torch.autograd.grad(z, (mu, logvar), upstream)
    assert torch.equal(grad_mu, upstream)
    assert torch.equal(grad_logvar, torch.zeros_like(logvar))


@pytest.mark.emulated
@pytest.mark.interpreted
@pytest.mark.parametrize("case", MEDIUM, ids=str)
def test_any_subset_of_inputs_may_need_a_gradient(backend: str, case: Sample) -> None:
    whole = case.results()
    names = [name.removeprefix("grad ") for name in whole if name.startswith("grad ")]
    for size in range(1, len(names)):
        for subset in itertools.combinations(names, size):
            tensors = {name: t.detach().requires_grad_(name in subset) for name, t in case.make().items()}
            outputs = {name: o for name, o in case.call(tensors).items() if o.requires_grad}
            upstream = case.upstream(case.call(tensors))
            found = torch.autograd.grad(
                list(outputs.values()), [tensors[name] for name in subset], [upstream[name] for name in outputs]
            )
            for name, gradient in zip(subset, found, strict=True):
                assert torch.equal(gradient, whole[f"grad {name}"])


def test_no_gradient_needed(backend: str) -> None:
    for case in MEDIUM:
        with torch.no_grad():
            assert not any(o.requires_grad for o in case.call(case.make()).values())
        detached = {name: t.detach() for name, t in case.make().items()}
        assert not any(o.requires_grad for o in case.call(detached).values())
        with torch.inference_mode():
            inference = case.call({name: t.clone() for name, t in detached.items()})
        assert all(torch.equal(a, b) for a, b in zip(inference.values(), case.call(detached).values(), strict=True))


@pytest.mark.interpreted
@pytest.mark.parametrize("case", MEDIUM, ids=str)
def test_backward_runs_again(backend: str, case: Sample) -> None:
    function, inputs = case.of_inputs()
    outputs = function(*inputs)
    upstream = list(case.upstream(case.named(outputs)).values())
    first, second = (torch.autograd.grad(outputs, inputs, upstream, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.backward(outputs, upstream)
    assert all(torch.equal(a, t.grad) for a, t in zip(first, inputs, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.backward(outputs, upstream)


@pytest.mark.interpreted
@pytest.mark.parametrize("case", [c for c in MEDIUM if BF16 not in c.dtypes], ids=str)
def test_create_graph_keeps_the_error_rule(backend: str, case: Sample) -> None:
    """Gradients that can be differentiated again are as good as the others."""
    function, inputs = case.of_inputs()
    outputs = case.named(function(*inputs))
    found = torch.autograd.grad(
        list(outputs.values()), inputs, list(case.upstream(outputs).values()), create_graph=True
    )
    names = [name for name, t in case.make().items() if t.requires_grad]
    got = outputs | {f"grad {name}": g for name, g in zip(names, found, strict=True)}
    assert all(g.requires_grad for g in found)
    check(got, case.results(), case.expected())


def test_create_graph_where_the_used_output_does_not_depend_on_the_input(backend: str) -> None:
    mu, logvar = torch.randn(2, 3, device=DEVICE), torch.randn(2, 3, device=DEVICE)
    eps = torch.randn(2, 3, device=DEVICE, requires_grad=True)
    kl = vk.reparameterize_kl(mu, logvar, eps=eps)[1]
    if kl.requires_grad:
        (gradient,) = torch.autograd.grad(kl.sum(), eps, create_graph=True)
        assert torch.equal(gradient, torch.zeros_like(eps))
    else:
        assert backend == "eager"


def test_gradient_penalty(backend: str) -> None:
    """A norm of the gradient as part of a loss, against autograd through what people write."""
    case = sample("bernoulli", (4, 11), dtypes=F64)
    found = []
    for call in (case.call, case.plain):
        tensors = case.make()
        logits = tensors["logits"]
        (first,) = torch.autograd.grad(call(tensors)["log_px"].sum(), logits, create_graph=True)
        found.append(torch.autograd.grad((first**2).sum(), logits)[0])
    torch.testing.assert_close(*found)


def test_inputs_computed_from_each_other(backend: str) -> None:
    """logvar from mu, x from logits, one tensor twice: each gradient only along its own path."""
    for order in (1, 2):
        found = []
        for op, call in (("latent", vk.reparameterize_kl), ("latent", OPS["latent"].plain)):
            h = sample(op, (3, 7), dtypes=F64).make()["mu"]
            eps = torch.full_like(h, 0.3)
            outputs = [call(h, torch.tanh(h), eps=eps, batch_dims=1), call(h, h, eps=eps, batch_dims=1)]
            found.append(_gradient_of_order(order, sum((z * z).sum() + (kl * kl).sum() for z, kl in outputs), h))
        torch.testing.assert_close(*found)
        found = []
        for call in (vk.bernoulli_log_likelihood, OPS["bernoulli"].plain):
            h = sample("bernoulli", (3, 7), dtypes=F64).make()["logits"]
            terms = call(h, torch.sigmoid(h), batch_dims=1), call(h, h, batch_dims=1)
            found.append(_gradient_of_order(order, sum((t * t).sum() for t in terms), h))
        torch.testing.assert_close(*found)


def _gradient_of_order(order: int, loss: Tensor, h: Tensor) -> Tensor:
    for _ in range(order - 1):
        (gradient,) = torch.autograd.grad(loss, h, create_graph=True)
        loss = (gradient * gradient).sum()
    return torch.autograd.grad(loss, h)[0]


def test_packed_moments(backend: str) -> None:
    """mu and logvar as the two halves of one tensor: its gradient is theirs, side by side."""
    packed = torch.randn(5, 2 * 33, device=DEVICE, requires_grad=True)
    upstream = torch.randn(5, 33, device=DEVICE), torch.randn(5, device=DEVICE)
    halves = [t.detach().clone().requires_grad_() for t in packed.chunk(2, dim=-1)]
    want = torch.autograd.grad(vk.reparameterize_kl(*halves, seed=1), halves, upstream)
    (got,) = torch.autograd.grad(vk.reparameterize_kl(*packed.chunk(2, dim=-1), seed=1), packed, upstream)
    assert torch.equal(got, torch.cat(want, dim=-1))


@pytest.mark.interpreted
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not_reentrant"])
@pytest.mark.parametrize("seeded", [True, False], ids=["seeded", "drawn"])
def test_activation_checkpointing(backend: str, reentrant: bool, seeded: bool) -> None:
    """The second forward pass makes the same noise."""
    hidden = torch.randn(4, 6, device=DEVICE)

    def loss(h: Tensor) -> Tensor:
        mu, logvar = torch.tanh(h).chunk(2, dim=-1)
        z, kl = vk.reparameterize_kl(mu, logvar, seed=5 if seeded else None)
        return (z**3).sum() + kl.sum() + vk.bernoulli_log_likelihood(z, torch.sigmoid(z)).sum()

    found = []
    for run in (loss, functools.partial(checkpoint, loss, use_reentrant=reentrant)):
        h = hidden.clone().requires_grad_()
        torch.manual_seed(8)
        value = run(h)
        torch.rand(7)
        found.append((value, *torch.autograd.grad(value, h)) if not reentrant else _by_backward(value, h))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def _by_backward(value: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    value.backward()
    return value, h.grad


@pytest.mark.parametrize("case", [c for c in MEDIUM if c.dtypes[0] in (F32, BF16)], ids=str)
def test_autocast_changes_nothing(backend: str, case: Sample) -> None:
    """The dtypes of the inputs decide, inside autocast as outside."""
    with torch.autocast(DEVICE, torch.bfloat16):
        inside = case.results()
    for name, value in case.results().items():
        assert inside[name].dtype == value.dtype
        assert torch.equal(inside[name], value)


def test_a_model_under_autocast(backend: str) -> None:
    """bfloat16 from the encoder's and decoder's layers, float32 sums, float32 gradients in the weights."""
    layer = torch.nn.Linear(10, 8).to(DEVICE)
    decoder = torch.nn.Linear(4, 10).to(DEVICE)
    x = torch.rand(3, 10, device=DEVICE)
    with torch.autocast(DEVICE, torch.bfloat16):
        z, kl = vk.reparameterize_kl(*layer(x).chunk(2, dim=-1))
        log_px = vk.bernoulli_log_likelihood(decoder(z), x)
    assert (z.dtype, kl.dtype, log_px.dtype) == (BF16, F32, F32)
    (kl - log_px).mean().backward()
    assert all(p.grad.dtype == F32 and p.grad.isfinite().all() for p in (*layer.parameters(), *decoder.parameters()))


def test_z_may_be_modified(backend: str) -> None:
    """Backward needs no z: a flow or a normalisation may work in place."""
    found = []
    for change in (lambda z: z.mul_(2).tanh_(), lambda z: torch.tanh(z * 2)):
        tensors = sample("latent", (3, 5)).make()
        z, kl = vk.reparameterize_kl(tensors["mu"], tensors["logvar"], seed=2)
        found.append(torch.autograd.grad(change(z).sum() + kl.sum(), (tensors["mu"], tensors["logvar"])))
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.interpreted
@pytest.mark.parametrize(("op", "argument"), [(op, a) for op in OPS for a in OPS[op].arguments])
def test_inputs_modified_before_backward(backend: str, op: str, argument: str) -> None:
    """A kernel reads its inputs again in backward, so it refuses; eager either refuses or kept what it needs."""
    case = sample(op, (3, 5))
    want = case.results()

    def gradients_after_the_change() -> dict[str, Tensor]:
        def call(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            copies = {name: t.clone() for name, t in tensors.items()}
            outputs = case.call(copies)
            with torch.no_grad():
                copies[argument].add_(1)
            return outputs

        return case.results(call)

    try:
        got = gradients_after_the_change()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)
    else:
        assert backend == "eager"
        assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_saved_tensors_that_come_back_contiguous(kernel: str, layout: str) -> None:
    """`save_on_cpu(pin_memory=True)` gives such tensors. The backward pass still makes the noise of the forward
    pass."""
    mu = LAYOUTS[layout](torch.randn(2, 4, 3, 5, device=DEVICE)).requires_grad_()
    logvar = torch.randn(2, 4, 3, 5, device=DEVICE, requires_grad=True)
    prior_mu, prior_logvar = (torch.randn(4, 3, 5, device=DEVICE, requires_grad=True) for _ in range(2))
    prior = {"prior_mu": prior_mu, "prior_logvar": prior_logvar}
    calls = (
        (lambda: vk.reparameterize_kl(mu, logvar, seed=3), (mu, logvar)),
        (lambda: vk.reparameterize_kl(mu, logvar, seed=3, prior_mu=prior_mu), (mu, logvar, prior_mu)),
        (lambda: vk.reparameterize_kl(mu, logvar, seed=3, **prior), (mu, logvar, prior_mu, prior_logvar)),
        (lambda: vk.reparameterize_kl_packed(mu, seed=3), (mu,)),
    )
    for call, inputs in calls:
        found = []
        for pack in (Tensor.detach, lambda tensor: tensor.detach().clone(memory_format=torch.contiguous_format)):
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                z, kl = call()
                loss = z.sin().sum() + kl.sin().sum()
            found.append(torch.autograd.grad(loss, inputs, retain_graph=True))
            found.append(torch.autograd.grad(loss, inputs, create_graph=True))
        as_saved, again_as_saved, contiguous, again_contiguous = found
        assert all(torch.equal(a, b) for a, b in zip(contiguous, as_saved, strict=True))
        torch.testing.assert_close(again_contiguous, again_as_saved)


@pytest.mark.parametrize("name", ["logvar", "x", "prior_logvar"])
def test_what_is_broadcast_over_samples_is_rounded_once(backend: str, name: str) -> None:
    """The gradient of a bfloat16 tensor that samples share is summed before it is rounded."""
    mean = torch.randn(50, 4, 32, device=DEVICE).bfloat16()
    shared = torch.randn(4, 32, device=DEVICE).bfloat16().requires_grad_()

    upstream = torch.randn(50, 4, device=DEVICE)
    wide, of = mean.double(), shared.detach().double().requires_grad_()
    zero, one = torch.zeros((), dtype=F64, device=DEVICE), torch.ones((), dtype=F64, device=DEVICE)
    if name == "prior_logvar":
        total = vk.reparameterize_kl(mean, mean, prior_logvar=shared, batch_dims=2, seed=1)[1]
        want = kl_divergence(Normal(wide, torch.exp(wide / 2)), Normal(zero, torch.exp(of / 2)))
    elif name == "logvar":
        total = vk.gaussian_log_likelihood(mean, torch.ones_like(mean), shared, batch_dims=2)
        want = Normal(wide, torch.exp(of / 2)).log_prob(one)
    else:
        total = vk.gaussian_log_likelihood(mean, shared, 0.0, batch_dims=2)
        want = Normal(wide, one).log_prob(of)
    (found,) = torch.autograd.grad(total, shared, upstream)
    (want,) = torch.autograd.grad(want.sum(-1), of, upstream.double())
    unit = torch.finfo(BF16).eps * 2 ** want.abs().log2().floor()
    assert ((found.double() - want).abs() <= unit).all()


def test_backward_runs_on_the_backend_of_its_forward(kernel: str) -> None:
    case = sample("gaussian", (6, 1030), parameter=())
    want = case.results()
    tensors = case.make()
    outputs = case.call(tensors)
    with vk.use_backend("eager"):
        upstream = list(case.upstream(outputs).values())
        found = torch.autograd.grad(list(outputs.values()), list(tensors.values()), upstream)
    for name, gradient in zip(tensors, found, strict=True):
        assert torch.equal(gradient, want[f"grad {name}"])


@pytest.mark.interpreted
@pytest.mark.parametrize("case", [c for c in MEDIUM if BF16 not in c.dtypes], ids=str)
def test_batched_gradients(backend: str, case: Sample) -> None:
    """Several upstream gradients at once, in either of PyTorch's ways. They are powers of two times one, so that the
    results scale exactly."""
    function, inputs = case.of_inputs()
    outputs = case.named(function(*inputs))
    factors = (-2.0, 0.5, 4.0)
    batch = tuple(torch.stack([g * factor for factor in factors]) for g in case.upstream(outputs).values())

    def pull_back(*upstream: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(list(outputs.values()), inputs, upstream, retain_graph=True)

    names = [f"grad {name}" for name, t in case.make().items() if t.requires_grad]
    for found in (
        torch.func.vmap(pull_back)(*batch),
        torch.autograd.grad(list(outputs.values()), inputs, batch, is_grads_batched=True, retain_graph=True),
    ):
        for k, factor in enumerate(factors):
            gradients = {name: g[k] / factor for name, g in zip(names, found, strict=True)}
            check(outputs | gradients, case.results(), case.expected())
