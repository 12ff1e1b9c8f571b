"""The latent step's two ops: from tensors to launches of the kernels in `latent_kernels.py`."""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import compute_dtype
from ..fakes import plain_settings
from ..rows import column_dims, empty_samples, sum_to_size
from .latent_kernels import latent_backward_kernel, latent_forward_kernel
from .launch import Launch, SplitLaunch, planned, signature
from .layout import Layout, Strides, dense, from_dense, layout
from .parameters import SumOfPartials, float32_parts
from .tile import Tile, chunks_per_program, finer, geometry, is_split, row_blocks_per_program, tile


class Inputs(NamedTuple):
    """`raw` is whatever `scale` says; the prior's parameters, seed and eps may be missing."""

    mu: Tensor
    raw: Tensor
    prior_mu: Tensor | None
    prior_logvar: Tensor | None
    seed: Tensor | None
    eps: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """Of the arithmetic."""
        return compute_dtype(*(t for t in self[:4] if t is not None))

    @property
    def own_seeds(self) -> bool:
        return self.seed is not None and self.seed.numel() != 1


class Settings(NamedTuple):
    """What the ops are told beside tensors."""

    batch_dims: int
    packed_dim: int
    num_samples: int | None
    scale: str
    low: float | None
    high: float | None
    estimator: str
    reduction: str

    @property
    def samples(self) -> int:
        return 1 if self.num_samples is None else self.num_samples

    @property
    def sampled(self) -> bool:
        return self.estimator != "analytic"

    @property
    def kl_samples(self) -> int | None:
        """The leading dim of the KL, if it has one."""
        return self.num_samples if self.sampled else None


# Elements that a thread holds at once, where a prior or a sampled KL takes more registers than the plain step.
HELD_PLAIN, HELD_OTHERS = 16, 8


