"""The two ops of the latent step: they launch the kernels in `latent_kernels.py`."""

import math
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import ops
from ..options import LatentOptions, Scale
from ..rows import column_dims, compute_dtype, sum_to_size
from .latent_kernels import latent_backward_kernel, latent_forward_kernel
from .launch import Launch, SplitLaunch, planned, signature
from .layout import Layout, Strides, dense, from_dense, layout
from .parameters import SumOfPartials, float32_parts
from .tile import Tile, chunks_per_program, finer, geometry, is_split, row_blocks_per_program, tile


class Inputs(NamedTuple):
    """The tensors of the op. `raw` is what `scale` names. The prior's parameters, and seed or eps, may be None."""

    mu: Tensor
    raw: Tensor
    prior_mu: Tensor | None
    prior_logvar: Tensor | None
    seed: Tensor | None
    eps: Tensor | None

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return compute_dtype(*(t for t in self[:4] if t is not None))

    @property
    def own_seeds(self) -> bool:
        return self.seed is not None and self.seed.numel() != 1


def _inputs(options: LatentOptions, mu, logvar, prior_mu, prior_logvar, noise) -> Inputs:
    """Split packed moments, and sort the noise into seed or eps."""
    moments = mu.chunk(2, options.packed_dim) if logvar is None else (mu, logvar)
    if noise.is_floating_point():
        return Inputs(*moments, prior_mu, prior_logvar, None, noise)
    seed = noise if noise.numel() == 1 else noise.contiguous()
    return Inputs(*moments, prior_mu, prior_logvar, seed, None)


# Elements that a thread holds at once: with the standard prior, the analytic KL and `logvar` without a floor, and in
# all other cases, which need more registers.
HELD_STANDARD, HELD_OTHERS = 16, 8


def latent_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """`z` and `kl`, as the schema in `vae_kernels.ops` describes them."""
    tensors, options = arguments[:5], LatentOptions(*arguments[5:])
    z, kl = ops.latent_forward(*arguments)
    if z.numel() == 0:
        return z, kl.zero_()
    inputs = _inputs(options, *tensors)
    options = _without_lost_floor(options, inputs)
    plan = planned(("latent_forward", _key(tensors, options)), lambda: _plan_forward(inputs, options, z, kl))
    plan(*inputs, *_numbers(options), z, kl)
    return z, kl


def _key(tensors: tuple[Tensor | None, ...], options: LatentOptions) -> Hashable:
    """The key of a plan: everything that it depends on."""
    mu, logvar, prior_mu, prior_logvar, noise = tensors
    of_noise = signature(noise) if noise.is_floating_point() else noise.numel()
    return (
        *(mu.get_device(), signature(mu), signature(logvar), signature(prior_mu), signature(prior_logvar), of_noise),
        *options._replace(std_floor=options.std_floor is not None, low=None, high=_is_clamped(options)),
    )


def _without_lost_floor(options: LatentOptions, inputs: Inputs) -> LatentOptions:
    """The options without the floor, if it is 0 in the arithmetic's dtype."""
    if options.std_floor is None or float32_parts(options.std_floor)[0] or inputs.dtype == torch.float64:
        return options
    return options._replace(std_floor=None)


def _is_clamped(options: LatentOptions) -> bool:
    return options.low is not None or options.high is not None


def _numbers(options: LatentOptions) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """The floor and both bounds as `float32_parts`; an empty tuple for a missing one."""
    floor = () if options.std_floor is None else (float32_parts(options.std_floor),)
    if not _is_clamped(options):
        return floor, ()
    low, high = (
        (-math.inf if options.low is None else options.low),
        (math.inf if options.high is None else options.high),
    )
    return floor, (float32_parts(low), float32_parts(high))


