"""The report of a finished run: figures of its latents and of log p(x), and pictures."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation import (
    active_units,
    aggregate_posterior,
    bits_per_dimension,
    kl_per_dimension,
    log_marginal_likelihood,
)
from ..latent import reparameterize_kl
from ..models import VAE
from . import pictures, processes
from .history import Row
from .trainer import Trainer

EVALUATION = "evaluation.json"

# The number of pictures in a batch, and of elements in one decoder output: 16 MiB of float32.
_BATCH, _DECODED = 100, 2**22


class Latents(NamedTuple):
    """The posterior of each held-out picture, each `(N, latent_dim)`."""

    mu: Tensor
    logvar: Tensor
    kl: Tensor


@torch.no_grad()
def latents(trainer: Trainer) -> Latents:
    source = trainer.data
    moments = [trainer.model.encode(source.pixels(batch, trainer.dtype)) for batch in source.held_out.split(_BATCH)]
    mu, logvar = (torch.cat(parts) for parts in zip(*moments, strict=True))
    _, kl = reparameterize_kl(mu, logvar, seed=0, kl_reduction="none")
    return Latents(mu, logvar, kl)


def evaluate(trainer: Trainer, num_samples: int) -> dict[str, float]:
    """Compute means over the held-out pictures, in nats per picture. All processes share the work.

    Bits per dimension are included if the likelihood is a density, with pixels in steps of 1/`white`.
    """
    value, error = _log_marginal(trainer, num_samples)
    found = latents(trainer)
    figures = {
        "log p(x)": value,
        "standard error": error,
        "samples": num_samples,
        "active dimensions": int(_active(found.mu).sum()),
        "aggregate variance": aggregate_posterior(found.mu, found.logvar).variance.mean().item(),
    }
    if trainer.settings.likelihood != "bernoulli":
        elements, width = trainer.data.held_out[0].numel(), 1 / trainer.data.white
        figures["bits per dimension"] = bits_per_dimension(
            torch.tensor(value, dtype=torch.float64), elements, bin_width=width
        ).item()
    return figures


def _log_marginal(trainer: Trainer, num_samples: int) -> tuple[float, float]:
    """Mean of log p(x) and its standard error. The noise of a picture depends on its place in the data only."""
    source = trainer.data
    batches = source.held_out.split(_BATCH)
    chunk = max(_DECODED // batches[0].numel(), 1)
    sums = torch.zeros(len(batches), 2, dtype=torch.float64)
    for index in range(processes.rank(), len(batches), processes.count()):
        generator = torch.Generator(trainer.device).manual_seed(index)
        value, error = log_marginal_likelihood(
            trainer.model,
            source.pixels(batches[index], trainer.dtype),
            num_samples=num_samples,
            chunk=chunk,
            generator=generator,
        )
        value, error = (t.cpu().double() for t in (value, error))
        sums[index] = torch.stack((value.sum(), error.square().sum()))
    value, variance = processes.total(sums).sum(0).tolist()
    return value / len(source.held_out), math.sqrt(variance) / len(source.held_out)


def write(folder: Path, figures: dict[str, float]) -> None:
    (folder / EVALUATION).write_text(json.dumps(figures, indent=2) + "\n")


def draw(trainer: Trainer, rows: list[Row]) -> list[Path]:
    """Draw the run's pictures into its folder."""
    folder, model, source = Path(trainer.settings.out), trainer.model, trainer.data
    generator = torch.Generator(trainer.device).manual_seed(0)
    originals = source.pixels(source.held_out[:50], trainer.dtype)
    found = latents(trainer)
    kl, labels = kl_per_dimension(found.kl).float().cpu(), source.held_out_labels
    drawings: dict[str, Callable[[Path], None]] = {
        "reconstructions": lambda path: pictures.draw_reconstructions(path, originals, model.reconstruct(originals)),
        "samples": lambda path: pictures.draw_samples(path, model.sample(100, generator=generator)),
        "learning_curve": lambda path: pictures.draw_learning_curve(path, rows),
        "kl_per_dimension": lambda path: pictures.draw_kl_per_dimension(path, kl, _active(found.mu).cpu()),
        "traversals": lambda path: pictures.draw_traversals(path, *traversals(model, found.mu[0], kl)),
    }
    if trainer.settings.latent_dim == 2:
        drawings["manifold"] = lambda path: pictures.draw_manifold(path, manifold(model))
        drawings["means"] = lambda path: pictures.draw_means(
            path, found.mu[:2000].float(), None if labels is None else labels[:2000]
        )
    paths = [folder / f"{name}.png" for name in drawings]
    for path, drawing in zip(paths, drawings.values(), strict=True):
        drawing(path)
    return paths


def _active(mu: Tensor) -> Tensor:
    """The active dimensions; none if there is only one held-out picture."""
    return active_units(mu) if len(mu) > 1 else torch.zeros_like(mu[0], dtype=torch.bool)


@torch.no_grad()
def traversals(
    model: VAE, mu: Tensor, kl: Tensor, dimensions: int = 10, columns: int = 9
) -> tuple[Tensor, list[int], list[float]]:
    """Decode pictures from `mu` with one dimension changed at a time to values from −3 to 3.

    The dimensions with the largest KL come first. Returns the pictures, the dimensions and the values.
    """
    chosen = kl.argsort(descending=True, stable=True)[:dimensions].tolist()
    values = torch.linspace(-3, 3, columns, dtype=torch.float64)
    z = mu.repeat(len(chosen), columns, 1)
    for row, dimension in enumerate(chosen):
        z[row, :, dimension] = values.to(z)
    return model.likelihood.mean(*model.decode(z.flatten(0, 1))), chosen, values.tolist()


@torch.no_grad()
def manifold(model: VAE, per_side: int = 20) -> Tensor:
    """Decode pictures on a lattice with equal mass of the prior between its lines: z₁ to the right, z₂ upwards."""
    weight = next(model.parameters())
    quantiles = torch.special.ndtri(torch.linspace(0.02, 0.98, per_side, dtype=torch.float64)).to(weight)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return model.likelihood.mean(*model.decode(torch.stack((z1, z2), dim=-1).flatten(0, 1)))
