"""Objectives: bounds on log p(x) and their gradient estimators, computed from the per-sample terms of the kernels.

They are pure functions of `log_px = log p(x|z)` and `kl`, in nats. A leading dim of either, if it has one, counts
samples of z for the same x.
"""

import math

import torch
import torch.distributed
from torch import Tensor

from . import checks, symbols, transforms
from .latent import kl_estimator_of
from .rows import expands

REDUCTIONS = ("mean", "sum", "none")
FREE_BITS_PER = ("dimension", "group")
CAPACITY_PER = ("sample", "batch")
GRADIENTS = ("iwae", "dreg")


def elbo(
    log_px: Tensor,
    kl: Tensor,
    *,
    beta: float | Tensor = 1.0,
    free_bits: float | None = None,
    free_bits_per: str = "dimension",
    capacity: float | Tensor | None = None,
    capacity_per: str = "sample",
    dataset_size: int | None = None,
    reduction: str = "mean",
    process_group: "torch.distributed.ProcessGroup | None" = None,
) -> Tensor:
    """Compute the evidence lower bound, or one of its variants with another weight or target for the KL.

        elbo = 1/L Σₗ log p(x|zₗ) − beta · R        [nats]
        R = KL(q(z|x) ‖ p(z))                       the ELBO for beta = 1
        R = Σⱼ max(free_bits, mean of KLⱼ)          free bits; mean over the batch, j runs over dimensions or groups
        R = |KL − capacity|                         capacity per sample
        R = |mean of KL − capacity|                 capacity per batch; mean over the batch

    With the analytic KL this is estimator B of Kingma & Welling, with a Monte Carlo estimate it is their estimator A.

    Args:
        log_px: `log p(x|z)`, of shape `(B,)`, or `(L, *batch)` for L samples of z per x, which are averaged. If it has
            more than one dim, the first counts samples: pass `log_px[None]` for one sample and a batch of several dims.
        kl: the KL, of the shape of the batch. A Monte Carlo estimate may have the shape `(L, *batch)` too. For
            `free_bits` it has more dims: see `free_bits_per`.
        beta: the weight of R, a number or a tensor of one element: beta-VAE, or a value of a schedule
            (`linear_schedule`, `cyclical_schedule`). With `capacity` it is the gamma of Burgess et al.
        free_bits: λ, in nats: the value up to which a part of the KL is not penalised. A part whose mean over the batch
            is below λ counts as λ and has gradient 0. A part at or above λ has its own gradient.
        free_bits_per: the parts of the KL. `"dimension"`: each element of a `kl` of shape `(*batch, *latent)`, which
            the latent step returns with `kl_reduction="none"`. `"group"`: a `kl` of shape `(*batch, J, ...)` has J
            groups (channels, levels of a hierarchy), and the dims after J are summed; a `kl` of the shape of the batch
            is a single group. Average a `kl` with several samples over the samples before.
        capacity: C, in nats, a number or a tensor of one element: the target of the KL. A KL of exactly C has gradient
            0. Burgess et al. raise C during training, as `linear_schedule` does.
        capacity_per: `"sample"`: each sample's KL has the target C. `"batch"`: the mean of the KL over the batch has
            it.
        dataset_size: N. For every reduction, each sample's bound is scaled by N/B, where B is the number of elements of
            the batch. With `reduction="sum"` the result then estimates the bound of the full data set.
        reduction: `"mean"` or `"sum"` over the batch, or `"none"`. If the definition of R contains a mean over the
            batch, the mean of the values for `"none"` is the bound.
        process_group: processes that share a batch. The means over the batch in the definition of R are then taken over
            the parts of all processes. The reduction is over this process's part only.

    Returns:
        A scalar tensor, or a tensor of the shape of the batch with `reduction="none"`.

    Raises:
        TypeError: a term is not a tensor of float64, float32, bfloat16 or float16.
        ValueError: shapes or devices do not fit, an option is unknown or out of range, or both `free_bits` and
            `capacity` are passed.

    Sources: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", equations 6 (A), 7 (B) and 8 (minibatches).
    Higgins et al. 2017, "beta-VAE", equation 4. Kingma et al. 2016, "Improved Variational Inference with Inverse
    Autoregressive Flow", appendix C.8 (free bits). Burgess et al. 2018, "Understanding disentangling in
    beta-VAE", equation 8 (capacity).

    >>> import torch, vae_kernels as vk
    >>> log_px, kl = torch.tensor([-90.0, -70.0]), torch.tensor([4.0, 6.0])
    >>> vk.elbo(log_px, kl), vk.elbo(log_px, kl, beta=2.0)
    (tensor(-85.), tensor(-90.))
    >>> vk.elbo(log_px, kl, capacity=5.0), vk.elbo(log_px, kl, capacity=5.0, capacity_per="batch")
    (tensor(-81.), tensor(-80.))
    >>> kl = torch.tensor([[4.0, 0.0], [5.0, 1.0]])
    >>> vk.elbo(log_px, kl, free_bits=2.0)
    tensor(-86.5000)
    """
    _one_of("free_bits_per", free_bits_per, FREE_BITS_PER)
    _one_of("capacity_per", capacity_per, CAPACITY_PER)
    _one_of("reduction", reduction, REDUCTIONS)
    _check_terms(log_px, kl, free_bits, free_bits_per)
    beta = _one_number("beta", beta)
    batch = _batch(log_px)
    scale = _minibatch_scale(batch.numel(), dataset_size)
    if free_bits is not None and capacity is not None:
        raise ValueError("give at most one of free_bits and capacity")
    if free_bits is not None:
        kl = _free_bits(kl, batch, free_bits, free_bits_per, process_group)
    kl = _over_samples(kl, batch)
    if capacity is not None:
        kl = _capacity(kl, _one_number("capacity", capacity), capacity_per, process_group)
    value = _over_samples(log_px, batch) - beta * kl
    return _reduce(value if scale == 1 else scale * value, reduction)