def _plan_forward(inputs: Inputs, options: LatentOptions, z: Tensor, kl: Tensor) -> Callable[..., None]:
    mu, eps, count = inputs.mu, inputs.eps, options.num_samples
    order = column_dims(mu, options.batch_dims)
    views = {"mu": mu, "raw": inputs.raw, "z": _first_sample(z, count), "eps": _first_sample(eps, count)} | _full_prior(
        inputs
    )
    form = _layout(views, inputs, options, order, steps=(_step(z, count), _step(eps, count)))
    if form is None:
        return partial(_forward_through_copies, options, order)
    form, strides = form
    there = [t for t in views.values() if t is not None]
    shape = _tile(form, inputs, options, there)
    chunks = 1 if options.sampled and (count or 1) > 1 else chunks_per_program(shape)
    summed = options.summed
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
        **_switches(inputs, options),
        **geometry(form, shape),
    )
    sums = form.rows * (options.kl_samples or 1)
    return SplitLaunch(launch, mu.get_device(), sums, shape.chunks) if split else launch


def _switches(inputs: Inputs, options: LatentOptions) -> dict[str, Any]:
    return {
        "SCALE": Scale(options.scale or 0).name,
        "SAMPLED": options.sampled,
        "SAMPLES": options.num_samples or 1,
        "OWN_SEEDS": inputs.own_seeds,
    }


def _first_sample(tensor: Tensor | None, num_samples: int | None) -> Tensor | None:
    """The first sample's part of a tensor with a leading dim of samples, if it has that dim."""
    return tensor if tensor is None or not num_samples else tensor[0]


def _step(tensor: Tensor | None, num_samples: int | None) -> int:
    """The distance from one sample to the next, in elements."""
    return 0 if tensor is None or not num_samples else tensor.stride(0)


def _is_one(parameter: Tensor, full: Tensor) -> bool:
    return parameter.numel() == 1 and parameter.shape != full.shape


def _full_prior(inputs: Inputs) -> dict[str, Tensor]:
    """The prior's parameters with more than one element, expanded to the shape of mu."""
    return {
        name: t.expand_as(inputs.mu)
        for name, t in (("prior_mu", inputs.prior_mu), ("prior_logvar", inputs.prior_logvar))
        if t is not None and not _is_one(t, inputs.mu)
    }


def _prior_strides(inputs: Inputs, strides: dict[str, Strides]) -> tuple[Strides | None, Strides | None]:
    """The strides of the prior's parameters: None for a missing one, an empty tuple for one with one element."""
    missing = ((), None)
    return tuple(
        strides.get(name, missing[t is None])
        for name, t in (("prior_mu", inputs.prior_mu), ("prior_logvar", inputs.prior_logvar))
    )


def _layout(
    views: dict[str, Tensor | None],
    inputs: Inputs,
    options: LatentOptions,
    order: list[int],
    steps: tuple[int, ...],
    per_row: tuple[Tensor, ...] = (),
    row_steps: tuple[int, ...] = (),
) -> tuple[Layout, dict[str, Strides]] | None:
    """The layout of the views that are not None, and their strides by name."""
    there = {name: t for name, t in views.items() if t is not None}
    samples = options.num_samples or 1
    reach = (samples - 1) * max((*steps, *row_steps), default=0)
    form = layout(list(there.values()), options.batch_dims, order, per_row, steps, samples, reach)
    return form and (form, dict(zip(there, form.strides, strict=True)))


def _tile(form: Layout, inputs: Inputs, options: LatentOptions, tensors: list[Tensor]) -> Tile:
    usual = not options.sampled and not options.scale and options.std_floor is None
    standard = usual and inputs.prior_mu is None and inputs.prior_logvar is None
    return tile(form.rows, form.cols * form.vec, inputs.dtype, tensors, HELD_STANDARD if standard else HELD_OTHERS)


def _run_length(form: Layout, shape: Tile, tensors: list[Tensor]) -> int:
    """The number of neighbouring columns for which a thread makes noise: as many as it loads at once."""
    narrowest = min(t.element_size() for t in tensors)
    return 8 if narrowest <= 2 and min(form.vec, shape.block_cols, shape.held) >= 8 else 4


