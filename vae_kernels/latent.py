"""The latent step: a sample of q and the KL divergence, in one pass over memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from . import checks, eager, symbols, transforms
from .backends import backend_of
from .noise import SEED_LIMIT, draw_seed, normal_like
from .options import ESTIMATORS, REDUCTIONS, SCALES, KlEstimator, LatentOptions, Scale
from .rows import check_broadcast, empty_samples, expand_other, sum_other

# Key under which the eager kl's autograd node stores its options.
_OPTIONS = "vae_kernels.options"


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    num_samples: int | None = None,
    kl_estimator: str = "analytic",
    kl_reduction: str = "sum",
    scale: str = "logvar",
    std_floor: float = 0.0,
    logvar_clamp: Sequence[float] | None = None,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
    batch_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """Sample `z ~ q = N(mu, exp(logvar))` and sum `KL(q ‖ p)` per sample, `p = N(prior_mu, exp(prior_logvar))`.

        z  = mu + exp(logvar/2) · eps
        kl = Σ ½ ((mu − prior_mu)² · exp(−prior_logvar) + exp(d) − 1 − d),   d = logvar − prior_logvar        [nats]

    `logvar` is the natural logarithm of the *variance*. If the encoder gives another quantity, name it with `scale`.

    Args:
        mu: means, float64, float32, bfloat16 or float16, any shape and strides.
        logvar: log-variances, of the shape of `mu`, in any of these dtypes.
        prior_mu: means of the prior, in any of these dtypes, broadcast to `mu`. Default: 0.
        prior_logvar: log-variances of the prior for every `scale`, in any of these dtypes, broadcast to `mu`. Default:
            0, which is variance 1.
        num_samples: the number of samples z for each mu, drawn with one read of mu. `z` has it as its leading dim.
        kl_estimator: `"analytic"` for the formula above, or the one-sample estimate `log q(z) − log p(z)` at each z.
            `"monte_carlo"` has the full gradient of the estimate. `"path"` has only the gradient of q's parameters
            through z, which is 0 if q is the true posterior ("sticking the landing"). The prior's parameters have their
            gradient in all three.
        kl_reduction: `"sum"` for one number per sample, or `"none"` for the KL of every element, for free bits and
            statistics.
        scale: the quantity in the second argument: `"logvar"`, `"logstd"` (log standard deviation), `"std"`,
            `"variance"` or `"softplus"`, any number r with the standard deviation `ln(1 + eʳ)`. Gradients are with
            respect to this quantity.
        std_floor: a number ≥ 0 that is added to the standard deviation, for every `scale`. Stable Audio's autoencoder
            has 1e-4 with `"softplus"`.
        logvar_clamp: bounds `(lo, hi)` of the log-variance, which is computed from the standard deviation with its
            floor and clamped before any other use. The clamp's derivative is 1 from lo to hi, including both bounds,
            and 0 outside. (`torch.clamp` has at a bound 1 up to torch 2.13, 0 from 2.14.)
        seed: fixes the noise: an int in [0, 2⁶³) or an int64 tensor of one element on the device of `mu`. The same seed
            gives the same noise on every backend, device and dtype (see `vae_kernels.noise`). A tensor with one element
            per sample of the batch gives each sample its own seed: its noise then does not depend on its place in the
            batch. Default: a seed from torch's random state, so that `torch.manual_seed` reproduces the noise.
        generator: the generator from which the seed is drawn, instead of torch's default. It cannot be used within
            `torch.compile(fullgraph=True)`, which cannot trace a generator.
        eps: the noise itself, of the shape of `z`, instead of a seed. It also gets a gradient.
        batch_dims: the number of leading dims of `mu` that are kept; all others are summed.

    Returns:
        `z`, of the shape, dtype and layout of `mu`, with the leading dim `num_samples` if that is not None.

        `kl`, of the shape `mu.shape[:batch_dims]`, float64 if an input is float64, else float32. Estimates have the
        leading dim `num_samples` too. With `kl_reduction="none"`, `kl` has the shape of `mu`, or for estimates that of
        `z`.

        Arithmetic is float32 for half precision inputs, so `logvar` has float32's limits: it may be within ±177
        (float64: ±1418), where the standard deviation is a number of the arithmetic's dtype. With `"softplus"` the
        second argument may be any
        number: where its exponential underflows, it is the log standard deviation itself. With the analytic KL,
        `prior_logvar` may be any number where the means are equal or differ by more than 1e-15. With an estimate it
        must be above −177 too.

        `eps` is drawn in registers and never stored. Of the tensors with the size of `mu`, only the inputs are kept for
        the backward pass. Views are read in place (halves of a chunk, channels_last, slices, broadcasts). An input is
        copied only if the strides of its batch dims, or those of its other dims, cannot be merged into two dims; an
        example is the inside of a larger 3-D box.

    Raises:
        TypeError: an argument is not a tensor, or its dtype is not listed here.
        ValueError: shapes, devices, `batch_dims` or names do not fit, a number is out of range, or more than one of
            seed, generator and eps is passed.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Sources: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equation 10 and appendix B; Roeder et al. 2017,
    "Sticking the Landing", for `"path"`; diffusers, `OobleckDiagonalGaussianDistribution`, for softplus with a floor
    (its `kl` is twice this one).

    >>> import torch, vae_kernels as vk
    >>> mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
    >>> z, kl = vk.reparameterize_kl(mu, logvar, seed=0)
    >>> kl
    tensor([0., 0.])
    >>> z, kl = vk.reparameterize_kl(mu, logvar, prior_mu=torch.ones(3), num_samples=5, kl_estimator="monte_carlo")
    >>> z.shape, kl.shape
    (torch.Size([5, 2, 3]), torch.Size([5, 2]))
    """
    checks.tensor("mu", mu, checks.FLOATS)
    checks.tensor("logvar", logvar, checks.FLOATS)
    checks.same_shape("logvar", logvar, "mu", mu)
    checks.same_device("logvar", logvar, "mu", mu)
    batch_dims = checks.batch_dims(batch_dims, "mu", mu)
    options = _options(batch_dims, None, num_samples, scale, std_floor, logvar_clamp, kl_estimator, kl_reduction)
    return _latent_step(mu, logvar, prior_mu, prior_logvar, seed, generator, eps, options)


def reparameterize_kl_packed(
    moments: Tensor,
    *,
    dim: int = 1,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    num_samples: int | None = None,
    kl_estimator: str = "analytic",
    kl_reduction: str = "sum",
    scale: str = "logvar",
    std_floor: float = 0.0,
    logvar_clamp: Sequence[float] | None = None,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
    batch_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """Apply `reparameterize_kl` to an encoder output that holds both moments: `mu, logvar = moments.chunk(2, dim)`.

    Both halves are read in place, and the gradient is written into one tensor with the shape and layout of `moments`.
    Nothing is split, concatenated or filled with zeros.

    Args:
        moments: float64, float32, bfloat16 or float16, any shape and strides, with an even size along `dim`.
        dim: 1 for the channels of a convolutional encoder, −1 for a linear head. −1 also serves pairs `(mu, logvar)` in
            a last dim of two elements; `z` then has a last dim of one element.
        others: as for `reparameterize_kl`, applied to the halves.

    Returns:
        `z` and `kl` of `reparameterize_kl(*moments.chunk(2, dim))`.

    Raises:
        TypeError, RuntimeError: as for `reparameterize_kl`.
        ValueError: as for `reparameterize_kl`; also if `dim` is not one of the dims after `batch_dims`, or its size is
            odd.

    Source: Rombach et al. 2022, "High-Resolution Image Synthesis with Latent Diffusion Models", whose encoder ends in
    both moments; Kingma & Welling 2014, appendix B.

    >>> import torch, vae_kernels as vk
    >>> moments = torch.zeros(4, 8, 64, 64)
    >>> z, kl = vk.reparameterize_kl_packed(moments, logvar_clamp=(-30, 20))
    >>> z.shape, kl.shape
    (torch.Size([4, 4, 64, 64]), torch.Size([4]))
    """
    checks.tensor("moments", moments, checks.FLOATS)
    batch_dims = checks.batch_dims(batch_dims, "moments", moments)
    dim = _packed_dim(moments, dim, batch_dims)
    options = _options(batch_dims, dim, num_samples, scale, std_floor, logvar_clamp, kl_estimator, kl_reduction)
    return _latent_step(moments, None, prior_mu, prior_logvar, seed, generator, eps, options)


def _latent_step(mu, logvar, prior_mu, prior_logvar, seed, generator, eps, options: LatentOptions):
    """The latent step. `mu` holds both moments if `logvar` is None."""
    floor, low, high = options.std_floor, options.low, options.high
    numbers = () if floor is None and low is None and high is None else (floor, low, high)
    if any(number is not None and symbols.changes(number) for number in numbers):
        mu, logvar = (mu, logvar) if logvar is not None else mu.chunk(2, options.packed_dim)
        logvar, options = eager.settled(logvar, options)
    if eps is not None or prior_mu is not None or prior_logvar is not None or seed is not None or generator is not None:
        like = _mean(mu, logvar, options)
        _check_noise(seed, generator, eps, like, options)
        for name, prior in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
            if prior is not None:
                _check_prior(name, prior, like)
    if checks.values_checked():
        _check_values(mu, logvar, prior_mu, prior_logvar, eps, options)
    backend = backend_of(mu)
    if backend == "eager":
        if logvar is None:
            mu, logvar = mu.chunk(2, options.packed_dim)
        if eps is None:
            eps = _eager_noise(mu, seed, generator, options)
        z, kl = eager.reparameterize_kl(mu, logvar, prior_mu, prior_logvar, eps, options)
        z, kl = transforms.with_dense_gradients(z), transforms.with_dense_gradients(kl)
        if not torch.compiler.is_compiling() and not transforms.active() and kl.grad_fn is not None:
            kl.grad_fn.metadata[_OPTIONS] = options
        return z, kl
    noise = _seed_tensor(mu, seed, generator) if eps is None else eps
    return LatentStep.apply(mu, logvar, prior_mu, prior_logvar, noise, options, f"vae_kernels_{backend}")


def kl_estimator_of(kl: Tensor) -> str | None:
    """The estimator of a `kl` that comes directly from the latent step; None if it is not known."""
    if torch.compiler.is_compiling() or kl.grad_fn is None:
        return None
    of_step = isinstance(kl.grad_fn, LatentStep._backward_cls)
    options = kl.grad_fn.options if of_step else kl.grad_fn.metadata.get(_OPTIONS)
    return options and KlEstimator(options.kl_estimator or 0).name


class LatentStep(torch.autograd.Function):
    """Autograd function with one kernel per direction. The backward pass makes the noise again from the seed."""

    @staticmethod
    def forward(ctx, mu, logvar, prior_mu, prior_logvar, noise, options, namespace):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar, noise)
        ctx.strides, ctx.options, ctx.namespace = mu.stride(), options, namespace
        if prior_mu is not None or prior_logvar is not None:
            like = _mean(mu, logvar, options)
            prior_mu = expand_other(prior_mu, like, options.batch_dims)
            prior_logvar = expand_other(prior_logvar, like, options.batch_dims)
        op = getattr(torch.ops, namespace).latent_forward.default
        return op(mu, logvar, prior_mu, prior_logvar, noise, *options)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        grad_z, grad_kl = transforms.dense(grad_z), transforms.dense(grad_kl)
        mu, logvar, prior_mu, prior_logvar, noise = ctx.saved_tensors
        mu, options, needs = _laid_out(mu, ctx.strides), ctx.options, ctx.needs_input_grad
        if transforms.only_eager(grad_kl if grad_z is None else grad_z):
            inputs = (mu, logvar, prior_mu, prior_logvar, noise)
            return *_differentiable_backward((grad_z, grad_kl), inputs, needs[:5], options), None, None
        op = getattr(torch.ops, ctx.namespace).latent_backward.default
        wanted = needs[0] | needs[1] << 1 | needs[2] << 2 | needs[3] << 3 | needs[4] << 4
        if prior_mu is None and prior_logvar is None:
            return *op(grad_z, grad_kl, mu, logvar, None, None, noise, *options, wanted), None, None
        like, tensors = _mean(mu, logvar, options), (mu, logvar, prior_mu, prior_logvar)
        expanded_mu = expand_other(prior_mu, like, options.batch_dims, tensors)
        expanded_logvar = expand_other(prior_logvar, like, options.batch_dims, tensors)
        to_mu, to_raw, to_prior_mu, to_prior_logvar, to_noise = op(
            grad_z, grad_kl, mu, logvar, expanded_mu, expanded_logvar, noise, *options, wanted
        )
        to_prior_mu = to_prior_mu if expanded_mu is prior_mu else sum_other(to_prior_mu, prior_mu)
        to_prior_logvar = (
            to_prior_logvar if expanded_logvar is prior_logvar else sum_other(to_prior_logvar, prior_logvar)
        )
        return to_mu, to_raw, to_prior_mu, to_prior_logvar, to_noise, None, None


def _laid_out(saved: Tensor, strides: tuple[int, ...]) -> Tensor:
    """Restore the layout that a saved tensor had. Columns are counted in memory order, so another layout would change
    the noise. `torch.autograd.graph.save_on_cpu(pin_memory=True)` returns all tensors contiguous."""
    if saved.stride() == strides:
        return saved
    like = torch.empty_like(torch.empty_strided(saved.shape, strides, device="meta"))
    return saved.new_empty_strided(like.shape, like.stride()).copy_(saved)


def _mean(mu: Tensor, logvar: Tensor | None, options: LatentOptions) -> Tensor:
    """mu alone: `mu`, or its first half if it holds both moments."""
    return mu if logvar is not None else mu.narrow(options.packed_dim, 0, mu.shape[options.packed_dim] // 2)


def _differentiable_backward(upstream, inputs, needs, options: LatentOptions) -> list[Tensor | None]:
    """Gradients by autograd through the eager formulas, which can be differentiated again."""
    mu, logvar, prior_mu, prior_logvar, noise = inputs
    if not noise.is_floating_point():
        noise = normal_like(_mean(mu, logvar, options), noise, options.batch_dims, options.num_samples)

    def step(mu, logvar, *others) -> tuple[Tensor, Tensor]:
        moments = (mu, logvar) if logvar is not None else mu.chunk(2, options.packed_dim)
        return eager.reparameterize_kl(*moments, *others, options)

    return eager.gradients(step, (mu, logvar, prior_mu, prior_logvar, noise), needs, upstream)


def _seed_tensor(mu: Tensor, seed: int | Tensor | None, generator: torch.Generator | None) -> Tensor:
    if seed is None:
        return draw_seed(mu.device, generator)
    return seed if isinstance(seed, Tensor) else torch.full((1,), seed, dtype=torch.int64, device=mu.device)


def _eager_noise(
    mu: Tensor, seed: int | Tensor | None, generator: torch.Generator | None, options: LatentOptions
) -> Tensor:
    """The noise of the seed. Without a seed, torch's own normal numbers, because they are faster."""
    if seed is not None:
        return normal_like(mu, _seed_tensor(mu, seed, None), options.batch_dims, options.num_samples)
    dtype = eager.compute_dtype(mu)
    if generator is None and options.num_samples is None:
        return torch.randn_like(mu, dtype=dtype)
    return empty_samples(mu, options.num_samples, dtype).normal_(generator=generator)


