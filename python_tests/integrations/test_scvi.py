"""`vk.patch.scvi` beside the published scvi-tools: its models train to the same numbers, its distributions give the same
elements, and what is not served stays with the published code."""

import doctest
import sys
import threading
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import NamedTuple

import error_rule
import mpmath
import numpy as np
import pytest
import reference
import scvi
import torch
from counted import CountedOps
from error_rule import Expected
from fresh_process import ROOT, python
from scvi.distributions import (
    NegativeBinomial,
    NegativeBinomialMixture,
    Poisson,
    ZeroInflatedNegativeBinomial,
    _negative_binomial,
)
from torch import Tensor
from torch.distributions import Distribution

import vae_kernels as vk
from vae_kernels.patch import counts

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16

PUBLISHED = {
    cls: cls.log_prob for cls in (NegativeBinomial, ZeroInflatedNegativeBinomial, NegativeBinomialMixture, Poisson)
}


class Kind(NamedTuple):
    """A distribution of counts: its parameters, a function that its published `log_prob` calls, and its truth."""

    cls: type[Distribution]
    parameters: tuple[str, ...]
    module: ModuleType
    formula: str
    reference: Callable[..., tuple[reference.Terms, reference.Terms]]
    kernels: int = 1

    def __str__(self) -> str:
        return self.cls.__name__


KINDS = [
    Kind(NegativeBinomial, ("mu", "theta"), _negative_binomial, "log_nb_positive", reference.negative_binomial),
    Kind(
        ZeroInflatedNegativeBinomial,
        ("mu", "theta", "zi_logits"),
        _negative_binomial,
        "log_zinb_positive",
        reference.zero_inflated_negative_binomial,
    ),
    Kind(
        NegativeBinomialMixture,
        ("mu1", "mu2", "theta1", "mixture_logits"),
        _negative_binomial,
        "log_mixture_nb",
        reference.negative_binomial_mixture,
        kernels=2,
    ),
    Kind(Poisson, ("rate",), torch.distributions.poisson, "broadcast_all", reference.poisson_rate),
]
# What the published parameters are called here.
OURS = {"zi_logits": "zero_logits", "theta1": "theta"}
kinds = pytest.mark.parametrize("kind", KINDS, ids=str)


def draw(kind: Kind, name: str, shape: tuple[int, ...]) -> Tensor:
    """Parameters over nine decades, logits of both signs, counts up to thousands. Of a mixture less: the weight of a
    component that is out of the question is a subnormal number, and so without digits."""
    normal = (1 if kind.cls is NegativeBinomialMixture else 3) * torch.randn(shape, dtype=F64)
    return normal if name.endswith("logits") else torch.poisson(normal.exp()) if name == "x" else normal.exp()


def leaves(kind: Kind, shapes: dict[str, tuple[int, ...]], dtypes: dict[str, torch.dtype]) -> dict[str, Tensor]:
    return {
        name: draw(kind, name, shapes.get(name, shapes["all"])).to(dtypes.get(name, dtypes["all"]))
        for name in (*kind.parameters, "x")
    }


