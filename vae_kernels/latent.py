"""The latent step: sample and KL divergence in one pass."""

import torch
from torch import Tensor

from . import checks, eager, noise, transforms
from .backends import current_backend


def reparameterize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: int | Tensor | None = None,
    generator: torch.Generator | None = None,
    eps: Tensor | None = None,
    batch_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    """Sample `z ~ q = N(mu, exp(logvar))` and sum `KL(q ‖ N(0, 1))` per sample.

        z  = mu + exp(logvar/2) · eps
        kl = Σ ½ (mu² + exp(logvar) − 1 − logvar)        [nats]

    `logvar` is the natural logarithm of the *variance*; from a log standard deviation pass `2 * logstd`.

    Args:
        mu: means, float64, float32, bfloat16 or float16, any shape and strides.
        logvar: log-variances, of the shape of `mu`, in any of these dtypes.
        seed: fixes the noise: an int in [0, 2⁶³) or an int64 tensor of one element on the device of `mu`. The same seed
            gives the same noise on every backend, device and dtype (see `vae_kernels.noise`). Default: drawn from
            torch's random state, so that `torch.manual_seed` reproduces.
        generator: where the seed is drawn from instead of torch's default generator.
        eps: the noise itself, of the shape of `mu`, instead of a seed; it gets a gradient too.
        batch_dims: how many leading dims are kept; all others are summed.

    Returns:
        `z` of the shape, dtype and layout of `mu`; `kl` of the shape `mu.shape[:batch_dims]`, float64 if an input is,
        else float32. Arithmetic is float32 for half precision inputs, so no `logvar` that float32 can exponentiate
        overflows. `eps` is drawn in registers and never stored; nothing of the size of `mu` is kept for the backward
        pass but `mu` and `logvar` themselves. Elements of a row that are not dense in memory are read where they lie.

    Raises:
        TypeError: not a tensor, or of a dtype not named here.
        ValueError: shapes, devices or `batch_dims` do not fit, or more than one of seed, generator, eps is given.
        RuntimeError: a backend chosen with `use_backend` cannot serve the device.

    Source: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equation 10 and appendix B.

    >>> import torch, vae_kernels as vk
    >>> mu, logvar = torch.zeros(2, 3), torch.zeros(2, 3)
    >>> z, kl = vk.reparameterize_kl(mu, logvar, seed=0)
    >>> kl
    tensor([0., 0.])
    """
    _check(mu, logvar, seed, generator, eps, batch_dims)
    backend = "eager" if transforms.active() else current_backend(mu.device.type)
    if backend == "eager":
        if eps is None:
            eps = _eager_noise(mu, seed, generator, batch_dims)
        return eager.reparameterize_kl(mu, logvar, eps, batch_dims)
    if eps is None:
        seed = _seed_tensor(mu, seed, generator)
    return LatentStep.apply(mu, logvar, seed, eps, batch_dims, f"vae_kernels_{backend}")


class LatentStep(torch.autograd.Function):
    """One kernel forward, one backward; the noise is made again from the seed, not stored."""

    @staticmethod
    def forward(ctx, mu, logvar, seed, eps, batch_dims, namespace):
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, logvar, seed, eps)
        ctx.batch_dims, ctx.namespace = batch_dims, namespace
        return getattr(torch.ops, namespace).latent_forward.default(mu, logvar, seed, eps, batch_dims)

    @staticmethod
    def backward(ctx, grad_z, grad_kl):
        mu, logvar, seed, eps = ctx.saved_tensors
        needs = [*ctx.needs_input_grad[:2], ctx.needs_input_grad[3]]
        if torch.is_grad_enabled() or transforms.batched(grad_kl if grad_z is None else grad_z):
            grads = _differentiable_backward(grad_z, grad_kl, mu, logvar, seed, eps, ctx.batch_dims, needs)
        else:
            grads = getattr(torch.ops, ctx.namespace).latent_backward.default(
                grad_z, grad_kl, mu, logvar, seed, eps, ctx.batch_dims, needs
            )
        grads = iter(grads)
        grad_mu, grad_logvar, grad_eps = (next(grads) if need else None for need in needs)
        return grad_mu, grad_logvar, None, grad_eps, None, None


def _differentiable_backward(grad_z, grad_kl, mu, logvar, seed, eps, batch_dims, needs):
    """The gradients by autograd through the eager formulas, so that they can be differentiated again."""
    fixed_eps = noise.normal_like(mu, seed, batch_dims) if eps is None else eps
    return eager.gradients(
        lambda *args: eager.reparameterize_kl(*args, batch_dims),
        (mu, logvar, fixed_eps),
        needs,
        (grad_z, grad_kl),
    )


def _seed_tensor(mu: Tensor, seed: int | Tensor | None, generator: torch.Generator | None) -> Tensor:
    if seed is None:
        return noise.draw_seed(mu.device, generator)
    return seed if isinstance(seed, Tensor) else torch.tensor([seed], dtype=torch.int64, device=mu.device)


def _eager_noise(mu: Tensor, seed: int | Tensor | None, generator: torch.Generator | None, batch_dims: int) -> Tensor:
    """With a seed the noise that it stands for; without one what people draw today, at its speed."""
    if seed is not None:
        return noise.normal_like(mu, _seed_tensor(mu, seed, None), batch_dims)
    dtype = eager.compute_dtype(mu)
    if generator is None:
        return torch.randn_like(mu, dtype=dtype)
    return torch.empty_like(mu, dtype=dtype).normal_(generator=generator)


def _check(mu, logvar, seed, generator, eps, batch_dims) -> None:
    checks.tensor("mu", mu, checks.FLOATS)
    checks.tensor("logvar", logvar, checks.FLOATS)
    checks.same_shape("logvar", logvar, "mu", mu)
    checks.same_device("logvar", logvar, "mu", mu)
    checks.batch_dims(batch_dims, "mu", mu)
    if (seed is not None) + (generator is not None) + (eps is not None) > 1:
        raise ValueError("give at most one of seed, generator and eps")
    if seed is not None:
        _check_seed(seed, mu)
    if eps is not None:
        checks.tensor("eps", eps, checks.FLOATS)
        checks.same_shape("eps", eps, "mu", mu)
        checks.same_device("eps", eps, "mu", mu)
    if checks.values_checked():
        checks.no_nan("mu", mu, batch_dims)
        checks.no_nan("logvar", logvar, batch_dims)
        if eps is not None:
            checks.no_nan("eps", eps, batch_dims)


def _check_seed(seed: int | Tensor, mu: Tensor) -> None:
    if isinstance(seed, Tensor):
        checks.tensor("seed", seed, (torch.int64,))
        checks.same_device("seed", seed, "mu", mu)
        if seed.numel() != 1:
            raise ValueError(f"seed must have one element, got shape {tuple(seed.shape)}")
    elif not isinstance(seed, int) or isinstance(seed, bool):
        raise TypeError(f"seed must be an int or an int64 tensor, got {type(seed).__name__}")
    elif not 0 <= seed <= noise.SEED_LIMIT:
        raise ValueError(f"seed must be in [0, 2**63), got {seed}")
