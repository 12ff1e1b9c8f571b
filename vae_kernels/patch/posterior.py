"""The patch of diffusers: the posteriors of its autoencoders.

A posterior that is made while the patch is in force holds its parameters only. The attributes that the published
`__init__` sets are computed when they are read, and one kernel computes `sample()` and `kl()` from the parameters.
After a published attribute was assigned, changed in place, or read while it has a gradient, the published methods are
used, with the attributes.
"""

import contextlib
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..backends import backend_of
from ..latent import reparameterize_kl_packed
from ..likelihood import gaussian_log_likelihood
from .replacing import Known, Package, Replacement, Target, lock, refuse_unknown, require
from .served import autocasts, is_served

KNOWN_VERSIONS = "0.30.3 to 0.42.1"

PACKAGE = Package("diffusers")

# The attribute in which a posterior keeps its `_Made`.
_MADE = "_vae_kernels"

# Posteriors with missing attributes, which have to be completed when the patch is undone.
_incomplete: weakref.WeakValueDictionary[int, object] = weakref.WeakValueDictionary()

Make = Callable[["_Made"], Tensor]


class _Class(NamedTuple):
    """How the methods of one class of posteriors are computed."""

    # z and the KL from both moments in one tensor.
    step: Callable[..., tuple[Tensor, Tensor]]
    # The attributes that the published `__init__` sets, and how it computes them.
    attributes: dict[str, Make]
    # The reduction of our KL for parameters with this number of dims; None if there is no published KL for it.
    kl_reduction: Callable[[int], str | None]
    # The published KL, from our KL and the parameters.
    kl: Callable[[Tensor, Tensor], Tensor]
    # True if our z has the published layout for contiguous parameters only.
    contiguous: bool = False


class _Made:
    """The parameters of a posterior, and the modes (autograd, autocast) in which it was made."""

    def __init__(self, how: _Class, parameters: Tensor) -> None:
        self.how, self.passed = how, parameters
        self.grad_enabled = torch.is_grad_enabled()
        self.parameters = parameters if self.grad_enabled else parameters.detach()
        self.device_type = parameters.device.type
        self.autocast = None
        self.dtype = parameters.dtype  # of z
        if autocasts(parameters):
            self.autocast = torch.get_autocast_dtype(self.device_type)
            self.dtype = torch.exp(parameters.new_empty(0)).dtype
        # The published attributes, and their versions.
        self.values: dict[str, tuple[Tensor, int]] = {}
        self.kl: _Kl | None = None
        self.version = _version(parameters)
        self.viewed = False  # true if the mean was read: it is a view, through which parameters may be changed

    def value(self, name: str) -> Tensor:
        """A published attribute, computed in the modes in which the posterior was made."""
        if name not in self.values:
            if name != "mean":
                self.refuse_changed()
            with self._there():
                value = self.how.attributes[name](self)
            self.values[name] = value, _version(value)
        return self.values[name][0]

    def values_of_all(self) -> None:
        for name in self.how.attributes:
            self.value(name)

    @contextlib.contextmanager
    def _there(self) -> Iterator[None]:
        enabled = self.autocast is not None
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(self.grad_enabled),
            torch.autocast(self.device_type, dtype=self.autocast, enabled=enabled, cache_enabled=False)
            if enabled or autocasts(self.parameters)
            else contextlib.nullcontext(),
        ):
            yield

    def refuse_changed(self) -> None:
        """Raise if the parameters have changed: the published posterior would have used the old values."""
        if not self.viewed and _version(self.parameters) != self.version:
            raise RuntimeError(
                "the parameters were changed in place after the posterior was made of them, and before what it computes of "
                "them was needed: vae_kernels.patch.diffusers leaves that for later. Give the posterior a clone() of them"
            )

    def step(self, **options: object) -> tuple[Tensor, Tensor]:
        """z and the KL, by one kernel."""
        self.refuse_changed()
        return self.how.step(self.parameters.to(self.dtype), **options)


class _Kl(NamedTuple):
    """The KL that was computed together with a sample."""

    value: Tensor
    reduction: str
    version: int
    modes: tuple[bool, bool]

    def serves(self, made: _Made, reduction: str) -> bool:
        """True if a new computation would give the same KL."""
        wants_grad = made.parameters.requires_grad and torch.is_grad_enabled()
        return (
            self.reduction == reduction
            and self.version == _version(made.parameters)
            and self.modes == _modes()
            and self.value.requires_grad == wants_grad
            and _graph_stands(self.value)
        )


def _chunk(index: int) -> Make:
    return lambda made: made.parameters.chunk(2, dim=1)[index]


