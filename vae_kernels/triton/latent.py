"""The latent step: `z = mu + exp(logvar/2)·eps` and `KL = Σ ½ (mu² + e^logvar − 1 − logvar)`."""

from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..eager import compute_dtype
from ..rows import column_dims
from .launch import Launch, SplitLaunch, planned, signature
from .layout import Layout, dense, from_dense, layout
from .math import std_and_excess, std_and_expm1
from .philox import normals
from .tile import (
    Tile,
    add_compensated,
    block_index,
    chunks_per_program,
    compensated,
    geometry,
    load,
    offsets,
    per_row_offsets,
    store,
    tile,
)


@triton.jit
def _noise(
    eps, seed, strides, row, first_col, col, mask, inner_rows, inner_cols,
    VEC: tl.constexpr, RUN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    if eps is None:
        return normals(tl.load(seed), row, first_col, BLOCK_ROWS, BLOCK_COLS, RUN).to(DTYPE)
    else:
        return load(eps + offsets(row, col, strides, inner_rows, inner_cols, VEC), mask, DTYPE)


@triton.jit(do_not_specialize=["seed", "rows", "cols", "inner_rows", "inner_cols", "chunks", "chunks_per_program"])
def latent_forward_kernel(
    mu, logvar, seed, eps, z, kl,
    mu_strides, logvar_strides, eps_strides, z_strides,
    rows, cols, inner_rows, inner_cols, chunks, chunks_per_program,
    VEC: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """A program sums `chunks_per_program` chunks of a block of rows: into kl [rows], or if SPLIT each chunk apart, into
    kl [chunks, rows]."""
    DTYPE: tl.constexpr = kl.dtype.element_ty
    first = tl.program_id(0) * chunks_per_program
    row = block_index() * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    if WIDE:
        row = row.to(tl.int64)
        first = first.to(tl.int64)
    r = row[:, None]
    total = tl.zeros([BLOCK_ROWS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS], DTYPE)
    for chunk in range(first, tl.minimum(first + chunks_per_program, chunks)):
        first_col = chunk * BLOCK_COLS
        c = first_col + tl.arange(0, BLOCK_COLS)[None, :]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        m = load(mu + offsets(r, c, mu_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        l = load(logvar + offsets(r, c, logvar_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        e = _noise(
            eps, seed, eps_strides, r, first_col, c, mask, inner_rows, inner_cols,
            VEC, RUN, BLOCK_ROWS, BLOCK_COLS, DTYPE,
        )  # fmt: skip
        std, excess = std_and_excess(l)
        store(z + offsets(r, c, z_strides, inner_rows, inner_cols, VEC), m + std * e, mask)
        # Masked elements are zeros, and so is their term.
        term = 0.5 * tl.sum(m * m + excess, 1)
        if SPLIT:
            store(kl + chunk * rows + row, term, row < rows)
        else:
            total, lost = add_compensated(total, lost, term)
    if not SPLIT:
        store(kl + row, compensated(total, lost), row < rows)


@triton.jit(do_not_specialize=["grad_kl", "seed", "rows", "cols", "inner_rows", "inner_cols"])
def latent_backward_kernel(
    grad_z, grad_kl, mu, logvar, seed, eps, grad_mu, grad_logvar, grad_eps,
    grad_z_strides, grad_kl_strides, mu_strides, logvar_strides, eps_strides, out_strides,
    rows, cols, inner_rows, inner_cols,
    VEC: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """`∂mu = gz + gkl·mu`, `∂logvar = ½ (gz·e^(l/2)·eps + gkl·(e^l − 1))`, `∂eps = gz·e^(l/2)`: one tile per program."""
    row = block_index() * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    first_col = tl.program_id(0) * BLOCK_COLS
    if WIDE:
        row = row.to(tl.int64)
        first_col = first_col.to(tl.int64)
    r = row[:, None]
    c = first_col + tl.arange(0, BLOCK_COLS)[None, :]
    mask = None
    if not EVEN:
        mask = (r < rows) & (c < cols * VEC)
    at = offsets(r, c, out_strides, inner_rows, inner_cols, VEC)
    if grad_z is not None:
        gz = load(grad_z + offsets(r, c, grad_z_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
    if grad_kl is not None:
        gkl = load(grad_kl + per_row_offsets(row, grad_kl_strides, inner_rows), row < rows, DTYPE)[:, None]
    if grad_mu is not None:
        if grad_kl is None:
            store(grad_mu + at, gz, mask)
        else:
            m = load(mu + offsets(r, c, mu_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
            if grad_z is None:
                store(grad_mu + at, gkl * m, mask)
            else:
                store(grad_mu + at, gkl * m + gz, mask)
    l = load(logvar + offsets(r, c, logvar_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
    std, expm1 = std_and_expm1(l)
    if grad_logvar is not None:
        if grad_z is None:
            twice = gkl * expm1
        else:
            e = _noise(
                eps, seed, eps_strides, r, first_col, c, mask, inner_rows, inner_cols,
                VEC, RUN, BLOCK_ROWS, BLOCK_COLS, DTYPE,
            )  # fmt: skip
            twice = gz * (std * e)
            if grad_kl is not None:
                twice = gkl * expm1 + twice
        store(grad_logvar + at, 0.5 * twice, mask)
    if grad_eps is not None:
        store(grad_eps + at, gz * std, mask)


def _check_plain(prior_mu, prior_logvar, seed, num_samples, scale, logvar_clamp, kl_estimator, kl_reduction) -> None:
    plain = (None, None, None, "logvar", [], "analytic", "sum")
    if (prior_mu, prior_logvar, num_samples, scale, logvar_clamp, kl_estimator, kl_reduction) != plain or (
        seed is not None and seed.numel() != 1
    ):
        raise NotImplementedError("the Triton kernels have one z, the prior N(0, 1) and one seed so far")


def latent_forward(
    mu: Tensor,
    logvar: Tensor | None,
    prior_mu: Tensor | None,
    prior_logvar: Tensor | None,
    seed: Tensor | None,
    eps: Tensor | None,
    batch_dims: int,
    packed_dim: int,
    *settings,
) -> tuple[Tensor, Tensor]:
    """`z` and `kl`, as the schema says."""
    _check_plain(prior_mu, prior_logvar, seed, *settings)
    if logvar is None:
        mu, logvar = mu.chunk(2, packed_dim)
    return _forward(mu, logvar, seed, eps, batch_dims)


def _forward(
    mu: Tensor, logvar: Tensor, seed: Tensor | None, eps: Tensor | None, batch_dims: int
) -> tuple[Tensor, Tensor]:
    """`z` like `mu`, `kl` of the batch dims."""
    z = torch.empty_like(mu)
    kl = mu.new_empty(mu.shape[:batch_dims], dtype=compute_dtype(mu, logvar))
    if mu.numel() == 0:
        return z, kl.zero_()
    key = ("latent_forward", batch_dims, mu.get_device(), signature(mu), signature(logvar), signature(eps))
    planned(key, lambda: _plan_forward(mu, logvar, eps, z, kl, batch_dims))(mu, logvar, seed, eps, z, kl)
    return z, kl


def _plan_forward(mu, logvar, eps, z, kl, batch_dims) -> Callable[..., None]:
    order = column_dims(mu, batch_dims)
    full = [mu, logvar, z] if eps is None else [mu, logvar, z, eps]
    form = layout(full, batch_dims, order)
    if form is None:
        return partial(_forward_through_copies, batch_dims, order)
    shape = tile(form.rows, form.cols * form.vec, compute_dtype(mu, logvar))
    chunks = chunks_per_program(shape)
    split = chunks < shape.chunks
    launch = Launch(
        latent_forward_kernel,
        shape.grid(triton.cdiv(shape.chunks, chunks)),
        mu.get_device(),
        mu_strides=form.strides[0],
        logvar_strides=form.strides[1],
        eps_strides=None if eps is None else form.strides[3],
        z_strides=form.strides[2],
        chunks=shape.chunks,
        chunks_per_program=chunks,
        RUN=_run(form, shape, full),
        SPLIT=split,
        **geometry(form, shape),
    )
    return SplitLaunch(launch, mu.get_device(), form.rows, shape.chunks) if split else launch


def _run(form: Layout, shape: Tile, tensors: list[Tensor]) -> int:
    """How many neighbouring numbers a thread makes: as many as the compiler will have it load and store at once."""
    return 8 if min(t.element_size() for t in tensors) <= 2 and min(form.vec, shape.block_cols) >= 8 else 4


def _forward_through_copies(batch_dims, order, mu, logvar, seed, eps, z, kl) -> None:
    mu, logvar, eps = (None if t is None else dense(t, batch_dims, order) for t in (mu, logvar, eps))
    dense_z, dense_kl = _forward(mu, logvar, seed, eps, batch_dims)
    from_dense(dense_z, z, batch_dims, order)
    kl.copy_(dense_kl)


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
    batch_dims: int,
    packed_dim: int,
    *settings,
) -> list[Tensor]:
    """The gradients that are needed, as the schema says."""
    _check_plain(prior_mu, prior_logvar, seed, *settings)
    if logvar is not None:
        return _needed_gradients(grad_z, grad_kl, mu, logvar, seed, eps, batch_dims, [*needs[:2], needs[4]])
    halves = mu.chunk(2, packed_dim)
    found = _needed_gradients(grad_z, grad_kl, *halves, seed, eps, batch_dims, [needs[0], needs[0], needs[4]])
    return [torch.cat(found[:2], packed_dim), *found[2:]] if needs[0] else found


def _needed_gradients(
    grad_z: Tensor | None,
    grad_kl: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor | None,
    eps: Tensor | None,
    batch_dims: int,
    needs: list[bool],
) -> list[Tensor]:
    """The gradients of `mu`, `logvar` and `eps` that are needed, each like `mu` in the dtype of its own input."""
    grads = [
        torch.empty_like(mu, dtype=t.dtype) if need else None for t, need in zip((mu, logvar, eps), needs, strict=True)
    ]
    if grad_z is None and grads[2] is not None:
        # z alone depends on eps.
        return [*_backward(grad_z, grad_kl, mu, logvar, seed, eps, batch_dims, [*grads[:2], None]), grads[2].zero_()]
    return _backward(grad_z, grad_kl, mu, logvar, seed, eps, batch_dims, grads)


def _backward(grad_z, grad_kl, mu, logvar, seed, eps, batch_dims, grads) -> list[Tensor]:
    needed = [g for g in grads if g is not None]
    if mu.numel() == 0 or not needed:
        return needed
    if grad_z is None and grad_kl is None:
        return [g.zero_() for g in needed]
    key = (
        "latent_backward",
        batch_dims,
        mu.get_device(),
        *(signature(t) for t in (grad_z, mu, logvar, eps)),
        grad_kl is not None and (grad_kl.stride(), grad_kl.dtype),
        *(g is None for g in grads),
    )
    plan = planned(key, lambda: _plan_backward(grad_z, grad_kl, mu, logvar, eps, batch_dims, grads))
    plan(grad_z, grad_kl, mu, logvar, seed, eps, *grads)
    return needed


def _plan_backward(grad_z, grad_kl, mu, logvar, eps, batch_dims, grads) -> Callable[..., None]:
    order = column_dims(mu, batch_dims)
    out = torch.empty_like(mu, device="meta")
    full = [t for t in (out, mu, logvar, grad_z, eps) if t is not None]
    form = layout(full, batch_dims, order, () if grad_kl is None else (grad_kl,))
    if form is None:
        return partial(_backward_through_copies, batch_dims, order)
    shape = tile(form.rows, form.cols * form.vec, compute_dtype(mu, logvar))
    strides = iter(form.strides)
    return Launch(
        latent_backward_kernel,
        shape.grid(shape.chunks),
        mu.get_device(),
        out_strides=next(strides),
        mu_strides=next(strides),
        logvar_strides=next(strides),
        grad_z_strides=None if grad_z is None else next(strides),
        eps_strides=None if eps is None else next(strides),
        grad_kl_strides=None if grad_kl is None else form.per_row_strides[0],
        DTYPE=tl.float64 if compute_dtype(mu, logvar) == torch.float64 else tl.float32,
        RUN=_run(form, shape, full),
        **geometry(form, shape),
    )


def _backward_through_copies(batch_dims, order, grad_z, grad_kl, mu, logvar, seed, eps, *grads) -> None:
    grad_z, mu, logvar, eps = (None if t is None else dense(t, batch_dims, order) for t in (grad_z, mu, logvar, eps))
    grad_kl = None if grad_kl is None else grad_kl.contiguous()
    found = _needed_gradients(grad_z, grad_kl, mu, logvar, seed, eps, batch_dims, [g is not None for g in grads])
    for grad, dense_grad in zip((g for g in grads if g is not None), found, strict=True):
        from_dense(dense_grad, grad, batch_dims, order)