def _packed_dim(moments: Tensor, dim: int, batch_dims: int) -> int:
    dim = checks.integer("dim", dim)
    positive = dim + moments.dim() if dim < 0 else dim
    if not batch_dims <= positive < moments.dim():
        raise ValueError(
            f"dim must be one of the dims of moments {tuple(moments.shape)} behind the first {batch_dims}, batch_dims, "
            f"got {dim}"
        )
    if moments.shape[positive] % 2:
        raise ValueError(
            f"moments must have an even size along dim {dim}, for mu and logvar, got shape {tuple(moments.shape)}"
        )
    return positive


def _options(
    batch_dims, packed_dim, num_samples, scale, std_floor, logvar_clamp, kl_estimator, kl_reduction
) -> LatentOptions:
    """Check the caller's choices."""
    if num_samples is not None:
        num_samples = checks.integer("num_samples", num_samples, "an int or None")
        if num_samples < 1:
            raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    scale = checks.choice("scale", scale, SCALES)
    std_floor = _check_floor(std_floor)
    low, high = (None, None) if logvar_clamp is None else _check_clamp(logvar_clamp)
    estimator = checks.choice("kl_estimator", kl_estimator, ESTIMATORS)
    reduction = checks.choice("kl_reduction", kl_reduction, REDUCTIONS)
    return LatentOptions(batch_dims, packed_dim, num_samples, scale, std_floor, low, high, estimator, reduction)


