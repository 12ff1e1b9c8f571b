"""What the results must be, from sources that share no code with the package: mpmath, NumPy, and plain PyTorch as
people write it.

A reference value is a sum of terms. Its *magnitude* is the sum of their absolute values: the scale on which the
rounding errors of a sum are counted. Terms that belong together (such as `e^l - 1 - l`) are one term, so no
cancellation inside one is excused.
"""

from collections.abc import Callable

import mpmath
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS = 40

Arrays = dict[str, np.ndarray]
Terms = dict[str, list[np.ndarray]]


def _function(f: Callable) -> Callable[[np.ndarray], np.ndarray]:
    return np.frompyfunc(f, 1, 1)


_exp, _expm1, _log1p = _function(mpmath.exp), _function(mpmath.expm1), _function(mpmath.log1p)


def exact(tensor: Tensor) -> np.ndarray:
    """The very numbers of a tensor as an array of mpmath numbers."""
    values = tensor.detach().cpu()
    values = values.double() if values.is_floating_point() else values
    numbers = _function(lambda v: mpmath.mpf(v if isinstance(v, float) else int(v)))(values.numpy().astype(object))
    return np.asarray(numbers, dtype=object)


def latent(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    """Terms of `z` and of each element's KL; terms of the gradients to mu, logvar and eps."""
    mu, l, eps = v["mu"], v["logvar"], v["eps"]  # noqa: E741
    std = _exp(l / 2)
    expm1 = _expm1(l)
    outputs = {"z": [mu, std * eps], "kl": [mu * mu / 2, (expm1 - l) / 2]}
    gradients = {
        "mu": [grad["z"], grad["kl"] * mu],
        "logvar": [grad["z"] * std * eps / 2, grad["kl"] * expm1 / 2],
        "eps": [grad["z"] * std],
    }
    return outputs, gradients


def bernoulli(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    a, x, g = v["logits"], v["x"], grad["log_px"]
    positive = (a > 0).astype(int)
    u = _exp(-abs(a))
    outputs = {"log_px": [(x - positive) * a, -_log1p(u)]}
    gradients = {"logits": [g * (x - positive), g * (2 * positive - 1) * u / (1 + u)], "x": [g * a]}
    return outputs, gradients


def gaussian(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    mean, x, l, g = v["mean"], v["x"], v["logvar"], grad["log_px"]  # noqa: E741
    weighted = (x - mean) * _exp(-l)
    outputs = {
        "log_px": [-l / 2 + 0 * x, -(x - mean) * weighted / 2, -mpmath.log(2 * mpmath.pi) / 2 + 0 * x],
    }
    gradients = {
        "mean": [g * weighted],
        "x": [-g * weighted],
        "logvar": [g * (x - mean) * weighted / 2, -g / 2 + 0 * x],
    }
    return outputs, gradients


def plain_latent(mu: Tensor, logvar: Tensor, eps: Tensor, *, batch_dims: int) -> tuple[Tensor, Tensor]:
    z = mu + torch.exp(0.5 * logvar) * eps
    return z, _sum(-0.5 * (1 + logvar - mu.pow(2) - logvar.exp()), batch_dims)


def plain_bernoulli(logits: Tensor, x: Tensor, *, batch_dims: int) -> Tensor:
    dtype = torch.promote_types(logits.dtype, x.dtype)
    loss = F.binary_cross_entropy_with_logits(logits.to(dtype), x.to(dtype).expand_as(logits), reduction="none")
    return _sum(-loss, batch_dims)


def plain_gaussian(mean: Tensor, x: Tensor, logvar: Tensor, *, batch_dims: int) -> Tensor:
    x = x if x.is_floating_point() else x.to(mean.dtype)
    log_prob = -0.5 * (logvar + (x - mean) ** 2 / logvar.exp() + np.log(2 * np.pi))
    return _sum(log_prob, batch_dims)


def _sum(elements: Tensor, batch_dims: int) -> Tensor:
    return elements.flatten(batch_dims).sum(-1) if elements.dim() > batch_dims else elements


def philox(key: int, counter: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """Philox4x32-10: the four words of each 128-bit counter, given as (low, high) arrays of uint64."""
    low32, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    c = [counter[0] & low32, counter[0] >> shift, counter[1] & low32, counter[1] >> shift]
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(10):
        left, right = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (right >> shift) ^ c[1] ^ np.uint64(k0),
            right & low32,
            (left >> shift) ^ c[3] ^ np.uint64(k1),
            left & low32,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def normals(seed: int, rows: int, cols: int, first_row: int = 0) -> np.ndarray:
    """The noise of `rows` x `cols` elements under `seed`, in float64; only `u` is a float32, as the stream defines."""
    quads = np.arange((cols + 3) // 4, dtype=np.uint64)
    subsequences = np.arange(first_row, first_row + rows, dtype=np.uint64)[:, None]
    words = philox(seed, tuple(np.broadcast_arrays(quads, subsequences)))
    lanes = []
    for first, second in (words[:2], words[2:]):
        u = first.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)
        radius = np.sqrt(-2 * np.log(u.astype(np.float64)))
        sine, cosine = _sine_cosine_of_turns(second)
        lanes += [radius * sine, radius * cosine]
    return np.stack(lanes, axis=-1).reshape(rows, -1)[:, :cols]


def _sine_cosine_of_turns(word: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of `(word + 1/2) 2^-32` turns. In half-units of the word one turn is 2^33, so the distance from the nearest axis
    is an exact integer, and no zero of sine or cosine loses digits."""
    position = (word.astype(np.int64) << 1) + 1
    quadrant = (position + (1 << 30)) >> 31
    angle = (position - (quadrant << 31)) * (2 * np.pi / 2**33)
    sine, cosine = np.sin(angle), np.cos(angle)
    odd = quadrant % 2 == 1
    sign_sine = np.where(quadrant % 4 >= 2, -1, 1)
    sign_cosine = np.where((quadrant + 1) % 4 >= 2, -1, 1)
    return sign_sine * np.where(odd, cosine, sine), sign_cosine * np.where(odd, sine, cosine)
