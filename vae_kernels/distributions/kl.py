"""KL divergences, for `torch.distributions.kl_divergence`."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence, register_kl

from ..rows import compute_dtype
from .base import IndependentElements
from .normal import DiagonalNormal, latent_step


class _Gaussian(NamedTuple):
    """A normal distribution as the latent step takes one."""

    mean: Tensor
    spread: Tensor
    scale: str
    event_dims: int

    @property
    def logvar(self) -> Tensor:
        if self.scale == "logvar":
            return self.spread
        return 2 * torch.log(self.spread.to(compute_dtype(self.spread)))


def _gaussian(distribution: Distribution, more_dims: int = 0) -> _Gaussian:
    if isinstance(distribution, Independent):
        return _gaussian(distribution.base_dist, more_dims + distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, DiagonalNormal):
        return _Gaussian(distribution.mu, distribution.logvar, "logvar", distribution.event_dims + more_dims)
    if isinstance(distribution, Normal):
        return _Gaussian(distribution.loc, distribution.scale, "std", more_dims)
    raise NotImplementedError(f"no KL divergence is known between normal elements and {distribution}")


@register_kl(DiagonalNormal, DiagonalNormal)
@register_kl(DiagonalNormal, Independent)
@register_kl(Independent, DiagonalNormal)
@register_kl(DiagonalNormal, Normal)
@register_kl(Normal, DiagonalNormal)
def _kl_normal(q: Distribution, p: Distribution) -> Tensor:
    """`Σ ½ ((mu − m)² · exp(−v) + exp(d) − 1 − d)`, d = logvar − v, of the normal p = N(m, exp(v)): by the latent step's
    kernel, with noise that is 0 everywhere in place of random numbers. Its z is not used."""
    of_q, of_p = _gaussian(q), _gaussian(p)
    if of_q.event_dims != of_p.event_dims:
        raise NotImplementedError(f"the events of q have {of_q.event_dims} dims, those of p {of_p.event_dims}")
    shape = torch.broadcast_shapes(of_q.mean.shape, of_p.mean.shape)
    batch_shape = shape[: len(shape) - of_q.event_dims]
    prior = {}
    if _stands_for_no_prior(p, of_q):
        # The batch dims of p repeat results.
        shape = q.batch_shape + shape[len(batch_shape) :]
        if isinstance(q, DiagonalNormal) and shape == of_q.mean.shape and (kept := q._take_kl()) is not None:
            return kept.expand(batch_shape)
    else:
        prior = {"prior_mu": of_p.mean, "prior_logvar": of_p.logvar}
    mean, spread = of_q.mean.expand(shape), of_q.spread.expand(shape)
    no_noise = mean.new_zeros(()).expand(shape)
    _, kl = latent_step(mean, spread, of_q.event_dims, scale=of_q.scale, eps=no_noise, **prior)
    return kl.expand(batch_shape)


def _stands_for_no_prior(p: Distribution, q: _Gaussian) -> bool:
    """Whether p is N(0, 1), on q's device and of no wider type: the kernel needs no parameters of it then."""
    if not (isinstance(p, DiagonalNormal) and p._is_standard()) or p._like.device != q.mean.device:
        return False
    return compute_dtype(p._like, q.mean, q.spread) == compute_dtype(q.mean, q.spread)


@register_kl(IndependentElements, IndependentElements)
def _kl_elements(q: IndependentElements, p: IndependentElements) -> Tensor:
    """By what torch has for the elements."""
    if q.event_dims != p.event_dims:
        raise NotImplementedError(f"the events of q have {q.event_dims} dims, those of p {p.event_dims}")
    shape = torch.broadcast_shapes(q._shape, p._shape)  # some of torch's formulas do not broadcast
    q, p = (d._reshaped(shape, d.event_dims) for d in (q, p))
    return q._sum_event(kl_divergence(q._elements(), p._elements()))
