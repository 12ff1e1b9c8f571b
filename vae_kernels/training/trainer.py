"""The training of a model: steps, epochs and progress."""

import math
from pathlib import Path

import torch
from torch import Tensor

from ..models import MODELS, VAE, Elbo
from ..noise import SEED_LIMIT
from ..schedules import linear_schedule
from . import checkpoint, processes
from .data import Pictures
from .history import Row
from .objective import Loss
from .settings import BETA_SCHEDULES, Settings

_EVALUATION_BATCH = 500


class Trainer:
    """A model, its optimizer, and the progress of their training.

    The order of the pictures and the seeds of an epoch are drawn when it begins. The generator's state before that is
    kept. From this state and the number of steps done, a run can be resumed in the middle of an epoch.
    """

    def __init__(self, settings: Settings, source: Pictures) -> None:
        self.settings = settings
        self.device = processes.own_device(torch.device(settings.device))
        self.dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        self.data = source.to(self.device)
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.model = _build_model(settings, tuple(source.train.shape[1:]), self.generator)
        self.model.to(self.device, self.dtype)
        # A training step on the digits takes 3.2 ms with the fused optimizer and 4.1 ms without, on two cores.
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
        """Do one step of Adam on the objective, averaged over the batch."""
        start = self.step * self.settings.batch_size
        batch = slice(start, start + self.settings.batch_size)
        own, seeds = processes.part(self.order[batch]), processes.part(self.seeds[batch])
        # The average size of a part, because the processes' gradients are averaged, not summed.
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
        """Beta and the capacity of this step."""
        s, done, steps = self.settings, self.epoch * self.steps + self.step, self.settings.epochs * self.steps
        beta = s.beta * BETA_SCHEDULES[s.beta_schedule](done, steps)
        capacity = None if s.capacity is None else self._scalar(linear_schedule(done, steps, stop=s.capacity))
        return self._scalar(beta), capacity

    def _scalar(self, value: float) -> Tensor:
        return torch.full((), value, dtype=self.dtype, device=self.device)

    def running(self) -> list[float]:
        """Mean ELBO, log-likelihood and KL of this epoch so far, in this process."""
        return _means(self.sums)

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Mean ELBO, log-likelihood and KL of the held-out pictures, with the same noise in each call."""
        batches = self.data.held_out.split(_EVALUATION_BATCH)
        sums = torch.zeros(len(batches), 4, dtype=torch.float64)
        for index in range(processes.rank(), len(batches), processes.count()):
            with self._autocast():
                sums[index] = _sums(self.model.elbo(self.data.pixels(batches[index], self.dtype), seed=index))
        return _means(processes.total(sums))

    def end_epoch(self) -> Row:
        """Evaluate, and begin the next epoch."""
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
        """Restore the state at which `save` was called, which may be in the middle of an epoch."""
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


def _build_model(settings: Settings, input_shape: tuple[int, ...], generator: torch.Generator) -> VAE:
    """Build the model. Its weights are drawn on the CPU, so that they are the same on every device."""
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


def _sums(terms: Elbo) -> Tensor:
    """The sums of the three terms over the pictures, and the number of pictures."""
    sums = [term.detach().sum() for term in terms]
    return torch.stack([*sums, torch.full_like(sums[0], len(terms.elbo))])


def _means(sums: Tensor) -> list[float]:
    *terms, pictures = sums.cpu().double().sum(0).tolist()
    return [term / max(pictures, 1) for term in terms]