def results(kind: Kind, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The elements, and the gradients of all tensors under the upstream gradient."""
    tensors = {name: t.detach().requires_grad_() for name, t in tensors.items()}
    parameters = {name: t for name, t in tensors.items() if name != "x"}
    elements = kind.cls(**parameters).log_prob(tensors["x"])
    gradients = torch.autograd.grad(elements, [*tensors.values()], upstream(elements.shape, elements.dtype))
    return {"log_px": elements.detach()} | dict(zip(tensors, gradients, strict=True))


def upstream(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64).to(dtype)


def exact(kind: Kind, tensors: dict[str, Tensor], of: dict[str, Tensor]) -> dict[str, Expected]:
    """The true values of those results, by mpmath, and the magnitudes of the terms that the published code adds up."""
    shape = of["log_px"].shape
    with mpmath.workdps(reference.DIGITS):
        arrays = {OURS.get(name, name): np.broadcast_to(reference.exact(t), shape)[None] for name, t in tensors.items()}
        grad = reference.exact(upstream(shape, of["log_px"].dtype))[None]
        outputs, gradients = kind.reference(arrays, {"log_px": grad})
        found = {"log_px": error_rule.total(outputs["log_px"], shape)[1]}
        for name, t in tensors.items():
            found[name] = error_rule.total(gradients[OURS.get(name, name)], tuple(t.shape), leading=True)[1]
    return found


def check(ours: dict[str, Tensor], published: dict[str, Tensor], want: dict[str, Expected]) -> None:
    """The error rule, the published code being the yardstick."""
    known = {name: error_rule.error(t, want[name]) for name, t in published.items()}
    if "mu2" in known:  # the components of a mixture are each other's mirror image
        known["mu1"] = known["mu2"] = max(known["mu1"], known["mu2"])
    for name, t in ours.items():
        assert error_rule.error(t, want[name]) <= 2 * known[name] + error_rule.SLACK_ULP, name


SHAPES = {
    "cells": {"all": (3, 17)},
    "dispersion per gene": {"all": (3, 17), "theta": (17,), "theta1": (17,)},
    "samples": {"all": (3, 17), "mu": (4, 3, 17), "mu1": (4, 3, 17), "rate": (4, 3, 17), "theta": (17,)},
    "cells for one mean": {"all": (1, 17), "theta": (17,), "x": (3, 17)},
    "one number": {"all": ()},
    "no cells": {"all": (0, 17), "theta": (17,)},
}
DTYPES = {
    "float32": {"all": F32},
    "float64": {"all": F64},
    "bfloat16": {"all": BF16, "x": F32},
    "all bfloat16": {"all": BF16},
    "mixed": {"all": F32, "zi_logits": BF16, "theta": F64, "mixture_logits": BF16},
}


CASES = [
    *((shapes, "float32") for shapes in SHAPES),
    *(("dispersion per gene", dtypes) for dtypes in DTYPES if dtypes != "float32"),
]


@kinds
@pytest.mark.parametrize(("shapes", "dtypes"), CASES)
def test_elements_and_gradients_are_the_published_ones(kind: Kind, shapes: str, dtypes: str) -> None:
    """In shape and dtype; and in value to the error rule, the published code being the yardstick."""
    tensors = leaves(kind, SHAPES[shapes], DTYPES[dtypes])
    published = results(kind, tensors)
    with vk.patch.scvi(), CountedOps() as ops:
        ours = results(kind, tensors)
    assert ops.calls["likelihood_forward"] == ops.calls["likelihood_backward"] == kind.kernels
    for name, known in published.items():
        assert (ours[name].dtype, ours[name].shape) == (known.dtype, known.shape)
    check(ours, published, exact(kind, tensors, ours))


@kinds
def test_extreme_values(kind: Kind) -> None:
    """What is true is a number in float32: so is ours, and by the error rule no further from it than the published one."""
    mu = torch.tensor([0, 1e-30, 1e-8, 1, 1e8])
    theta = torch.tensor([1e-10, 1e-3, 1, 1e4, 1e10])
    x = torch.tensor([0, 1, 5, 1e3, 1e6])
    logits = torch.tensor([-90, 0, 90.0])
    grid = torch.meshgrid(mu, theta, logits, x, indexing="ij")
    named = dict(zip(("mu", "theta", "zi_logits", "x"), (t.reshape(-1, 5) for t in grid), strict=True))
    named |= {
        "mu1": named["mu"],
        "mu2": named["mu"].flip(0),
        "theta1": named["theta"],
        "mixture_logits": named["zi_logits"],
    }
    named["rate"] = named["mu"].clamp(min=1e-30)  # the logarithm of 0 is no number
    tensors = {name: named[name] for name in (*kind.parameters, "x")}
    published = results(kind, tensors)
    with vk.patch.scvi():
        ours = results(kind, tensors)
    check(ours, published, exact(kind, tensors, ours))


@kinds
def test_in_inference_mode(kind: Kind) -> None:
    tensors = leaves(kind, {"all": (3, 5)}, {"all": F32})
    with vk.patch.scvi():
        expected = results(kind, tensors)["log_px"]
        x = tensors.pop("x")
        with torch.inference_mode(), CountedOps() as ops:
            assert torch.equal(kind.cls(**tensors).log_prob(x), expected)
    assert ops.calls == {"likelihood_forward": kind.kernels}


def test_other_parametrisation() -> None:
    """`total_count` and `logits`, as DestVI and Stereoscope give them."""
    counts_, logits, x = torch.rand(3, 5) + 0.5, torch.randn(3, 5), torch.poisson(torch.ones(3, 5))
    published = NegativeBinomial(total_count=counts_, logits=logits).log_prob(x)
    with vk.patch.scvi(), CountedOps() as ops:
        ours = NegativeBinomial(total_count=counts_, logits=logits).log_prob(x)
    assert ops.calls["likelihood_forward"] == 1
    torch.testing.assert_close(ours, published)


# Warnings

INVALID = {
    "half a count": torch.tensor([[0.5, 1.0, 2.0]]),
    "below zero": torch.tensor([[0.0, -1.0, 2.0]]),
    "infinite": torch.tensor([[0.0, float("inf"), 2.0]]),
    "nan": torch.tensor([[0.0, float("nan"), 2.0]]),
}


def caught(call: Callable[[], object]) -> list[tuple[type[Exception], str, str]]:
    """Category, text and file of the warnings of a call, and what it raises."""
    raised = []
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            call()
        except ValueError as error:
            raised.append((ValueError, str(error), ""))
    return [(w.category, str(w.message), w.filename) for w in found] + raised


@kinds
@pytest.mark.parametrize("validate", [False, True])
@pytest.mark.parametrize("x", [*INVALID, "counts"])
def test_warnings_are_the_published_ones(kind: Kind, validate: bool, x: str) -> None:
    value = INVALID.get(x, torch.tensor([[0.0, 1.0, 2.0]]))
    parameters = dict.fromkeys(kind.parameters, torch.ones(2, 3))
    call = lambda: kind.cls(**parameters, validate_args=validate).log_prob(value)  # noqa: E731
    published = caught(call)
    with vk.patch.scvi():
        assert caught(call) == published
    always = kind.cls in (ZeroInflatedNegativeBinomial, NegativeBinomialMixture)
    assert bool(published) == (x != "counts" and (validate or always))


@kinds
def test_arguments_are_validated(kind: Kind) -> None:
    parameters = dict.fromkeys(kind.parameters, torch.ones(2, 3)) | {kind.parameters[0]: -torch.ones(2, 3)}
    with vk.patch.scvi(), pytest.raises(ValueError, match=kind.parameters[0]):
        kind.cls(**parameters, validate_args=True)


# What the published code answers


class Strict(Tensor):
    """A subclass of tensors, whose own rules may differ."""


def ones(kind: Kind, **others: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(kind.parameters, torch.ones(2, 3)) | others


NOT_SERVED = {
    "integer counts": lambda kind: (ones(kind), torch.ones(2, 3, dtype=torch.int64)),
    "a tensor subclass": lambda kind: (ones(kind), torch.ones(2, 3).as_subclass(Strict)),
    "promotion by dims": lambda kind: (dict.fromkeys(kind.parameters, torch.tensor(1.0, dtype=F64)), torch.ones(3)),
}


@kinds
@pytest.mark.parametrize("case", NOT_SERVED)
def test_the_published_code_answers(kind: Kind, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, x = NOT_SERVED[case](kind)
    kept = kind.cls(**parameters)
    _only_published(kind, lambda: kept.log_prob(x), monkeypatch)


@kinds
def test_the_published_code_answers_on_the_eager_backend(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, x = kind.cls(**ones(kind)), torch.ones(2, 3)
    with vk.use_backend("eager"):
        _only_published(kind, lambda: kept.log_prob(x), monkeypatch)


@kinds
def test_the_published_code_answers_under_transforms(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters, x = ones(kind), torch.ones(2, 3)

    def total(first: Tensor) -> Tensor:
        # Counts are validated by their values, which a transform has none of.
        distribution = kind.cls(**parameters | {kind.parameters[0]: first})
        monkeypatch.setattr(distribution, "_validate_sample", lambda value: None, raising=False)
        return distribution.log_prob(x).sum()

    _only_published(kind, lambda: torch.func.grad(total)(parameters[kind.parameters[0]]), monkeypatch)


def test_a_device_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = NegativeBinomial(mu=torch.ones(2, 3, device="meta"), theta=torch.ones(2, 3, device="meta"))
    _only_published(KINDS[0], lambda: kept.log_prob(torch.ones(2, 3, device="meta")), monkeypatch)


def test_an_eps_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = NegativeBinomial(mu=torch.ones(2, 3), theta=torch.ones(2, 3))
    kept._eps = 1e-2
    _only_published(KINDS[0], lambda: kept.log_prob(torch.ones(2, 3)), monkeypatch)


def test_a_mixture_of_two_dispersions(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = NegativeBinomialMixture(**ones(KINDS[2]))
    kept.theta2 = 2 * torch.ones(2, 3)
    _only_published(KINDS[2], lambda: kept.log_prob(torch.ones(2, 3)), monkeypatch)


def test_half_precision_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which dtype comes out is autocast's choice there."""
    parameters = {name: torch.ones(2, 3, dtype=BF16) for name in ("mu", "theta")}
    with torch.autocast("cpu", dtype=BF16):
        kept = NegativeBinomial(**parameters)
        _only_published(KINDS[0], lambda: kept.log_prob(torch.ones(2, 3, dtype=BF16)), monkeypatch)


def test_shapes_that_do_not_fit_raise_the_published_error() -> None:
    kept = NegativeBinomial(mu=torch.ones(2, 3), theta=torch.ones(2, 3))
    with pytest.raises(RuntimeError) as published:
        kept.log_prob(torch.ones(2, 4))
    with vk.patch.scvi(), pytest.raises(RuntimeError) as ours:
        kept.log_prob(torch.ones(2, 4))
    assert str(ours.value) == str(published.value)


def _only_published(kind: Kind, call: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """The published formula is called, ours is not, and the result is the same to the bit."""
    published = call()
    formula, calls = getattr(kind.module, kind.formula), []

    def spy(*arguments, **named):
        calls.append(arguments)
        return formula(*arguments, **named)

    with vk.patch.scvi():
        monkeypatch.setattr(kind.module, kind.formula, spy)
        with CountedOps() as ops:
            ours = call()
        monkeypatch.setattr(kind.module, kind.formula, formula)
    assert calls
    assert not ops.calls
    assert (ours.dtype, ours.shape, ours.device) == (published.dtype, published.shape, published.device)
    assert ours.is_meta or torch.equal(ours, published)


def test_subclasses_that_override_keep_their_own() -> None:
    class Half(NegativeBinomial):
        def log_prob(self, value: Tensor) -> Tensor:
            return 0.5 * super().log_prob(value)

    parameters, x = ones(KINDS[0]), torch.ones(2, 3)
    published = Half(**parameters).log_prob(x)
    with vk.patch.scvi(), CountedOps() as ops:
        torch.testing.assert_close(Half(**parameters).log_prob(x), published)
    assert ops.calls["likelihood_forward"] == 1


# Patching and undoing


def replaced() -> bool:
    """Whether ours stand there; all or none."""
    (state,) = {cls.log_prob is not published for cls, published in PUBLISHED.items()}
    return state


def test_import_brings_no_package() -> None:
    code = "import sys, vae_kernels as vk; vk.patch.scvi; print({'scvi', 'diffusers', 'pyro'} & {*sys.modules})"
    assert python(code) == "set()"


def test_call_and_undo() -> None:
    patch = vk.patch.scvi()
    assert replaced() and patch.active
    patch.undo()
    assert not replaced() and not patch.active
    patch.undo()
    assert not replaced()


def test_twice_replaces_once() -> None:
    first = vk.patch.scvi()
    ours = NegativeBinomial.log_prob
    second = vk.patch.scvi()
    assert NegativeBinomial.log_prob is ours
    first.undo()
    first.undo()
    assert NegativeBinomial.log_prob is ours
    second.undo()
    assert not replaced()


def test_nested_blocks() -> None:
    with vk.patch.scvi() as outer:
        with vk.patch.scvi():
            assert replaced()
        assert replaced()
        with outer:  # entered again, it ends here
            assert replaced()
        assert not replaced()
    assert not replaced()
    with outer:
        assert replaced()
    assert not replaced()


def test_undone_where_a_block_raises() -> None:
    with pytest.raises(KeyError), vk.patch.scvi():
        raise KeyError
    assert not replaced()


def test_threads() -> None:
    """Patches overlap in eight threads; within each block the methods are ours, after the last they are not."""
    seen, barrier = [], threading.Barrier(8)

    def work() -> None:
        barrier.wait()
        for _ in range(50):
            with vk.patch.scvi():
                seen.append(replaced())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 400
    assert not replaced()


def test_repr_names_what_is_replaced() -> None:
    with vk.patch.scvi() as patch:
        assert str(patch) == repr(patch)
        assert f"scvi-tools {scvi.__version__}" in repr(patch) and "in force" in repr(patch)
        for cls in PUBLISHED:
            assert f"{cls.__name__}.log_prob by vae_kernels." in repr(patch)
    assert "undone" in repr(patch)


def test_published_documentation_stays() -> None:
    published = ZeroInflatedNegativeBinomial.log_prob.__doc__
    with vk.patch.scvi():
        assert ZeroInflatedNegativeBinomial.log_prob.__doc__ == published


def test_unknown_code_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_negative_binomial, "log_nb_positive", lambda x, mu, theta: x)
    message = (
        rf"scvi-tools {scvi.__version__} cannot be patched: log_nb_positive .* {counts.KNOWN_VERSIONS}\. Install one"
    )
    with pytest.raises(RuntimeError, match=message):
        vk.patch.scvi()
    assert not replaced()


def test_a_method_that_someone_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = lambda self, value: value  # noqa: E731
    monkeypatch.setattr(NegativeBinomial, "log_prob", theirs)
    with pytest.raises(RuntimeError, match=r"NegativeBinomial\.log_prob"):
        vk.patch.scvi()
    assert NegativeBinomial.log_prob is theirs


def test_a_method_that_was_replaced_again_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    patch = vk.patch.scvi()
    ours, theirs = NegativeBinomial.log_prob, lambda self, value: value
    NegativeBinomial.log_prob = theirs
    with pytest.raises(RuntimeError, match=r"NegativeBinomial\.log_prob cannot be put back"):
        patch.undo()
    assert NegativeBinomial.log_prob is theirs
    NegativeBinomial.log_prob = ours
    patch.undo()
    assert not replaced()


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scvi", None)  # its import fails, as where it is not installed
    with pytest.raises(ImportError, match="pip install scvi-tools"):
        vk.patch.scvi()


# Models


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs() -> None:
    failed, run = doctest.testfile(str(ROOT / "docs/scvi.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert run > 0 and failed == 0


def of_genes(cls: type, likelihood: str) -> Callable[[], object]:
    def build() -> object:
        data = scvi.data.synthetic_iid()
        cls.setup_anndata(data, batch_key="batch")
        return cls(data, n_hidden=32, gene_likelihood=likelihood)

    return build


def totalvi() -> object:
    data = scvi.data.synthetic_iid()
    proteins = {"protein_expression_obsm_key": "protein_expression", "protein_names_uns_key": "protein_names"}
    scvi.model.TOTALVI.setup_anndata(data, batch_key="batch", **proteins)
    return scvi.model.TOTALVI(data, n_latent=5)


def scanvi() -> object:
    data = scvi.data.synthetic_iid()
    scvi.model.SCANVI.setup_anndata(data, batch_key="batch", labels_key="labels", unlabeled_category="unknown")
    return scvi.model.SCANVI(data, gene_likelihood="nb", dispersion="gene-batch")


MODELS = {
    "SCVI, nb": of_genes(scvi.model.SCVI, "nb"),
    "SCVI, poisson": of_genes(scvi.model.SCVI, "poisson"),
    "SCVI, zinb": of_genes(scvi.model.SCVI, "zinb"),
    "LinearSCVI": of_genes(scvi.model.LinearSCVI, "nb"),
    "TOTALVI": totalvi,
    "SCANVI": scanvi,
}

# TOTALVI has two batches in an epoch, the others three.
EPOCHS, BATCHES = 4, 2


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.filterwarnings("ignore")
def test_models_train_to_the_same_history(name: str) -> None:
    published = history(MODELS[name])
    with vk.patch.scvi(), CountedOps() as ops:
        ours = history(MODELS[name])
    assert ops.calls["likelihood_forward"] >= EPOCHS * BATCHES
    assert ops.calls["likelihood_backward"] >= EPOCHS * BATCHES
    assert not replaced()
    assert ours.keys() == published.keys()
    for metric, values in published.items():
        np.testing.assert_allclose(ours[metric], values, rtol=1e-4, err_msg=metric)


def history(build: Callable[[], object]) -> dict[str, np.ndarray]:
    """What training under one seed records."""
    scvi.settings.seed = 0
    model = build()
    model.train(max_epochs=EPOCHS, accelerator="cpu", enable_progress_bar=False, logger=None)
    return {metric: values.to_numpy(float) for metric, values in model.history.items()}
