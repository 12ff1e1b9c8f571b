"""The base class of all distributions of independent elements."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from .. import checks, eager, symbols
from ..rows import compute_dtype, expands


def parameter(name: str) -> property:
    """A property that returns a parameter, expanded to batch and event shape."""
    return property(lambda self: self._full(name), doc=f"`{name}`, expanded to batch and event shape.")


class IndependentElements(Distribution):
    """A distribution of independent elements, whose last `event_dims` dims are one event.

    A subclass names its parameters in `arg_constraints`, in the order of its likelihood's arguments, with the decoder's
    output first. It has a `parameter` for each of them. Its `_elements` returns torch's distribution of the elements.
    """

    _log_likelihood: Callable[..., Tensor]  # a likelihood of vae_kernels
    _element_support: constraints.Constraint
    _enumerable = False

    def __init__(self, event_dims: int, validate_args: bool | None, **parameters: Tensor | float) -> None:
        # They are not expanded, because the kernels sum the gradient of a parameter that is broadcast.
        self._parameters = parameters
        for name, value in parameters.items():
            if not checks.is_number(value):
                checks.tensor(name, value, checks.FLOATS)
        tensors = self._tensors()
        self._like = next(iter(tensors.values())) if tensors else torch.empty(())
        shapes = {name: self._element_shape(name, value) for name, value in tensors.items()}
        shape = _shape_of(shapes)
        event_dims = checks.integer("event_dims", event_dims)
        if not 0 <= event_dims <= len(shape):
            raise ValueError(
                f"event_dims must be between 0 and {len(shape)}, the number of dims of {' and '.join(parameters)} "
                f"{tuple(shape)}, got {event_dims}"
            )
        self._shape, self._event_dims = shape, event_dims
        super().__init__(*self._split(shape, event_dims), validate_args=validate_args)

    @property
    def event_dims(self) -> int:
        """The number of dims of an event."""
        return self._event_dims

    def expand(self, batch_shape: Sequence[int], _instance=None) -> "IndependentElements":
        batch_shape = torch.Size(batch_shape)
        if not expands(self.batch_shape, batch_shape):
            raise ValueError(
                f"batch_shape must be one that {tuple(self.batch_shape)} expands to, got {tuple(batch_shape)}"
            )
        return self._reshaped(batch_shape + self.event_shape, self._event_dims, _instance)

    def _reshaped(self, shape: torch.Size, event_dims: int, instance=None) -> "IndependentElements":
        """A distribution with the same parameters, expanded to `shape`, with `event_dims` dims of an event."""
        new = type(self).__new__(type(self)) if instance is None else instance
        new.__dict__.update(self.__getstate__())
        new._shape, new._event_dims = shape, event_dims
        new._batch_shape, new._event_shape = self._split(shape, event_dims)
        return new

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__

    def _tensors(self) -> dict[str, Tensor]:
        return {name: value for name, value in self._parameters.items() if isinstance(value, Tensor)}

    @staticmethod
    def _split(shape: torch.Size, event_dims: int) -> tuple[torch.Size, torch.Size]:
        return shape[: len(shape) - event_dims], shape[len(shape) - event_dims :]

    @classmethod
    def _element_shape(cls, name: str, value: Tensor) -> torch.Size:
        """The shape of a parameter, without the dims that belong to one element."""
        dims = cls.arg_constraints[name].event_dim
        if value.dim() < dims:
            raise ValueError(f"{name} must have at least {dims} dim, got the shape {tuple(value.shape)}")
        return value.shape[: value.dim() - dims]

    def _expanded(self, name: str, shape: torch.Size) -> Tensor:
        """A parameter, expanded to `shape` and the dims that belong to one element."""
        value = self._parameters[name]
        value = value if isinstance(value, Tensor) else symbols.tensor(value, self._like)
        shape = shape + value.shape[len(self._element_shape(name, value)) :]
        return value if value.shape == shape else value.expand(shape)

    def _full(self, name: str) -> Tensor:
        return self._expanded(name, self._shape)

    def _elements(self) -> Distribution:
        """torch's distribution of the elements."""
        raise NotImplementedError

    def _sum_event(self, elements: Tensor) -> Tensor:
        return eager.sum_columns(elements.to(compute_dtype(elements)), elements.dim() - self._event_dims)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        if not self._event_dims:
            return self._element_support
        return constraints.independent(self._element_support, self._event_dims)

    @property
    def has_enumerate_support(self) -> bool:
        return self._enumerable and not self._event_dims

    def enumerate_support(self, expand: bool = True) -> Tensor:
        self._refuse_events("enumerate_support")
        return self._elements().enumerate_support(expand)

    @property
    def mean(self) -> Tensor:
        return self._elements().mean

    @property
    def mode(self) -> Tensor:
        return self._elements().mode

    @property
    def variance(self) -> Tensor:
        return self._elements().variance

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        return self._elements().sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """The log-probability of each event, by one kernel; float64 if any argument is float64, else float32."""
        checks.tensor("value", value, checks.TARGETS)
        if self._validate_args:
            self._validate_sample(value)
        shape = broadcast(value.shape, self._shape)
        first, *others = self._parameters
        parameters = [self._parameters[name] for name in others]
        kept = {"batch_dims": len(shape) - self._event_dims, "reduction": "sum" if self._event_dims else "none"}
        return self._log_likelihood(self._expanded(first, shape), value.expand(shape), *parameters, **kept)

    def cdf(self, value: Tensor) -> Tensor:
        self._refuse_events("cdf")
        return self._elements().cdf(value)

    def icdf(self, value: Tensor) -> Tensor:
        self._refuse_events("icdf")
        return self._elements().icdf(value)

    def entropy(self) -> Tensor:
        return self._sum_event(self._elements().entropy())

    def _refuse_events(self, method: str) -> None:
        if self._event_dims:
            raise NotImplementedError(f"{method} is that of single elements: it needs event_dims=0")

    def __repr__(self) -> str:
        parameters = (f"{name}: {_shown(getattr(self, name))}" for name in self._parameters)
        return f"{type(self).__name__}({', '.join(parameters)}, event_dims: {self._event_dims})"


def _shown(value: Tensor) -> Tensor | torch.Size:
    """The representation of a parameter in `repr`, which is that of torch's distributions."""
    return value if value.numel() == 1 else value.shape


def broadcast(*shapes: torch.Size) -> torch.Size:
    """`torch.broadcast_shapes`, called only if the shapes differ: its 25 µs matter for small tensors."""
    shapes = [shape for shape in shapes if len(shape)]
    if all(shape == shapes[0] for shape in shapes):
        return shapes[0] if shapes else torch.Size()
    return torch.broadcast_shapes(*shapes)


def _shape_of(shapes: dict[str, torch.Size]) -> torch.Size:
    try:
        return broadcast(*shapes.values())
    except RuntimeError:
        got = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())
        raise ValueError(f"{' and '.join(shapes)} must have shapes that broadcast, got {got}") from None
