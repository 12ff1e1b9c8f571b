"""Our kernels in other packages: one line replaces the methods of their classes, `undo()` puts them back.

Nothing of those packages is imported before a patch is asked for.
"""

from . import counts, posterior
from .replacing import Patch

__all__ = ["Patch", "diffusers", "scvi"]


def scvi() -> Patch:
    """Let scvi-tools compute the log-probabilities of counts by our kernels, in all of its models.

        vk.patch.scvi()                # from here on
        with vk.patch.scvi(): ...      # within the block

    `log_prob` of `scvi.distributions.NegativeBinomial`, `ZeroInflatedNegativeBinomial`, `NegativeBinomialMixture` (of one
    dispersion) and `Poisson` is computed by `negative_binomial_log_likelihood`,
    `zero_inflated_negative_binomial_log_likelihood`, `negative_binomial_mixture_log_likelihood` and
    `poisson_rate_log_likelihood`: the published formulas, without the rounding errors of their intermediate results; in the published shapes and dtypes,
    with the published warnings.
    What has no kernel stays with the published code: integer and NumPy counts, devices without kernels, an `_eps` of one's
    own. docs/scvi.md says what changes and what does not.

    Returns:
        A `Patch`, whose `undo()` ends it, as leaving the `with` block does. Patches are counted: the first replaces the
        methods, of the process, and the last puts them back. It is safe to make and undo them in several threads.

    Raises:
        ImportError: scvi-tools is not installed.
        RuntimeError: the code to be replaced is not that of a version that was checked.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15; Gayoso et al.
    2022, "A Python library for probabilistic analysis of single-cell omics data", Nature Biotechnology 40.
    """
    return Patch(counts.PACKAGE, counts.load)


def diffusers(noise: str = "torch") -> Patch:
    """Let the posteriors of diffusers' autoencoders sample and sum their KL divergence by one kernel.

        vk.patch.diffusers()                # from here on
        with vk.patch.diffusers(): ...      # within the block

    `sample()` and `kl()` of `DiagonalGaussianDistribution` and `OobleckDiagonalGaussianDistribution` are computed by
    `reparameterize_kl_packed`, both at once, and `nll()` by `gaussian_log_likelihood`; `mean`, `std`, `var` and `logvar`
    are made when they are read. Shapes, dtypes, layouts and gradients are the published ones. docs/diffusers.md says what
    changes and what does not.

    Args:
        noise: `"torch"`, which draws it as published, to the bit; or `"kernel"`, which makes it in registers where no
            generator is given: faster, other numbers, reproduced by `torch.manual_seed` too.

    Returns:
        A `Patch`, whose `undo()` ends it, as leaving the `with` block does. Patches are counted: the first replaces the
        methods, of the process, and the last puts them back; the innermost one's `noise` holds. It is safe to make and undo
        them in several threads.

    Raises:
        ImportError: diffusers is not installed.
        RuntimeError: the code to be replaced is not that of a version that was checked.
        ValueError: `noise` is neither.

    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models"; Evans et al. 2024, "Stable
    Audio Open".
    """
    if noise not in ("torch", "kernel"):
        raise ValueError(f"noise must be 'torch' or 'kernel', got {noise!r}")
    return Patch(posterior.PACKAGE, posterior.load, noise=noise)
