"""The normal distribution with a diagonal covariance. Its samples are computed together with their KL to N(0, 1)."""

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.distributions import Distribution, Normal, constraints

from .. import transforms
from ..latent import reparameterize_kl
from ..likelihood import gaussian_log_likelihood
from ..rows import compute_dtype
from .base import IndependentElements, parameter


class DiagonalNormal(IndependentElements):
    """Independent normal elements `N(mu, exp(logvar))`.

    It corresponds to `Independent(Normal(mu, exp(logvar / 2)), event_dims)`.

        log_prob(z) = Σ −½ (logvar + (z − mu)² · exp(−logvar) + ln 2π)        [nats]
        rsample()   = mu + exp(logvar/2) · eps

    `rsample` draws `eps` in registers and computes the KL divergence to N(0, 1) in the same kernel. It keeps the KL for
    the next `torch.distributions.kl_divergence(q, p)` with a standard normal `p` from `DiagonalNormal.standard`.

    The KL is computed again if it could have changed: after an in-place change of a parameter, if gradients are now
    recorded and were not then (or the reverse), if a backward pass has freed its graph, in compiled code, under
    functorch's transforms, and in inference mode. Changes are detected as autograd detects them. Writing to `mu.data`,
    or through NumPy, is not detected.

    z and the KL that `rsample` keeps are results of the same autograd node. If you run one backward pass through z and
    another one through the KL, the first needs `retain_graph=True`.

    Args:
        mu: means: a number or a tensor of float64, float32, bfloat16 or float16.
        logvar: natural logarithms of the variances: a number or a tensor, as for mu. Both broadcast against each other.
        event_dims: the number of trailing dims that form one event; `log_prob`, `entropy` and the KL sum over them. 0:
            none.
        validate_args: as in torch. Parameters and values are checked for NaN, which waits for the device.

    Raises:
        TypeError: a parameter is neither a tensor nor a number, or its dtype is not listed here; `event_dims` is not an
            int.
        ValueError: shapes do not broadcast, have fewer dims than `event_dims`, or validation fails.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equation 10 and appendix B.

    >>> import torch
    >>> from torch.distributions import kl_divergence
    >>> from vae_kernels.distributions import DiagonalNormal
    >>> q = DiagonalNormal(torch.ones(2, 3), torch.zeros(2, 3))
    >>> q
    DiagonalNormal(mu: torch.Size([2, 3]), logvar: torch.Size([2, 3]), event_dims: 1)
    >>> z = q.rsample()
    >>> kl_divergence(q, DiagonalNormal.standard(3))
    tensor([1.5000, 1.5000])
    """

    arg_constraints: ClassVar = {"mu": constraints.real, "logvar": constraints.real}
    has_rsample = True
    _element_support = constraints.real
    _log_likelihood = staticmethod(gaussian_log_likelihood)
    _kept = None  # the KL of the last sample, and the state of the parameters when it was drawn

    mu, logvar = parameter("mu"), parameter("logvar")

    def __init__(
        self, mu: Tensor | float, logvar: Tensor | float, event_dims: int = 1, validate_args: bool | None = None
    ) -> None:
        super().__init__(event_dims, validate_args, mu=mu, logvar=logvar)

    @classmethod
    def standard(
        cls,
        event_shape: int | Sequence[int],
        batch_shape: Sequence[int] = (),
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        validate_args: bool | None = None,
    ) -> "DiagonalNormal":
        """Make N(0, 1) for every element. The KL that `rsample` keeps is the divergence to this distribution.

        Its parameters are Python numbers, so it is recognised without a sync with the device.

        >>> from vae_kernels.distributions import DiagonalNormal
        >>> DiagonalNormal.standard(20).event_shape
        torch.Size([20])
        """
        event_shape = torch.Size((event_shape,) if isinstance(event_shape, int) else event_shape)
        new = cls(0.0, 0.0, event_dims=0, validate_args=False)
        new._validate_args = Distribution._validate_args if validate_args is None else validate_args
        new._like = torch.empty((), dtype=dtype, device=device)
        return new._reshaped(torch.Size(batch_shape) + event_shape, len(event_shape))

    def is_standard(self) -> bool:
        """True if this is N(0, 1) with Python numbers as parameters."""
        return not any(isinstance(value, Tensor) or value for value in self._parameters.values())

    def narrow_beside(self, *tensors: Tensor) -> bool:
        """True if its device is that of the tensors, and its dtype does not widen their compute dtype."""
        widened = compute_dtype(self._like, *tensors) != compute_dtype(*tensors)
        return self._like.device == tensors[0].device and not widened

    @property
    def mean(self) -> Tensor:
        return self.mu

    @property
    def mode(self) -> Tensor:
        return self.mu

    @property
    def stddev(self) -> Tensor:
        return torch.exp(self.logvar / 2)

    @property
    def variance(self) -> Tensor:
        return torch.exp(self.logvar)

    def _elements(self) -> Normal:
        return Normal(self.mu, self.stddev, validate_args=False)

    def entropy(self) -> Tensor:
        logvar = self.logvar.to(compute_dtype(self.logvar))
        return self._sum_event(0.5 * (logvar + (1 + math.log(2 * math.pi))))

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        with torch.no_grad():
            return self.rsample(sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        sample_shape = torch.Size(sample_shape)
        if not sample_shape.numel():
            return self.mu.expand(sample_shape + self._shape)
        samples = sample_shape.numel() if sample_shape else None
        z, kl = latent_step(self.mu, self.logvar, self._event_dims, num_samples=samples)
        if self._can_keep():
            self._kept = kl, self._state()
        return z.reshape(sample_shape + self._shape) if len(sample_shape) > 1 else z

    def take_kl(self, standard: "DiagonalNormal") -> Tensor | None:
        """The KL to N(0, 1) of the last sample. It is returned once, and only if the parameters have not changed."""
        if self._kept is None or not self._can_keep() or not standard.narrow_beside(self._kept[0]):
            return None
        (kl, state), self._kept = self._kept, None
        return kl if state == self._state() and not _freed(kl) else None

    def _can_keep(self) -> bool:
        """True if changes of the parameters can be detected here."""
        return not (
            torch.compiler.is_compiling()
            or transforms.active()
            or any(t.is_inference() for t in self._tensors().values())
        )

    def _state(self) -> list[tuple[int, bool]]:
        """For each parameter: the number of in-place changes, and whether it gets a gradient here."""
        return [(t._version, t.requires_grad and torch.is_grad_enabled()) for t in self._tensors().values()]

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_kept"}


def latent_step(mu: Tensor, logvar: Tensor, event_dims: int, **arguments) -> tuple[Tensor, Tensor]:
    """`reparameterize_kl`, with one KL per event."""
    if event_dims:
        return reparameterize_kl(mu, logvar, batch_dims=mu.dim() - event_dims, **arguments)
    return reparameterize_kl(mu, logvar, batch_dims=min(mu.dim(), 1), kl_reduction="none", **arguments)


def _freed(kl: Tensor) -> bool:
    """True if a backward pass through the sample has freed the tensors that the KL's backward pass needs."""
    try:
        return kl.grad_fn is not None and not hasattr(kl.grad_fn, "_raw_saved_tensors")
    except RuntimeError:
        return True
