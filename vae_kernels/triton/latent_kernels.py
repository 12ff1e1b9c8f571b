"""Kernels of the latent step: `z = mu + std·eps` and the KL divergence from q to the prior.

q is N(mu, e^l), the prior is N(m, e^v). With `w = e^(−v/2)`, `u = (mu − m) w`, `d = l − v` and `ratio = std·w`, the KL
divergence is `½ (u² + e^d − 1 − d)`. Its estimate at one z is `½ (u² + 2 u ratio eps + (e^d − 1) eps² − d)`.
"""

import triton
import triton.language as tl

from .math import (
    excess_from,
    exp,
    exp_minus_abs,
    expm1_from,
    log,
    log1p_unit,
    sigmoid,
    softplus,
    std_and_excess,
    std_and_expm1,
)
from .parameters import load_parameter, number, store_partial
from .philox import normals
from .tile import (
    add_compensated,
    block_index,
    chunk_index,
    compensated,
    load,
    offsets,
    per_row_offsets,
    store,
    widened,
)


@triton.jit
def _std(raw, SCALE: tl.constexpr):
    """std from raw, without floor and clamp."""
    if SCALE == "logvar":
        return exp(raw * 0.5)
    elif SCALE == "logstd":
        return exp(raw)
    elif SCALE == "std":
        return raw
    elif SCALE == "variance":
        return tl.sqrt(raw) if raw.dtype == tl.float64 else tl.sqrt_rn(raw)
    else:
        return softplus(raw, exp_minus_abs(raw))


@triton.jit
def _log_softplus(raw):
    """log std and its derivative, for std = ln(1 + e^raw).

    For raw < 0, std is e^raw times a factor near 1. The logarithm of that factor is used, because std may underflow.
    """
    u = exp_minus_abs(raw)
    factor = tl.where(u > 0.0, log1p_unit(u) / tl.where(u > 0.0, u, 1.0), 1.0)
    scaled = tl.where(raw > 0.0, softplus(raw, u), factor)
    return log(scaled) + tl.where(raw > 0.0, 0.0, raw), 1.0 / ((1.0 + u) * scaled)


@triton.jit
def _log_variance(raw, floor, clamp, SCALE: tl.constexpr):
    """l from raw, and True where it is clamped."""
    if SCALE == "logvar":
        l = raw
    elif SCALE == "logstd":
        l = 2.0 * raw
    elif SCALE == "std":
        l = 2.0 * log(raw)
    elif SCALE == "variance":
        l = log(raw)
    else:
        l = 2.0 * _log_softplus(raw)[0]
    if len(floor) > 0:
        # Where std overflows, l is that without the floor.
        std = _std(raw, SCALE) + number(floor[0], raw.dtype)
        l = 2.0 * log(std) if SCALE == "softplus" else tl.where(std == float("inf"), l, 2.0 * log(std))
    outside = l < l
    if len(clamp) > 0:
        low, high = number(clamp[0], raw.dtype), number(clamp[1], raw.dtype)
        outside = (l < low) | (l > high)
        l = tl.where(l < low, low, tl.where(l > high, high, l))
    return l, outside


@triton.jit
def _times_w(x, v):
    """`x w` with `w = e^(−v/2)`, where w is at most the largest finite number, so that 0 times w is 0. v may be None.

    (`times_exp` would be correct for a tiny x too, but it needs more registers than AMD's GPUs have here.)
    """
    if v is not None:
        END: tl.constexpr = 709.75 if x.dtype == tl.float64 else 88.7
        x = x * exp(tl.minimum(v * -0.5, END, propagate_nan=tl.PropagateNan.ALL))
    return x


@triton.jit
def _square_overflows(expm1, ratio):
    """True where e^d = ratio² overflows, but ratio does not."""
    return (expm1 == float("inf")) & (ratio < float("inf"))