def latent_forward(
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
    eps: Tensor | None,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """`z` and `kl`, as the schema in `vae_kernels.fakes` says."""
    inputs = (mu, logvar, prior_mu, prior_logvar, seed, eps)
    key = ("latent_forward", _key(inputs, settings))
    return planned(key, lambda: _Forward(inputs, Settings(*settings)))(*inputs, _clamp(*settings[4:6]))


def _key(inputs: tuple[Tensor | None, ...], settings: tuple[Any, ...]) -> Hashable:
    """Of all that a plan depends on."""
    mu, logvar, prior_mu, prior_logvar, seed, eps = inputs
    batch_dims, packed_dim, num_samples, scale, low, high, estimator, reduction = settings
    return (
        mu.get_device(), signature(mu), signature(logvar), signature(prior_mu), signature(prior_logvar),
        signature(eps), seed is not None and seed.numel(),
        batch_dims, packed_dim, num_samples, scale, low is None and high is None, estimator, reduction,
    )  # fmt: skip


def _clamp(low: float | None, high: float | None) -> tuple[tuple[float, ...], ...]:
    """Both bounds, as the kernels take numbers, or nothing."""
    if low is None and high is None:
        return ()
    return float32_parts(-math.inf if low is None else low), float32_parts(math.inf if high is None else high)


class _Forward:
    """Allocates z and the KL, and launches."""

    def __init__(self, inputs: tuple[Tensor | None, ...], given: Settings) -> None:
        mu, *others = inputs
        self._packed_dim = given.packed_dim
        inputs = Inputs(*(mu.chunk(2, given.packed_dim) if others[0] is None else (mu, others[0])), *others[1:])
        self._samples, self._own_seeds = given.num_samples, inputs.own_seeds
        samples = () if given.kl_samples is None else (given.kl_samples,)
        self._kl_shape = (*samples, *inputs.mu.shape[: given.batch_dims]) if given.reduction == "sum" else None
        self._kl_samples, self._kl_dtype = given.kl_samples, inputs.dtype
        z, kl = self._empty(inputs.mu)
        self._launch = _plan_forward(inputs, given, z, kl) if z.numel() else None

    def _empty(self, mu: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.empty_like(mu) if self._samples is None else empty_samples(mu, self._samples)
        if self._kl_shape is None:
            return z, empty_samples(mu, self._kl_samples, self._kl_dtype)
        return z, mu.new_empty(self._kl_shape, dtype=self._kl_dtype)

    def __call__(self, mu, logvar, prior_mu, prior_logvar, seed, eps, clamp) -> tuple[Tensor, Tensor]:
        if logvar is None:
            mu, logvar = mu.chunk(2, self._packed_dim)
        if self._own_seeds:
            seed = seed.contiguous()
        z, kl = self._empty(mu)
        if self._launch is None:
            return z, kl.zero_()
        self._launch(mu, logvar, prior_mu, prior_logvar, seed, eps, clamp, z, kl)
        return z, kl


def _plan_forward(inputs: Inputs, given: Settings, z: Tensor, kl: Tensor) -> Callable[..., None]:
    mu, eps, count = inputs.mu, inputs.eps, given.num_samples
    order = column_dims(mu, given.batch_dims)
    views = {"mu": mu, "raw": inputs.raw, "z": _one(z, count), "eps": _one(eps, count)} | _full_prior(inputs)
    form = _layout(views, inputs, given, order, steps=(_step(z, count), _step(eps, count)))
    if form is None:
        return partial(_forward_through_copies, given, order)
    form, strides = form
    there = [t for t in views.values() if t is not None]
    shape = _tile(form, inputs, given, there)
    chunks = 1 if given.samples > 1 and given.sampled else chunks_per_program(shape)
    summed = given.reduction == "sum"
    split = summed and is_split(shape, chunks)
    launch = Launch(
        latent_forward_kernel,
        shape.grid(triton.cdiv(shape.chunks, chunks)),
        mu.get_device(),
        mu_strides=strides["mu"],
        raw_strides=strides["raw"],
        prior_strides=_prior_strides(inputs, strides),
        eps_strides=strides.get("eps"),
        z_strides=strides["z"],
        eps_step=_step(eps, count) // form.vec,
        z_step=_step(z, count) // form.vec,
        chunks=shape.chunks,
        chunks_per_program=chunks,
        SUMMED=summed,
        RUN=_run_length(form, shape, there),
        SPLIT=split,
        **_switches(inputs, given),
        **geometry(form, shape),
    )
    sums = form.rows * (given.samples if given.sampled else 1)
    return SplitLaunch(launch, mu.get_device(), sums, shape.chunks) if split else launch


def _switches(inputs: Inputs, given: Settings) -> dict[str, Any]:
    return {
        "SCALE": given.scale,
        "SAMPLED": given.sampled,
        "SAMPLES": given.samples,
        "OWN_SEEDS": inputs.own_seeds,
    }


def _one(tensor: Tensor | None, num_samples: int | None) -> Tensor | None:
    """The first sample's, of a tensor that has them."""
    return tensor if tensor is None or num_samples is None else tensor[0]


def _step(tensor: Tensor | None, num_samples: int | None) -> int:
    """From one sample to the next, in elements."""
    return 0 if tensor is None or num_samples is None else tensor.stride(0)


def _is_one(parameter: Tensor, full: Tensor) -> bool:
    return parameter.numel() == 1 and parameter.shape != full.shape


def _full_prior(inputs: Inputs) -> dict[str, Tensor]:
    """The prior's parameters in the shape of mu, without those of one element."""
    return {
        name: t.expand_as(inputs.mu)
        for name, t in (("prior_mu", inputs.prior_mu), ("prior_logvar", inputs.prior_logvar))
        if t is not None and not _is_one(t, inputs.mu)
    }


def _prior_strides(inputs: Inputs, strides: dict[str, Strides]) -> tuple[Strides | None, Strides | None]:
    """None for a parameter that is missing, nothing for one of one element."""
    missing = ((), None)
    return tuple(
        strides.get(name, missing[t is None])
        for name, t in (("prior_mu", inputs.prior_mu), ("prior_logvar", inputs.prior_logvar))
    )


def _layout(
    views: dict[str, Tensor | None],
    inputs: Inputs,
    given: Settings,
    order: list[int],
    steps: tuple[int, ...],
    per_row: tuple[Tensor, ...] = (),
    row_steps: tuple[int, ...] = (),
) -> tuple[Layout, dict[str, Strides]] | None:
    """The layout of the views that are there, and the strides of each by name."""
    there = {name: t for name, t in views.items() if t is not None}
    reach = (given.samples - 1) * max((*steps, *row_steps), default=0)
    form = layout(list(there.values()), given.batch_dims, order, per_row, steps, given.samples, reach)
    return form and (form, dict(zip(there, form.strides, strict=True)))


def _tile(form: Layout, inputs: Inputs, given: Settings, tensors: list[Tensor]) -> Tile:
    plain = inputs.prior_mu is None and inputs.prior_logvar is None and not given.sampled and given.scale == "logvar"
    return tile(form.rows, form.cols * form.vec, inputs.dtype, tensors, HELD_PLAIN if plain else HELD_OTHERS)


def _run_length(form: Layout, shape: Tile, tensors: list[Tensor]) -> int:
    """How many neighbouring numbers a thread makes: as many as the compiler will have it load and store at once."""
    narrowest = min(t.element_size() for t in tensors)
    return 8 if narrowest <= 2 and min(form.vec, shape.block_cols, shape.held) >= 8 else 4


def latent_backward(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
    eps: Tensor | None,
    needs: list[bool],
    *settings: Any,
) -> list[Tensor]:
    """The gradients that are needed, as the schema in `vae_kernels.fakes` says."""
    inputs = (mu, logvar, prior_mu, prior_logvar, seed, eps)
    of_kl = grad_kl is not None and signature(grad_kl)
    key = ("latent_backward", signature(grad_z), of_kl, *needs, _key(inputs, settings))
    plan = planned(key, lambda: _Backward(grad_z, grad_kl, inputs, needs, Settings(*settings)))
    return plan(grad_z, grad_kl, *inputs, _clamp(*settings[4:6]))


def latent_plain_forward(mu: Tensor, logvar: Tensor, seed: Tensor, batch_dims: int) -> tuple[Tensor, Tensor]:
    return latent_forward(mu, logvar, None, None, seed, None, *plain_settings(batch_dims))


def latent_plain_backward(
    grad_z: Tensor, grad_kl: Tensor, mu: Tensor, logvar: Tensor, seed: Tensor, batch_dims: int
) -> tuple[Tensor, Tensor]:
    needs = [True, True, False, False, False]
    inputs = (mu, logvar, None, None, seed, None)
    return tuple(latent_backward(grad_z, grad_kl, *inputs, needs, *plain_settings(batch_dims)))


def latent_prior_forward(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, seed: Tensor, batch_dims: int
) -> tuple[Tensor, Tensor]:
    return latent_forward(mu, logvar, prior_mu, prior_logvar, seed, None, *plain_settings(batch_dims))


def latent_prior_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    seed: Tensor,
    batch_dims: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    needs = [True, True, True, True, False]
    inputs = (mu, logvar, prior_mu, prior_logvar, seed, None)
    return tuple(latent_backward(grad_z, grad_kl, *inputs, needs, *plain_settings(batch_dims)))


def latent_packed_forward(
    moments: Tensor, seed: Tensor, batch_dims: int, dim: int, low: float | None, high: float | None
) -> tuple[Tensor, Tensor]:
    settings = plain_settings(batch_dims, dim, low, high)
    return latent_forward(moments, None, None, None, seed, None, *settings)


def latent_packed_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    moments: Tensor,
    seed: Tensor,
    batch_dims: int,
    dim: int,
    low: float | None,
    high: float | None,
) -> Tensor:
    needs = [True, False, False, False, False]
    inputs = (moments, None, None, None, seed, None)
    return latent_backward(grad_z, grad_kl, *inputs, needs, *plain_settings(batch_dims, dim, low, high))[0]


class _Backward:
    """Allocates the gradients that are needed, and launches."""

    def __init__(
        self,
        grad_z: Tensor | None,
        grad_kl: Tensor | None,
        inputs: tuple[Tensor | None, ...],
        needs: list[bool],
        given: Settings,
    ) -> None:
        mu, *others = inputs
        self._packed_dim, self._samples = given.packed_dim, given.num_samples
        inputs = Inputs(*(mu.chunk(2, given.packed_dim) if others[0] is None else (mu, others[0])), *others[1:])
        self._own_seeds = inputs.own_seeds
        if grad_kl is None and given.sampled:
            given = given._replace(estimator="analytic")
        by_z, by_kl = grad_z is not None, grad_kl is not None
        # What depends on no output that was used has no gradient.
        self._used = [by_z or by_kl, by_z or by_kl, by_kl, by_kl, by_z or given.sampled]
        if inputs.mu.numel() == 0:
            self._used = [False] * 5
        # Of those needed: which it is, its dtype, its shape if that is its own.
        prior = (inputs.prior_mu, inputs.prior_logvar)
        self._needed = [
            (i, t.dtype, t.shape if i in (2, 3) and t.shape != inputs.mu.shape else None) if need else None
            for i, (t, need) in enumerate(zip((mu, others[0], *prior, inputs.eps), needs, strict=True))
        ]
        self._launch = None
        grads = self._empty(mu, inputs.mu)[1]
        if any(g is not None for g in grads):
            self._launch = _plan_backward(grad_z, grad_kl, inputs, given, grads)

    def _empty(self, mu: Tensor, mean: Tensor) -> tuple[list[Tensor], list[Tensor | None]]:
        """What the op returns; and the gradients of mu, raw, the prior's parameters and eps that the kernel writes."""
        found, grads = [], []
        for needed, used in zip(self._needed, self._used, strict=True):
            if needed is None:
                grads.append(None)
                continue
            i, dtype, shape = needed
            if shape is not None:
                grad = mean.new_empty(shape, dtype=dtype)
            elif i == 4 and self._samples is not None:
                grad = empty_samples(mean, self._samples, dtype)
            else:
                grad = torch.empty_like(mu if i < 2 else mean, dtype=dtype)
            found.append(grad if used else grad.zero_())
            grads.append(grad if used else None)
        if mu is not mean and grads[0] is not None:
            grads[:2] = grads[0].chunk(2, self._packed_dim)
        return found, grads

    def __call__(self, grad_z, grad_kl, mu, logvar, prior_mu, prior_logvar, seed, eps, clamp) -> list[Tensor]:
        mean, raw = mu.chunk(2, self._packed_dim) if logvar is None else (mu, logvar)
        if self._own_seeds:
            seed = seed.contiguous()
        found, grads = self._empty(mu, mean)
        if self._launch is not None:
            self._launch(grad_z, grad_kl, mean, raw, prior_mu, prior_logvar, seed, eps, clamp, grads)
        return found


def _plan_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, inputs: Inputs, given: Settings, grads: list[Tensor | None]
) -> Callable[..., None]:
    mu, eps, count = inputs.mu, inputs.eps, given.num_samples
    order = column_dims(mu, given.batch_dims)
    summed = given.reduction == "sum"
    one_kl = _one(grad_kl, given.kl_samples)
    out = next((g for g in grads[:2] if g is not None), torch.empty_like(mu, device="meta"))
    views = {
        "out": out,
        "full": torch.empty_like(mu, device="meta"),
        "mu": mu,
        "raw": inputs.raw,
        "grad_z": _one(grad_z, count),
        "grad_kl": None if summed else one_kl,
        "eps": _one(eps, count),
    } | (_full_prior(inputs) if grad_kl is not None else {})
    steps = {
        "grad_z_step": _step(grad_z, count),
        "eps_step": _step(eps, count),
        "grad_eps_step": _step(grads[4], count),
    }
    kl_step = _step(grad_kl, given.kl_samples)
    per_row = (one_kl,) if summed and grad_kl is not None else ()
    full_steps = (*steps.values(), 0 if summed else kl_step)
    form = _layout(views, inputs, given, order, full_steps, per_row, (kl_step,))
    if form is None:
        return partial(_backward_through_copies, given, order)
    form, strides = form
    there = [t for t in views.values() if t is not None]
    shape = _tile(form, inputs, given, there)
    prior = (inputs.prior_mu, inputs.prior_logvar)
    added = tuple(
        g is not None and t is not None and t.shape != mu.shape for g, t in zip(grads[2:4], prior, strict=True)
    )
    if not any(added):
        shape = finer(shape, form.cols * form.vec, there)
    blocks = row_blocks_per_program(shape) if any(added) else 1
    groups = triton.cdiv(shape.row_blocks, blocks)
    launch = Launch(
        latent_backward_kernel,
        shape.grid(shape.chunks, blocks),
        mu.get_device(),
        grad_z_strides=strides.get("grad_z"),
        grad_kl_strides=form.per_row_strides[0] if per_row else strides.get("grad_kl"),
        mu_strides=strides["mu"],
        raw_strides=strides["raw"],
        prior_strides=_prior_strides(inputs, strides),
        eps_strides=strides.get("eps"),
        out_strides=strides["out"],
        full_strides=strides["full"],
        row_blocks=shape.row_blocks,
        blocks_per_program=blocks,
        PATH=given.estimator == "path",
        SUMMED=summed,
        ADDED=added,
        RUN=_run_length(form, shape, there),
        DTYPE=tl.float64 if inputs.dtype == torch.float64 else tl.float32,
        grad_kl_step=kl_step if summed else kl_step // form.vec,
        **{name: step // form.vec for name, step in steps.items()},
        **_switches(inputs, given),
        **geometry(form, shape),
    )
    sums = [
        SumOfPartials(mu, t, inputs.dtype, given.batch_dims, order, groups * shape.chunks if _is_one(t, mu) else groups)
        if is_added
        else None
        for t, is_added in zip(prior, added, strict=True)
    ]
    if not any(added):
        return lambda *arguments: launch(*arguments[:-1], *arguments[-1])
    return partial(_launch_backward, launch, sums)


def _launch_backward(launch: Launch, sums: list[SumOfPartials | None], *arguments: Any) -> None:
    """The kernel, then the sum of each gradient of the prior that has fewer elements than mu."""
    *others, grads = arguments
    outs = [s.empty_partials() if s is not None else g for s, g in zip(sums, grads[2:4], strict=True)]
    launch(*others, *grads[:2], *outs, grads[4])
    for total, partial_sums, grad in zip(sums, outs, grads[2:4], strict=True):
        if total is not None:
            total(partial_sums, grad)


def _dense_inputs(mu, raw, prior_mu, prior_logvar, seed, eps, given: Settings, order: list[int]) -> Inputs:
    """Copies with the columns in `order`; a parameter of the prior that all samples share gets the shape of a row."""

    def shared(parameter: Tensor | None) -> Tensor | None:
        if parameter is None or _is_one(parameter, mu):
            return parameter
        if parameter.shape == mu.shape:
            return dense(parameter, given.batch_dims, order)
        row = parameter.expand_as(mu)[(0,) * given.batch_dims]
        return dense(row, 0, [d - given.batch_dims for d in order])

    mean, spread = (dense(t, given.batch_dims, order) for t in (mu, raw))
    return Inputs(mean, spread, shared(prior_mu), shared(prior_logvar), seed, _dense(eps, given, order))


def _dense(tensor: Tensor | None, given: Settings, order: list[int], samples: bool = True) -> Tensor | None:
    """Of a tensor that may have a leading dim of samples."""
    if tensor is None:
        return None
    if given.num_samples is None or not samples:
        return dense(tensor, given.batch_dims, order)
    return dense(tensor, given.batch_dims + 1, [d + 1 for d in order])


def _from_dense(tensor: Tensor, like: Tensor, given: Settings, order: list[int], samples: bool) -> None:
    if given.num_samples is None or not samples:
        from_dense(tensor, like, given.batch_dims, order)
    else:
        from_dense(tensor, like, given.batch_dims + 1, [d + 1 for d in order])


def _forward_through_copies(given: Settings, order: list[int], *arguments: Any) -> None:
    *tensors, clamp, z, kl = arguments
    inputs = _dense_inputs(*tensors, given, order)
    given = _clamped(given, clamp)
    dense_z, dense_kl = latent_forward(*inputs, *given)
    _from_dense(dense_z, z, given, order, samples=True)
    if given.reduction == "none":
        _from_dense(dense_kl, kl, given, order, given.sampled)
    else:
        kl.copy_(dense_kl)


def _clamped(given: Settings, clamp: tuple[tuple[float, ...], ...]) -> Settings:
    """With the bounds of this call; the plan's were of another."""
    return given._replace(**dict(zip(("low", "high"), (sum(reversed(parts)) for parts in clamp), strict=False)))


def _backward_through_copies(given: Settings, order: list[int], grad_z, grad_kl, *arguments: Any) -> None:
    *tensors, clamp, grads = arguments
    inputs = _dense_inputs(*tensors, given, order)
    given = _clamped(given, clamp)
    grad_z = _dense(grad_z, given, order)
    if grad_kl is not None:
        grad_kl = grad_kl.contiguous() if given.reduction == "sum" else _dense(grad_kl, given, order, given.sampled)
    needs = [g is not None for g in grads]
    found = iter(latent_backward(grad_z, grad_kl, *inputs, needs, *given))
    mu = tensors[0]
    for i, grad in enumerate(grads):
        if grad is None:
            continue
        dense_grad = next(found)
        if i in (2, 3) and tensors[i].shape != mu.shape:
            _share_out(dense_grad, grad, order)
        else:
            _from_dense(dense_grad, grad, given, order, samples=i == 4)


def _share_out(dense_grad: Tensor, grad: Tensor, order: list[int]) -> None:
    """Of a parameter that all samples share, from one of the shape of a row."""
    if grad.numel() == 1:
        grad.copy_(dense_grad.sum().view(grad.shape))
        return
    in_order = dense_grad.permute([order.index(d) for d in sorted(order)])
    own = grad.shape[max(grad.dim() - len(order), 0) :]
    grad.copy_(sum_to_size(in_order, own).view(grad.shape))