def importance_weighted_elbo(log_px: Tensor, kl: Tensor, *, z: Tensor | None = None, gradient: str = "iwae") -> Tensor:
    """Compute the K-sample bound on log p(x). It lies between the ELBO (K = 1) and log p(x), and rises with K.

        bound = ln 1/K Σₖ wₖ,    ln wₖ = log p(x|zₖ) − klₖ = ln p(x, zₖ) − ln q(zₖ|x)        [nats]

    With ŵₖ = wₖ / Σ w, the gradient estimators are:

        "iwae"   Σₖ ŵₖ ∂ln wₖ                                        the gradient that autograd computes
        "dreg"   Σₖ ŵₖ ∂ln wₖ/∂θ                                     for the decoder: the same
                 Σₖ ŵₖ² ∂ln wₖ/∂zₖ ∂zₖ/∂φ                            for the encoder

    The "dreg" estimate (doubly reparameterised) has the same expectation and a lower variance. The signal-to-noise
    ratio of the encoder's gradient falls as 1/√K with "iwae" (Rainforth et al. 2018, "Tighter Variational Bounds are
    Not Necessarily Better") and rises as √K with "dreg".

    Args:
        log_px: `log p(x|z)` for K samples of z, `(K, *batch)`, for a batch of any shape.
        kl: `ln q(z|x) − ln p(z)` at the same samples, `(K, *batch)`, from the latent step with `num_samples=K` and
            `kl_estimator="monte_carlo"` or `"path"`. With "iwae", `"path"` is sticking the landing for K = 1 (Roeder et
            al.), and biased for K > 1: use "dreg" there.
        z: the samples, `(K, *batch, ...)`, for "dreg" only. It must be the tensor that the latent step returned and
            from which `log_px` was computed. The call registers a hook on it that scales *every* gradient that reaches
            z. Do not use z in another loss of the same backward pass, nor in a second call.
        gradient: `"iwae"` or `"dreg"`. For "dreg", `kl` must come from the latent step with `"path"`: its gradient does
            not pass through the tensor z. The gradient of a KL that you compute from z would be scaled twice. The prior
            must be fixed: the parameters of a learned prior would get the weights ŵₖ² instead of ŵₖ (Bauer & Mnih 2021,
            "Generalized Doubly-Reparameterized Gradient Estimators", derives their gradient).

    Returns:
        The bound, of the shape of the batch.

    Raises:
        TypeError: a term is not a tensor of float64, float32, bfloat16 or float16.
        ValueError: shapes or devices do not fit, `gradient` is unknown, or `gradient` is "dreg" and z is missing or
            `kl` comes directly from the latent step with "monte_carlo". (The estimator of a sum of several KLs, or of a
            KL in compiled code, is not known and not checked.)

    Sources: Burda et al. 2016, "Importance Weighted Autoencoders", equations 8 and 14. Roeder et al. 2017, "Sticking
    the Landing", section 3. Tucker et al. 2019, "Doubly Reparameterized Gradient Estimators for Monte Carlo
    Objectives", equation 8.

    >>> import torch, vae_kernels as vk
    >>> log_px, kl = torch.tensor([[-90.0, -70.0], [-91.0, -70.0]]), torch.tensor([[4.0, 6.0], [3.0, 6.0]])
    >>> vk.importance_weighted_elbo(log_px, kl)
    tensor([-94., -76.])
    """
    _one_of("gradient", gradient, GRADIENTS)
    checks.tensor("log_px", log_px, checks.FLOATS)
    _term("kl", kl, log_px)
    if log_px.dim() == 0 or not len(log_px):
        raise ValueError(f"log_px must have the shape (K, *batch) with K of at least 1, got {tuple(log_px.shape)}")
    if kl.shape != log_px.shape:
        raise ValueError(
            f"kl must have the shape of log_px, {tuple(log_px.shape)} (one for each sample, by "
            f'kl_estimator="monte_carlo" or "path"), got {tuple(kl.shape)}'
        )
    if gradient == "dreg":
        return _doubly_reparameterized(log_px, kl, z)
    return transforms.with_dense_gradients(log_mean_exp(log_px - kl))