def latent_backward(grad_z: Tensor | None, grad_kl: Tensor | None, *arguments: Any) -> tuple[Tensor | None, ...]:
    """The gradients that are needed, as the schema in `vae_kernels.ops` describes them."""
    tensors, options, needs = arguments[:5], LatentOptions(*arguments[5:-1]), arguments[-1]
    found = ops.latent_backward(grad_z, grad_kl, *arguments)
    if grad_kl is None and options.sampled:
        options = options._replace(kl_estimator=None)
    # An input on which no used output depends has the gradient 0.
    by_z, by_kl = grad_z is not None, grad_kl is not None
    used = (by_z or by_kl, by_z or by_kl, by_kl, by_kl, by_z or options.sampled)
    if tensors[0].numel() == 0:
        used = (False,) * 5
    grads = [grad if is_used else None for grad, is_used in zip(found, used, strict=True)]
    for grad, is_used in zip(found, used, strict=True):
        if grad is not None and not is_used:
            grad.zero_()
    if not any(g is not None for g in grads):
        return found
    if tensors[1] is None and grads[0] is not None:
        grads[:2] = grads[0].chunk(2, options.packed_dim)
    inputs = _inputs(options, *tensors)
    options = _without_lost_floor(options, inputs)
    key = ("latent_backward", signature(grad_z), by_kl and signature(grad_kl), needs, _key(tensors, options))
    plan = planned(key, lambda: _plan_backward(grad_z, grad_kl, inputs, options, grads))
    plan(grad_z, grad_kl, *inputs, *_numbers(options), grads)
    return found


def _plan_backward(
    grad_z: Tensor | None, grad_kl: Tensor | None, inputs: Inputs, options: LatentOptions, grads: list[Tensor | None]
) -> Callable[..., None]:
    mu, eps, count = inputs.mu, inputs.eps, options.num_samples
    order = column_dims(mu, options.batch_dims)
    summed = options.summed
    one_kl = _first_sample(grad_kl, options.kl_samples)
    out = next((g for g in grads[:2] if g is not None), torch.empty_like(mu, device="meta"))
    views = {
        "out": out,
        "full": torch.empty_like(mu, device="meta"),
        "mu": mu,
        "raw": inputs.raw,
        "grad_z": _first_sample(grad_z, count),
        "grad_kl": None if summed else one_kl,
        "eps": _first_sample(eps, count),
    } | (_full_prior(inputs) if grad_kl is not None else {})
    steps = {
        "grad_z_step": _step(grad_z, count),
        "eps_step": _step(eps, count),
        "grad_eps_step": _step(grads[4], count),
    }
    kl_step = _step(grad_kl, options.kl_samples)
    per_row = (one_kl,) if summed and grad_kl is not None else ()
    full_steps = (*steps.values(), 0 if summed else kl_step)
    form = _layout(views, inputs, options, order, full_steps, per_row, (kl_step,))
    if form is None:
        return partial(_backward_through_copies, options, order)
    form, strides = form
    there = [t for t in views.values() if t is not None]
    shape = _tile(form, inputs, options, there)
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
        PATH=options.path,
        SUMMED=summed,
        ADDED=added,
        RUN=_run_length(form, shape, there),
        DTYPE=tl.float64 if inputs.dtype == torch.float64 else tl.float32,
        grad_kl_step=kl_step if summed else kl_step // form.vec,
        **{name: step // form.vec for name, step in steps.items()},
        **_switches(inputs, options),
        **geometry(form, shape),
    )
    sums = [
        SumOfPartials(
            mu, t, inputs.dtype, options.batch_dims, order, groups * shape.chunks if _is_one(t, mu) else groups
        )
        if is_added
        else None
        for t, is_added in zip(prior, added, strict=True)
    ]
    if not any(added):
        return lambda *arguments: launch(*arguments[:-1], *arguments[-1])
    return partial(_launch_backward, launch, sums)


def _launch_backward(launch: Launch, sums: list[SumOfPartials | None], *arguments: Any) -> None:
    """Launch the kernel. Then sum each gradient of a prior's parameter that has fewer elements than mu."""
    *others, grads = arguments
    outs = [s.empty_partials() if s is not None else g for s, g in zip(sums, grads[2:4], strict=True)]
    launch(*others, *grads[:2], *outs, grads[4])
    for total, partial_sums, grad in zip(sums, outs, grads[2:4], strict=True):
        if total is not None:
            total(partial_sums, grad)


