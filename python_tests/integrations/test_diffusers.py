"""`vk.patch.diffusers` beside the published diffusers: its autoencoders give the same samples, losses and gradients, its
posteriors keep all that the published ones show, and what is not served stays with the published code."""

import contextlib
import copy
import doctest
import gc
import pickle
import sys
import threading
import weakref
from collections.abc import Callable, Iterator

import diffusers
import pytest
import torch
from counted import CountedOps
from diffusers import AutoencoderKL, AutoencoderKLCogVideoX, AutoencoderOobleck
from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from fresh_process import ROOT
from torch import Tensor

import vae_kernels as vk
from vae_kernels.patch import posterior

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

CLASSES = [DiagonalGaussianDistribution, OobleckDiagonalGaussianDistribution]
PUBLISHED = {cls: dict(vars(cls)) for cls in CLASSES}
ATTRIBUTES = {
    DiagonalGaussianDistribution: ("parameters", "mean", "logvar", "deterministic", "std", "var"),
    OobleckDiagonalGaussianDistribution: ("parameters", "mean", "scale", "std", "var", "logvar", "deterministic"),
}
classes = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)

LAYOUTS = {
    "image": ((2, 8, 6, 5), torch.contiguous_format),
    "image, channels_last": ((2, 8, 6, 5), torch.channels_last),
    "video": ((2, 8, 3, 4, 5), torch.contiguous_format),
    "video, channels_last_3d": ((2, 8, 3, 4, 5), torch.channels_last_3d),
    "audio": ((2, 8, 17), torch.contiguous_format),
    "vectors": ((5, 6), torch.contiguous_format),
}


