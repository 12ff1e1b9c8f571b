"""Pictures of a run: PNG files, drawn with matplotlib, which is imported on first use."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..extras import require
from .history import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_reconstructions(path: Path, originals: Tensor, reconstructions: Tensor) -> None:
    """Draw each original with its reconstruction to the right, both `(N, channels, height, width)` in [0, 1]."""
    pairs = torch.cat((originals, reconstructions), dim=3)
    _save_grid(path, pairs, "held-out pictures and, right of each, its reconstruction")


def draw_samples(path: Path, samples: Tensor) -> None:
    """Draw pictures `(N, channels, height, width)` in [0, 1], decoded from samples of the prior."""
    _save_grid(path, samples, "samples from the prior")


def draw_manifold(path: Path, pictures: Tensor) -> None:
    """Draw the pictures decoded from a square lattice of two latent dims, with the first row at the top."""
    _save_grid(path, pictures, "the manifold: latents on the quantiles of the prior")


def draw_traversals(path: Path, pictures: Tensor, dimensions: list[int], values: list[float]) -> None:
    """Draw pictures `(rows · columns, channels, height, width)`: each row changes one dimension of z, with a column for
    each of its values."""
    grid, figure = _figure_of(pictures, len(values))
    height, width = (size / n for size, n in zip(grid.shape[1:], (len(dimensions), len(values)), strict=True))
    axes = _show(figure, grid)
    axes.set_xticks([(i + 0.5) * width for i in range(len(values))], [f"{v:g}" for v in values])
    axes.set_yticks([(i + 0.5) * height for i in range(len(dimensions))], [f"z{d}" for d in dimensions])
    axes.set_title("one picture with one latent dimension changed at a time")
    _save(figure, path)


def draw_kl_per_dimension(path: Path, kl: Tensor, active: Tensor) -> None:
    """Draw a bar for the KL of each latent dimension in nats, the largest first."""
    order = kl.argsort(descending=True, stable=True)
    figure = _figure(max(6.4, 0.25 * len(kl)), 3.6)
    axes = figure.subplots()
    colours = ["tab:blue" if on else "lightgrey" for on in active[order].tolist()]
    axes.bar(range(len(kl)), kl[order].tolist(), color=colours)
    axes.set_xticks(range(len(kl)), order.tolist(), fontsize=7)
    axes.set(
        title=f"KL per latent dimension: {kl.sum():.2f} nats in all, {int(active.sum())} of {len(kl)} active (blue)",
        xlabel="dimension",
        ylabel="nats per picture",
    )
    axes.grid(axis="y", alpha=0.3)
    _save(figure, path)


def draw_rate_distortion(path: Path, betas: list[float], rates: list[float], distortions: list[float]) -> None:
    """Draw distortion −E[log p(x|z)] over rate KL of held-out pictures, with a point for each beta, and a line of equal
    ELBO through the best point."""
    figure = _figure(6.4, 4.8)
    axes = figure.subplots()
    axes.plot(rates, distortions, "o-")
    for beta, rate, distortion in zip(betas, rates, distortions, strict=True):
        axes.annotate(f"β = {beta:g}", (rate, distortion), xytext=(4, 4), textcoords="offset points")
    best = min(r + d for r, d in zip(rates, distortions, strict=True))
    ends = [min(rates), max(rates)]
    axes.plot(ends, [best - rate for rate in ends], "--", color="grey", label=f"ELBO {-best:.2f}")
    axes.set(title="rate and distortion", xlabel="rate: KL, nats per picture", ylabel="distortion: −log p(x|z), nats")
    axes.margins(x=0.15)  # the labels are right of their points
    axes.grid(alpha=0.3)
    axes.legend()
    _save(figure, path)


def draw_learning_curve(path: Path, rows: list[Row]) -> None:
    """Draw ELBO, log-likelihood and KL by epoch, in nats."""
    figure = _figure(12, 3.6)
    epochs = [row.epoch for row in rows]
    for axes, term, title in zip(
        figure.subplots(1, 3), ("elbo", "log_px", "kl"), ("ELBO", "log p(x|z)", "KL"), strict=True
    ):
        axes.plot(epochs, [getattr(row, f"train_{term}") for row in rows], label="training")
        axes.plot(epochs, [getattr(row, f"held_out_{term}") for row in rows], label="held out")
        axes.set(title=title, xlabel="epoch", ylabel="nats per picture")
        # The first epochs are not shown: they are so much lower that the later ones would look flat.
        if term != "kl" and len(rows) > 20:
            late = rows[len(rows) // 20 :]
            shown = [getattr(row, f"{part}_{term}") for row in late for part in ("train", "held_out")]
            axes.set_ylim(min(shown), max(shown) + 0.05 * (max(shown) - min(shown)))
        axes.grid(alpha=0.3)
        axes.legend()
    _save(figure, path)


def draw_means(path: Path, mu: Tensor, labels: Tensor | None) -> None:
    """Draw the posterior means `(N, 2)`, coloured by class."""
    figure = _figure(6.4, 6)
    axes = figure.subplots()
    x, y = mu.T.tolist()
    if labels is None:
        axes.scatter(x, y, s=8)
    else:
        classes = max(int(labels.max()) + 1, 10)
        colours = "tab10" if classes == 10 else "nipy_spectral"
        drawn = axes.scatter(x, y, s=8, c=labels.tolist(), cmap=colours, vmin=-0.5, vmax=classes - 0.5)
        figure.colorbar(drawn, ticks=range(classes), label="class")
    axes.set(title="posterior means of the held-out pictures", xlabel="z₁", ylabel="z₂", aspect="equal")
    _save(figure, path)


def _save_grid(path: Path, pictures: Tensor, title: str) -> None:
    grid, figure = _figure_of(pictures)
    axes = _show(figure, grid)
    axes.set_title(title)
    axes.set_axis_off()
    _save(figure, path)


def _figure_of(pictures: Tensor, columns: int | None = None) -> tuple[Tensor, "Figure"]:
    grid = picture_grid(pictures.detach().float().cpu().clamp(0, 1), columns)
    height, width = grid.shape[1:]
    return grid, _figure(8, 8 * height / width + 0.5)


def _show(figure: "Figure", grid: Tensor) -> "Axes":
    axes = figure.subplots()
    axes.imshow(grid.permute(1, 2, 0).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    return axes


def picture_grid(pictures: Tensor, columns: int | None = None) -> Tensor:
    """Arrange pictures `(N, channels, height, width)` in one picture `(channels, H, W)`, with white lines between them,
    in `columns` columns or as a near square."""
    n, channels, height, width = pictures.shape
    columns = columns or max(round((n * height / width) ** 0.5), 1)
    rows = -(-n // columns)
    cells = pictures.new_ones(rows * columns, channels, height + 1, width + 1)
    cells[:n, :, :height, :width] = pictures
    grid = cells.unflatten(0, (rows, columns)).permute(2, 0, 3, 1, 4)
    return grid.reshape(channels, rows * (height + 1), columns * (width + 1))[:, :-1, :-1]


def _figure(width: float, height: float) -> "Figure":
    # Without pyplot, no display is needed, and the caller's figures do not change.
    return require("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", path: Path) -> None:
    figure.savefig(path, dpi=120)
