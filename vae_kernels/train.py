"""Train a reference VAE: `python -m vae_kernels.train --help`.

A run leaves in its folder `history.csv` (ELBO, log-likelihood and KL by epoch, in nats), pictures, and a checkpoint
from which `--resume` goes on as if nothing had happened. All random numbers (weights, order of the pictures, noise)
come from `--seed`, so that on one machine the same command gives the same numbers. Each picture of an epoch has a seed
of its own for its noise, so that several processes, `torchrun --nproc-per-node=N -m vae_kernels.train`, share the work
of one, batch by batch, and come to the same weights up to rounding.
"""

import contextlib
import csv
import math
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from . import checkpoint, data, processes, report
from .backends import current_backend, use_backend
from .extras import require
from .loss import Loss
from .models import MODELS, VAE, Elbo
from .noise import SEED_LIMIT
from .options import BETA_SCHEDULES, Settings, parse
from .schedules import linear_schedule

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
        self.device = processes.own_device(torch.device(settings.device))
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self.data = source.to(self.device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = _build_model(settings, tuple(source.train.shape[1:]), self.generator)
        self.model.to(self.device, self.dtype)
        # Fused: 3.2 against 4.1 ms for a whole step on the digits, two cores.
        fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=settings.lr, fused=fused)
        self.loss = processes.distributed(_build_loss(settings, self.model))
        if settings.compile:
            self.loss = torch.compile(self.loss)
        self.steps = -(-len(source.train) // settings.batch_size)
        self.epoch = self.step = 0
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.epoch_state = self.generator.get_state()
        self.order = torch.randperm(len(self.data.train), generator=self.generator).to(self.device)
        self.seeds = torch.randint(0, SEED_LIMIT, self.order.shape, generator=self.generator).to(self.device)
        self.sums = torch.zeros(self.steps, 4, dtype=self.dtype, device=self.device)

    def train_step(self) -> None:
        """One step of Adam on the objective, averaged over the batch."""
        start = self.step * self.settings.batch_size
        batch = slice(start, start + self.settings.batch_size)
        own, seeds = processes.part(self.order[batch]), processes.part(self.seeds[batch])
        # Over the average size of a part: the processes' gradients are averaged, not summed.
        size = len(self.order[batch]) / processes.count()
        with self._autocast():
            x = self.data.pixels(self.data.train[own], self.dtype)
            loss, terms = self.loss(x, seeds, size, *self._weights())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.sums[self.step] = _sums(terms)
        self.step += 1

    def _weights(self) -> tuple[Tensor, Tensor | None]:
        """Beta and capacity of this step."""
        s, done, steps = self.settings, self.epoch * self.steps + self.step, self.settings.epochs * self.steps
        beta = s.beta * BETA_SCHEDULES[s.beta_schedule](done, steps)
        capacity = None if s.capacity is None else self._scalar(linear_schedule(done, steps, stop=s.capacity))
        return self._scalar(beta), capacity

    def _scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=self.dtype, device=self.device)

    def running(self) -> list[float]:
        """This epoch's mean ELBO, log-likelihood and KL so far, in this process."""
        return _means(self.sums)

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Mean ELBO, log-likelihood and KL of the held-out pictures, with the same noise every time."""
        batches = self.data.held_out.split(_EVALUATION_BATCH)
        sums = torch.zeros(len(batches), 4, dtype=torch.float64)
        for index in range(processes.rank(), len(batches), processes.count()):
            with self._autocast():
                sums[index] = _sums(self.model.elbo(self.data.pixels(batches[index], self.dtype), seed=index))
        return _means(processes.total(sums))

    def end_epoch(self) -> Row:
        """Evaluate, and go on to the next epoch."""
        self.epoch += 1
        row = Row(self.epoch, *_means(processes.total(self.sums)), *self.evaluate())
        if not math.isfinite(row.train_elbo):
            raise FloatingPointError(
                f"the ELBO became {row.train_elbo} in epoch {self.epoch}: try a lower --lr than {self.settings.lr}"
            )
        self.step = 0
        self._begin_epoch()
        return row

    def save(self) -> None:
        sums = processes.total(self.sums)
        if processes.rank():
            return
        progress = {
            "epoch": torch.tensor(self.epoch),
            "step": torch.tensor(self.step),
            "generator": self.epoch_state,
            "sums": sums,
        }
        checkpoint.save(Path(self.settings.out), self.model, self.optimizer, progress)

    def restore(self) -> None:
        """Go on where `save` was called, in the middle of an epoch too."""
        folder = Path(self.settings.out)
        with checkpoint.reading(folder / checkpoint.TENSORS):
            progress = checkpoint.load(folder, self.model, self.optimizer)
            self.generator.set_state(progress["generator"])
            self._begin_epoch()
            self.epoch, self.step = int(progress["epoch"]), int(progress["step"])
            if not processes.rank():
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
        while trainer.epoch < epochs and not processes.any_of(interrupt.asked):
            trainer.train_step()
            if bar.update():
                bar.set_postfix_str(_summary(trainer, rows), refresh=False)
            if trainer.step == trainer.steps:
                rows.append(trainer.end_epoch())
                if not processes.rank():
                    _write_history(folder, rows)
                trainer.save()
        trainer.save()
    return trainer.epoch >= epochs


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status: 0, or 130 after Ctrl-C."""
    with contextlib.ExitStack() as stack:
        try:
            settings, resume = parse(arguments)
            stack.enter_context(use_backend(settings.backend))
            stack.enter_context(_repeatable())
            stack.enter_context(processes.joined(processes.own_device(torch.device(settings.device))))
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
        rows = read_history(folder)[: trainer.epoch]
    if not processes.rank():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_settings(folder, trainer.model.settings, asdict(settings))
        _write_history(folder, rows)
    return trainer, rows