@triton.jit
def _posterior(mu, raw, m, v, floor, clamp, SCALE: tl.constexpr, EXCESS: tl.constexpr):
    """std, u, ratio, d, `e^d − 1 − d` if EXCESS else `e^d − 1`, and True where l is clamped. m and v may be None."""
    l, outside = _log_variance(raw, floor, clamp, SCALE)
    EXPONENTIAL: tl.constexpr = (SCALE == "logvar" or SCALE == "logstd") and len(floor) == 0
    u = mu
    if m is not None:
        u = mu - m
    d = l
    if v is not None:
        d = l - v
    u = _times_w(u, v)
    if EXPONENTIAL:
        if EXCESS:
            half, growth = std_and_excess(d)
        else:
            half, growth = std_and_expm1(d)
        std = half
        if v is not None:
            std = exp(l * 0.5)
    else:
        std = _std(raw, SCALE)
        if len(floor) > 0:
            std += number(floor[0], raw.dtype)
        if len(clamp) > 0:
            std = tl.where(outside, exp(l * 0.5), std)
    ratio = _times_w(std, v)
    if not EXPONENTIAL:
        # e^d is computed from ratio, because l is a rounded logarithm.
        growth = excess_from(d, ratio * ratio) if EXCESS else expm1_from(d, ratio * ratio)
    return std, u, ratio, d, growth, outside


@triton.jit
def _times_slope(x, raw, std, SCALE: tl.constexpr):
    """x times the derivative of std to raw; twice that for the scales logvar and variance."""
    if SCALE == "std":
        return x
    elif SCALE == "variance":
        return x / std
    elif SCALE == "softplus":
        return sigmoid(raw, exp_minus_abs(raw)) * x
    else:
        return std * x


@triton.jit
def _to_raw(by_std, twice_by_l, raw, std, outside, SCALE: tl.constexpr, FLOORED: tl.constexpr, CLAMPED: tl.constexpr):
    """The gradient of raw from those of std and l, one of which may be None. That of l is passed doubled."""
    base = std
    if FLOORED:
        base = _std(raw, SCALE)
    of_std = by_std
    if by_std is not None:
        of_std = _times_slope(by_std, raw, base, SCALE)
    of_l = twice_by_l
    if twice_by_l is not None:
        if FLOORED:
            of_l = _times_slope(twice_by_l, raw, base, SCALE) / std
        elif SCALE == "std" or SCALE == "variance":
            of_l = twice_by_l / raw
        elif SCALE == "softplus":
            of_l = twice_by_l * _log_softplus(raw)[1]
    if of_std is None:
        grad = of_l
    elif of_l is None:
        grad = of_std
    else:
        grad = of_std + of_l
    if SCALE == "logvar" or SCALE == "variance":
        grad = 0.5 * grad
    if CLAMPED:
        grad = tl.where(outside, 0.0, grad)
    return grad