def score_function_elbo(
    log_px: Tensor,
    kl: Tensor,
    log_q: Tensor,
    *,
    baseline: float | Tensor | None = None,
    beta: float | Tensor = 1.0,
    reduction: str = "mean",
) -> Tensor:
    """Compute the ELBO with the score-function gradient (REINFORCE), for latents or decoders without
    reparameterisation.

        value      f = log p(x|z) − beta · kl
        gradient   ∂f + (f − baseline) · ∂ log q(z|x),    z held fixed

    The gradient is an unbiased estimate of that of `E_q[f]` for every f, even if z is discrete or the decoder is not
    differentiable. Its variance is much larger than that of the reparameterised gradient. Autograd computes it; in the
    value the second term is zero.

    Args:
        log_px: `log p(x|z)`, of shape `(B,)`, or `(L, *batch)` for L samples of z per x, which are averaged. If it has
            more than one dim, the first counts samples.
        kl: the analytic KL, of the shape of the batch, or an estimate `log q(z|x) − log p(z)` of the shape of `log_px`.
        log_q: `log q(z|x)` at the drawn z, of the shape of `log_px`. z must be detached, so that the gradient is the
            score. For a Gaussian: `vk.gaussian_log_likelihood(mu, z.detach(), logvar)`.
        baseline: a number, or a tensor that broadcasts to `log_px`. It must not depend on the z whose f it is
            subtracted from; then it does not change the expectation. It lowers the variance if it is near f. It has no
            gradient.
        beta: the weight of the KL.
        reduction: `"mean"` or `"sum"` over the batch, or `"none"`.

    Returns:
        A scalar tensor, or a tensor of the shape of the batch with `reduction="none"`.

    Raises:
        TypeError: a term is not a tensor of float64, float32, bfloat16 or float16.
        ValueError: shapes or devices do not fit, or `reduction` is unknown.

    Sources: Williams 1992, "Simple statistical gradient-following algorithms for connectionist reinforcement learning";
    Mnih & Gregor 2014, "Neural Variational Inference and Learning in Belief Networks", equations 5 to 8.

    >>> import torch, vae_kernels as vk
    >>> log_px, kl = torch.tensor([-3.0]), torch.tensor([1.0])
    >>> log_q = torch.tensor([-0.5], requires_grad=True)
    >>> value = vk.score_function_elbo(log_px, kl, log_q, baseline=-6.0)
    >>> value.backward()
    >>> value.item(), log_q.grad.item()
    (-4.0, 2.0)
    """
    _one_of("reduction", reduction, REDUCTIONS)
    _check_terms(log_px, kl, None, "dimension")
    _term("log_q", log_q, log_px)
    if log_q.shape != log_px.shape:
        raise ValueError(f"log_q must have the shape of log_px, {tuple(log_px.shape)}, got {tuple(log_q.shape)}")
    value = log_px - _one_number("beta", beta) * kl
    advantage = value.detach()
    if baseline is not None:
        advantage = advantage - _constant("baseline", baseline, value.shape)
    return _reduce(_over_samples(value + advantage * (log_q - log_q.detach()), _batch(log_px)), reduction)