# These are not made by `functools.partial`, because Dynamo cannot trace it.
def _gaussian_step(moments: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    return reparameterize_kl_packed(moments, dim=1, logvar_clamp=(-30.0, 20.0), **options)


def _oobleck_step(moments: Tensor, **options: object) -> tuple[Tensor, Tensor]:
    return reparameterize_kl_packed(moments, dim=1, scale="softplus", std_floor=1e-4, **options)


_GAUSSIAN = _Class(
    step=_gaussian_step,
    attributes={
        "mean": _chunk(0),
        "logvar": lambda made: torch.clamp(made.parameters.chunk(2, dim=1)[1], -30.0, 20.0),
        "std": lambda made: torch.exp(0.5 * made.value("logvar")),
        "var": lambda made: torch.exp(made.value("logvar")),
    },
    kl_reduction={4: "sum", 5: "none"}.get,
    # The published code sums three dims, even for videos.
    kl=lambda kl, parameters: kl if kl.dim() == 1 else kl.sum(dim=[1, 2, 3]),
)


_OOBLECK = _Class(
    step=_oobleck_step,
    attributes={
        "mean": _chunk(0),
        "scale": _chunk(1),
        "std": lambda made: F.softplus(made.value("scale")) + 1e-4,
        "var": lambda made: made.value("std") * made.value("std"),
        "logvar": lambda made: torch.log(made.value("var")),
    },
    kl_reduction=lambda dims: "sum",
    # The published KL lacks the factor ½. It is summed over channels and averaged over all other dims.
    kl=lambda kl, parameters: 2 * kl.sum() * (parameters.shape[1] / parameters.numel()),
    contiguous=True,
)

_DIGESTS = {
    "DiagonalGaussianDistribution": {
        "__init__": ("d854dfd67232d6c7",),
        "sample": ("e892d41e4478f992", "a0b022e3062cf411"),
        "kl": ("766fced6006883c0",),
        "nll": ("324f2407b9f91405", "c09312a7851f60e8"),
    },
    "OobleckDiagonalGaussianDistribution": {
        "__init__": ("b089bb58fbd34635",),
        "sample": ("e892d41e4478f992", "a0b022e3062cf411"),
        "kl": ("e4e576c098e39fab",),
    },
}


def load() -> tuple[str, Target]:
    """The installed version, and the methods that are replaced in it."""
    version = require("diffusers", "diffusers")
    from diffusers.models.autoencoders.autoencoder_oobleck import OobleckDiagonalGaussianDistribution
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    classes = {DiagonalGaussianDistribution: _GAUSSIAN, OobleckDiagonalGaussianDistribution: _OOBLECK}
    functions = [
        Known(f"{owner.__name__}.{name}", getattr(owner, name), digests)
        for owner in classes
        for name, digests in _DIGESTS[owner.__name__].items()
    ]
    refuse_unknown("diffusers", version, KNOWN_VERSIONS, functions)
    replacements = (r for owner, how in classes.items() for r in _replacements(owner, how))
    return version, Target(tuple(replacements), _complete_all)


def _replacements(owner: type, how: _Class) -> Iterator[Replacement]:
    """The replacements for one class of posteriors."""
    published_init, published_sample, published_kl = owner.__init__, owner.sample, owner.kl
    module = sys.modules[owner.__module__]

    @wraps(published_init)
    def init(self, parameters, deterministic=False):
        if not deterministic and type(self) is owner and _may_wait(how, parameters):
            made = _Made(how, parameters)
            with lock:
                # Another thread may have undone the patch in the meantime.
                if owner.__init__ is init:
                    self.parameters, self.deterministic = parameters, deterministic
                    self.__dict__[_MADE] = made
                    _incomplete[id(self)] = self
                    return
        published_init(self, parameters, deterministic)

    def missing(self, name):
        made = self.__dict__.get(_MADE)
        if made is None or name not in how.attributes:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        if name == "mean":
            made.viewed = True
        else:
            made.values_of_all()  # now, because others are computed from this one, which may be changed in place
        self.__dict__[name] = value = made.value(name)
        return value

    def state(self):
        _complete(self)
        return self.__dict__

    @wraps(published_sample)
    def sample(self, generator=None):
        made = _untouched(self)
        if made is None:
            return published_sample(self, generator)
        p = made.parameters
        shape = torch.Size((p.shape[0], p.shape[1] // 2, *p.shape[2:]))
        eps = None
        if generator is not None or _noise() == "torch":
            eps = module.randn_tensor(shape, generator=generator, device=p.device, dtype=p.dtype)
        reduction = how.kl_reduction(p.dim())
        if reduction == "none" and not (p.requires_grad and torch.is_grad_enabled()):
            reduction = None  # without gradients only the sample is wanted
        z, kl = made.step(eps=eps, kl_reduction=reduction or "sum")
        made.kl = _Kl(kl, reduction, _version(p), _modes()) if reduction else None
        return z

    @wraps(published_kl)
    def kl(self, other=None):
        made = _untouched(self)
        reduction = made and how.kl_reduction(made.parameters.dim())
        if not reduction or other is not None or self.deterministic:
            return published_kl(self, other)
        kept, made.kl = made.kl, None  # never twice: the caller may change it in place
        if kept is not None and kept.serves(made, reduction):
            value = kept.value
        else:
            mean = made.parameters.chunk(2, dim=1)[0]
            no_noise = mean.new_zeros(()).expand(mean.shape)
            value = made.step(eps=no_noise, kl_reduction=reduction)[1]
        return how.kl(value, made.parameters).to(_kl_dtype(made))

    methods = {
        "__init__": init,
        "__getattr__": missing,
        "__getstate__": state,
        "sample": sample,
        "kl": kl,
    }
    if hasattr(owner, "nll"):
        methods["nll"] = _nll(owner.nll)
    by = {"sample": "reparameterize_kl_packed", "kl": "reparameterize_kl_packed", "nll": "gaussian_log_likelihood"}
    for name, function in methods.items():
        yield Replacement(owner, name, function, f"vae_kernels.{by.get(name, 'patch')}")


def _nll(published: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(published)
    def nll(self, sample, dims=[1, 2, 3]):  # noqa: B006, the published default
        made = _untouched(self)
        if made is None or self.deterministic or not is_served(sample, made.parameters) or autocasts(made.parameters):
            return published(self, sample, dims)
        mean = made.value("mean")
        if sample.shape != mean.shape:
            return published(self, sample, dims)
        arguments = mean, sample, made.value("logvar")
        if mean.dim() == 4 and dims in ([1, 2, 3], (1, 2, 3)):
            log_px = gaussian_log_likelihood(*arguments)
        else:
            log_px = gaussian_log_likelihood(*arguments, reduction="none").sum(dim=dims)
        return -log_px.to(torch.promote_types(sample.dtype, made.dtype))

    return nll


def _may_wait(how: _Class, parameters: object) -> bool:
    """True if the attributes of the published `__init__` may be computed later."""
    return (
        not torch.compiler.is_compiling()
        and not torch.is_inference_mode_enabled()
        and is_served(parameters)
        and not parameters.is_inference()
        and parameters.dim() >= 2
        and parameters.shape[1] % 2 == 0
        and parameters.numel() > 0
        and (not how.contiguous or parameters.is_contiguous())
    )


def _untouched(posterior: object) -> _Made | None:
    """The posterior's `_Made`; None if the published methods have to be used.

    They are used if an attribute no longer agrees with the parameters, or if an attribute was read that has a gradient.
    """
    fields = vars(posterior)
    made = fields.get(_MADE)
    if made is None or torch.compiler.is_compiling() or fields.get("parameters") is not made.passed:
        return None
    for name in made.how.attributes:
        if name not in fields:
            continue
        value, (known, version) = fields[name], made.values.get(name, (None, 0))
        if value is not known or value.requires_grad or (name != "mean" and _version(value) != version):
            return None
    return made if backend_of(made.parameters) != "eager" else None


def _noise() -> str:
    """The innermost patch's choice of noise."""
    patches = tuple(PACKAGE.in_force)
    return patches[-1].options["noise"] if patches else "torch"


def _kl_dtype(made: _Made) -> torch.dtype:
    if not autocasts(made.parameters):
        return made.dtype
    square = torch.pow(made.parameters.new_empty(1), 2)
    return torch.promote_types(torch.sum(square).dtype, made.dtype)


def _modes() -> tuple[bool, bool]:
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled()


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _graph_stands(tensor: Tensor) -> bool:
    """True if a backward pass is possible: the graph is not freed, and no tensor that it needs was changed in place."""
    try:
        return tensor.grad_fn is None or tensor.grad_fn.saved_tensors is not None
    except RuntimeError:
        return False


def _complete(posterior: object) -> None:
    """Give the posterior all attributes of a published one."""
    made = vars(posterior).get(_MADE)
    if made is not None:
        for name in made.how.attributes:
            getattr(posterior, name)
        del vars(posterior)[_MADE]
        _incomplete.pop(id(posterior), None)


def _complete_all() -> None:
    for reference in _incomplete.valuerefs():
        if (posterior := reference()) is not None:
            with contextlib.suppress(RuntimeError):  # reading the attribute would raise this error anyway
                _complete(posterior)