def _check_floor(std_floor: float) -> float | None:
    """Check the floor. Returns None for 0."""
    if not checks.is_number(std_floor):
        raise TypeError(f"std_floor must be a number, got {type(std_floor).__name__}")
    if not 0 <= std_floor < math.inf:
        raise ValueError(f"std_floor must be at least 0 and finite, got {std_floor}")
    return float(std_floor) if std_floor else None


def _check_clamp(logvar_clamp: Sequence[float]) -> tuple[float | None, float | None]:
    """Check both bounds. Returns None for an infinite bound."""
    if not isinstance(logvar_clamp, Sequence):
        raise TypeError(f"logvar_clamp must be (lo, hi) or None, got {type(logvar_clamp).__name__}")
    if not all(map(checks.is_number, logvar_clamp)):
        raise TypeError(f"logvar_clamp must hold two numbers (-inf and inf for no bound), got {logvar_clamp}")
    bounds = [float(bound) for bound in logvar_clamp]
    if len(bounds) != 2 or not bounds[0] <= bounds[1] or bounds[0] == math.inf or bounds[1] == -math.inf:
        raise ValueError(f"logvar_clamp must be (lo, hi) with lo <= hi, got {logvar_clamp}")
    return tuple(bound if symbols.changes(bound) or math.isfinite(bound) else None for bound in bounds)