def _refuse_to_overwrite(folder: Path) -> None:
    """A finished run may be repeated in its folder; an unfinished one holds work that would be lost."""
    if not (folder / checkpoint.TENSORS).exists():
        return
    content = checkpoint.load_settings(folder)
    with checkpoint.reading(folder / checkpoint.SETTINGS):
        epochs = int(content["training"]["epochs"])
    done = len(read_history(folder))
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
    figures = report.evaluate(trainer, settings.evaluate) if finished and settings.evaluate else {}
    if processes.rank():
        return 0 if finished else 130
    if not finished:
        print(f"stopped in epoch {trainer.epoch + 1} of {settings.epochs}; go on with:")
        print(f"  python -m vae_kernels.train --out {shlex.quote(settings.out)} --resume")
        return 130
    last = rows[-1]
    print(
        f"held-out ELBO {last.held_out_elbo:.3f} nats per picture (log p(x|z) {last.held_out_log_px:.3f}, "
        f"KL {last.held_out_kl:.3f}) after {last.epoch} epochs, trained in {time.monotonic() - began:.0f} s"
    )
    if figures:
        report.write(Path(settings.out), figures)
        print("held-out", ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
    print("pictures:", *report.draw(trainer, rows), sep="\n  ")
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


def _build_loss(settings: Settings, model: VAE) -> Loss:
    return Loss(
        model,
        settings.objective,
        settings.num_samples,
        settings.free_bits,
        settings.free_bits_per,
        settings.capacity_per,
        processes.group(),
    )


def read_history(folder: Path) -> list[Row]:
    with checkpoint.reading(folder / HISTORY), (folder / HISTORY).open(newline="") as file:
        return [Row(int(epoch), *map(float, terms)) for epoch, *terms in list(csv.reader(file))[1:]]


def _write_history(folder: Path, rows: list[Row]) -> None:
    with (folder / HISTORY).open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Row._fields)
        writer.writerows((row.epoch, *(f"{term:.6f}" for term in row[1:])) for row in rows)


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """cuDNN picks algorithms whose sums vary from run to run unless told not to; a model's weights are drawn in torch's
    default dtype. Nothing else here varies."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=True):
            yield
    finally:
        torch.set_default_dtype(default)


def _progress_bar(trainer: Trainer):
    steps = trainer.steps
    return require("tqdm").tqdm(
        desc=f"{trainer.settings.data}, {trainer.device}, {current_backend(trainer.device.type)}",
        total=steps * trainer.settings.epochs,
        initial=steps * trainer.epoch + trainer.step,
        unit="step",
        mininterval=0.2 if sys.stderr.isatty() else 10,
        disable=processes.rank() > 0,
    )


def _summary(trainer: Trainer, rows: list[Row]) -> str:
    text = f"epoch {trainer.epoch + 1}, ELBO {trainer.running()[0]:.2f}"
    return f"{text}, held out {rows[-1].held_out_elbo:.2f}" if rows else text


def _sums(terms: Elbo) -> Tensor:
    """The three terms' sums over the pictures, and how many pictures there were."""
    sums = [term.detach().sum() for term in terms]
    return torch.stack([*sums, torch.full_like(sums[0], len(terms.elbo))])


def _means(sums: Tensor) -> list[float]:
    *terms, pictures = sums.cpu().double().sum(0).tolist()
    return [term / max(pictures, 1) for term in terms]


if __name__ == "__main__":
    sys.exit(main())