def parameters(shape: tuple[int, ...], memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Means, and log-variances on both sides of both bounds."""
    p = torch.randn(shape, dtype=F64)
    p[:, shape[1] // 2 :] = 12 * torch.randn(p[:, shape[1] // 2 :].shape, dtype=F64) - 5
    return p.to(memory_format=memory_format)


def leaf(p: Tensor, dtype: torch.dtype = F32) -> Tensor:
    return p.detach().to(dtype, copy=True).requires_grad_()


def drawn(p: Tensor) -> Tensor:
    """The noise that the published `sample` draws next, of the dtype of p."""
    shape = (p.shape[0], p.shape[1] // 2, *p.shape[2:])
    with torch.random.fork_rng(devices=[]):
        return torch.randn(shape, dtype=p.dtype)


def upstream(t: Tensor) -> Tensor:
    return torch.randn(t.shape, generator=torch.Generator().manual_seed(1), dtype=F64).to(t.dtype)


def has_kl(cls: type, p: Tensor) -> bool:
    return cls is OobleckDiagonalGaussianDistribution or p.dim() in (4, 5)


def results(cls: type, p: Tensor) -> dict[str, Tensor]:
    """A sample, the KL where the published one exists, and the gradient of both."""
    torch.manual_seed(3)
    made = cls(p)
    outputs = {"z": made.sample()} | ({"kl": made.kl()} if has_kl(cls, p) else {})
    (gradient,) = torch.autograd.grad([*outputs.values()], p, [*map(upstream, outputs.values())])
    return {name: t.detach() for name, t in outputs.items()} | {"gradient": gradient}


def exact(cls: type, p: Tensor) -> dict[str, Tensor]:
    """The same in float64, from the same noise, by the formulas. (The published softplus is its argument above 20.)"""
    torch.manual_seed(3)
    eps = drawn(p).double()
    wide = leaf(p, F64)
    mean, raw = wide.chunk(2, dim=1)
    if cls is DiagonalGaussianDistribution:
        logvar = raw.clamp(-30, 20)
        outputs = {"z": mean + torch.exp(logvar / 2) * eps}
        kl = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar)
        outputs |= {"kl": kl.sum(dim=[1, 2, 3])} if has_kl(cls, p) else {}
    else:
        std = torch.logaddexp(raw, torch.zeros_like(raw)) + 1e-4
        outputs = {"z": mean + std * eps, "kl": (mean**2 + std**2 - 2 * torch.log(std) - 1).sum(1).mean()}
    grads = [upstream(t.to(p.dtype)).double() for t in outputs.values()]
    (gradient,) = torch.autograd.grad([*outputs.values()], wide, grads)
    return {name: t.detach() for name, t in outputs.items()} | {"gradient": gradient}


def errors(got: dict[str, Tensor], want: dict[str, Tensor]) -> dict[str, float]:
    """The largest, against the largest of the numbers around."""
    return {name: float((got[name].double() - t).abs().max() / t.abs().max()) for name, t in want.items()}


@classes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, F64, BF16])
def test_sample_and_kl_are_the_published_ones(cls: type, layout: str, dtype: torch.dtype) -> None:
    """From the same noise, in dtype, shape and layout; by one kernel forward and one backward; against float64 as near as
    the published code, or nearer."""
    p = leaf(parameters(*LAYOUTS[layout]), dtype)
    published = results(cls, p)
    with vk.patch.diffusers(), CountedOps() as ops:
        ours = results(cls, p)
    served = cls is DiagonalGaussianDistribution or p.is_contiguous()
    assert ops.calls["latent_forward"] == ops.calls["latent_backward"] == served
    for name, known in published.items():
        assert (ours[name].dtype, ours[name].shape) == (known.dtype, known.shape)
        assert ours[name].stride() == known.stride()
    wanted = exact(cls, p)
    mine, theirs = errors(ours, wanted), errors(published, wanted)
    rounding = torch.finfo(dtype).eps * (0.5 if dtype == BF16 else 4)
    for name in wanted:
        assert mine[name] <= max(theirs[name], rounding), name


STRIDED = {
    "transposed": lambda: parameters((2, 8, 6, 5)).transpose(2, 3),
    "channels behind": lambda: parameters((2, 6, 8)).transpose(1, 2),
    "sliced": lambda: parameters((2, 8, 6, 10))[..., ::2],
    "expanded": lambda: parameters((1, 8, 6, 5)).expand(3, 8, 6, 5),
    "some channels": lambda: parameters((2, 12, 6, 5))[:, 2:10],
}


@classes
@pytest.mark.parametrize("strided", STRIDED)
def test_layouts_of_views(cls: type, strided: str) -> None:
    p = STRIDED[strided]().float().detach()
    published = results(cls, p.requires_grad_())
    with vk.patch.diffusers():
        ours = results(cls, p)
    for name, known in published.items():
        assert ours[name].stride() == known.stride() or name == "gradient"
        torch.testing.assert_close(ours[name], known, rtol=1e-4, atol=1e-4)


@classes
def test_attributes_are_the_published_ones(cls: type) -> None:
    """To the bit, with their gradients, in whichever order they are read."""
    p = leaf(parameters((2, 8, 3, 3)))
    published = cls(p)
    for first in ATTRIBUTES[cls]:
        with vk.patch.diffusers():
            ours = cls(p)
            for name in (first, *ATTRIBUTES[cls]):
                theirs, mine = getattr(published, name), getattr(ours, name)
                if isinstance(theirs, Tensor) and name != "parameters":
                    assert torch.equal(mine, theirs) and mine.stride() == theirs.stride() and mine.dtype == theirs.dtype
                    gradients = [torch.autograd.grad(t.sum(), p, retain_graph=True)[0] for t in (mine, theirs)]
                    assert torch.equal(*gradients)
                else:
                    assert mine is theirs
            assert ours.mode() is ours.mean and ours.std is ours.std
            assert ours.mean.data_ptr() == p.data_ptr()
            with pytest.raises(AttributeError, match=f"'{cls.__name__}' object has no attribute 'scales'"):
                _ = ours.scales


@classes
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_deterministic(cls: type, dtype: torch.dtype) -> None:
    p = parameters((2, 8, 3, 3)).to(dtype)
    assert_same(cls, lambda: cls(p, deterministic=True), lambda made: (made.sample(), made.kl(), made.std, made.var))


def test_deterministic_set_later() -> None:
    def make() -> DiagonalGaussianDistribution:
        made = DiagonalGaussianDistribution(p)
        made.deterministic = True
        return made

    p = parameters((2, 8, 3, 3)).float()
    assert_same(DiagonalGaussianDistribution, make, lambda made: (made.kl(), made.nll(p[:, :4]), made.std))


@classes
def test_kl_to_another(cls: type) -> None:
    p, q = (leaf(parameters((2, 8, 3, 3))) for _ in range(2))
    assert_same(cls, lambda: (cls(p), cls(q)), lambda made: (made[0].kl(made[1]),), inputs=(p, q))


def assert_same(
    cls: type, make: Callable, call: Callable[..., tuple[Tensor, ...]], inputs: tuple[Tensor, ...] = ()
) -> None:
    """Results and gradients with the patch are the published ones to the bit, and no kernel of ours runs."""

    def run() -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        outputs = call(make())
        gradients = torch.autograd.grad(outputs, inputs, [*map(upstream, outputs)]) if inputs else ()
        return *outputs, *gradients

    published = run()
    with vk.patch.diffusers(), CountedOps() as ops:
        ours = run()
    assert not ops.calls
    for mine, theirs in zip(ours, published, strict=True):
        assert (mine.dtype, mine.stride()) == (theirs.dtype, theirs.stride())
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("layout", ["image", "image, channels_last", "video"])
@pytest.mark.parametrize("dims", [None, [1, 2, 3], (1, 2, 3), [1], (-1, 2), 1])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_nll(layout: str, dims: object, dtype: torch.dtype) -> None:
    """Against float64 at least as near as the published one, in shape and dtype."""
    p = parameters(*LAYOUTS[layout])
    x = torch.randn_like(p.chunk(2, dim=1)[0])
    arguments = () if dims is None else (dims,)

    def run(of: torch.dtype) -> list[Tensor]:
        q, y = leaf(p.to(dtype), of), leaf(x.to(dtype), of)
        nll = DiagonalGaussianDistribution(q).nll(y, *arguments)
        return [nll.detach(), *torch.autograd.grad(nll, (q, y), upstream(nll.to(dtype)).to(of))]

    published, wanted = run(dtype), run(F64)
    with vk.patch.diffusers(), CountedOps() as ops:
        ours = run(dtype)
    assert ops.calls == {"likelihood_forward": 1, "likelihood_backward": 1}
    for mine, theirs, want in zip(ours, published, wanted, strict=True):
        assert (mine.dtype, mine.shape) == (theirs.dtype, theirs.shape)
        (my_error,), (their_error,) = (errors({"": t}, {"": want}).values() for t in (mine, theirs))
        assert my_error <= max(their_error, torch.finfo(dtype).eps * (0.5 if dtype == BF16 else 4))


# Noise


@classes
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [F32, BF16])
@pytest.mark.parametrize("generator", ["global", "one", "list", "list of one"])
def test_noise_is_the_published_one(cls: type, layout: str, dtype: torch.dtype, generator: str) -> None:
    """To the bit, and the generators are left in the same state."""
    shape, memory_format = LAYOUTS[layout]
    p = torch.zeros(shape, dtype=dtype).contiguous(memory_format=memory_format)
    made = cls(p)
    spread = made.std.flatten()[0].double()

    def run() -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        generators = [torch.Generator().manual_seed(k) for k in range(shape[0])]
        given = {"global": None, "one": generators[0], "list": generators, "list of one": generators[:1]}[generator]
        z = cls(p).sample(given)
        return z, torch.stack([torch.get_rng_state(), *(g.get_state() for g in generators)])

    z, states = run()
    with vk.patch.diffusers():
        ours, our_states = run()
    assert torch.equal(our_states, states)
    if cls is DiagonalGaussianDistribution:  # whose standard deviation is 1
        assert torch.equal(ours, z)
    else:
        torch.testing.assert_close(ours.double() / spread, z.double() / spread, rtol=2 * torch.finfo(dtype).eps, atol=0)


def test_noise_of_the_kernel() -> None:
    """Reproduced by `torch.manual_seed`, standard normal, other numbers than torch's; a generator that is given draws the
    published ones."""
    p = torch.zeros(1, 2, 256, 256)

    def run(generator: torch.Generator | None = None) -> Tensor:
        torch.manual_seed(0)
        return DiagonalGaussianDistribution(p).sample(generator)

    published, given = run(), run(torch.Generator().manual_seed(1))
    with vk.patch.diffusers(noise="kernel"):
        z = run()
        assert torch.equal(run(), z)
        assert not torch.equal(z, published)
        assert torch.equal(run(torch.Generator().manual_seed(1)), given)
        with vk.patch.diffusers():
            assert torch.equal(run(), published)
        assert torch.equal(run(), z)
    # Four standard errors.
    assert abs(float(z.mean())) < 4 / 256 and abs(float(z.var()) - 1) < 4 * 2**0.5 / 256


def test_other_noise_is_refused() -> None:
    with pytest.raises(ValueError, match="noise must be 'torch' or 'kernel', got 'cuda'"):
        vk.patch.diffusers(noise="cuda")


# The KL that a sample brings with it


def launches(call: Callable[[], object]) -> int:
    with CountedOps() as ops:
        call()
    return ops.calls["latent_forward"]


@pytest.fixture
def patched() -> Iterator[None]:
    with vk.patch.diffusers():
        yield


@classes
@pytest.mark.parametrize("layout", ["image", "video"])
@pytest.mark.usefixtures("patched")
def test_kl_is_used_once(cls: type, layout: str) -> None:
    made = cls(leaf(parameters(LAYOUTS[layout][0])))
    assert launches(made.sample) == 1
    first = []
    assert launches(lambda: first.append(made.kl())) == 0
    expected = first[0].detach().clone()
    first[0].detach().mul_(7)  # who got it may change it
    assert launches(lambda: first.append(made.kl())) == 1
    assert torch.equal(first[1], expected)


@classes
@pytest.mark.usefixtures("patched")
def test_kl_before_and_without_a_sample(cls: type) -> None:
    """It draws no noise."""
    p = leaf(parameters((2, 8, 3, 3)))
    before = torch.get_rng_state()
    made = cls(p)
    kl = made.kl()
    assert torch.equal(torch.get_rng_state(), before)
    made.sample()
    assert torch.equal(made.kl(), kl)


@classes
@pytest.mark.usefixtures("patched")
def test_kl_of_another_grad_mode(cls: type) -> None:
    made = cls(leaf(parameters((2, 8, 3, 3))))
    with torch.no_grad():
        made.sample()
        with torch.enable_grad():
            assert made.kl().requires_grad
    made.sample()
    with torch.no_grad():
        assert not made.kl().requires_grad


@classes
@pytest.mark.usefixtures("patched")
def test_kl_of_a_freed_graph(cls: type) -> None:
    """A backward pass through the sample has freed the kernel's node: the KL gets one of its own."""
    p = leaf(parameters((2, 8, 3, 3)))
    made = cls(p)
    made.sample().sum().backward()
    freed = p.grad.clone()
    made.kl().sum().backward()
    alone = leaf(p)
    cls(alone).kl().sum().backward()
    torch.testing.assert_close(p.grad - freed, alone.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("patched")
def test_kl_of_what_asks_for_a_gradient_later() -> None:
    p = parameters((2, 8, 3, 3)).float()
    made = DiagonalGaussianDistribution(p)
    made.sample()
    p.requires_grad_()
    assert made.kl().requires_grad


def test_made_without_grad() -> None:
    """Neither sample nor KL has a gradient, as published."""
    p = leaf(parameters((2, 8, 3, 3)))
    for block in (contextlib.nullcontext(), vk.patch.diffusers()):
        with block:
            with torch.no_grad():
                made = DiagonalGaussianDistribution(p)
            assert not made.sample().requires_grad and not made.kl().requires_grad and not made.std.requires_grad


def test_read_without_grad() -> None:
    """What is read under `no_grad` has the gradient of where the posterior was made, as published."""
    p = leaf(parameters((2, 8, 3, 3)))
    for block in (contextlib.nullcontext(), vk.patch.diffusers()):
        with block:
            made = DiagonalGaussianDistribution(p)
            with torch.no_grad():
                assert made.std.requires_grad and made.mean.requires_grad


# Assigned, changed in place, read


@classes
@pytest.mark.parametrize("name", ["mean", "std", "var", "logvar"])
@pytest.mark.parametrize("how", ["assigned", "assigned before it is read", "in place"])
def test_changed_attributes_count(cls: type, name: str, how: str) -> None:
    """The published methods answer from them."""
    p = parameters((2, 8, 3, 3)).float()

    def make() -> object:
        made = cls(p.clone())
        if how == "in place":
            getattr(made, name).mul_(0.5)
        elif how == "assigned":
            setattr(made, name, getattr(made, name) * 0.5)
        else:
            setattr(made, name, torch.full((2, 4, 3, 3), 0.5))
        return made

    check = lambda made: (made.sample(), made.kl())  # noqa: E731
    if name == "mean" and how == "in place":  # it is a view of the parameters, which the kernel reads
        torch.manual_seed(0)
        published = check(make())
        torch.manual_seed(0)
        with vk.patch.diffusers():
            torch.testing.assert_close(check(make()), published)
    else:
        assert_same(cls, make, check)


@classes
def test_other_parameters_are_assigned(cls: type) -> None:
    def make() -> object:
        made = cls(p)
        made.parameters = p.bfloat16()  # of which `sample` takes the dtype of the noise
        return made

    p = parameters((2, 8, 3, 3)).float()
    assert_same(cls, make, lambda made: (made.sample(), made.kl()))


@classes
def test_gradients_to_attributes(cls: type) -> None:
    """Who reads an attribute can ask for a gradient to it."""
    p = leaf(parameters((2, 8, 3, 3)))

    def run(made: object) -> tuple[Tensor, ...]:
        torch.manual_seed(0)
        mean, std = made.mean, made.std
        return torch.autograd.grad(made.sample().square().sum() + made.kl().sum(), (mean, std))

    assert_same(cls, lambda: cls(p), run)


@classes
def test_attributes_without_gradient_leave_the_kernel(cls: type) -> None:
    made_of = parameters((2, 8, 3, 3)).float()
    with vk.patch.diffusers():
        made = cls(made_of)
        assert made.std.shape == made.mode().shape
        assert launches(made.sample) == 1


@classes
@pytest.mark.usefixtures("patched")
def test_changed_parameters_are_refused(cls: type) -> None:
    """The published posterior has computed with the old ones: they are no more."""
    for call in (lambda m: m.sample(), lambda m: m.kl(), lambda m: m.std, lambda m: m.logvar):
        p = parameters((2, 8, 3, 3)).float()
        made = cls(p)
        p.mul_(2)
        with pytest.raises(RuntimeError, match=r"changed in place after the posterior was made .* clone\(\)"):
            call(made)


# What the published code answers


class Strict(Tensor):
    """A subclass of tensors, whose own rules may differ."""


class Own(DiagonalGaussianDistribution):
    """A subclass with its own way to the attributes."""

    def __init__(self, parameters: Tensor, deterministic: bool = False) -> None:
        super().__init__(parameters, deterministic)
        self.std = self.std * 0.5


NOT_SERVED = {
    "a subclass": lambda: Own(parameters((2, 8, 3, 3)).float()),
    "a tensor subclass": lambda: DiagonalGaussianDistribution(parameters((2, 8, 3, 3)).float().as_subclass(Strict)),
}


@pytest.mark.parametrize("case", NOT_SERVED)
def test_the_published_code_answers(case: str) -> None:
    def make() -> object:
        torch.manual_seed(1)
        return NOT_SERVED[case]()

    assert_same(DiagonalGaussianDistribution, make, lambda made: (made.sample(), made.kl(), made.std))


@classes
def test_the_published_code_answers_on_the_eager_backend(cls: type) -> None:
    p = leaf(parameters((2, 8, 3, 3)))
    with vk.use_backend("eager"):
        assert_same(cls, lambda: cls(p), lambda made: (made.sample(), made.kl()), inputs=(p,))


@classes
def test_the_published_code_answers_in_inference_mode(cls: type) -> None:
    p = parameters((2, 8, 3, 3)).float()
    with torch.inference_mode():
        assert_same(cls, lambda: cls(p), lambda made: (made.sample(), made.kl()))


@classes
def test_the_published_code_answers_under_transforms(cls: type) -> None:
    p = parameters((2, 8, 3, 3)).float()

    def loss(p: Tensor) -> Tensor:
        made = cls(p)
        return made.mode().sum() + made.kl().sum()

    assert_same(cls, lambda: None, lambda _: (torch.func.grad(loss)(p),))


def test_the_published_errors_stay() -> None:
    flat, meta = torch.randn(2, 8, 3), torch.randn(2, 8, 3, 3, device="meta")
    with vk.patch.diffusers():
        with pytest.raises(IndexError, match="Dimension out of range"):
            DiagonalGaussianDistribution(flat).kl()
        with pytest.raises(RuntimeError, match="must match the size"):
            DiagonalGaussianDistribution(torch.randn(2, 5, 3, 3)).sample()
        assert DiagonalGaussianDistribution(meta).sample().is_meta


@pytest.mark.parametrize("where", ["made", "used", "both"])
def test_autocast(where: str) -> None:
    """Half precision comes out in autocast's dtypes, whatever is running where the posterior is made or used."""

    def run() -> list[Tensor]:
        torch.manual_seed(0)
        with torch.autocast("cpu", dtype=BF16, enabled=where != "used"):
            made = DiagonalGaussianDistribution(p)
        with torch.autocast("cpu", dtype=BF16, enabled=where != "made"):
            return [made.sample(), made.kl(), made.nll(made.mode()), made.std, made.logvar]

    p = torch.randn(2, 8, 3, 3, dtype=BF16)
    published = run()
    with vk.patch.diffusers():
        ours = run()
    for mine, theirs in zip(ours, published, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=2**-6, atol=2**-6)  # dtypes too


@pytest.mark.filterwarnings("ignore")
def test_compiled() -> None:
    """Compiled code gets the published formulas, which the compiler fuses."""
    p = leaf(parameters((2, 8, 3, 3)))

    def loss(p: Tensor) -> Tensor:
        made = DiagonalGaussianDistribution(p)
        return made.mode().sum() + made.kl().sum()

    with vk.patch.diffusers():
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(p)
    torch.testing.assert_close(compiled, loss(p))


# Before and after


@classes
def test_posteriors_outlive_the_patch(cls: type) -> None:
    """What was made before, within and after it has all that a published one has, with its gradients."""
    p = leaf(parameters((2, 8, 3, 3)))
    before = cls(p)
    with vk.patch.diffusers():
        within, read = cls(p), cls(p)
        assert torch.equal(read.std, before.std)
        torch.manual_seed(0)
        from_before = before.sample()
    torch.manual_seed(0)
    assert torch.equal(before.sample(), from_before)
    for made in (within, read):
        assert vars(made).keys() == vars(before).keys()
        for name in ("mean", "std", "var", "logvar"):
            assert torch.equal(getattr(made, name), getattr(before, name))
        torch.manual_seed(0)
        assert torch.equal(made.sample(), from_before)
        gradients = [torch.autograd.grad(m.kl().sum(), p, retain_graph=True)[0] for m in (made, before)]
        assert torch.equal(*gradients)


@classes
@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_copies_are_published_posteriors(cls: type, copied: Callable) -> None:
    p = parameters((2, 8, 3, 3)).float()
    published = cls(p)
    with vk.patch.diffusers():
        other = copied(cls(p))
        assert vars(other).keys() == vars(published).keys()
    for name in ("mean", "std", "var", "logvar"):
        assert torch.equal(getattr(other, name), getattr(published, name))


def test_posteriors_are_freed() -> None:
    """With the graph of the KL that nobody asked for."""
    with vk.patch.diffusers():
        p = leaf(parameters((2, 8, 3, 3)))
        made = DiagonalGaussianDistribution(p)
        made.sample()
        freed = weakref.ref(made)
        del made
        assert freed() is None
        gc.collect()
        assert not posterior._incomplete


def replaced() -> bool:
    """Whether ours stand there; all or none."""
    (state,) = {dict(vars(cls)) != published for cls, published in PUBLISHED.items()}
    return state


def test_nested_blocks_and_calls() -> None:
    first = vk.patch.diffusers()
    ours = dict(vars(DiagonalGaussianDistribution))
    with vk.patch.diffusers(noise="kernel"):
        assert dict(vars(DiagonalGaussianDistribution)) == ours
    assert replaced()
    second = vk.patch.diffusers()
    first.undo()
    assert replaced()
    second.undo()
    assert not replaced()


def test_threads() -> None:
    """Posteriors that are made while patches come and go are whole."""
    p, found = parameters((2, 8, 3, 3)).float(), []
    expected = DiagonalGaussianDistribution(p).std

    def patch() -> None:
        for _ in range(100):
            with vk.patch.diffusers():
                pass

    def use() -> None:
        for _ in range(200):
            made = DiagonalGaussianDistribution(p)
            made.sample()
            found.append(torch.equal(made.std, expected) and made.kl().shape == (2,))

    threads = [threading.Thread(target=work) for work in (patch, patch, use, use)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 400
    assert not replaced()


def test_repr_names_what_is_replaced() -> None:
    with vk.patch.diffusers(noise="kernel") as patch:
        assert f"diffusers {diffusers.__version__}, noise='kernel', in force" in repr(patch)
        for cls in CLASSES:
            for method in ("sample", "kl"):
                assert f"{cls.__name__}.{method} by vae_kernels.reparameterize_kl_packed" in repr(patch)


@pytest.mark.parametrize("name", ["__init__", "sample", "kl", "nll"])
def test_unknown_code_is_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiagonalGaussianDistribution, name, lambda self, *_: None)
    message = rf"diffusers {diffusers.__version__} cannot be patched: .*\.{name} is not .* {posterior.KNOWN_VERSIONS}\."
    with pytest.raises(RuntimeError, match=message):
        vk.patch.diffusers()


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)  # its import fails, as where it is not installed
    with pytest.raises(ImportError, match="pip install diffusers"):
        vk.patch.diffusers()


# Models


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs() -> None:
    failed, run = doctest.testfile(str(ROOT / "docs/diffusers.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert run > 0 and failed == 0


def image() -> tuple[torch.nn.Module, Tensor]:
    model = AutoencoderKL(
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
    )
    return model, torch.randn(2, 3, 16, 16)


def image_channels_last() -> tuple[torch.nn.Module, Tensor]:
    model, x = image()
    return model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)


def video() -> tuple[torch.nn.Module, Tensor]:
    model = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=2, latent_channels=4
    )
    return model, torch.randn(1, 3, 8, 16, 16)


def audio() -> tuple[torch.nn.Module, Tensor]:
    model = AutoencoderOobleck(
        encoder_hidden_size=12,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=12,
        decoder_input_channels=6,
    )
    return model, torch.randn(2, 2, 64)


@pytest.mark.parametrize("build", [image, image_channels_last, video, audio])
@pytest.mark.parametrize("dtype", [F32, BF16])
def test_models(build: Callable[[], tuple[torch.nn.Module, Tensor]], dtype: torch.dtype) -> None:
    """Encode, sample, decode and the gradients of the loss: as near to float64 as with the published posterior, up to the
    rounding errors that the decoder makes of another last bit of z."""
    (model, x), (wide, _) = build(), build()
    model, x = model.to(dtype), x.to(dtype)
    wide.double().load_state_dict(model.state_dict())
    published = trained(model, x)
    with vk.patch.diffusers(), CountedOps() as ops:
        ours = trained(model, x)
    assert ops.calls["latent_forward"] == ops.calls["latent_backward"] == 1
    assert not replaced()
    with torch.no_grad():
        torch.manual_seed(0)
        eps = torch.randn(published["z"].shape, dtype=dtype)
    wanted = trained(wide, x.double(), eps.double())
    for name, want in wanted.items():
        assert (ours[name].dtype, ours[name].shape) == (published[name].dtype, published[name].shape)
        mine, theirs = (float((t[name].double() - want).norm() / want.norm()) for t in (ours, published))
        assert mine <= 1.5 * theirs + 4 * torch.finfo(dtype).eps, name
    torch.testing.assert_close(
        ours["z"], published["z"], rtol=4 * torch.finfo(dtype).eps, atol=4 * torch.finfo(dtype).eps
    )


def trained(model: torch.nn.Module, x: Tensor, eps: Tensor | None = None) -> dict[str, Tensor]:
    """Sample, KL, reconstruction and gradient of a step of training; of this noise, or the posterior's own."""
    made = model.encode(x).latent_dist
    torch.manual_seed(0)
    z = made.sample() if eps is None else made.mean + made.std * eps
    kl, y = made.kl(), model.decode(z).sample
    loss = (y[..., : x.shape[-1]] - x[..., : y.shape[-1]]).square().mean() + 1e-2 * kl.mean()
    gradients = torch.autograd.grad(loss, [*model.parameters()], allow_unused=True)
    gradient = torch.cat([g.flatten() for g in gradients if g is not None])
    return {"z": z.detach(), "kl": kl.detach(), "y": y.detach(), "gradient": gradient}