def _check_noise(seed, generator, eps, mu, options: LatentOptions) -> None:
    if (seed is not None) + (generator is not None) + (eps is not None) > 1:
        raise ValueError("give at most one of seed, generator and eps")
    if seed is not None:
        _check_seed(seed, mu, options.batch_dims)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    if eps is not None:
        checks.tensor("eps", eps, checks.FLOATS)
        checks.same_device("eps", eps, "mu", mu)
        shape = mu.shape if options.num_samples is None else (options.num_samples, *mu.shape)
        if eps.shape != shape:
            raise ValueError(f"eps must have the shape of z, {tuple(shape)}, got {tuple(eps.shape)}")


def _check_seed(seed: int | Tensor, mu: Tensor, batch_dims: int) -> None:
    if isinstance(seed, Tensor):
        checks.tensor("seed", seed, (torch.int64,))
        checks.same_device("seed", seed, "mu", mu)
        rows = mu.shape[:batch_dims].numel()
        if seed.numel() not in (1, rows):
            raise ValueError(
                f"seed must have one element, or one for each of the {rows} samples, got shape {tuple(seed.shape)}"
            )
    elif not 0 <= checks.integer("seed", seed, "an int or an int64 tensor") <= SEED_LIMIT:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")


def _check_prior(name: str, prior: Tensor, mu: Tensor) -> None:
    checks.tensor(name, prior, checks.FLOATS)
    checks.same_device(name, prior, "mu", mu)
    check_broadcast(name, prior, "mu", mu)


def _check_values(mu, logvar, prior_mu, prior_logvar, eps, options: LatentOptions) -> None:
    batch_dims, scale = options.batch_dims, Scale(options.scale or 0)
    named = {"mu": mu, "logvar": logvar} if logvar is not None else {"moments": mu}
    named |= {"prior_mu": prior_mu, "prior_logvar": prior_logvar, "eps": eps}
    for name, value in named.items():
        if value is not None:
            checks.no_nan(name, value, batch_dims if value.dim() == mu.dim() else 0)
    if scale in (Scale.std, Scale.variance):
        name, spread = ("moments", mu.chunk(2, options.packed_dim)[1]) if logvar is None else ("logvar", logvar)
        allowed = checks.POSITIVE if options.std_floor is None else checks.NOT_NEGATIVE
        checks.all_samples(name, spread, batch_dims, allowed.good(spread), f"{allowed.need}, being a {scale.name}")
