"""What the results must be, from sources that share no code with the package: mpmath, NumPy, and plain PyTorch as
people write it.

A reference value is a sum of terms. Its *magnitude* is the sum of their absolute values: the scale on which the
rounding errors of a sum are counted. Terms that belong together (such as `e^l - 1 - l`) are one term, so no
cancellation inside one is excused. A tuple is one term too, but to eager, which adds up its parts.
"""

from collections.abc import Callable

import mpmath
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DIGITS = 40

Arrays = dict[str, np.ndarray]
Terms = dict[str, list[np.ndarray | tuple[np.ndarray, ...]]]


def _function(f: Callable) -> Callable[[np.ndarray], np.ndarray]:
    return np.frompyfunc(f, 1, 1)


_exp, _expm1, _log1p = _function(mpmath.exp), _function(mpmath.expm1), _function(mpmath.log1p)
# Where the exponential of an exponential is 0 in every type: mpmath would run out of memory over its digits.
_FAR = 10**5
_sigmoid = _function(lambda v: 1 / (1 + mpmath.exp(-v)) if abs(v) < _FAR else mpmath.mpf(int(v > 0)))
_softplus = _function(lambda v: v if v > _FAR else mpmath.log1p(mpmath.exp(v)) if v > -_FAR else mpmath.mpf(0))
_log1m_exp = _function(lambda v: mpmath.log(-mpmath.expm1(-v)) if v < _FAR else mpmath.mpf(0))


def exact(tensor: Tensor) -> np.ndarray:
    """The very numbers of a tensor as an array of mpmath numbers."""
    values = tensor.detach().cpu()
    values = values.double() if values.is_floating_point() else values
    numbers = _function(lambda v: mpmath.mpf(v if isinstance(v, float) else int(v)))(values.numpy().astype(object))
    return np.asarray(numbers, dtype=object)


