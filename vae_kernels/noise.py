"""The noise that a seed stands for, and the drawing of seeds.

The noise of a tensor is the stream of cuRAND's `Philox4_32_10` normal generator. The element in row `r` and column `c`
of the row form (see `rows`) is lane `c % 4` of the generator `(seed, subsequence=r, offset=4 * (c // 4))`. It does not
depend on backend, threads, dtype or device, within 4 ulp of float32.

There is one exception. If `mu` and the spread are both bfloat16 or float16, the CUDA kernels' noise is within 2⁻¹⁴ of
that number before z is rounded to its dtype. Forward and backward use the same noise. An estimated KL has the exact
noise.

With several samples of z, r counts the rows of z, whose leading dim is the samples. If each sample of the batch has its
own seed, sample b in the k-th draw has the generator `(seed[b], subsequence=k)`: its noise does not depend on its place
in the batch.

Sources: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"; Box & Muller 1958.
"""

import torch
from torch import Tensor

from .eager import has_float64
from .rows import from_rows, row_shape

SEED_LIMIT = 2**63 - 1

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = 0xFFFFFFFF


def draw_seed(device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Draw a seed as an int64 tensor of one element, without a sync with the device."""
    return torch.randint(SEED_LIMIT, (1,), device=device, generator=generator)


def philox(seed: Tensor, subsequence: Tensor, offset: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10 in int64 arithmetic: four words in [0, 2³²) for key `seed` and counter (offset, subsequence)."""
    counter = [*_halves(offset), *_halves(subsequence)]
    key = _halves(seed)
    for _ in range(10):
        # The product wraps in int64, but its 64 bits are correct. Its low and high words are read as unsigned numbers.
        product = [counter[0] * _MULTIPLIERS[0], counter[2] * _MULTIPLIERS[1]]
        counter = [
            ((product[1] >> 32) & _WORD) ^ counter[1] ^ key[0],
            product[1] & _WORD,
            ((product[0] >> 32) & _WORD) ^ counter[3] ^ key[1],
            product[0] & _WORD,
        ]
        key = [(k + w) & _WORD for k, w in zip(key, _WEYL, strict=True)]
    return tuple(counter)


def _halves(value: Tensor) -> list[Tensor]:
    return [value & _WORD, (value >> 32) & _WORD]


def box_muller(word0: Tensor, word1: Tensor) -> tuple[Tensor, Tensor]:
    """Two float32 normal numbers from two words.

    They are `sqrt(−2 ln u)` times sine and cosine of `(word1 + ½)·2⁻³²` turns, where `u = word0·2⁻³² + 2⁻³³` is rounded
    to float32, as in cuRAND. All arithmetic after `u` is float64 and rounded once. On devices without float64 it is
    float32, within 4 ulp.
    """
    u = word0.to(torch.float32) * 2.0**-32 + 2.0**-33
    # The nearest axis is subtracted in integers. With the full angle, the sine near π would have an error of 12 ulp.
    position = 2 * word1 + 1  # in 2⁻³³ turns
    quadrant = (position + 2**30) >> 31
    from_axis = position - (quadrant << 31)
    if has_float64(u):
        radius = torch.sqrt(-2 * torch.log(u.double()))
        angle = from_axis.double() * (2.0**-32 * torch.pi)
        sine, cosine = torch.sin(angle), torch.cos(angle)
    else:
        radius = torch.sqrt(_minus_2_log(u))
        sine, cosine = _sine_cosine(from_axis)
    odd = (quadrant & 1).bool()
    sine, cosine = torch.where(odd, cosine, sine), torch.where(odd, sine, cosine)
    sign_of_sine, sign_of_cosine = 1 - (quadrant & 2), 1 - ((quadrant + 1) & 2)
    return (radius * (sign_of_sine * sine)).float(), (radius * (sign_of_cosine * cosine)).float()


# The float32 functions use additions, multiplications and bit patterns only, because the errors of a device's own
# functions differ. A number is split into two parts if a product with it has to be exact. A comment beside each
# polynomial names the function that it fits.


def _minus_2_log(u: Tensor) -> Tensor:
    """`−2 ln u`, for float32 u in [2⁻³³, 1]; largest error 1 ulp."""
    bits = u.view(torch.int32)
    exponent = (bits - 0x3F2AAAAB) >> 23  # u = 2ⁿ (1 + f), f in [−1/3, 1/3): 0x3F2AAAAB is 2/3
    g = 2 - 2 * (bits - (exponent << 23)).view(torch.float32)
    n = exponent.float()
    # With g = −2f: (−2 ln(1 + f) − g) / g²
    q = _polynomial(g, _LOG)
    of_exponent = n * -1.38629150390625
    total = of_exponent + g
    return total + ((g - (total - of_exponent)) + (g * g * q - n * 2.8572136e-06))


def _sine_cosine(from_axis: Tensor) -> tuple[Tensor, Tensor]:
    """Sine and cosine of an angle in units of 2⁻³³ turns, |angle| ≤ 2³⁰; largest error 2 ulp."""
    coarse = (from_axis + 2**18) >> 19 << 19
    x_high, x_low = (part.float() * 2.0**-30 for part in (coarse, from_axis - coarse))
    x = x_high + x_low
    t = x * x
    # (sin(x π/4) − x π/4) / x³ and (cos(x π/4) − 1) / x²
    cubic = x * (t * _polynomial(t, _SINE))
    sine = x_high * 0.78515625 + (x_low * 0.78539816 + (x_high * 2.4191339745e-04 + cubic))
    return sine, 1 + t * _polynomial(t, _COSINE)


_LOG = (
    *(0.25, 0.083333338, 0.0312497984, 0.01249979057, 0.005211904398, 0.002234736035, 9.546576145e-04),
    *(4.210715052e-04, 2.487139081e-04, 1.162932925e-04),
)
_SINE = (-0.0807455122, 0.00249039413, -3.65740238e-05, 3.09866666e-07)
_COSINE = (-0.308425138, 0.0158543442, -3.25991798e-04, 3.59061073e-06, -2.43254433e-08)


def _polynomial(x: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """`c₀ + x c₁ + x² c₂ + …`"""
    value = torch.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def normal_like(tensor: Tensor, seed: Tensor, batch_dims: int, num_samples: int | None = None) -> Tensor:
    """The float32 noise of `tensor` for `seed`. This is the definition: it is much slower than the kernels.

    The rows of several samples follow each other. If `seed` has one element per row, it is that row's own key, and the
    samples are the subsequences 0, 1, ….
    """
    rows, cols = row_shape(tensor, batch_dims)
    samples = 1 if num_samples is None else num_samples
    quads = torch.arange((cols + 3) // 4, dtype=torch.int64, device=tensor.device)
    subsequence = torch.arange(samples * rows, dtype=torch.int64, device=tensor.device).unsqueeze(1)
    if seed.numel() != 1:
        subsequence = subsequence // rows if rows else subsequence
        seed = seed.reshape(1, rows, 1).expand(samples, rows, 1)
    key = seed.reshape(-1, 1)
    w0, w1, w2, w3 = philox(key, *torch.broadcast_tensors(subsequence, quads))
    lanes = torch.stack((*box_muller(w0, w1), *box_muller(w2, w3)), dim=-1)
    return from_rows(lanes.flatten(1)[:, :cols], tensor, batch_dims, num_samples)
