"""KL divergences for `torch.distributions.kl_divergence`."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence, register_kl

from ..rows import compute_dtype
from .base import IndependentElements, broadcast
from .normal import DiagonalNormal, latent_step


class _Gaussian(NamedTuple):
    """The parameters of a normal distribution, as the latent step needs them."""

    mean: Tensor
    spread: Tensor
    scale: str

    @property
    def logvar(self) -> Tensor:
        if self.scale == "logvar":
            return self.spread
        return 2 * torch.log(self.spread.to(compute_dtype(self.spread)))


def _gaussian(distribution: Distribution) -> _Gaussian:
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, DiagonalNormal):
        return _Gaussian(distribution.mu, distribution.logvar, "logvar")
    if isinstance(distribution, Normal):
        return _Gaussian(distribution.loc, distribution.scale, "std")
    raise NotImplementedError(f"no KL divergence is known between normal elements and {distribution}")


@register_kl(DiagonalNormal, DiagonalNormal)
@register_kl(DiagonalNormal, Independent)
@register_kl(Independent, DiagonalNormal)
@register_kl(DiagonalNormal, Normal)
@register_kl(Normal, DiagonalNormal)
def _kl_normal(q: Distribution, p: Distribution) -> Tensor:
    """`Σ ½ ((mu − m)² · exp(−v) + exp(d) − 1 − d)`, d = logvar − v, for p = N(m, exp(v)).

    If p is standard and the KL of q's last sample is still valid, that KL is returned. Otherwise the latent step's
    kernel computes it with zero noise, and its z is not used.
    """
    event_dims = _same_event_dims(q, p)
    batch_shape, event_shape = broadcast(q.batch_shape, p.batch_shape), broadcast(q.event_shape, p.event_shape)
    standard = isinstance(p, DiagonalNormal) and p.is_standard()
    if standard and isinstance(q, DiagonalNormal) and event_shape == q.event_shape:
        kl = q.take_kl(p)
        if kl is not None:
            return kl if kl.shape == batch_shape else kl.expand(batch_shape)
    of_q = _gaussian(q)
    if standard and p.narrow_beside(of_q.mean, of_q.spread):
        shape, prior = q.batch_shape + event_shape, {}  # p's own batch dims only repeat results
    else:
        of_p = _gaussian(p)
        shape, prior = batch_shape + event_shape, {"prior_mu": of_p.mean, "prior_logvar": of_p.logvar}
    mean, spread = of_q.mean.expand(shape), of_q.spread.expand(shape)
    no_noise = mean.new_zeros(()).expand(shape)
    _, kl = latent_step(mean, spread, event_dims, scale=of_q.scale, eps=no_noise, **prior)
    return kl.expand(batch_shape)


def _same_event_dims(q: Distribution, p: Distribution) -> int:
    of_q, of_p = len(q.event_shape), len(p.event_shape)
    if of_q != of_p:
        raise NotImplementedError(f"the events of q have {of_q} dims, those of p {of_p}")
    return of_q


@register_kl(IndependentElements, IndependentElements)
def _kl_elements(q: IndependentElements, p: IndependentElements) -> Tensor:
    """Use torch's KL divergence of the elements."""
    event_dims = _same_event_dims(q, p)
    shape = broadcast(q._shape, p._shape)  # some of torch's formulas do not broadcast
    q, p = (d._reshaped(shape, event_dims) for d in (q, p))
    return q._sum_event(kl_divergence(q._elements(), p._elements()))