def _dense_inputs(mu, raw, prior_mu, prior_logvar, seed, eps, options: LatentOptions, order: list[int]) -> list:
    """Copies of the op's tensors with the columns in `order`. A shared parameter gets the shape of a row."""

    def shared(parameter: Tensor | None) -> Tensor | None:
        if parameter is None or _is_one(parameter, mu):
            return parameter
        if parameter.shape == mu.shape:
            return dense(parameter, options.batch_dims, order)
        row = parameter.expand_as(mu)[(0,) * options.batch_dims]
        return dense(row, 0, [d - options.batch_dims for d in order])

    moments = [dense(t, options.batch_dims, order) for t in (mu, raw)]
    return [*moments, shared(prior_mu), shared(prior_logvar), seed if eps is None else _dense(eps, options, order)]


def _dense(tensor: Tensor | None, options: LatentOptions, order: list[int], samples: bool = True) -> Tensor | None:
    """`dense` for a tensor that may have a leading dim of samples."""
    if tensor is None:
        return None
    if not options.num_samples or not samples:
        return dense(tensor, options.batch_dims, order)
    return dense(tensor, options.batch_dims + 1, [d + 1 for d in order])


def _from_dense(tensor: Tensor, like: Tensor, options: LatentOptions, order: list[int], samples: bool) -> None:
    if not options.num_samples or not samples:
        from_dense(tensor, like, options.batch_dims, order)
    else:
        from_dense(tensor, like, options.batch_dims + 1, [d + 1 for d in order])


def _forward_through_copies(options: LatentOptions, order: list[int], *arguments: Any) -> None:
    *tensors, floor, clamp, z, kl = arguments
    options = _with_numbers(options, floor, clamp)
    dense_z, dense_kl = latent_forward(*_dense_inputs(*tensors, options, order), *options)
    _from_dense(dense_z, z, options, order, samples=True)
    if options.summed:
        kl.copy_(dense_kl)
    else:
        _from_dense(dense_kl, kl, options, order, options.sampled)


def _with_numbers(options: LatentOptions, *numbers: tuple[tuple[float, ...], ...]) -> LatentOptions:
    """The options with the floor and the bounds of this call, which may differ from those of the plan."""
    floor, clamp = ([sum(reversed(parts)) for parts in number] for number in numbers)
    return options._replace(
        **dict(zip(("std_floor",), floor, strict=False)), **dict(zip(("low", "high"), clamp, strict=False))
    )


def _backward_through_copies(options: LatentOptions, order: list[int], grad_z, grad_kl, *arguments: Any) -> None:
    *tensors, floor, clamp, grads = arguments
    options = _with_numbers(options, floor, clamp)
    inputs = _dense_inputs(*tensors, options, order)
    grad_z = _dense(grad_z, options, order)
    if grad_kl is not None:
        grad_kl = grad_kl.contiguous() if options.summed else _dense(grad_kl, options, order, options.sampled)
    needs = sum(1 << i for i, grad in enumerate(grads) if grad is not None)
    found = latent_backward(grad_z, grad_kl, *inputs, *options, needs)
    mu = tensors[0]
    for i, (grad, dense_grad) in enumerate(zip(grads, found, strict=True)):
        if grad is None:
            continue
        if i in (2, 3) and tensors[i].shape != mu.shape:
            _share_out(dense_grad, grad, order)
        else:
            _from_dense(dense_grad, grad, options, order, samples=i == 4)


def _share_out(dense_grad: Tensor, grad: Tensor, order: list[int]) -> None:
    """Sum a gradient of the shape of a row to the shape of a parameter that all samples share."""
    if grad.numel() == 1:
        grad.copy_(dense_grad.sum().view(grad.shape))
        return
    in_order = dense_grad.permute([order.index(d) for d in sorted(order)])
    own = grad.shape[max(grad.dim() - len(order), 0) :]
    grad.copy_(sum_to_size(in_order, own).view(grad.shape))
