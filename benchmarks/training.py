"""The effect of the ops on a complete training step (forward, backward, Adam) of the reference VAEs, and of a VAE of
gene counts."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vae_kernels.models import MLPVAE, VAE, ConvVAE

from . import genes, snippets, timing
from .cases import Shape, format_shape
from .contenders import Calls, Contender, contenders, first_line
from .results import Row, provenance
from .suites import Plan, fill_times

# log p(x|z) and KL, per sample.
Terms = tuple[Tensor, Tensor]


def kernel_terms(model: VAE, x: Tensor) -> Terms:
    _, log_px, kl = model.elbo(x)
    return log_px, kl


def eager_terms(model: VAE, x: Tensor) -> Terms:
    """The terms of the model, with the losses that people write."""
    z, kl = snippets.latent(*model.encode(x))
    parameters = model.decode(z)
    if model.settings.likelihood == "bernoulli":
        (log_px,) = snippets.bernoulli(*parameters, x)
    else:
        (log_px,) = snippets.gaussian(*parameters, x, model.likelihood.logvar)
    return log_px, kl


@dataclass(frozen=True)
class Training:
    """A float32 model, its batches, and its terms: with the kernels, and as people write them."""

    name: str
    shape: Shape
    build: Callable[[], nn.Module]
    draw: Callable[[Shape], Tensor] = torch.rand
    kernel_terms: Callable[..., Terms] = kernel_terms
    eager_terms: Callable[..., Terms] = eager_terms

    def __str__(self) -> str:
        return f"{self.name} {format_shape(self.shape)}"

    def inputs(self, device: str) -> tuple[nn.Module, Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.build().to(device), self.draw(self.shape).to(device)


TRAININGS = [
    Training("mlp", (128, 784), lambda: MLPVAE(784, hidden=(400,), latent_dim=20, likelihood="bernoulli")),
    Training("conv", (64, 3, 64, 64), lambda: ConvVAE((3, 64, 64), latent_dim=128, likelihood="gaussian-learned")),
    *(
        Training(
            "genes",
            (128, count),
            lambda count=count: genes.CountsVAE(count, hidden=128, latent_dim=10),
            genes.counts,
            genes.kernel_terms,
            genes.eager_terms,
        )
        for count in (2000, 20000)
    ),
]


def run(trainings: list[Training], plan: Plan) -> Iterator[list[Row]]:
    """The rows of each training, as one list per training."""
    for training in trainings:
        torch.compiler.reset()
        competing = [c for c in contenders(plan.device)[0] if c.name != "distributions"]
        expected = _terms64(training, plan.device)
        steps, status = {}, {}
        for contender in competing:
            model, x = training.inputs(plan.device)
            terms = _terms_of(training, contender)
            try:
                with contender.chosen():
                    status[contender.name] = _wrong(terms(model, x), expected) or "ok"
            except Exception as error:
                status[contender.name] = f"failed {first_line(error)}"
            if status[contender.name] == "ok":
                steps[contender.name] = contender, _step(terms, model, x)
        times = timing.alternate({name: _sampler(*step, plan.device) for name, step in steps.items()}, plan.effort)
        yield [_row(training, name, state, times.get(name), plan.device) for name, state in status.items()]


def _terms_of(training: Training, contender: Contender) -> Callable[..., Terms]:
    if contender.backend:
        return training.kernel_terms
    plain = training.eager_terms
    return torch.compile(plain, dynamic=False) if contender.name == "compile" else plain


def _step(terms: Callable[..., Terms], model: nn.Module, x: Tensor) -> Calls:
    optimizer = torch.optim.Adam(model.parameters(), fused=True)

    def forward() -> tuple[Tensor]:
        log_px, kl = terms(model, x)
        return ((kl - log_px).mean(),)

    def backward(loss: tuple[Tensor]) -> None:
        optimizer.zero_grad()
        loss[0].backward()
        optimizer.step()

    return Calls(forward, backward)


def _terms64(training: Training, device: str) -> Terms:
    model, x = training.inputs(device)
    with torch.no_grad():
        return training.eager_terms(copy.deepcopy(model).double(), x.double())


def _wrong(terms: Terms, expected: Terms) -> str:
    """An empty string if the terms are correct, else the reason.

    The KL does not depend on the noise, so it must agree to the rounding error of a float32 network (√eps). The
    log-likelihoods are at different z, so their means over the batch must agree within five standard errors.
    """
    (log_px, kl), (log_px64, kl64) = ((t.detach().double() for t in pair) for pair in (terms, expected))
    if not torch.allclose(kl, kl64, rtol=math.sqrt(torch.finfo(torch.float32).eps), atol=0):
        return f"wrong kl: {(kl - kl64).abs().max():.3g} nats off"
    difference = log_px - log_px64
    allowed = 5 * difference.std() / math.sqrt(len(difference))
    if not difference.mean().abs() <= allowed:
        return f"wrong log_px: {difference.mean().abs():.3g} nats off, {allowed:.3g} allowed"
    return ""


def _sampler(contender: Contender, step: Calls, device: str) -> timing.Sampler:
    sample = timing.sampler(step, "both", device, torch.get_num_threads())

    def sample_on_backend() -> list[float]:
        with contender.chosen():
            return sample()

    return sample_on_backend


def _row(training: Training, name: str, status: str, times: timing.Percentiles | None, device: str) -> Row:
    shape = format_shape(training.shape)
    row = Row("training", training.name, name, "step", "float32", shape, torch.get_num_threads(), status)
    vars(row).update(provenance(device))
    if times:
        fill_times(row, times, None, None)
    return row
