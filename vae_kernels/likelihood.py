"""Reconstruction terms: log-likelihoods of `x` under the decoder's output, summed per sample."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from . import checks, eager, symbols, transforms
from .backends import current_backend
from .rows import check_broadcast, expand_others, kernels_sum, sum_others


class Family(NamedTuple):
    """One family of distributions: the arguments in order, the log-probability of an element in plain PyTorch, and
    which values `check_values` lets pass, and which arguments are numbers, never tensors.

    The kernels of every backend know the family by its key in `FAMILIES`.
    """

    arguments: tuple[str, ...]
    log_prob: Callable[..., Tensor]
    ranges: dict[str, checks.Range]
    numbers: tuple[str, ...] = ()


_COUNTS = {"mu": checks.NOT_NEGATIVE, "x": checks.NOT_NEGATIVE, "theta": checks.POSITIVE}

FAMILIES = {
    "bernoulli": Family(("logits", "x"), eager.bernoulli, {"x": checks.UNIT}),
    "gaussian": Family(("mean", "x", "logvar"), eager.gaussian, {}),
    "laplace": Family(("loc", "x", "log_scale"), eager.laplace, {}),
    "continuous_bernoulli": Family(("logits", "x"), eager.continuous_bernoulli, {"x": checks.UNIT}),
    "bernoulli_probs": Family(("probs", "x"), eager.bernoulli_probs, {"probs": checks.UNIT, "x": checks.UNIT}),
    "negative_binomial": Family(("mu", "x", "theta"), eager.negative_binomial, _COUNTS),
    "zero_inflated_negative_binomial": Family(
        ("mu", "x", "theta", "zero_logits"), eager.zero_inflated_negative_binomial, _COUNTS
    ),
    "discretized_logistic": Family(
        ("mean", "x", "log_scale", "bins"), eager.discretized_logistic, {"x": checks.SYMMETRIC_UNIT}, ("bins",)
    ),
}


def bernoulli_log_likelihood(logits: Tensor, x: Tensor, *, batch_dims: int = 1) -> Tensor:
    """Sum the Bernoulli log-likelihood of `x` per sample, from logits.

        log p(x) = Σ x · a − softplus(a),    a = logits        [nats]

    This is `−binary_cross_entropy_with_logits(logits, x, reduction="sum")` of each sample. `x` outside [0, 1] is
    evaluated by the formula. Accurate for `logits` as far as their type goes.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `logits`, except that leading batch dims
            may be missing or 1.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `logits.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1.

    >>> import torch, vae_kernels as vk
    >>> vk.bernoulli_log_likelihood(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("bernoulli", (logits, x), batch_dims)


def gaussian_log_likelihood(mean: Tensor, x: Tensor, logvar: Tensor | float = 0.0, *, batch_dims: int = 1) -> Tensor:
    """Sum the Gaussian log-likelihood of `x` per sample.

        log p(x) = Σ −½ (logvar + (x − mean)² · exp(−logvar) + ln 2π)        [nats]

    The constant is always there. `logvar` is the natural logarithm of the *variance*; from a log standard deviation pass
    `2 * logstd`. Accurate for all arguments as far as their type goes: also where `exp(−logvar)` would be infinite and
    `x` is `mean`.

    Args:
        mean: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `mean`, except that leading batch dims may
            be missing or 1.
        logvar: a float, or a tensor that broadcasts to `mean`: one for all, one per channel, one per element. Its
            gradient has its own shape and dtype.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `mean.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.2.

    >>> import torch, vae_kernels as vk
    >>> vk.gaussian_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3), logvar=0.0)
    tensor([-2.7568, -2.7568])
    """
    return _log_likelihood("gaussian", (mean, x, logvar), batch_dims)


def laplace_log_likelihood(loc: Tensor, x: Tensor, log_scale: Tensor | float = 0.0, *, batch_dims: int = 1) -> Tensor:
    """Sum the Laplace log-likelihood of `x` per sample.

        log p(x) = Σ −|x − loc| · exp(−log_scale) − log_scale − ln 2        [nats]

    An L1 reconstruction loss with its scale. The derivative at `x = loc` is 0. Accurate for all arguments as far as their
    type goes.

    Args:
        loc: the decoder's output, the median; float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `loc`, except that leading batch dims may
            be missing or 1.
        log_scale: natural logarithm of the scale b (the variance is 2 b²): a float, or a tensor that broadcasts to
            `loc`: one for all, one per channel, one per element. Its gradient has its own shape and dtype.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `loc.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Bishop 2006, "Pattern Recognition and Machine Learning", exercise 2.43 with q = 1.

    >>> import torch, vae_kernels as vk
    >>> vk.laplace_log_likelihood(torch.zeros(2, 3), torch.zeros(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("laplace", (loc, x, log_scale), batch_dims)


def continuous_bernoulli_log_likelihood(logits: Tensor, x: Tensor, *, batch_dims: int = 1) -> Tensor:
    """Sum the continuous Bernoulli log-likelihood of `x` in [0, 1] per sample, from logits.

        log p(x) = Σ x · a − ln((exp(a) − 1) / a),    a = logits        [nats]

    The density on [0, 1] that a Bernoulli decoder's loss lacks the normalizer of: for grey values in [0, 1] it is a
    true likelihood. Accurate around `a = 0` (p = ½), where the normalizer is 0/0, and for |a| as large as its type goes.
    It is positive where the density is above 1. `x` outside [0, 1] is evaluated by the formula.

    Args:
        logits: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `logits`, except that leading batch dims
            may be missing or 1.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `logits.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Loaiza-Ganem & Cunningham 2019, "The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders", equations 5 to 7, in logits.

    >>> import torch, vae_kernels as vk
    >>> vk.continuous_bernoulli_log_likelihood(torch.ones(2, 3), torch.ones(2, 3))
    tensor([1.3760, 1.3760])
    """
    return _log_likelihood("continuous_bernoulli", (logits, x), batch_dims)


def bernoulli_probs_log_likelihood(probs: Tensor, x: Tensor, *, batch_dims: int = 1) -> Tensor:
    """Sum the Bernoulli log-likelihood of `x` per sample, from probabilities.

        log p(x) = Σ x · max(ln p, −100) + (1 − x) · max(ln(1 − p), −100),    p = probs        [nats]

    This is `−binary_cross_entropy(probs, x, reduction="sum")` of each sample, for decoders that end in a sigmoid, with
    its gradient `(x − p) / max(p (1 − p), 1e-12)`: next to 0 and 1 that is not the derivative of the clamped value, but what
    people train with. `bernoulli_log_likelihood` from logits is exact where this one is clamped. `x` outside [0, 1] is evaluated by the formula.

    Args:
        probs: the decoder's output in [0, 1] (elsewhere the result is NaN), float64, float32, bfloat16 or float16, any
            shape and strides.
        x: targets, any of these or an integer dtype or bool; of the shape of `probs`, except that leading batch dims
            may be missing or 1.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `probs.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", appendix C.1; the clamps are those of
    `torch.nn.functional.binary_cross_entropy`.

    >>> import torch, vae_kernels as vk
    >>> vk.bernoulli_probs_log_likelihood(torch.full((2, 3), 0.5), torch.ones(2, 3))
    tensor([-2.0794, -2.0794])
    """
    return _log_likelihood("bernoulli_probs", (probs, x), batch_dims)


def negative_binomial_log_likelihood(mu: Tensor, x: Tensor, theta: Tensor | float, *, batch_dims: int = 1) -> Tensor:
    """Sum the negative binomial log-likelihood of the counts `x` per sample.

        log p(x) = Σ ln Γ(x + θ) − ln Γ(θ) − ln Γ(x + 1) + θ ln((θ + ε) / e) + x ln((mu + ε) / e)    [nats]
        e = mu + θ + ε,    θ = theta,    ε = 1e-8

    Mean mu, variance mu + mu²/θ. A drop-in for the `log_prob` of scvi-tools' `NegativeBinomial(mu=, theta=)`, summed
    over genes, its ε included: it keeps value and gradient finite at mu = 0. Terms that do not depend on the parameters
    are included. The gamma functions and the logarithms are put together before they are evaluated, so that large counts
    and large θ, a Poisson's limit, do not cancel.

    To 16 ulp for mu and θ from the least normal number of their type to an eighth of the largest, mu also 0, and counts
    up to 1e30 (float64: 1e300); of an x between 0 and 0.1 that is no count, to 16 ulp of 1. NaN for x ≤ −1, x + θ < 0 and
    other arguments that the formula does not have.

    Args:
        mu: the decoder's mean, not negative; float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these or an integer dtype or bool; of the shape of `mu`, except that leading batch dims may be
            missing or 1. A floating-point `x` gets its gradient, by the formula between the integers.
        theta: inverse dispersion, positive (not its logarithm): a float, or a tensor that broadcasts to `mu`: one for
            all, one per gene, one per element. Its gradient has its own shape and dtype.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `mu.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15, methods;
    `log_nb_positive` of scvi-tools.

    >>> import torch, vae_kernels as vk
    >>> vk.negative_binomial_log_likelihood(torch.ones(2, 3), torch.tensor([[0, 1, 2]] * 2), theta=1.0)
    tensor([-4.1589, -4.1589])
    """
    return _log_likelihood("negative_binomial", (mu, x, theta), batch_dims)


def zero_inflated_negative_binomial_log_likelihood(
    mu: Tensor, x: Tensor, theta: Tensor | float, zero_logits: Tensor | float, *, batch_dims: int = 1
) -> Tensor:
    """Sum the zero-inflated negative binomial log-likelihood of the counts `x` per sample.

        log p(x) = Σ ln(s + (1 − s) NB(0))    where x < 1e-8
                     ln(1 − s) + ln NB(x)     elsewhere        [nats]
        s = sigmoid(zero_logits),    ln NB that of `negative_binomial_log_likelihood`

    A drop-in for the `log_prob` of scvi-tools' `ZeroInflatedNegativeBinomial(mu=, theta=, zi_logits=)` summed over
    genes. As there, x below 1e-8 counts as zero, in value and gradients. Accurate where
    `negative_binomial_log_likelihood` is, for logits as far as their type goes.

    Args:
        mu: the decoder's mean, not negative; float64, float32, bfloat16 or float16, any shape and strides.
        x: counts, any of these or an integer dtype or bool; of the shape of `mu`, except that leading batch dims may be
            missing or 1.
        theta: inverse dispersion, positive (not its logarithm): a float, or a tensor that broadcasts to `mu`: one for
            all, one per gene, one per element. Its gradient has its own shape and dtype.
        zero_logits: logits of the probability that a count is dropped; like `theta`.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `mu.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Lopez et al. 2018, "Deep generative modeling for single-cell transcriptomics", Nature Methods 15, methods;
    `log_zinb_positive` of scvi-tools.

    >>> import torch, vae_kernels as vk
    >>> mu, x = torch.ones(2, 3), torch.tensor([[0, 1, 2]] * 2)
    >>> vk.zero_inflated_negative_binomial_log_likelihood(mu, x, theta=1.0, zero_logits=0.0)
    tensor([-5.1397, -5.1397])
    """
    return _log_likelihood("zero_inflated_negative_binomial", (mu, x, theta, zero_logits), batch_dims)


def discretized_logistic_log_likelihood(
    mean: Tensor, x: Tensor, log_scale: Tensor | float = 0.0, *, bins: int = 256, batch_dims: int = 1
) -> Tensor:
    """Sum the log-likelihood of pixels under a logistic distribution cut into bins per sample.

        log p(x) = Σ ln(σ((x − mean + h) / s) − σ((x − mean − h) / s))        [nats]
        s = exp(log_scale),    h = 1 / (bins − 1),    σ the logistic sigmoid

    `x` in [−1, 1] takes the values −1, −1 + 2h, …, 1. The ends are open: where x is in the first bin its lower edge is
    −∞, in the last its upper edge is ∞, so that the probabilities of all bins add up to 1. Evaluated as a sum of
    logarithms of one sign, without a floor on the difference: accurate for `mean` and `log_scale` as far as their type
    goes.

    Args:
        mean: the decoder's output, float64, float32, bfloat16 or float16, any shape and strides.
        x: targets in [−1, 1], any of these or an integer dtype or bool; of the shape of `mean`, except that leading
            batch dims may be missing or 1.
        log_scale: natural logarithm of the scale s: a float, or a tensor that broadcasts to `mean`: one for all, one
            per channel, one per element. Its gradient has its own shape and dtype.
        bins: how many values x takes, at least 2; 256 for 8-bit pixels.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        Shape `mean.shape[:batch_dims]`, float64 if an input is, else float32.

    Raises:
        TypeError: not a tensor, or of a dtype not named here; `bins` not an int.
        ValueError: shapes, devices, `bins` or `batch_dims` do not fit.
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
    return _log_likelihood("discretized_logistic", (mean, x, log_scale, float(bins)), batch_dims)


def _log_likelihood(family: str, arguments: tuple[Tensor | float, ...], batch_dims: int) -> Tensor:
    inputs, constants, batch_dims = _check(family, arguments, batch_dims)
    backend = "eager" if transforms.active() else current_backend(inputs[0].device.type)
    if backend == "eager":
        return transforms.with_dense_gradients(_eager(family, inputs, constants, batch_dims))
    namespace = f"vae_kernels_{backend}"
    first, x, *parameters = inputs
    if len(parameters) < 2 and not constants and not x.requires_grad:
        parameter = parameters[0] if parameters else None
        if parameter is None or (
            parameter.requires_grad == first.requires_grad and kernels_sum(parameter, first, batch_dims)
        ):
            return LeanLogLikelihood.apply(first, x, parameter, family, batch_dims, namespace)
    return LogLikelihood.apply(family, constants, batch_dims, namespace, *inputs)


class LogLikelihood(torch.autograd.Function):
    """One kernel forward, one backward."""

    @staticmethod
    def forward(ctx, *arguments):
        # Named parameters before the inputs would let Dynamo drop `ctx` of two inputs without gradient: it compares the
        # number of arguments with that of parameters, `*inputs` counting as one.
        family, constants, batch_dims, namespace, *inputs = arguments
        ctx.save_for_backward(*inputs)
        ctx.family, ctx.constants, ctx.batch_dims, ctx.namespace = family, constants, batch_dims, namespace
        inputs = [expand_others(t, inputs[0], batch_dims) for t in inputs]
        return getattr(torch.ops, namespace).likelihood_forward.default(family, inputs, constants, batch_dims)

    @staticmethod
    def backward(ctx, grad):
        grad = transforms.dense(grad)
        inputs, needs = ctx.saved_tensors, ctx.needs_input_grad[4:]
        if torch.is_grad_enabled() or transforms.batched(grad):
            grads = eager.gradients(
                lambda *args: _eager(ctx.family, args, ctx.constants, ctx.batch_dims), inputs, needs, (grad,)
            )
        else:
            dtype = eager.compute_dtype(*inputs)
            given = [expand_others(t, inputs[0], ctx.batch_dims, dtype) for t in inputs]
            grads = getattr(torch.ops, ctx.namespace).likelihood_backward.default(
                ctx.family, grad, given, ctx.constants, ctx.batch_dims, needs
            )
            needed = [t for t, need in zip(inputs, needs, strict=True) if need]
            grads = [sum_others(g, t) for g, t in zip(grads, needed, strict=True)]
        grads = iter(grads)
        return None, None, None, None, *(next(grads) if need else None for need in needs)


class LeanLogLikelihood(torch.autograd.Function):
    """`LogLikelihood` with one parameter behind x or none, gradients to all but x, and nothing given as a number. Where
    samples are small the time is that of arguments on their way, lists above all: of one element this takes a fifth
    less."""

    @staticmethod
    def forward(ctx, first, x, parameter, family, batch_dims, namespace):
        ctx.save_for_backward(first, x, parameter)
        ctx.family, ctx.batch_dims, ctx.namespace = family, batch_dims, namespace
        ops = getattr(torch.ops, namespace)
        if parameter is None:
            return ops.likelihood_pair_forward.default(family, first, x, batch_dims)
        return ops.likelihood_triple_forward.default(family, first, x, parameter, batch_dims)

    @staticmethod
    def backward(ctx, grad):
        grad = transforms.dense(grad)
        first, x, parameter = ctx.saved_tensors
        ops = getattr(torch.ops, ctx.namespace)
        if torch.is_grad_enabled() or transforms.batched(grad):
            inputs = (first, x) if parameter is None else (first, x, parameter)
            grads = eager.gradients(
                lambda *args: _eager(ctx.family, args, [], ctx.batch_dims),
                inputs,
                (True, False, True)[: len(inputs)],
                (grad,),
            )
        elif parameter is None:
            grads = [ops.likelihood_pair_backward.default(ctx.family, grad, first, x, ctx.batch_dims)]
        else:
            grads = ops.likelihood_triple_backward.default(ctx.family, grad, first, x, parameter, ctx.batch_dims)
        return grads[0], None, None if parameter is None else grads[1], None, None, None


def _eager(family: str, inputs: tuple[Tensor, ...], constants: list[float], batch_dims: int) -> Tensor:
    dtype = eager.compute_dtype(*inputs)
    constants = [torch.full((), c, dtype=dtype, device=inputs[0].device) for c in constants]
    elements = FAMILIES[family].log_prob(*(t.to(dtype) for t in inputs), *constants)
    return eager.sum_columns(elements, batch_dims)


def _check(
    family: str, arguments: tuple[Tensor | float, ...], batch_dims: int
) -> tuple[tuple[Tensor, ...], list[float], int]:
    """Tensors in the order of the family's arguments, the parameters given as numbers, and batch_dims."""
    names = FAMILIES[family].arguments
    first, x = arguments[:2]
    checks.tensor(names[0], first, checks.FLOATS)
    checks.tensor("x", x, checks.TARGETS)
    checks.same_device("x", x, names[0], first)
    batch_dims = checks.batch_dims(batch_dims, names[0], first)
    if x.requires_grad and x.shape != first.shape:
        x = x.to(_dtype_of(arguments))
    inputs = [first, checks.target(x, first.shape, names[0], batch_dims)]
    constants = []
    for name, parameter in zip(names[2:], _numbers_last(family, arguments), strict=True):
        if not isinstance(parameter, Tensor):
            if not checks.is_number(parameter):
                raise TypeError(f"{name} must be a number or a torch.Tensor, got {type(parameter).__name__}")
            constants.append(float(parameter))
            continue
        checks.tensor(name, parameter, checks.FLOATS)
        checks.same_device(name, parameter, names[0], first)
        if parameter.shape != first.shape:
            check_broadcast(name, parameter, names[0], first)
        inputs.append(parameter)
    if checks.values_checked():
        _check_values(family, inputs, constants, batch_dims)
    return tuple(inputs), constants, batch_dims


def _dtype_of(arguments: tuple[Tensor | float, ...]) -> torch.dtype:
    return eager.compute_dtype(*(a for a in arguments if isinstance(a, Tensor)))


def _check_values(family: str, inputs: list[Tensor], constants: list[float], batch_dims: int) -> None:
    values = (*inputs, *(torch.tensor(c, dtype=torch.float64, device="cpu") for c in constants))
    for name, value in zip(FAMILIES[family].arguments, values, strict=True):
        # What is the same for all samples belongs to none.
        dims = batch_dims if value.shape == inputs[0].shape else 0
        checks.no_nan(name, value, dims)
        if allowed := FAMILIES[family].ranges.get(name):
            checks.in_range(name, value, dims, allowed)


def _numbers_last(family: str, arguments: tuple[Tensor | float, ...]) -> list[Tensor | float]:
    """The parameters behind x. A number becomes a tensor before a tensor, for the kernels take numbers last; where it
    changes within compiled code; and where it is not finite, which no exported program can hold as an op's argument."""
    parameters = list(arguments[2:])
    for i in reversed(range(len(parameters))):
        number = parameters[i]
        if not checks.is_number(number) or FAMILIES[family].arguments[i + 2] in FAMILIES[family].numbers:
            continue
        before_tensor = any(isinstance(other, Tensor) for other in parameters[i:])
        if before_tensor or symbols.changes(number) or not math.isfinite(number):
            parameters[i] = symbols.tensor(number, arguments[0], _dtype_of(arguments))
    return parameters
