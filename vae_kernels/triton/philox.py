"""The noise of `vae_kernels.noise`, made in registers.

The lines "Types", "Largest error" and "Range" have the meaning that `math.py` describes; here the tests are in
python_tests/triton_under_interpreter.py.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
"""

import triton
import triton.language as tl

from .math import minus_2_log, sin_cos_turns

# The interpreter has no inline assembly.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def philox(seed, row, quad):
    """Philox4x32-10: the four words for the key `seed` and the counter (quad, row).

    Types: int32 or int64 counters, int64 seed, uint32 words.
    Largest error: none; the known answers are reproduced.
    Range: every seed and counter.
    """
    shape_like = row.to(tl.int64) + quad
    zero = (shape_like - shape_like).to(tl.uint32)
    c0, c1 = _words(quad, zero)
    c2, c3 = _words(row, zero)
    k0, k1 = seed.to(tl.uint32), (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        high0, low0 = _product(c0, 0xD2511F53)
        high1, low1 = _product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _product(a, b: tl.constexpr):
    """The high and the low word of a product."""
    if INTERPRETED:
        return tl.umulhi(a, b), tl.mul(a, b, sanitize_overflow=False)
    elif tl.target_info.is_cuda():
        # Without inline assembly the compiler uses two multiplications.
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b64 p; mul.wide.u32 p, $2, $3; mov.b64 {$0, $1}, p; }",
            "=r,=r,r,n",
            [a, b],
            dtype=(tl.uint32, tl.uint32),
            is_pure=True,
            pack=1,
        )
        return high, low
    else:
        return tl.umulhi(a, b), a * b


@triton.jit
def _words(counter, zero):
    """The low and the high word of a non-negative counter, in the shape of `zero`."""
    if counter.dtype == tl.int64:
        return zero + counter.to(tl.uint32), zero + (counter >> 32).to(tl.uint32)
    else:
        return zero + counter.to(tl.uint32), zero


@triton.jit
def box_muller(word0, word1):
    """Two float32 normal numbers from two words.

    Types: uint32 words, float32 results.
    Largest error: 4 ulp from `noise.box_muller`.
    Range: every pair of words.
    """
    u = word0.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10
    radius = tl.sqrt(minus_2_log(u))
    sine, cosine = sin_cos_turns(word1)
    return radius * sine, radius * cosine


@triton.jit
def _lanes(seed, row, quad):
    word0, word1, word2, word3 = philox(seed, row, quad)
    lane0, lane1 = box_muller(word0, word1)
    lane2, lane3 = box_muller(word2, word3)
    return lane0, lane1, lane2, lane3


@triton.jit
def normals(seed, row, first_col, BLOCK_ROWS: tl.constexpr, BLOCK_COLS: tl.constexpr, RUN: tl.constexpr):
    """The noise of the rows `row` [BLOCK_ROWS, 1] and of BLOCK_COLS columns from `first_col`, a multiple of BLOCK_COLS.

    RUN, 4 or 8, is the number of neighbouring columns that one thread makes. It is the number that a thread loads and
    stores at once, so that no number moves between threads.
    """
    run = first_col // RUN + tl.arange(0, BLOCK_COLS // RUN)[None, :]
    if RUN == 4:
        a, b, c, d = _lanes(seed, row, run)
        joined = tl.join(tl.join(a, c), tl.join(b, d))
    else:
        a, b, c, d = _lanes(seed, row, run * 2)
        e, f, g, h = _lanes(seed, row, run * 2 + 1)
        joined = tl.join(
            tl.join(tl.join(a, e), tl.join(c, g)),
            tl.join(tl.join(b, f), tl.join(d, h)),
        )
    return joined.reshape(BLOCK_ROWS, BLOCK_COLS)
