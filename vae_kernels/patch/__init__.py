"""Our kernels in other packages: one line replaces the methods of their classes, `undo()` puts them back.

Nothing of those packages is imported before a patch is asked for.
"""

from . import counts, posterior
from .replacing import Patch

__all__ = ["Patch", "diffusers", "scvi"]


def scvi() -> Patch:
    """Let scvi-tools compute the log-probabilities of counts with our kernels, in all of its models.

        vk.patch.scvi()                # from here on
        with vk.patch.scvi(): ...      # within the block

    | method | by |
    | --- | --- |
    | `scvi.distributions.NegativeBinomial.log_prob` | `vk.negative_binomial_log_likelihood` |
    | `scvi.distributions.ZeroInflatedNegativeBinomial.log_prob` | `vk.zero_inflated_negative_binomial_log_likelihood` |

    Shapes, dtypes and warnings are the published ones, values and gradients those of the published formulas, without the
    rounding errors of their intermediate results. The published code still answers whatever has no kernel: integer and
    NumPy counts, devices without kernels, an `_eps` of one's own.

    Returns:
        A `Patch`, whose `undo()` ends it, as leaving the `with` block does. Patches are counted, and safe to make and undo
        from several threads; the methods are those of the process.

    Raises:
        ImportError: scvi-tools is not installed.
        RuntimeError: the code to be replaced is not that of a version that was checked.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics"; Gayoso et al. 2022, "A Python
    library for probabilistic analysis of single-cell omics data".
    """
    return Patch(counts.PACKAGE, counts.load)


def diffusers(noise: str = "torch") -> Patch:
    """Let the posteriors of diffusers' autoencoders sample and compute their KL divergence by one kernel.

    vk.patch.diffusers()                # from here on
    with vk.patch.diffusers(): ...      # within the block
    """
    if noise not in ("torch", "kernel"):
        raise ValueError(f"noise must be 'torch' or 'kernel', got {noise!r}")
    return Patch(posterior.PACKAGE, posterior.load, noise=noise)
