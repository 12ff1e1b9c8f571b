"""The effect of `vk.patch` in other packages: complete trainings of scvi-tools, and posteriors of diffusers."""

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from time import perf_counter

import torch
from torch import Tensor

import vae_kernels as vk

from . import genes, timing
from .cases import Shape, format_shape
from .contenders import PUBLISHED, Calls, first_line
from .results import Row, provenance
from .suites import Plan, fill_times

# The patch of each contender.
CONTENDERS: dict[str, Callable[[str], contextlib.AbstractContextManager]] = {
    PUBLISHED: lambda package: contextlib.nullcontext(),
    "patched": lambda package: getattr(vk.patch, package)(),
}
WITH_NOISE = {"patched, noise": lambda package: vk.patch.diffusers(noise="kernel")}


@dataclass(frozen=True)
class Work:
    """A piece of work that is timed with and without the patch of a package. `results` must agree to `rtol`."""

    package: str
    op: str
    mode: str
    dtype: str
    shape: Shape
    results: Callable[["Work", str], Tensor]
    sampler: Callable[["Work", str], timing.Sampler]
    rtol: float
    more: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.op} {format_shape(self.shape)} {self.dtype}"

    def contenders(self) -> dict[str, Callable[[str], contextlib.AbstractContextManager]]:
        return CONTENDERS | {name: WITH_NOISE[name] for name in self.more}


# scvi-tools: the training uses nine tenths of the cells, in batches of 128.

CELLS, EPOCHS = 1280, 2


@cache
def _cells(shape: Shape) -> object:
    """Random counts of cells and genes, as AnnData."""
    from anndata import AnnData

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AnnData(genes.counts(shape).numpy())


def _train(work: Work, device: str) -> tuple[float, Tensor]:
    """Train. Returns the seconds from the first epoch to the last, and the history of losses."""
    import scvi

    for name in ("pytorch", "fabric"):  # these set their levels when they are imported
        logging.getLogger(f"lightning.{name}").setLevel(logging.ERROR)
    scvi.settings.seed = 0
    data = _cells(work.shape)
    scvi.model.SCVI.setup_anndata(data)
    model = scvi.model.SCVI(data, gene_likelihood=work.op.removeprefix("scvi "))
    accelerator = "gpu" if device == "cuda" else "cpu"
    began = perf_counter()
    model.train(max_epochs=EPOCHS, accelerator=accelerator, enable_progress_bar=False, logger=None)
    seconds = perf_counter() - began
    return seconds, torch.tensor(model.history["elbo_train"].to_numpy(float))


def _training(likelihood: str, count: int) -> Work:
    return Work(
        "scvi",
        f"scvi {likelihood}",
        "training",
        "float32",
        (CELLS, count),
        results=lambda work, device: _train(work, device)[1],
        sampler=lambda work, device: lambda: [_train(work, device)[0]],
        rtol=1e-4,
    )


# diffusers: a posterior with sample and KL, and the backward pass of both.


def _parameters(work: Work, device: str) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.randn(work.shape).to(device, getattr(torch, work.dtype)).requires_grad_()


def _step(p: Tensor) -> Calls:
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

    def forward() -> tuple[Tensor, Tensor]:
        posterior = DiagonalGaussianDistribution(p)
        return posterior.sample(), posterior.kl()

    upstream = [torch.randn_like(t) for t in forward()]
    return Calls(forward, lambda outputs: torch.autograd.grad(outputs, p, upstream))


def _kl(work: Work, device: str) -> Tensor:
    """The KL, which does not depend on the noise."""
    return _step(_parameters(work, device)).forward()[1].detach().double().cpu()


def _posterior(shape: Shape, dtype: str) -> Work:
    return Work(
        "diffusers",
        "diffusers posterior",
        "both",
        dtype,
        shape,
        results=_kl,
        sampler=lambda work, device: timing.sampler(
            _step(_parameters(work, device)), "both", device, torch.get_num_threads()
        ),
        # The error of the published sum, with this number of terms in this dtype.
        rtol=8 * torch.finfo(getattr(torch, dtype)).eps,
        more=("patched, noise",),
    )


WORKS = [
    *(_training(likelihood, count) for count in (2000, 10000, 20000) for likelihood in ("nb", "zinb")),
    *(
        _posterior(shape, dtype)
        # Latents of 512×512 pictures, and of a video with 17 frames.
        for shape in ((8, 8, 64, 64), (1, 32, 5, 60, 90))
        for dtype in ("float32", "bfloat16")
    ),
]


def left_out() -> dict[str, str]:
    """The packages that are missing, and how to install them."""
    return {
        package: f"pip install {name}"
        for package, name in (("scvi", "scvi-tools"), ("diffusers", "diffusers"))
        if find_spec(package) is None
    }


def run(works: list[Work], plan: Plan) -> Iterator[list[Row]]:
    """The rows of each work, as one list per work."""
    for work in works:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield _measure(work, plan)


def _measure(work: Work, plan: Plan) -> list[Row]:
    samplers, status, published = {}, {}, None
    for name, patch in work.contenders().items():
        try:
            with patch(work.package):
                found = work.results(work, plan.device)
                sample = work.sampler(work, plan.device)
        except Exception as error:
            status[name] = f"failed {first_line(error)}"
            continue
        published = found if published is None else published
        off = float(((found - published) / published).abs().max())
        status[name] = "ok" if off <= work.rtol else f"wrong: {off:.3g} off, {work.rtol:.3g} allowed"
        if status[name] == "ok":
            samplers[name] = partial(_sample, patch, work.package, sample)
    times = timing.alternate(samplers, plan.effort)
    return [_row(work, name, state, times.get(name), plan.device) for name, state in status.items()]


def _sample(
    patch: Callable[[str], contextlib.AbstractContextManager], package: str, sample: timing.Sampler
) -> list[float]:
    with patch(package):
        return sample()


def _row(work: Work, name: str, status: str, times: timing.Percentiles | None, device: str) -> Row:
    shape = format_shape(work.shape)
    row = Row("integrations", work.op, name, work.mode, work.dtype, shape, torch.get_num_threads(), status)
    vars(row).update(provenance(device))
    if times:
        fill_times(row, times, None, None)
    return row