def latent(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    """Terms of `z` and of each element's KL; terms of the gradients to mu, logvar and eps."""
    mu, l, eps = v["mu"], v["logvar"], v["eps"]
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
    mean, x, l, g = v["mean"], v["x"], v["logvar"], grad["log_px"]
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


def laplace(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    loc, x, s, g = v["loc"], v["x"], v["log_scale"], grad["log_px"]
    rate, sign = _exp(-s), np.sign(x - loc)
    outputs = {"log_px": [-abs(x - loc) * rate, -s + 0 * x, -mpmath.log(2) + 0 * x]}
    gradients = {
        "loc": [g * sign * rate],
        "x": [-g * sign * rate],
        "log_scale": [g * abs(x - loc) * rate, -g + 0 * x],
    }
    return outputs, gradients


def continuous_bernoulli(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    a, x, g = v["logits"], v["x"], grad["log_px"]
    near = abs(a) <= 2
    # Around 0 the mean is near 1/2; at the ends, where |a| is large, all is counted from the nearer end.
    origin = np.where(near, mpmath.mpf(1) / 2, (a > 0).astype(int))
    log_norm = _log_sinhc(a / 2) + np.where(near, 0, a / 2 - origin * a)
    mean = _coth_excess(a) + np.where(near, 0, mpmath.mpf(1) / 2 - origin)
    outputs = {"log_px": [(x - origin) * a, -log_norm]}
    return outputs, {"logits": [g * (x - origin), -g * mean], "x": [g * a]}


_log_sinhc = _function(lambda y: mpmath.log(mpmath.sinh(y) / y) if y else mpmath.mpf(0))
_coth_excess = _function(lambda a: mpmath.coth(a / 2) / 2 - 1 / a if a else mpmath.mpf(0))


def bernoulli_probs(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    p, x, g = v["probs"], v["x"], grad["log_px"]
    log_one, log_zero = _log_floored(p), _log_floored(1 - p)
    variance = _function(lambda variance: max(variance, mpmath.mpf(1e-12)))(p * (1 - p))
    outputs = {"log_px": [x * log_one, (1 - x) * log_zero]}
    gradients = {
        "probs": [(g * x * (1 - p) / variance, -g * (1 - x) * p / variance)],
        "x": [(g * log_one, -g * log_zero)],
    }
    return outputs, gradients


_log_floored = _function(lambda p: max(mpmath.log(p), -100) if p else mpmath.mpf(-100))
_log, _log_gamma = _function(mpmath.log), _function(mpmath.loggamma)
_digamma = _function(lambda z: mpmath.psi(0, z))


def _negative_binomial(v: Arrays) -> tuple[np.ndarray, dict[str, tuple[np.ndarray, ...]]]:
    """ln p of each element, and the parts of its derivatives."""
    eps = mpmath.mpf(1e-8)
    mu, x, theta = v["mu"], v["x"], v["theta"]
    total = mu + theta + eps
    log_ratio, log_dispersion = _log((mu + eps) / total), _log((theta + eps) / total)
    log_p = _log_gamma(x + theta) - _log_gamma(theta) - _log_gamma(x + 1) + theta * log_dispersion + x * log_ratio
    return log_p, {
        "mu": (x / (mu + eps), -(x + theta) / total),
        "x": (log_ratio, _digamma(x + theta) - _digamma(x + 1)),
        "theta": (
            log_dispersion,
            theta / (theta + eps) - (x + theta) / total,
            _digamma(x + theta) - _digamma(theta),
        ),
    }


def negative_binomial(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    log_p, slopes = _negative_binomial(v)
    return {"log_px": [log_p]}, _scaled(slopes, grad["log_px"])


def zero_inflated_negative_binomial(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    zero = v["x"] < 1e-8
    log_p, slopes = _negative_binomial(v | {"x": np.where(zero, 0, v["x"])})
    dropped, kept = (1 / (1 + _exp(sign * v["zero_logits"])) for sign in (-1, 1))
    p = _exp(log_p)
    inflated = dropped + kept * p
    # The derivative of the logarithm to ln NB(x), and to the logit.
    weight = np.where(zero, kept * p / inflated, 1)
    outputs = {"log_px": [np.where(zero, _log(inflated), _log(kept) + log_p)]}
    gradients = _scaled(slopes, grad["log_px"] * weight)
    gradients["x"] = [tuple(np.where(zero, 0, part) for part in term) for term in gradients["x"]]
    gradients["zero_logits"] = [grad["log_px"] * np.where(zero, dropped / inflated, 0), -grad["log_px"] * dropped]
    return outputs, gradients


def negative_binomial_mixture(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    shared = {"x": v["x"], "theta": v["theta"]}
    log_p1, slopes1 = _negative_binomial(shared | {"mu": v["mu1"]})
    log_p2, slopes2 = _negative_binomial(shared | {"mu": v["mu2"]})
    first, second = _sigmoid(v["mixture_logits"]), _sigmoid(-v["mixture_logits"])
    p1, p2 = first * _exp(log_p1), second * _exp(log_p2)
    weight1, weight2 = (grad["log_px"] * p / (p1 + p2) for p in (p1, p2))
    of1, of2 = _scaled(slopes1, weight1), _scaled(slopes2, weight2)
    return {"log_px": [_log(p1 + p2)]}, {
        "mu1": of1["mu"],
        "x": of1["x"] + of2["x"],
        "mu2": of2["mu"],
        "theta": of1["theta"] + of2["theta"],
        "mixture_logits": [(weight1 * second, -weight2 * first)],
    }


def poisson_rate(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    r, x, g = v["rate"], v["x"], grad["log_px"]
    outputs = {"log_px": [(x * _log(r), -r, -_log_gamma(x + 1))]}
    return outputs, {"rate": [(g * x / r, -g)], "x": [g * _log(r), *_slope_of_log_factorial(x, g)]}


def poisson(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    l, x, g = v["log_rate"], v["x"], grad["log_px"]
    # Of more digits than l has, or of none where it overflows in every type.
    r = _function(lambda l: mpmath.exp(l) if l < _FAR else mpmath.inf)(l)
    outputs = {"log_px": [(x * l, -r, -_log_gamma(x + 1))]}
    return outputs, {"log_rate": [g * x, -g * r], "x": [g * l, *_slope_of_log_factorial(x, g)]}


def zero_inflated_poisson(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    l, z, zero, g = v["log_rate"], v["zero_logits"], v["x"] < 1e-8, grad["log_px"]
    outputs, gradients = poisson(v | {"x": np.where(zero, 0, v["x"])}, grad)

    def counted(terms: list) -> list:
        """The terms, but 0 for a zero."""
        return [
            tuple(np.where(zero, 0, part) for part in term) if isinstance(term, tuple) else np.where(zero, 0, term)
            for term in terms
        ]

    # For a zero: the rate and exp(−rate), or 0 and 0 where exp(−rate) vanishes beside exp(z); and 1 − exp(−rate).
    small = l < 1000
    rate = _function(lambda l: mpmath.exp(l) if l < 1000 else mpmath.mpf(0))(l)
    p, not_p = np.where(small, _exp(-rate), 0), np.where(small, -_expm1(-rate), 1)
    dropped, kept = (1 / (1 + _exp(sign * z)) for sign in (-1, 1))
    inflated, missing = dropped + kept * p, kept * not_p
    log_inflated = np.where(missing < 0.5, _log1p(-missing), _log(inflated))
    return {"log_px": [np.where(zero, log_inflated, _log(kept)), *counted(outputs["log_px"])]}, {
        "log_rate": [np.where(zero, -g * kept * p / inflated * rate, 0), *counted(gradients["log_rate"])],
        "x": counted(gradients["x"]),
        "zero_logits": [g * np.where(zero, dropped * missing / inflated, -dropped)],
    }


def _slope_of_log_factorial(x: np.ndarray, g: np.ndarray) -> list[np.ndarray]:
    """`−ψ(x+1)` in the terms of its recurrence: around its zero at x = 0.46 every digamma loses digits, torch's too."""
    return [-g * _digamma(x + 2), g / (x + 1)]


def _scaled(slopes: dict[str, tuple[np.ndarray, ...]], weight: np.ndarray) -> Terms:
    return {name: [tuple(weight * part for part in parts)] for name, parts in slopes.items()}


def discretized_logistic(v: Arrays, grad: Arrays) -> tuple[Terms, Terms]:
    """In 256 bins."""
    mean, x, s, g = v["mean"], v["x"], v["log_scale"], grad["log_px"]
    half = mpmath.mpf(1) / 255
    rate = _exp(-s)
    upper, lower, width = (x - mean + half) * rate, (x - mean - half) * rate, 2 * half * rate
    first, last = x < half - 1, x > 1 - half
    below, above = np.where(last, 0, _sigmoid(-upper)), np.where(first, 0, _sigmoid(lower))
    inside = np.where(first | last, 0, _function(lambda w: w / mpmath.expm1(w) if w < _FAR else mpmath.mpf(0))(width))
    outputs = {
        "log_px": [
            np.where(last, 0, -_softplus(-upper)),
            np.where(first, 0, -_softplus(lower)),
            np.where(first | last, 0, _log1m_exp(width)),
        ]
    }
    gradients = {
        "mean": [-g * rate * below, g * rate * above],
        "x": [g * rate * below, -g * rate * above],
        "log_scale": [-g * upper * below, g * lower * above, -g * inside],
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


def plain_laplace(loc: Tensor, x: Tensor, log_scale: Tensor, *, batch_dims: int) -> Tensor:
    return _sum(-(x - loc).abs() / log_scale.exp() - log_scale - np.log(2), batch_dims)


def plain_continuous_bernoulli(logits: Tensor, x: Tensor, *, batch_dims: int) -> Tensor:
    distribution = torch.distributions.ContinuousBernoulli(logits=logits, validate_args=False)
    return _sum(distribution.log_prob(x.to(logits.dtype)), batch_dims)


def plain_bernoulli_probs(probs: Tensor, x: Tensor, *, batch_dims: int) -> Tensor:
    dtype = torch.promote_types(probs.dtype, x.dtype)
    loss = F.binary_cross_entropy(probs.to(dtype), x.to(dtype).expand_as(probs), reduction="none")
    return _sum(-loss, batch_dims)


def _plain_negative_binomial(mu: Tensor, x: Tensor, theta: Tensor) -> Tensor:
    log_total = torch.log(theta + mu + 1e-8)
    return (
        theta * (torch.log(theta + 1e-8) - log_total)
        + x * (torch.log(mu + 1e-8) - log_total)
        + torch.lgamma(x + theta)
        - torch.lgamma(theta)
        - torch.lgamma(x + 1)
    )


def plain_negative_binomial(mu: Tensor, x: Tensor, theta: Tensor, *, batch_dims: int) -> Tensor:
    return _sum(_plain_negative_binomial(mu, x, theta), batch_dims)


def plain_zero_inflated_negative_binomial(
    mu: Tensor, x: Tensor, theta: Tensor, zero_logits: Tensor, *, batch_dims: int
) -> Tensor:
    log_p = _plain_negative_binomial(mu, x, theta)
    zero = F.softplus(log_p - zero_logits) - F.softplus(-zero_logits)
    return _sum(torch.where(x < 1e-8, zero, log_p - zero_logits - F.softplus(-zero_logits)), batch_dims)


def plain_poisson_rate(rate: Tensor, x: Tensor, *, batch_dims: int) -> Tensor:
    x = x.to(torch.promote_types(rate.dtype, x.dtype))
    return _sum(torch.distributions.Poisson(rate, validate_args=False).log_prob(x), batch_dims)


def plain_poisson(log_rate: Tensor, x: Tensor, *, batch_dims: int) -> Tensor:
    x = x.to(torch.promote_types(log_rate.dtype, x.dtype))
    return _sum(x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1), batch_dims)


def plain_zero_inflated_poisson(log_rate: Tensor, x: Tensor, zero_logits: Tensor, *, batch_dims: int) -> Tensor:
    x = x.to(torch.promote_types(log_rate.dtype, x.dtype))
    log_p = x * log_rate - torch.exp(log_rate) - torch.lgamma(x + 1)
    zero = F.softplus(log_p - zero_logits) - F.softplus(-zero_logits)
    return _sum(torch.where(x < 1e-8, zero, log_p - zero_logits - F.softplus(-zero_logits)), batch_dims)


def plain_discretized_logistic(mean: Tensor, x: Tensor, log_scale: Tensor, *, batch_dims: int) -> Tensor:
    """As autoregressive models write it: a floor keeps the logarithm of a difference finite."""
    upper, lower = ((x - mean + h) * torch.exp(-log_scale) for h in (1 / 255, -1 / 255))
    middle = torch.log((torch.sigmoid(upper) - torch.sigmoid(lower)).clamp(min=1e-12))
    log_p = torch.where(x > 0.999, -F.softplus(lower), middle)
    return _sum(torch.where(x < -0.999, upper - F.softplus(upper), log_p), batch_dims)


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