@triton.jit
def _noise(
    eps, seed, strides, step, sample, row, first_col, col, mask, rows, inner_rows, inner_cols,
    OWN_SEEDS: tl.constexpr, VEC: tl.constexpr, RUN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """eps, or the noise of the seed. Row `row` of sample `sample` has the subsequence `sample * rows + row`. With a
    seed for each row, it has the subsequence `sample` of its own seed."""
    if eps is not None:
        at = sample * (step * VEC) + offsets(row, col, strides, inner_rows, inner_cols, VEC)
        return load(eps + at, mask, DTYPE)
    elif OWN_SEEDS:
        seeds = tl.load(seed + row, mask=row < rows, other=0)
        return normals(seeds, row * 0 + sample, first_col, BLOCK_ROWS, BLOCK_COLS, RUN).to(DTYPE)
    else:
        return normals(tl.load(seed), row + sample * rows, first_col, BLOCK_ROWS, BLOCK_COLS, RUN).to(DTYPE)


@triton.jit(
    do_not_specialize=[
        "seed", "rows", "cols", "inner_rows", "inner_cols", "chunks", "chunks_per_program", "z_step", "eps_step",
    ]
)  # fmt: skip
def latent_forward_kernel(
    mu, raw, prior_mu, prior_logvar, seed, eps, floor, clamp, z, kl,
    mu_strides, raw_strides, prior_strides, eps_strides, z_strides, eps_step, z_step,
    rows, cols, inner_rows, inner_cols, chunks, chunks_per_program,
    SCALE: tl.constexpr, SAMPLED: tl.constexpr, SUMMED: tl.constexpr, SAMPLES: tl.constexpr, OWN_SEEDS: tl.constexpr,
    VEC: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, SPLIT: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute z and kl for `chunks_per_program` chunks of a block of rows.

    The sums over the chunks are stored in kl [rows], or if SPLIT the sum of each chunk in kl [chunks, rows]. If
    SAMPLED, the KL is estimated at each of the SAMPLES z. Several of them are summed per chunk, into kl [chunks,
    SAMPLES, rows]. If not SUMMED, kl has all elements, in the layout of z.
    """
    DTYPE: tl.constexpr = kl.dtype.element_ty
    CAN_OVERFLOW: tl.constexpr = SCALE == "softplus" or len(floor) > 0
    ONE_BY_ONE: tl.constexpr = SAMPLED and SAMPLES > 1
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    z_step, eps_step = widened(z_step, WIDE), widened(eps_step, WIDE)
    first = chunk_index(WIDE) * chunks_per_program
    row = block_index(WIDE) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    r = row[:, None]
    total = tl.zeros([BLOCK_ROWS], DTYPE)
    lost = tl.zeros([BLOCK_ROWS], DTYPE)
    for chunk in range(first, tl.minimum(first + chunks_per_program, chunks)):
        first_col = chunk * BLOCK_COLS
        c = first_col + tl.arange(0, BLOCK_COLS)[None, :]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        x = load(mu + offsets(r, c, mu_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        s = load(raw + offsets(r, c, raw_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        m = None
        v = None
        if prior_mu is not None:
            m = load_parameter(prior_mu, prior_strides[0], r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        if prior_logvar is not None:
            v = load_parameter(prior_logvar, prior_strides[1], r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        std, u, ratio, d, growth, _ = _posterior(x, s, m, v, floor, clamp, SCALE, not SAMPLED)
        at = offsets(r, c, z_strides, inner_rows, inner_cols, VEC)
        for k in range(SAMPLES):
            e = _noise(
                eps, seed, eps_strides, eps_step, k, r, first_col, c, mask, rows, inner_rows, inner_cols,
                OWN_SEEDS, VEC, RUN, BLOCK_ROWS, BLOCK_COLS, DTYPE,
            )  # fmt: skip
            store(z + (k * (z_step * VEC) + at), x + std * e, mask)
            if SAMPLED:
                if CAN_OVERFLOW:
                    square = tl.where(_square_overflows(growth, ratio), (ratio * e) * (ratio * e), growth * (e * e))
                    element = 0.5 * (u * (u + 2.0 * ratio * e) + (square - d))
                else:
                    element = 0.5 * (u * (u + 2.0 * ratio * e) + (growth * (e * e) - d))
                if not SUMMED:
                    store(kl + (k * (z_step * VEC) + at), element, mask)
                elif ONE_BY_ONE:
                    sums = _sum_columns(element, mask)
                    store(kl + ((chunk * SAMPLES + k) * rows + row), sums, row < rows)
                else:
                    total, lost = _add(total, lost, _sum_columns(element, mask), kl, chunk, row, rows, SPLIT)
        if not SAMPLED:
            element = (0.5 * u) * u + 0.5 * growth
            if SUMMED:
                # With these options the terms of masked elements, which are loaded as zeros, are zero.
                MASKED_ARE_ZERO: tl.constexpr = (
                    SCALE == "logvar"
                    and prior_mu is None
                    and prior_logvar is None
                    and len(floor) == 0
                    and len(clamp) == 0
                )
                sums = tl.sum(element, 1) if MASKED_ARE_ZERO else _sum_columns(element, mask)
                total, lost = _add(total, lost, sums, kl, chunk, row, rows, SPLIT)
            else:
                store(kl + at, element, mask)
    if SUMMED and not SPLIT and not ONE_BY_ONE:
        store(kl + row, compensated(total, lost), row < rows)


@triton.jit
def _sum_columns(elements, mask):
    if mask is not None:
        elements = tl.where(mask, elements, 0.0)
    return tl.sum(elements, 1)


@triton.jit
def _add(total, lost, term, kl, chunk, row, rows, SPLIT: tl.constexpr):
    if SPLIT:
        store(kl + chunk * rows + row, term, row < rows)
    else:
        total, lost = add_compensated(total, lost, term)
    return total, lost


@triton.jit
def _upstream(
    grad_z, grad_kl, seed, eps, grad_eps, grad_z_strides, grad_kl_strides, eps_strides, grad_eps_strides,
    grad_z_step, grad_kl_step, eps_step, grad_eps_step,
    k, row, first_col, c, mask, rows, inner_rows, inner_cols, std, by_z, expm1, ratio,
    CAN_OVERFLOW: tl.constexpr, NOISE: tl.constexpr, SAMPLED: tl.constexpr, SUMMED: tl.constexpr,
    OWN_SEEDS: tl.constexpr, VEC: tl.constexpr, RUN: tl.constexpr, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
    DTYPE: tl.constexpr,
):  # fmt: skip
    """Upstream gradients of sample k: that of z and, if NOISE, the same times eps. If SAMPLED, also that of its KL, the
    same times eps, and times eps². The gradient of eps is stored. `by_z` is u ratio."""
    r = row[:, None]
    sums = ()
    if NOISE:
        e = _noise(
            eps, seed, eps_strides, eps_step, k, r, first_col, c, mask, rows, inner_rows, inner_cols,
            OWN_SEEDS, VEC, RUN, BLOCK_ROWS, BLOCK_COLS, DTYPE,
        )  # fmt: skip
    if grad_z is not None:
        at = k * (grad_z_step * VEC) + offsets(r, c, grad_z_strides, inner_rows, inner_cols, VEC)
        gz = load(grad_z + at, mask, DTYPE)
        sums = sums + (gz,)
        if NOISE:
            sums = sums + (gz * e,)
    if SAMPLED:
        g = _grad_kl(
            grad_kl, grad_kl_strides, grad_kl_step, k, row, c, mask, rows, inner_rows, inner_cols, SUMMED, VEC, DTYPE
        )
        ge = g * e
        sums = sums + (g, ge, ge * e)
    if grad_eps is not None:
        if SAMPLED:
            by_e = expm1 * e
            if CAN_OVERFLOW:
                by_e = tl.where(_square_overflows(expm1, ratio), (ratio * e) * ratio, by_e)
        if grad_z is None:
            grad = g * (by_z + by_e)
        else:
            grad = gz * std
            if SAMPLED:
                grad += g * (by_z + by_e)
        at = k * (grad_eps_step * VEC) + offsets(r, c, grad_eps_strides, inner_rows, inner_cols, VEC)
        store(grad_eps + at, grad, mask)
    return sums


@triton.jit
def _grad_kl(
    grad_kl, strides, step, sample, row, c, mask, rows, inner_rows, inner_cols,
    SUMMED: tl.constexpr, VEC: tl.constexpr, DTYPE: tl.constexpr,
):  # fmt: skip
    """The upstream gradient of the KL: [R, 1] if it is SUMMED, else [R, C]."""
    if SUMMED:
        at = sample * step + per_row_offsets(row, strides, inner_rows)
        return load(grad_kl + at, row < rows, DTYPE)[:, None]
    else:
        at = sample * (step * VEC) + offsets(row[:, None], c, strides, inner_rows, inner_cols, VEC)
        return load(grad_kl + at, mask, DTYPE)


@triton.jit(
    do_not_specialize=[
        "seed", "rows", "cols", "inner_rows", "inner_cols", "row_blocks", "blocks_per_program",
        "grad_z_step", "grad_kl_step", "eps_step", "grad_eps_step",
    ]
)  # fmt: skip
def latent_backward_kernel(
    grad_z, grad_kl, mu, raw, prior_mu, prior_logvar, seed, eps, floor, clamp,
    grad_mu, grad_raw, grad_prior_mu, grad_prior_logvar, grad_eps,
    grad_z_strides, grad_kl_strides, mu_strides, raw_strides, prior_strides, eps_strides, out_strides, full_strides,
    grad_z_step, grad_kl_step, eps_step, grad_eps_step,
    rows, cols, inner_rows, inner_cols, row_blocks, blocks_per_program,
    SCALE: tl.constexpr, SAMPLED: tl.constexpr, PATH: tl.constexpr, SUMMED: tl.constexpr, SAMPLES: tl.constexpr,
    OWN_SEEDS: tl.constexpr, ADDED: tl.constexpr,
    VEC: tl.constexpr, RUN: tl.constexpr, WIDE: tl.constexpr, EVEN: tl.constexpr, DTYPE: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr,
):  # fmt: skip
    """Compute the gradients of a chunk of columns in a block of rows.

    ADDED[i] is true if the gradient of the prior's parameter i is a sum over rows. The program then sums over
    `blocks_per_program` blocks, into [programs per chunk, cols]: see `store_partial`.
    """
    rows, cols = widened(rows, WIDE), widened(cols, WIDE)
    grad_z_step, grad_kl_step = widened(grad_z_step, WIDE), widened(grad_kl_step, WIDE)
    eps_step, grad_eps_step = widened(eps_step, WIDE), widened(grad_eps_step, WIDE)
    group = block_index(WIDE)
    first_col = chunk_index(WIDE) * BLOCK_COLS
    c = first_col + tl.arange(0, BLOCK_COLS)[None, :]
    added = ()
    for i in tl.static_range(2):
        if ADDED[i]:
            added = added + (tl.zeros([BLOCK_ROWS, BLOCK_COLS], DTYPE),)
    if len(added) == 0:
        first = group
        blocks = 1
    else:
        first = group * blocks_per_program
        blocks = tl.minimum(blocks_per_program, row_blocks - first)
    CAN_OVERFLOW: tl.constexpr = SCALE == "softplus" or len(floor) > 0
    NOISE: tl.constexpr = SAMPLED or (grad_z is not None and grad_raw is not None)
    for block in range(blocks):
        row = (first + block) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
        r = row[:, None]
        mask = None
        if not EVEN:
            mask = (r < rows) & (c < cols * VEC)
        s = load(raw + offsets(r, c, raw_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
        # Without a gradient of the KL, mu is not used.
        x = s
        m = None
        v = None
        if grad_kl is not None:
            x = load(mu + offsets(r, c, mu_strides, inner_rows, inner_cols, VEC), mask, DTYPE)
            if prior_mu is not None:
                m = load_parameter(prior_mu, prior_strides[0], r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        if prior_logvar is not None:
            v = load_parameter(prior_logvar, prior_strides[1], r, c, mask, inner_rows, inner_cols, VEC, DTYPE)
        std, u, ratio, _, expm1, outside = _posterior(x, s, m, v, floor, clamp, SCALE, False)
        by_z = u * ratio
        sums = ()
        if grad_z is not None or SAMPLED:
            sums = _upstream(
                grad_z, grad_kl, seed, eps, grad_eps, grad_z_strides, grad_kl_strides, eps_strides, full_strides,
                grad_z_step, grad_kl_step, eps_step, grad_eps_step,
                0, row, first_col, c, mask, rows, inner_rows, inner_cols, std, by_z, expm1, ratio,
                CAN_OVERFLOW, NOISE, SAMPLED, SUMMED, OWN_SEEDS, VEC, RUN, BLOCK_ROWS, BLOCK_COLS, DTYPE,
            )  # fmt: skip
            if SAMPLES > 1:
                for k in range(1, SAMPLES):
                    terms = _upstream(
                        grad_z, grad_kl, seed, eps, grad_eps,
                        grad_z_strides, grad_kl_strides, eps_strides, full_strides,
                        grad_z_step, grad_kl_step, eps_step, grad_eps_step,
                        k, row, first_col, c, mask, rows, inner_rows, inner_cols, std, by_z, expm1, ratio,
                        CAN_OVERFLOW, NOISE, SAMPLED, SUMMED, OWN_SEEDS, VEC, RUN, BLOCK_ROWS, BLOCK_COLS, DTYPE,
                    )  # fmt: skip
                    more = ()
                    for i in tl.static_range(len(sums)):
                        more = more + (sums[i] + terms[i],)
                    sums = more
        by_mu = None
        by_std = None
        twice_by_l = None
        if grad_z is not None:
            by_mu = sums[0]
            if NOISE:
                by_std = sums[1]
        if SAMPLED:
            FIRST: tl.constexpr = 0 if grad_z is None else 2
            g, ge, gee = sums[FIRST], sums[FIRST + 1], sums[FIRST + 2]
            uw, rw = _times_w(u, v), _times_w(ratio, v)
            of_eps = rw
            if PATH:
                # rw − 1/std
                if CAN_OVERFLOW:
                    lift = tl.where(std < 7.888609052210118e-31, 1.2676506002282294e30, 1.0)  # 2^-100 and 2^100
                    lifted = expm1 / (std * lift)
                    of_eps = tl.where(_square_overflows(expm1, ratio), rw, lifted * lift)
                else:
                    of_eps = expm1 / std
            else:
                twice_by_l = -g
            kl_by_mu = uw * g + of_eps * ge
            kl_by_std = uw * ge + of_eps * gee
            if PATH and CAN_OVERFLOW:
                # Where 1/std overflows, this part of the gradient of raw goes through l. For mu, the quotient stays
                # scaled up until it is multiplied by the gradient.
                infinite = ~(tl.abs(of_eps) < float("inf"))
                kl_by_mu = tl.where(infinite, uw * g + tl.where(ge == 0.0, 0.0, lifted * (ge * lift)), kl_by_mu)
                kl_by_std = tl.where(infinite, uw * ge, kl_by_std)
                twice_by_l = tl.where(infinite, expm1 * gee, 0.0)
            by_mu = kl_by_mu if by_mu is None else by_mu + kl_by_mu
            by_std = kl_by_std if by_std is None else by_std + kl_by_std
            by_prior = (-(uw * g + rw * ge), 0.5 * (g - (u * (u * g + 2.0 * ratio * ge) + ratio * ratio * gee)))
        elif grad_kl is not None:
            g = _grad_kl(
                grad_kl,
                grad_kl_strides,
                grad_kl_step,
                0,
                row,
                c,
                mask,
                rows,
                inner_rows,
                inner_cols,
                SUMMED,
                VEC,
                DTYPE,
            )
            gu = g * u
            kl_by_mu = _times_w(gu, v)
            twice_by_l = g * expm1
            if CAN_OVERFLOW:
                overflows = _square_overflows(expm1, ratio)
                kl_by_std = tl.where(overflows, g * _times_w(ratio, v), 0.0)
                by_std = kl_by_std if by_std is None else by_std + kl_by_std
                twice_by_l = tl.where(overflows, 0.0, twice_by_l)
            by_mu = kl_by_mu if by_mu is None else kl_by_mu + by_mu
            by_prior = (-kl_by_mu, -(g * (0.5 * expm1) + (0.5 * gu) * u))
        at = offsets(r, c, out_strides, inner_rows, inner_cols, VEC)
        if grad_mu is not None:
            store(grad_mu + at, by_mu, mask)
        if grad_raw is not None:
            FLOORED: tl.constexpr = len(floor) > 0
            CLAMPED: tl.constexpr = len(clamp) > 0
            store(grad_raw + at, _to_raw(by_std, twice_by_l, s, std, outside, SCALE, FLOORED, CLAMPED), mask)
        outs = (grad_prior_mu, grad_prior_logvar)
        more = ()
        for i in tl.static_range(2):
            if ADDED[i]:
                more = more + (added[len(more)] + (by_prior[i] if mask is None else tl.where(mask, by_prior[i], 0.0)),)
            elif outs[i] is not None:
                store(outs[i] + offsets(r, c, full_strides, inner_rows, inner_cols, VEC), by_prior[i], mask)
        added = more
    there = first < row_blocks
    if ADDED[0]:
        store_partial(grad_prior_mu, added[0], prior_strides[0], group, first_col, cols, there, VEC, BLOCK_COLS)
    if ADDED[1]:
        LAST: tl.constexpr = len(added) - 1
        store_partial(grad_prior_logvar, added[LAST], prior_strides[1], group, first_col, cols, there, VEC, BLOCK_COLS)
