"""Train a reference VAE: `python -m vae_kernels.train --help`.

A run writes to its folder `history.csv` (ELBO, log-likelihood and KL by epoch, in nats), pictures, and a checkpoint.
`--resume` continues from the checkpoint and gives the results of an uninterrupted run. All random numbers (weights,
order of the pictures, noise) come from `--seed`, so the same command on the same machine gives the same numbers. In
each epoch every picture has its own seed for the noise. Several processes (`torchrun --nproc-per-node=N -m
vae_kernels.train`) therefore split each batch among them and get the same weights as one process, up to rounding.
"""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import torch

from .backends import current_backend, use_backend
from .extras import require
from .training import checkpoint, data, history, processes, report
from .training.history import Row
from .training.settings import Settings, parse
from .training.trainer import Trainer


class Interrupt:
    """Context manager within which the first Ctrl-C only sets `asked`. A second one interrupts as usual."""

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
    """Train to the last epoch, extend `rows` and the history, and save. Returns False if Ctrl-C stopped it."""
    folder, epochs = Path(trainer.settings.out), trainer.settings.epochs
    with Interrupt() as interrupt, _progress_bar(trainer) as bar:
        while trainer.epoch < epochs and not processes.any_of(interrupt.asked):
            trainer.train_step()
            if bar.update():
                bar.set_postfix_str(_summary(trainer, rows), refresh=False)
            if trainer.step == trainer.steps:
                rows.append(trainer.end_epoch())
                if not processes.rank():
                    history.write(folder, rows)
                trainer.save()
        trainer.save()
    return trainer.epoch >= epochs


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or 130 after Ctrl-C."""
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
    """Check packages, data, device, backend and folder before training. Returns the trainer and the history so far."""
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
        rows = history.read(folder)[: trainer.epoch]
    if not processes.rank():
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save_settings(folder, trainer.model.settings, asdict(settings))
        history.write(folder, rows)
    return trainer, rows


def _refuse_to_overwrite(folder: Path) -> None:
    """Raise if the folder holds an unfinished run, whose work would be lost. A finished run may be overwritten."""
    if not (folder / checkpoint.TENSORS).exists():
        return
    content = checkpoint.load_settings(folder)
    with checkpoint.reading(folder / checkpoint.SETTINGS):
        epochs = int(content["training"]["epochs"])
    done = len(history.read(folder))
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


@contextlib.contextmanager
def _repeatable() -> Iterator[None]:
    """Make runs repeatable: cuDNN must use deterministic algorithms, and weights are drawn in torch's default dtype,
    which must be float32. Nothing else here varies."""
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


if __name__ == "__main__":
    sys.exit(main())
