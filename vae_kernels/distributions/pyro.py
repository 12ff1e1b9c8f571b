"""The same distributions for Pyro. `pyro.sample` accepts them, and plates expand them.

If the prior is `DiagonalNormal.standard`, `TraceMeanField_ELBO` uses the KL divergence that `DiagonalNormal.rsample`
computed together with z.

>>> import torch, pyro
>>> from vae_kernels.distributions.pyro import DiagonalNormal
>>> with pyro.plate("data", 4):
...     z = pyro.sample("z", DiagonalNormal.standard(20))
>>> z.shape
torch.Size([4, 20])
"""

from pyro.distributions.torch_distribution import TorchDistributionMixin

from . import counts, likelihoods, normal

__all__ = [
    "DiagonalNormal",
    "IndependentBernoulli",
    "IndependentCategorical",
    "IndependentLaplace",
    "IndependentNegativeBinomial",
    "IndependentZeroInflatedNegativeBinomial",
]


class _Mixin(TorchDistributionMixin):
    def to_event(self, reinterpreted_batch_ndims: int | None = None):
        """The same class with more event dims (None: all dims), over which its kernels sum too."""
        more = len(self.batch_shape) if reinterpreted_batch_ndims is None else reinterpreted_batch_ndims
        event_dims = self.event_dims + more
        if not 0 <= event_dims <= len(self.shape()):
            raise ValueError(
                f"reinterpreted_batch_ndims must leave between 0 and {len(self.shape())} dims to an event of {self}, "
                f"got {reinterpreted_batch_ndims}"
            )
        return self._reshaped(self.shape(), event_dims)


class DiagonalNormal(normal.DiagonalNormal, _Mixin):
    __doc__ = normal.DiagonalNormal.__doc__


class IndependentBernoulli(likelihoods.IndependentBernoulli, _Mixin):
    __doc__ = likelihoods.IndependentBernoulli.__doc__


class IndependentLaplace(likelihoods.IndependentLaplace, _Mixin):
    __doc__ = likelihoods.IndependentLaplace.__doc__


class IndependentCategorical(likelihoods.IndependentCategorical, _Mixin):
    __doc__ = likelihoods.IndependentCategorical.__doc__


class IndependentNegativeBinomial(counts.IndependentNegativeBinomial, _Mixin):
    __doc__ = counts.IndependentNegativeBinomial.__doc__


class IndependentZeroInflatedNegativeBinomial(counts.IndependentZeroInflatedNegativeBinomial, _Mixin):
    __doc__ = counts.IndependentZeroInflatedNegativeBinomial.__doc__
