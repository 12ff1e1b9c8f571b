"""Train a reference VAE: `python -m vae_kernels.train --help`.

A run leaves in its folder `history.csv` (ELBO, log-likelihood and KL by epoch, in nats), pictures, and a checkpoint
from which `--resume` goes on as if nothing had happened. All random numbers (weights, order of the pictures, noise)
come from `--seed`, so that on one machine the same command gives the same numbers.
"""

import contextlib
import csv
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import checkpoint, data, pictures
from .backends import current_backend, use_backend
from .extras import require
from .models import MODELS, VAE, Elbo
from .noise import SEED_LIMIT
from .options import Settings, parse

HISTORY = "history.csv"

_EVALUATION_BATCH = 500


class Row(NamedTuple):
    """A line of the history: means per picture in nats. Training's are taken while the weights change."""

    epoch: int
    train_elbo: float
    train_log_px: float
    train_kl: float
    held_out_elbo: float
    held_out_log_px: float
    held_out_kl: float


class Trainer:
    """A model, its optimizer, and how far they are.

    Order and noise of an epoch are drawn when it begins, and the generator's state before that is kept: from it and the
    number of steps done, a run is resumed in the middle of an epoch.
    """

    def __init__(self, settings: Settings, source: data.Pictures) -> None:
        self.settings = settings
        self.device = torch.device(settings.device)
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self.data = source.to(self.device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = _build_model(settings, tuple(source.train.shape[1:]), self.generator)
        self.model.to(self.device, self.dtype)
        # Fused: 3.2 against 4.1 ms for a whole step on the digits, two cores.
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=fused)
        self.elbo = torch.compile(self.model.elbo) if settings.compile else self.model.elbo
        self.steps = -(-len(source.train) // settings.batch_size)
        self.epoch = self.step = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch_state = self.generator.get_state()
        self.order = torch.randperm(len(self.data.train), generator=self.generator).to(self.device)
        self.seeds = torch.randint(0, SEED_LIMIT, (self.steps, 1), generator=self.generator).to(self.device)
        self.sums = torch.zeros(self.steps, 3, dtype=self.dtype, device=self.device)

    def train_step(self) -> None:
        """One step of Adam on `beta · KL − log p(x|z)`, averaged over the batch."""
        size = self.settings.batch_size
        batch = self.data.train[self.order[self.step * size : (self.step + 1) * size]]
        with self._autocast():
            terms = self.elbo(self.data.pixels(batch, self.dtype), seed=self.seeds[self.step])
        loss = (self.settings.beta * terms.kl - terms.log_px).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.sums[self.step] = _sums(terms)
        self.step += 1

    def running(self) -> list[float]:
        """This epoch's mean ELBO, log-likelihood and KL so far."""
        seen = min(self.step * self.settings.batch_size, len(self.data.train))
        return (self.sums.cpu().double().sum(0) / seen).tolist()

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Mean ELBO, log-likelihood and KL of the held-out pictures, with the same noise every time."""
        sums = torch.zeros(3, dtype=torch.float64)
        for index, batch in enumerate(self.data.held_out.split(_EVALUATION_BATCH)):
            with self._autocast():
                sums += _sums(self.model.elbo(self.data.pixels(batch, self.dtype), seed=index)).cpu()
        return (sums / len(self.data.held_out)).tolist()

    def end_epoch(self) -> Row:
        """Evaluate, and go on to the next epoch."""
        self.epoch += 1
        row = Row(self.epoch, *self.running(), *self.evaluate())
        if not math.isfinite(row.train_elbo):
            raise FloatingPointError(
                f"the ELBO became {row.train_elbo} in epoch {self.epoch}: try a lower --lr than {self.settings.lr}"
            )
        self.step = 0
        self._begin_epoch()
        return row

    def save(self) -> None:
        progress = {
            "epoch": torch.tensor(self.epoch),
            "step": torch.tensor(self.step),
            "generator": self.epoch_state,
            "sums": self.sums,
        }
        checkpoint.save(Path(self.settings.out), self.model, self.optimizer, progress)

    def restore(self) -> None:
        """Go on where `save` was called, in the middle of an epoch too."""
        progress = checkpoint.load(Path(self.settings.out), self.model, self.optimizer)
        self.generator.set_state(progress["generator"])
        self._begin_epoch()
        self.epoch, self.step = int(progress["epoch"]), int(progress["step"])
        self.sums.copy_(progress["sums"])

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.settings.dtype == "bfloat16")


class Interrupt:
    """Context manager: within it a first Ctrl-C only sets `asked`, a second one acts as ever."""

    def __enter__(self) -> "Interrupt":
        self.asked = False
        self._previous = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _ask(self, *_: object) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, self._previous)


def train(trainer: Trainer, rows: list[Row]) -> bool:
    """Train to the last epoch, adding to `rows` and to the history, and save; False if Ctrl-C ended it before."""
    folder, epochs = Path(trainer.settings.out), trainer.settings.epochs
    with Interrupt() as interrupt, _progress_bar(trainer) as bar:
        while trainer.epoch < epochs and not interrupt.asked:
            trainer.train_step()
            if bar.update():
                bar.set_postfix_str(_summary(trainer, rows), refresh=False)
            if trainer.step == trainer.steps:
                rows.append(trainer.end_epoch())
                _write_history(folder, rows)
                trainer.save()
        trainer.save()
    return trainer.epoch >= epochs


def draw(trainer: Trainer, rows: list[Row]) -> list[Path]:
    """Draw the run's pictures into its folder."""
    folder, model, source = Path(trainer.settings.out), trainer.model, trainer.data
    generator = torch.Generator(trainer.device).manual_seed(0)
    originals = source.pixels(source.held_out[:50], trainer.dtype)
    drawings: dict[str, Callable[[Path], None]] = {
        "reconstructions": lambda path: pictures.draw_reconstructions(path, originals, model.reconstruct(originals)),
        "samples": lambda path: pictures.draw_samples(path, model.sample(100, generator=generator)),
        "learning_curve": lambda path: pictures.draw_learning_curve(path, rows),
    }
    if trainer.settings.latent_dim == 2:
        drawings["manifold"] = lambda path: pictures.draw_manifold(path, _manifold(model))
        drawings["means"] = lambda path: pictures.draw_means(path, *_means(trainer))
    paths = [folder / f"{name}.png" for name in drawings]
    for path, drawing in zip(paths, drawings.values(), strict=True):
        drawing(path)
    return paths


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status: 0, or 130 after Ctrl-C."""
    with contextlib.ExitStack() as stack:
        try:
            settings, resume = parse(arguments)
            stack.enter_context(use_backend(settings.backend))
            stack.enter_context(_repeatable())
            trainer, rows = _prepare(settings, resume)
        except (ImportError, OSError, ValueError, RuntimeError) as error:
            sys.exit(f"vae_kernels.train: {error}")
        return _run(trainer, rows)


def _prepare(settings: Settings, resume: bool) -> tuple[Trainer, list[Row]]:
    """All that can go wrong before training: packages, data, device, backend, folder. And the history so far."""
    for module in ("matplotlib.figure", "safetensors.torch", "tqdm"):
        require(module)
    folder = Path(settings.out)
    if not resume:
        _refuse_to_overwrite(folder)
    current_backend(torch.device(settings.device).type)
    source = data.load(settings.data, settings.data_dir and Path(settings.data_dir), settings.image_size)
    trainer, rows = Trainer(settings, source), []
    if resume:
        trainer.restore()
        rows = _read_history(folder)[: trainer.epoch]
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint.save_settings(folder, trainer.model.settings, asdict(settings))
    _write_history(folder, rows)
    return trainer, rows


def _refuse_to_overwrite(folder: Path) -> None:
    """A finished run may be repeated in its folder; an unfinished one holds work that would be lost."""
    if not (folder / checkpoint.TENSORS).exists():
        return
    epochs, done = checkpoint.load_settings(folder)["training"]["epochs"], len(_read_history(folder))
    if done < epochs:
        raise ValueError(
            f"{folder} holds a run that stopped after {done} of {epochs} epochs: continue it with --resume, choose "
            "another --out, or delete it"
        )


def _run(trainer: Trainer, rows: list[Row]) -> int:
    settings, began = trainer.settings, time.monotonic()
    try:
        finished = train(trainer, rows)
    except FloatingPointError as error:
        sys.exit(f"vae_kernels.train: {error}")
    if not finished:
        print(f"stopped in epoch {trainer.epoch + 1} of {settings.epochs}; go on with:")
        print(f"  python -m vae_kernels.train --out {shlex.quote(settings.out)} --resume")
        return 130
    last = rows[-1]
    print(
        f"held-out ELBO {last.held_out_elbo:.3f} nats per picture (log p(x|z) {last.held_out_log_px:.3f}, "
        f"KL {last.held_out_kl:.3f}) after {last.epoch} epochs, trained in {time.monotonic() - began:.0f} s"
    )
    print("pictures:", *draw(trainer, rows), sep="\n  ")
    return 0


def _build_model(settings: Settings, input_shape: tuple[int, ...], generator: torch.Generator) -> VAE:
    """Weights are drawn on the CPU, so that they are the same on every device."""
    sizes = {} if settings.hidden is None else {"hidden": settings.hidden}
    seed = torch.randint(0, SEED_LIMIT, (), generator=generator).item()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[settings.model](
            input_shape,
            latent_dim=settings.latent_dim,
            likelihood=settings.likelihood,
            logvar=settings.logvar,
            **sizes,
        )


def _read_history(folder: Path) -> list[Row]:
    with (folder / HISTORY).open(newline="") as file:
        return [Row(int(epoch), *map(float, terms)) for epoch, *terms in list(csv.reader(file))[1:]]


def _write_history(folder: Path, rows: list[Row]) -> None:
    with (folder / HISTORY).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows((row.epoch, *(f"{term:.6f}" for term in row[1:])) for row in rows)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN picks algorithms whose sums vary from run to run unless told not to; nothing else here does."""
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
        yield


def _progress_bar(trainer: Trainer):
    steps = trainer.steps
    return require("tqdm").tqdm(
        desc=f"{trainer.settings.data}, {trainer.device}, {current_backend(trainer.device.type)}",
        total=steps * trainer.settings.epochs,
        initial=steps * trainer.epoch + trainer.step,
        unit="step",
        mininterval=0.2 if sys.stderr.isatty() else 10,
    )


def _summary(trainer: Trainer, rows: list[Row]) -> str:
    text = f"epoch {trainer.epoch + 1}, ELBO {trainer.running()[0]:.2f}"
    return f"{text}, held out {rows[-1].held_out_elbo:.2f}" if rows else text


def _sums(terms: Elbo) -> Tensor:
    return torch.stack([term.detach().sum() for term in terms])


def _manifold(model: VAE, per_side: int = 20) -> Tensor:
    """Pictures decoded on a lattice with equal mass of the prior between its lines; z₁ to the right, z₂ upwards."""
    weight = next(model.parameters())
    quantiles = torch.special.ndtri(torch.linspace(0.02, 0.98, per_side, dtype=torch.float64)).to(weight)
    z2, z1 = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    with torch.no_grad():
        return model.likelihood.mean(*model.decode(torch.stack((z1, z2), dim=-1).flatten(0, 1)))


@torch.no_grad()
def _means(trainer: Trainer, n: int = 2000) -> tuple[Tensor, Tensor | None]:
    """Posterior means of the first n held-out pictures, and their labels."""
    source = trainer.data
    mu, _ = trainer.model.encode(source.pixels(source.held_out[:n], trainer.dtype))
    return mu, None if source.held_out_labels is None else source.held_out_labels[:n]


if __name__ == "__main__":
    sys.exit(main())