def log_mean_exp(log_weights: Tensor) -> Tensor:
    """`ln 1/K Σₖ exp(log_weights)` over the leading dim of size K, without overflow."""
    return torch.logsumexp(log_weights, 0) - math.log(len(log_weights))


class _DoublyReparameterized(torch.autograd.Function):
    """The K-sample bound. The gradient of `log_px` is ŵ, which the hook on z scales by ŵ again; that of `kl` is −ŵ²."""

    @staticmethod
    def forward(ctx, log_px, kl, weights):
        ctx.save_for_backward(weights)
        return log_mean_exp(log_px - kl)

    @staticmethod
    def backward(ctx, grad):
        grad = transforms.dense(grad)
        (weights,) = ctx.saved_tensors
        return grad * weights, -grad * weights * weights, None


def _doubly_reparameterized(log_px: Tensor, kl: Tensor, z: Tensor | None) -> Tensor:
    if z is None:
        raise ValueError('gradient="dreg" needs z, the samples that log_px was computed from, got None')
    _term("z", z, log_px)
    if z.shape[: log_px.dim()] != log_px.shape:
        raise ValueError(f"z must have the shape (K, *batch, ...) = {(*log_px.shape, ...)}, got {tuple(z.shape)}")
    if kl_estimator_of(kl) == "monte_carlo":
        raise ValueError('kl must be given by kl_estimator="path" for gradient="dreg", got one by "monte_carlo"')
    weights = torch.softmax((log_px - kl).detach(), 0)
    if z.requires_grad:
        per_sample = weights.reshape(weights.shape + (1,) * (z.dim() - weights.dim()))
        z.register_hook(lambda grad: grad * per_sample.to(grad.dtype))
    return _DoublyReparameterized.apply(log_px, kl, weights)


def _free_bits(kl: Tensor, batch: torch.Size, free_bits: float, per: str, process_group) -> Tensor:
    """Sum KLⱼ over j for each sample, with λ instead of KLⱼ if the mean of KLⱼ over the batch is below λ.

    The mean of the result over the batch is Σⱼ max(λ, mean of KLⱼ), and has its gradient.
    """
    parts = kl.flatten(0, len(batch) - 1)
    parts = parts.unsqueeze(1) if parts.dim() == 1 else parts
    if parts.dim() > 2:
        parts = parts.flatten(1) if per == "dimension" else parts.flatten(2).sum(2)
    below = _batch_mean(parts, process_group) < free_bits
    return torch.where(below, symbols.tensor(free_bits, parts), parts).sum(1).reshape(batch)


