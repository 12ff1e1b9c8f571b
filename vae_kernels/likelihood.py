"""Reconstruction terms: the log-likelihood of `x`, given the decoder's output, summed per sample."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from . import checks, eager, symbols, transforms
from .backends import backend_of
from .families import FAMILIES, INDEX
from .options import REDUCTIONS, LikelihoodOptions
from .rows import check_broadcast, expand_other, sum_other

_FAMILIES = tuple(FAMILIES.values())


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum") -> Tensor:
    """Sum the Bernoulli log-likelihood of `x` per sample, from logits.

        log p(x) = Σ x · a − softplus(a),    a = logits        [nats]

    For each sample this is `−binary_cross_entropy_with_logits(logits, x, reduction="sum")`. For `x` outside [0, 1] the
    formula is evaluated too. It is accurate for `logits` over the whole range of their dtype.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these dtypes, an integer dtype or bool, of the shape of `logits`.
            Leading batch dims may be missing or 1.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `logits.shape[:batch_dims]`, or for `reduction="none"` that of `logits`; float64 if an input is float64,
        else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1.

    >>> import torch, vae_kernels as vk
    >>> vk.bernoulli_log_likelihood(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("bernoulli", (logits, x), batch_dims, reduction)


def gaussian_log_likelihood(
    mean: Tensor, x: Tensor, logvar: Tensor | float = 0.0, *, batch_dims: int = 1, reduction: str = "sum"
) -> Tensor:
    """Sum the Gaussian log-likelihood of `x` per sample.

        log p(x) = Σ −½ (logvar + (x − mean)² · exp(−logvar) + ln 2π)        [nats]

    The constant is always included. `logvar` is the natural logarithm of the *variance*; for a log standard deviation
    pass `2 * logstd`. The result is accurate for all arguments over the whole range of their dtype, even if
    `exp(−logvar)` overflows and `x` equals `mean`.

    Args:
        mean: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these dtypes, an integer dtype or bool, of the shape of `mean`.
            Leading batch dims may be missing or 1.
        logvar: a float, or a tensor that broadcasts to `mean`: one number for all elements, one per channel or one per
            element. Its gradient has its own shape and dtype.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `mean.shape[:batch_dims]`, or for `reduction="none"` that of `mean`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.2.

    >>> import torch, vae_kernels as vk
    >>> vk.gaussian_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), logvar=0.0)
    tensor([-2.7568, -2.7568])
    """
    return _log_likelihood("gaussian", (mean, x, logvar), batch_dims, reduction)


def laplace_log_likelihood(
    loc: Tensor, x: Tensor, log_scale: Tensor | float = 0.0, *, batch_dims: int = 1, reduction: str = "sum"
) -> Tensor:
    """Sum the Laplace log-likelihood of `x` per sample.

        log p(x) = Σ −|x − loc| · exp(−log_scale) − log_scale − ln 2        [nats]

    This is an L1 reconstruction loss with a scale. The derivative at `x = loc` is 0. The result is accurate for all
    arguments over the whole range of their dtype.

    Args:
        loc: the decoder's output, the median; float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these dtypes, an integer dtype or bool, of the shape of `loc`.
            Leading batch dims may be missing or 1.
        log_scale: natural logarithm of the scale b (the variance is 2 b²): a float, or a tensor that broadcasts to
            `loc`: one number for all elements, one per channel or one per element. Its gradient has its own shape and
            dtype.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `loc.shape[:batch_dims]`, or for `reduction="none"` that of `loc`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", exercise 2.43 with q = 1.

    >>> import torch, vae_kernels as vk
    >>> vk.laplace_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("laplace", (loc, x, log_scale), batch_dims, reduction)


def continuous_bernoulli_log_likelihood(
    logits: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum"
) -> Tensor:
    """Sum the continuous Bernoulli log-likelihood of `x` in [0, 1] per sample, from logits.

        log p(x) = Σ x · a − ln((exp(a) − 1) / a),    a = logits        [nats]

    This is the Bernoulli formula with the normalizer that makes it a density on [0, 1], so for grey values in [0, 1] it
    is a true likelihood. It is accurate near `a = 0` (p = ½), where the normalizer is 0/0, and for `logits` over the
    whole range of their dtype. It is positive where the density is above 1. For `x` outside [0, 1] the formula is
    evaluated too.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these dtypes, an integer dtype or bool, of the shape of `logits`.
            Leading batch dims may be missing or 1.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `logits.shape[:batch_dims]`, or for `reduction="none"` that of `logits`; float64 if an input is float64,
        else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", equations 5 to 7, in logits.

    >>> import torch, vae_kernels as vk
    >>> vk.continuous_bernoulli_log_likelihood(torch.ones(2, 3), torch.ones(2, 3))
    tensor([1.3760, 1.3760])
    """
    return _log_likelihood("continuous_bernoulli", (logits, x), batch_dims, reduction)


def bernoulli_probs_log_likelihood(probs: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum") -> Tensor:
    """Sum the Bernoulli log-likelihood of `x` per sample, from probabilities.

        log p(x) = Σ x · max(ln p, −100) + (1 − x) · max(ln(1 − p), −100),    p = probs        [nats]

    For each sample this is `−binary_cross_entropy(probs, x, reduction="sum")`, for decoders that end in a sigmoid. It
    also has the gradient of that function, `(x − p) / max(p (1 − p), 1e-12)`. Next to 0 and 1 this is not the
    derivative of the clamped value, but it is the gradient with which people train. Where this function is clamped,
    `bernoulli_log_likelihood` is exact. For `x` outside [0, 1] the formula is evaluated too.

    Args:
        probs: the decoder's output in [0, 1], float64, float32, bfloat16 or float16, any shape and strides. Outside
            [0, 1] the result is NaN.
        x: targets, any of these dtypes, an integer dtype or bool, of the shape of `probs`.
            Leading batch dims may be missing or 1.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `probs.shape[:batch_dims]`, or for `reduction="none"` that of `probs`; float64 if an input is float64,
        else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1; the clamps are those of
    `torch.nn.functional.binary_cross_entropy`.

    >>> import torch, vae_kernels as vk
    >>> vk.bernoulli_probs_log_likelihood(torch.full((2, 3), 0.5), torch.ones(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("bernoulli_probs", (probs, x), batch_dims, reduction)


def negative_binomial_log_likelihood(
    mu: Tensor, x: Tensor, theta: Tensor | float, *, batch_dims: int = 1, reduction: str = "sum"
) -> Tensor:
    """Sum the negative binomial log-likelihood of the counts `x` per sample.

        log p(x) = Σ ln Γ(x + θ) − ln Γ(θ) − ln Γ(x + 1) + θ ln((θ + ε) / e) + x ln((mu + ε) / e)    [nats]
        e = mu + θ + ε,    θ = theta,    ε = 1e-8

    The mean is mu, the variance is mu + mu²/θ. This replaces the `log_prob` of scvi-tools' `NegativeBinomial(mu=,
    theta=)`, summed over genes. It includes the ε of scvi-tools, which keeps value and gradient finite at mu = 0, and
    all terms that do not depend on the parameters. Gamma functions and logarithms are combined before they are
    evaluated, so that nothing cancels for large counts, nor for a large θ, the Poisson limit.

    Largest error: 16 ulp, for mu and θ from the least normal number of their dtype to an eighth of the largest, for
    mu = 0, and for counts up to 1e30 (float64: 1e300). For a non-integer x between 0 and 0.1 it is 16 ulp of 1. The
    result is NaN for x ≤ −1, for x + θ < 0 and for other arguments for which the formula is not defined.

    Args:
        mu: the decoder's mean, not negative; float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these dtypes, an integer dtype or bool, of the shape of `mu`.
            Leading batch dims may be missing or 1. A floating-point `x` also gets a gradient: that of the formula for
            real x.
        theta: inverse dispersion, positive (not its logarithm): a float, or a tensor that broadcasts to `mu`: one
            number for all elements, one per gene or one per element. Its gradient has its own shape and dtype.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `mu.shape[:batch_dims]`, or for `reduction="none"` that of `mu`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15, methods;
    `log_nb_positive` of scvi-tools.

    >>> import torch, vae_kernels as vk
    >>> vk.negative_binomial_log_likelihood(torch.ones(2, 3), torch.tensor([[0, 1, 2]] * 2), theta=1.0)
    tensor([-4.1589, -4.1589])
    """
    return _log_likelihood("negative_binomial", (mu, x, theta), batch_dims, reduction)


def zero_inflated_negative_binomial_log_likelihood(
    mu: Tensor,
    x: Tensor,
    theta: Tensor | float,
    zero_logits: Tensor | float,
    *,
    batch_dims: int = 1,
    reduction: str = "sum",
) -> Tensor:
    """Sum the zero-inflated negative binomial log-likelihood of the counts `x` per sample.

        log p(x) = Σ ln(s + (1 − s) NB(0))    where x < 1e-8
                     ln(1 − s) + ln NB(x)     elsewhere        [nats]
        s = sigmoid(zero_logits),    ln NB from `negative_binomial_log_likelihood`

    This replaces the `log_prob` of scvi-tools' `ZeroInflatedNegativeBinomial(mu=, theta=, zi_logits=)`, summed over
    genes. As in scvi-tools, x below 1e-8 is treated as zero, in the value and in the gradients. It is accurate where
    `negative_binomial_log_likelihood` is accurate, with logits over the whole range of their dtype.

    Args:
        mu: the decoder's mean, not negative; float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these dtypes, an integer dtype or bool, of the shape of `mu`.
            Leading batch dims may be missing or 1.
        theta: inverse dispersion, positive (not its logarithm): a float, or a tensor that broadcasts to `mu`: one
            number for all elements, one per gene or one per element. Its gradient has its own shape and dtype.
        zero_logits: logits of the probability that a count is dropped; a float or a tensor like `theta`.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `mu.shape[:batch_dims]`, or for `reduction="none"` that of `mu`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15, methods;
    `log_zinb_positive` of scvi-tools.

    >>> import torch, vae_kernels as vk
    >>> mu, x = torch.ones(2, 3), torch.tensor([[0, 1, 2]] * 2)
    >>> vk.zero_inflated_negative_binomial_log_likelihood(mu, x, theta=1.0, zero_logits=0.0)
    tensor([-5.1397, -5.1397])
    """
    return _log_likelihood("zero_inflated_negative_binomial", (mu, x, theta, zero_logits), batch_dims, reduction)


def discretized_logistic_log_likelihood(
    mean: Tensor,
    x: Tensor,
    log_scale: Tensor | float = 0.0,
    *,
    bins: int = 256,
    batch_dims: int = 1,
    reduction: str = "sum",
) -> Tensor:
    """Sum the log-likelihood of pixels per sample, under a logistic distribution that is cut into bins.

        log p(x) = Σ ln(σ((x − mean + h) / s) − σ((x − mean − h) / s))        [nats]
        s = exp(log_scale),    h = 1 / (bins − 1),    σ the logistic sigmoid

    `x` in [−1, 1] takes the values −1, −1 + 2h, …, 1. The lower edge of the first bin is −∞ and the upper edge of the
    last bin is ∞, so that the probabilities of all bins add up to 1. The formula is evaluated as a sum of logarithms of
    the same sign, without a floor on the difference. It is accurate for `mean` and `log_scale` over the whole range of
    their dtype.

    Args:
        mean: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets in [−1, 1], any of these dtypes, an integer dtype or bool, of the shape of `mean`.
            Leading batch dims may be missing or 1.
        log_scale: natural logarithm of the scale s: a float, or a tensor that broadcasts to `mean`: one number for
            all elements, one per channel or one per element. Its gradient has its own shape and dtype.
        bins: the number of values that x takes, at least 2; 256 for 8-bit pixels.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `mean.shape[:batch_dims]`, or for `reduction="none"` that of `mean`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here; `bins` is not an int.
        ValueError: shapes, devices, `bins`, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma et al. 2016, "Improving Variational Inference with Inverse Autoregressive Flow", section 5.2; the
    open ends are those of Salimans et al. 2017, "PixelCNN++", section 2.1.

    >>> import torch, vae_kernels as vk
    >>> vk.discretized_logistic_log_likelihood(torch.zeros(2, 3), torch.ones(2, 3), bins=2)
    tensor([-2.0794, -2.0794])
    """
    bins = checks.integer("bins", bins)
    if bins < 2:
        raise ValueError(f"bins must be at least 2, got {bins}")
    return _log_likelihood("discretized_logistic", (mean, x, log_scale, float(bins)), batch_dims, reduction)


def poisson_log_likelihood(log_rate: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum") -> Tensor:
    """Sum the Poisson log-likelihood of the counts `x` per sample, from the logarithms of their rates.

        log p(x) = Σ x · l − exp(l) − ln Γ(x + 1),    l = log_rate        [nats]

    For each sample this is `−F.poisson_nll_loss(log_rate, x, full=True, reduction="sum")` with the exact ln Γ(x + 1).
    The gamma function and the logarithms are combined before they are evaluated, so that nothing cancels for large
    counts.

    Largest error: 16 ulp of the larger of |x − exp(l)| and the result, for counts up to 1e30 (float64: 1e300) and for
    `log_rate` over the whole range of its dtype. The result is −∞ where exp(l) overflows, and NaN for x ≤ −1.

    Args:
        log_rate: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these dtypes, an integer dtype or bool, of the shape of `log_rate`.
            Leading batch dims may be missing or 1. A floating-point `x` also gets a gradient: that of the formula for
            real x.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `log_rate.shape[:batch_dims]`, or for `reduction="none"` that of `log_rate`; float64 if an input is
        float64, else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", section 4.2.4, for the exponential family to which
    it belongs; `torch.distributions.Poisson`.

    >>> import torch, vae_kernels as vk
    >>> vk.poisson_log_likelihood(torch.zeros(2, 3), torch.tensor([[0, 1, 2]] * 2))
    tensor([-3.6931, -3.6931])
    """
    return _log_likelihood("poisson", (log_rate, x), batch_dims, reduction)


def poisson_rate_log_likelihood(rate: Tensor, x: Tensor, *, batch_dims: int = 1, reduction: str = "sum") -> Tensor:
    """Sum the Poisson log-likelihood of the counts `x` per sample, from their rates.

        log p(x) = Σ x · ln r − r − ln Γ(x + 1),    r = rate        [nats]

    Use this for decoders that end in a softplus or a softmax, and `poisson_log_likelihood` otherwise. For a rate of 0
    the log-likelihood is 0 with the derivative −1 if x = 0, and −∞ otherwise.

    Args:
        rate: the decoder's output, not negative; float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these dtypes, an integer dtype or bool, of the shape of `rate`.
            Leading batch dims may be missing or 1. A floating-point `x` also gets a gradient: that of the formula for
            real x.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `rate.shape[:batch_dims]`, or for `reduction="none"` that of `rate`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: `torch.distributions.Poisson`; Lopez et al. 2018, "Deep generative modeling for single-cell
    transcriptomics", whose scvi-tools has this likelihood as `gene_likelihood="poisson"`.

    >>> import torch, vae_kernels as vk
    >>> vk.poisson_rate_log_likelihood(torch.ones(2, 3), torch.tensor([[0, 1, 2]] * 2))
    tensor([-3.6931, -3.6931])
    """
    return _log_likelihood("poisson_rate", (rate, x), batch_dims, reduction)


def zero_inflated_poisson_log_likelihood(
    log_rate: Tensor, x: Tensor, zero_logits: Tensor | float, *, batch_dims: int = 1, reduction: str = "sum"
) -> Tensor:
    """Sum the zero-inflated Poisson log-likelihood of the counts `x` per sample, from the logarithms of their rates.

        log p(x) = Σ ln(s + (1 − s) exp(−r))                      where x < 1e-8
                     ln(1 − s) + x · log_rate − r − ln Γ(x + 1)   elsewhere        [nats]
        s = sigmoid(zero_logits),    r = exp(log_rate)

    With the probability s the count is 0, otherwise it is drawn from a Poisson distribution with the rate r. x below
    1e-8 is treated as zero, in the value and in the gradients. Where r overflows and x is zero, the log-likelihood is
    ln s and the gradient to `log_rate` is 0.

    Largest error: 16 ulp of the result, or, for an x that is not zero, 16 ulp of the larger of |x − r| and the result.
    This holds for counts up to 1e30 (float64: 1e300), and for `log_rate` and `zero_logits` over the whole range of their
    dtype. For a zero, the error of the gradients is up to 1 + r + |zero_logits| times as large: they depend on the
    exponential of r + zero_logits.

    Args:
        log_rate: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these dtypes, an integer dtype or bool, of the shape of `log_rate`.
            Leading batch dims may be missing or 1. A floating-point `x` also gets a gradient: that of the formula for
            real x, and 0 for a zero.
        zero_logits: logits of the probability s of an excess zero: a float, or a tensor that broadcasts to `log_rate`:
            one number for all elements, one per gene or one per element. Its gradient has its own shape and dtype.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `log_rate.shape[:batch_dims]`, or for `reduction="none"` that of `log_rate`; float64 if an input is
        float64, else float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Lambert 1992, "Zero-Inflated Poisson Regression, with an Application to Defects in Manufacturing",
    Technometrics 34, section 2.

    >>> import torch, vae_kernels as vk
    >>> vk.zero_inflated_poisson_log_likelihood(torch.zeros(2, 3), torch.tensor([[0, 1, 2]] * 2), zero_logits=0.0)
    tensor([-4.4593, -4.4593])
    """
    return _log_likelihood("zero_inflated_poisson", (log_rate, x, zero_logits), batch_dims, reduction)


def negative_binomial_mixture_log_likelihood(
    mu1: Tensor,
    x: Tensor,
    mu2: Tensor | float,
    theta: Tensor | float,
    mixture_logits: Tensor | float,
    *,
    batch_dims: int = 1,
    reduction: str = "sum",
) -> Tensor:
    """Sum the log-likelihood of the counts `x` per sample, under a mixture of two negative binomials.

        log p(x) = Σ ln(s NB₁(x) + (1 − s) NB₂(x))        [nats]
        s = sigmoid(mixture_logits),    ln NBᵢ from `negative_binomial_log_likelihood` with muᵢ and theta

    This is for counts with a background, such as proteins in totalVI. It replaces the `log_prob` of scvi-tools'
    `NegativeBinomialMixture(mu1=, mu2=, theta1=, mixture_logits=)`, summed over proteins. Each component is one kernel.
    PyTorch mixes the two, so five tensors of the size of `mu1` are kept for the backward pass.

    Args:
        mu1: the mean of the first component, not negative; float64, float32, bfloat16 or float16, any shape and
            strides.
        x: counts, any of these dtypes, an integer dtype or bool, of the shape of `mu1`.
            Leading batch dims may be missing or 1.
        mu2: the mean of the second component, not negative: a float, or a tensor that broadcasts to `mu1`: one for all,
            one per protein, one per element. Its gradient has its own shape and dtype.
        theta: inverse dispersion of both components, positive (not its logarithm); a float or a tensor like `mu2`.
        mixture_logits: logits of the probability of the first component; a float or a tensor like `mu2`.
        batch_dims: the number of leading dims that are kept; all others are summed.
        reduction: `"sum"` for one number per sample, or `"none"` for the log-likelihood of every element.

    Returns:
        Shape `mu1.shape[:batch_dims]`, or for `reduction="none"` that of `mu1`; float64 if an input is float64, else
        float32.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or `reduction` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Gayoso et al. 2021, "Joint probabilistic modeling of single-cell multi-omic data with totalVI", Nature
    Methods 18, methods; `log_mixture_nb` of scvi-tools.

    >>> import torch, vae_kernels as vk
    >>> mu, x = torch.ones(2, 3), torch.tensor([[0, 1, 2]] * 2)
    >>> vk.negative_binomial_mixture_log_likelihood(mu, x, mu2=1.0, theta=1.0, mixture_logits=0.0)
    tensor([-4.1589, -4.1589])
    """
    checks.tensor("mu1", mu1, checks.FLOATS)
    dtype = _dtype_of((mu1, x, mu2, theta, mixture_logits))
    full = []
    for name, value in (("mu2", mu2), ("mixture_logits", mixture_logits)):
        _check_parameter(name, value, "mu1", mu1)
        value = value if isinstance(value, Tensor) else symbols.tensor(value, mu1, dtype)
        full.append(value.expand(mu1.shape))
    mu2, logits = full[0], full[1].to(dtype)
    summed = checks.choice("reduction", reduction, REDUCTIONS) is None
    batch_dims = checks.batch_dims(batch_dims, "mu1", mu1, summed=summed)
    first, second = (
        negative_binomial_log_likelihood(mu, x, theta, batch_dims=batch_dims, reduction="none") for mu in (mu1, mu2)
    )
    elements = torch.logaddexp(first + F.logsigmoid(logits), second + F.logsigmoid(-logits))
    return eager.sum_columns(elements, batch_dims) if summed else elements


def _check_parameter(name: str, parameter: object, full_name: str, full: Tensor) -> None:
    """Raise unless the parameter is a number, or a tensor that broadcasts to `full`."""
    if isinstance(parameter, Tensor):
        checks.tensor(name, parameter, checks.FLOATS)
        checks.same_device(name, parameter, full_name, full)
        if parameter.shape != full.shape:
            check_broadcast(name, parameter, full_name, full)
    elif not checks.is_number(parameter):
        raise TypeError(f"{name} must be a number or a torch.Tensor, got {type(parameter).__name__}")


def _log_likelihood(family: str, arguments: tuple[Tensor | float, ...], batch_dims: int, reduction: str) -> Tensor:
    inputs, options = _check(family, arguments, batch_dims, reduction)
    backend = backend_of(inputs[0])
    if backend == "eager":
        return transforms.with_dense_gradients(_eager(inputs, options))
    return LogLikelihood.apply(*inputs, options, f"vae_kernels_{backend}")


class LogLikelihood(torch.autograd.Function):
    """Autograd function with one kernel per direction."""

    @staticmethod
    def forward(ctx, first, x, parameter0, parameter1, options, namespace):
        ctx.save_for_backward(first, x, parameter0, parameter1)
        ctx.options, ctx.namespace = options, namespace
        if parameter0 is not None:
            parameter0 = expand_other(parameter0, first, options.batch_dims)
        if parameter1 is not None:
            parameter1 = expand_other(parameter1, first, options.batch_dims)
        op = getattr(torch.ops, namespace).likelihood_forward.default
        return op(first, x, parameter0, parameter1, *options)

    @staticmethod
    def backward(ctx, grad):
        grad = transforms.dense(grad)
        inputs, options, needs = ctx.saved_tensors, ctx.options, ctx.needs_input_grad
        if transforms.only_eager(grad):
            grads = eager.gradients(lambda *inputs: _eager(inputs, options), inputs, needs[:4], (grad,))
            return *grads, None, None
        op = getattr(torch.ops, ctx.namespace).likelihood_backward.default
        wanted = needs[0] | needs[1] << 1 | needs[2] << 2 | needs[3] << 3
        first, x, parameter0, parameter1 = inputs
        if parameter0 is None and parameter1 is None:
            return *op(grad, *inputs, *options, wanted), None, None
        expanded0 = expand_other(parameter0, first, options.batch_dims, inputs)
        expanded1 = expand_other(parameter1, first, options.batch_dims, inputs)
        to_first, to_x, to_parameter0, to_parameter1 = op(grad, first, x, expanded0, expanded1, *options, wanted)
        to_parameter0 = to_parameter0 if expanded0 is parameter0 else sum_other(to_parameter0, parameter0)
        to_parameter1 = to_parameter1 if expanded1 is parameter1 else sum_other(to_parameter1, parameter1)
        return to_first, to_x, to_parameter0, to_parameter1, None, None


def _eager(inputs: Sequence[Tensor | None], options: LikelihoodOptions) -> Tensor:
    family = _FAMILIES[options.family]
    dtype = eager.compute_dtype(*(t for t in inputs if t is not None))
    numbers = (None, None, options.number0, options.number1)
    arguments = [
        torch.full((), number, dtype=dtype, device=inputs[0].device) if t is None else t.to(dtype)
        for t, number, _ in zip(inputs, numbers, family.arguments, strict=False)
    ]
    log_prob = family.log_prob(*arguments)
    return eager.sum_columns(log_prob, options.batch_dims) if options.summed else log_prob


def _check(
    family: str, arguments: tuple[Tensor | float, ...], batch_dims: int, reduction: str
) -> tuple[tuple[Tensor | None, ...], LikelihoodOptions]:
    """Check the arguments. Returns the op's four tensors and its options."""
    names = FAMILIES[family].arguments
    first, x, *parameters = arguments
    checks.tensor(names[0], first, checks.FLOATS)
    checks.tensor("x", x, checks.TARGETS)
    checks.same_device("x", x, names[0], first)
    reduction = checks.choice("reduction", reduction, REDUCTIONS)
    batch_dims = checks.batch_dims(batch_dims, names[0], first, summed=reduction is None)
    if x.requires_grad and x.shape != first.shape:
        x = x.to(_dtype_of(arguments))
    x = checks.target(x, first.shape, names[0], batch_dims)
    if reduction is not None and batch_dims == first.dim() > 0:
        batch_dims -= 1  # nothing is summed, and kernels are faster along columns than along rows
    tensors, numbers = [None, None], [None, None]
    for i, (name, parameter) in enumerate(zip(names[2:], parameters, strict=True)):
        _check_parameter(name, parameter, names[0], first)
        if isinstance(parameter, Tensor):
            tensors[i] = parameter
        elif name not in FAMILIES[family].numbers and (symbols.changes(parameter) or not math.isfinite(parameter)):
            # An exported program cannot hold a number that is not finite.
            tensors[i] = symbols.tensor(parameter, first, _dtype_of(arguments))
        else:
            numbers[i] = float(parameter)
    if checks.values_checked():
        _check_values(family, (first, x, *tensors), numbers, batch_dims)
    return (first, x, *tensors), LikelihoodOptions(INDEX[family], *numbers, batch_dims, reduction)


def _dtype_of(arguments: tuple[Tensor | float, ...]) -> torch.dtype:
    return eager.compute_dtype(*(a for a in arguments if isinstance(a, Tensor)))


def _check_values(family: str, inputs: Sequence[Tensor | None], numbers: list[float | None], batch_dims: int) -> None:
    for i, name in enumerate(FAMILIES[family].arguments):
        value = inputs[i]
        if value is None:
            value = torch.tensor(numbers[i - 2], dtype=torch.float64, device="cpu")
        # A parameter that all samples share belongs to no single sample.
        dims = batch_dims if value.shape == inputs[0].shape else 0
        checks.no_nan(name, value, dims)
        if allowed := FAMILIES[family].ranges.get(name):
            checks.in_range(name, value, dims, allowed)
