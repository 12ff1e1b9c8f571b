"""The variance of the reparameterised gradient, compared with that of the score-function gradient.

Both estimate the gradient of the same ELBO, `E_q[log p(x|z)] − KL(q ‖ N(0, 1))`, with L samples of z from
`q(z|x) = N(mu, exp(logvar))` and the KL in closed form:

    reparameterised   ∇ 1/L Σ log p(x|z_l),  z_l = mu + exp(logvar/2) · eps_l
    score function    1/L Σ log p(x|z_l) ∇ log q(z_l|x),  z_l held fixed
    with a baseline   the same, after subtracting from each log p(x|z_l) the mean of the others (L ≥ 2)

The gradient is with respect to the encoder's parameters, on one batch of the digits, for a VAE that was trained on the
digits. Its variance is the trace of its covariance matrix.

Sources: Kingma & Welling 2014, "Auto-Encoding Variational Bayes", section 2.2; Williams 1992, "Simple statistical
gradient-following algorithms for connectionist reinforcement learning"; Mnih & Rezende 2016, "Variational inference for
Monte Carlo objectives" (the baseline).

    python -m benchmarks.gradient_variance
"""

import argparse
import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from vae_kernels import bernoulli_log_likelihood, reparameterize_kl
from vae_kernels.models import MLPVAE
from vae_kernels.training import data

FOLDER = Path(__file__).resolve().parent / "results" / "gradient_variance"
BATCH = 64

# A function of log p(x|z) and log q(z|x), both (L, B) for L samples, to the surrogate loss whose gradient is the
# estimate.
Surrogate = Callable[[Tensor, Tensor], Tensor]


class Measured(NamedTuple):
    """The trace of the covariance of one estimate, its standard error over the repeats, and the mean gradient."""

    variance: float
    standard_error: float
    mean: Tensor


class Line(NamedTuple):
    """A line of the table. `ratio` is relative to the reparameterised estimate with the same number of samples."""

    estimator: str
    samples: int
    variance: float
    standard_error: float
    ratio: float


def reparameterised(log_px: Tensor, log_q: Tensor) -> Tensor:
    return log_px.mean(0)


def score_function(log_px: Tensor, log_q: Tensor) -> Tensor:
    return (log_px.detach() * log_q).mean(0)


def score_function_with_baseline(log_px: Tensor, log_q: Tensor) -> Tensor:
    count = len(log_px)
    others = (log_px.sum(0) - log_px) / (count - 1)
    return ((log_px - others).detach() * log_q).mean(0)


ESTIMATORS: dict[str, Surrogate] = {
    "reparameterised": reparameterised,
    "score function": score_function,
    "score function with baseline": score_function_with_baseline,
}


def trained_model(epochs: int) -> tuple[MLPVAE, Tensor]:
    """A VAE that was trained on the digits for some epochs, and a batch of digits."""
    pictures = data.digits()
    x = pictures.pixels(pictures.train, torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MLPVAE(tuple(x.shape[1:]), hidden=(200,), latent_dim=20)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        for _ in tqdm(range(epochs), desc="training", unit="epoch"):
            for batch in x[torch.randperm(len(x))].split(BATCH):
                optimizer.zero_grad()
                (-model.elbo(batch).elbo.mean()).backward()
                optimizer.step()
    return model, x[:BATCH]


def gradient(model: MLPVAE, x: Tensor, estimator: str, samples: int, seed: int) -> Tensor:
    """One estimate of the gradient of the batch's mean ELBO with respect to the encoder's parameters, flattened."""
    mu, logvar = model.encode(x)
    many = (samples, *mu.shape)
    z, kl = reparameterize_kl(mu.expand(many), logvar.expand(many), seed=seed, batch_dims=2)
    z = z if estimator == "reparameterised" else z.detach()
    (logits,) = model.decode(z.flatten(0, 1))
    log_px = bernoulli_log_likelihood(logits.unflatten(0, many[:2]), x, batch_dims=2)
    log_q = -0.5 * (logvar + (z - mu) ** 2 * torch.exp(-logvar) + math.log(2 * math.pi)).sum(-1)
    objective = (ESTIMATORS[estimator](log_px, log_q) - kl[0]).mean()
    return torch.cat([g.flatten() for g in torch.autograd.grad(objective, list(model.encoder.parameters()))])


def measure(model: MLPVAE, x: Tensor, estimator: str, samples: int, repeats: int) -> Measured:
    gradients = torch.stack([gradient(model, x, estimator, samples, seed) for seed in range(repeats)]).double()
    mean = gradients.mean(0)
    squares = (gradients - mean).square().sum(1) * (repeats / (repeats - 1))
    return Measured(squares.mean().item(), squares.std().item() / math.sqrt(repeats), mean)


def table(model: MLPVAE, x: Tensor, counts: list[int], repeats: int) -> tuple[list[Line], dict[str, float]]:
    """The lines of the table, and for each other estimator the distance of its mean gradient from the reparameterised
    one.

    The distance is in multiples of its expected value, which follows from the variances. It is near 1 if both estimate
    the same gradient.
    """
    work = [(name, count) for name in ESTIMATORS for count in counts if count > 1 or "baseline" not in name]
    found = {key: measure(model, x, *key, repeats) for key in tqdm(work, desc="gradients", unit="estimate")}
    lines = [
        Line(name, count, m.variance, m.standard_error, m.variance / found["reparameterised", count].variance)
        for (name, count), m in found.items()
    ]
    most = max(counts)
    ours = found["reparameterised", most]
    distances = {}
    for name in list(ESTIMATORS)[1:]:
        other = found[name, most]
        expected = math.sqrt((ours.variance + other.variance) / repeats)
        distances[name] = ((ours.mean - other.mean).norm() / expected).item()
    return lines, distances


def draw(lines: list[Line], path: Path) -> None:
    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    for (name, marker), colour in zip(
        zip(ESTIMATORS, "os^", strict=True), ("#0072B2", "#D55E00", "#009E73"), strict=True
    ):
        chosen = [line for line in lines if line.estimator == name]
        axes.errorbar(
            [line.samples for line in chosen],
            [line.variance for line in chosen],
            yerr=[line.standard_error for line in chosen],
            marker=marker,
            color=colour,
            label=name,
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("L, samples of z")
    axes.set_ylabel("variance of the encoder's gradient (trace)")
    axes.set_title("ELBO of a VAE on the digits, one batch", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gradient_variance", description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=20, help="of training before (20)")
    parser.add_argument("--samples", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64], help="L (1 2 … 64)")
    parser.add_argument("--repeats", type=int, default=200, help="estimates for each L (200)")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for the CSV and the picture")
    options = parser.parse_args(arguments)
    lines, distances = table(*trained_model(options.epochs), options.samples, options.repeats)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "gradient_variance.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Line._fields)
        writer.writerows([name, count, *(f"{figure:.6g}" for figure in figures)] for name, count, *figures in lines)
    draw(lines, options.out / "gradient_variance.png")
    for line in lines:
        print(f"{line.estimator:30} L = {line.samples:3}  variance {line.variance:10.4g}  ratio {line.ratio:8.4g}")
    for name, distance in distances.items():
        print(f"mean gradient of the {name}: off the reparameterised one's by {distance:.2f} of what noise lets expect")
    print(*(options.out / f"gradient_variance.{kind}" for kind in ("csv", "png")), sep="\n")


if __name__ == "__main__":
    main()