def _capacity(kl: Tensor, capacity: float | Tensor, per: str, process_group) -> Tensor:
    if per == "sample":
        return (kl - capacity).abs()
    return torch.sign(_batch_mean(kl.flatten(), process_group) - capacity) * (kl - capacity)


@torch.no_grad()
def _batch_mean(kl: Tensor, process_group) -> Tensor:
    if process_group is None:
        return kl.mean(0)
    sums = torch.cat((kl.sum(0).reshape(-1), kl.new_tensor([len(kl)])))
    torch.distributed.all_reduce(sums, group=process_group)
    return (sums[:-1] / sums[-1]).reshape(kl.shape[1:])


def _batch(log_px: Tensor) -> torch.Size:
    """The shape of the batch. If `log_px` has more than one dim, the first counts samples."""
    return log_px.shape[1:] if log_px.dim() > 1 else log_px.shape


def _over_samples(terms: Tensor, batch: torch.Size) -> Tensor:
    return terms.mean(0) if terms.dim() > len(batch) else terms


def _reduce(value: Tensor, reduction: str) -> Tensor:
    if reduction == "none":
        return transforms.with_dense_gradients(value)
    return value.sum() if reduction == "sum" else value.mean()


def _minibatch_scale(batch: int, dataset_size: int | None) -> float:
    if dataset_size is None:
        return 1.0
    if dataset_size < 1:
        raise ValueError(f"dataset_size must be at least 1, got {dataset_size}")
    return dataset_size / max(batch, 1)


def _constant(name: str, value: float | Tensor, shape: torch.Size) -> float | Tensor:
    """A number, or a detached tensor that is expanded to the shape of log_px."""
    if not isinstance(value, Tensor):
        return value
    if not expands(value.shape, shape):
        raise ValueError(f"{name} must broadcast to log_px, {tuple(shape)}, got {tuple(value.shape)}")
    return value.detach().expand(shape)


def _one_number(name: str, value: float | Tensor) -> float | Tensor:
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"{name} must be a number or a tensor of one element, got the shape {tuple(value.shape)}")
    return value.reshape(())


def _one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    if value not in values:
        raise ValueError(f"{name} must be one of {', '.join(values)}, got {value!r}")


def _term(name: str, value: object, log_px: Tensor) -> None:
    checks.tensor(name, value, checks.FLOATS)
    checks.same_device(name, value, "log_px", log_px)


def _check_terms(log_px: Tensor, kl: Tensor, free_bits: float | None, free_bits_per: str) -> None:
    checks.tensor("log_px", log_px, checks.FLOATS)
    _term("kl", kl, log_px)
    if log_px.dim() == 0:
        raise ValueError("log_px must have the shape (B,) or (L, *batch), got ()")
    batch = _batch(log_px)
    if free_bits is None:
        if kl.shape not in (log_px.shape, batch):
            raise ValueError(
                f"kl must have the shape {tuple(batch)} or that of log_px, {tuple(log_px.shape)}, got {tuple(kl.shape)}"
            )
        return
    if free_bits < 0:
        raise ValueError(f"free_bits must not be negative, got {free_bits}")
    per_dimension = free_bits_per == "dimension"
    if kl.dim() < len(batch) + per_dimension or kl.shape[: len(batch)] != batch:
        sizes = ", ".join(map(str, batch))
        need = (
            f'({sizes}, *latent), with kl_reduction="none"' if per_dimension else f"{tuple(batch)} or ({sizes}, J, ...)"
        )
        raise ValueError(f"kl must have the shape {need} for free bits per {free_bits_per}, got {tuple(kl.shape)}")
