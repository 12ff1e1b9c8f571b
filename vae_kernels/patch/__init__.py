"""Patches that let other packages use our kernels. A patch replaces methods of their classes; `undo()` restores them.

A package is imported when its patch is called for, not before.
"""

from . import counts, posterior
from .replacing import Patch

__all__ = ["Patch", "diffusers", "scvi"]


def scvi() -> Patch:
    """Let all models of scvi-tools compute the log-probabilities of counts with our kernels.

        vk.patch.scvi()                # from here on
        with vk.patch.scvi(): ...      # within the block

    `negative_binomial_log_likelihood`, `zero_inflated_negative_binomial_log_likelihood`,
    `negative_binomial_mixture_log_likelihood` and `poisson_rate_log_likelihood` compute `log_prob` of
    `scvi.distributions.NegativeBinomial`, `ZeroInflatedNegativeBinomial`, `NegativeBinomialMixture` (with one
    dispersion) and `Poisson`. They evaluate the published formulas, without the rounding errors of their intermediate
    results. Shapes, dtypes and warnings are the published ones. The published code still computes everything that has
    no kernel: integer and NumPy counts, devices without kernels, and an `_eps` that was changed. docs/scvi.md says what
    changes and what does not.

    Returns:
        A `Patch`. Its `undo()` ends it, and so does the end of a `with` block. Patches are counted: the first one
        replaces the methods for the process, and the end of the last one restores them. Threads may make and undo
        patches at the same time.

    Raises:
        ImportError: scvi-tools is not installed.
        RuntimeError: the code to be replaced is not that of a version that was checked.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15; Gayoso et
    al. 2022, "A Python library for probabilistic analysis of single-cell omics data", Nature Biotechnology 40.
    """
    return Patch(counts.PACKAGE, counts.load)


def diffusers(noise: str = "torch") -> Patch:
    """Let the posteriors of diffusers' autoencoders compute their sample and KL divergence with one kernel.

        vk.patch.diffusers()                # from here on
        with vk.patch.diffusers(): ...      # within the block

    For `DiagonalGaussianDistribution` and `OobleckDiagonalGaussianDistribution`, one call of `reparameterize_kl_packed`
    computes `sample()` and `kl()`, and `gaussian_log_likelihood` computes `nll()`. `mean`, `std`, `var` and `logvar`
    are computed when they are read. Shapes, dtypes, layouts and gradients are the published ones. docs/diffusers.md
    says what changes and what does not.

    Args:
        noise: `"torch"` for the published noise, bit by bit, or `"kernel"` for noise made in registers, unless a
            generator is passed. The latter is faster and has other numbers; `torch.manual_seed` reproduces it too.

    Returns:
        A `Patch`. Its `undo()` ends it, and so does the end of a `with` block. Patches are counted: the first one
        replaces the methods for the process, and the end of the last one restores them. The innermost patch's `noise`
        applies. Threads may make and undo patches at the same time.

    Raises:
        ImportError: diffusers is not installed.
        RuntimeError: the code to be replaced is not that of a version that was checked.
        ValueError: `noise` is neither of the two.

    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Evans et al. 2024,
    "Stable Audio Open".
    """
    if noise not in ("torch", "kernel"):
        raise ValueError(f"noise must be 'torch' or 'kernel', got {noise!r}")
    return Patch(posterior.PACKAGE, posterior.load, noise=noise)
