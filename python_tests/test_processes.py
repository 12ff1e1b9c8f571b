"""Several processes share the work of one: torchrun, gloo, two CPU processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh_process import PROGRAMS

from vae_kernels import train
from vae_kernels.models import MLPVAE
from vae_kernels.training import checkpoint, data, report
from vae_kernels.training.history import HISTORY
from vae_kernels.training.objective import OBJECTIVES, Loss
from vae_kernels.training.settings import parse
from vae_kernels.training.trainer import Trainer

pytestmark = pytest.mark.usefixtures("undrawn")
DISTRIBUTED = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch is built without torch.distributed"
)

# 300 to a batch: the last of an epoch, 238, and the halves of 300 are shared; a learned variance is a parameter beside
# the networks. Free bits and float64: a mean over the batch within the objective, and no rounding to hide behind.
SETTINGS = [
    *("--device", "cpu", "--hidden", "16", "--latent-dim", "3", "--batch-size", "300", "--dtype", "float64"),
    *("--likelihood", "gaussian-learned", "--free-bits", "0.05", "--lr", "0.01"),
]


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_loss_is_the_sum_of_its_parts(objective: str) -> None:
    """However a batch is cut, and in whatever order it is: each picture has noise of its own."""
    torch.manual_seed(0)
    model, x = MLPVAE(12, (8,), 3).double(), torch.rand(7, 12).double()
    loss, seeds, beta = Loss(model, objective, OBJECTIVES[objective].num_samples), torch.arange(7), torch.tensor(1.0)

    def results(*indices: list[int]) -> list[torch.Tensor]:
        parts = [loss(x[i], seeds[i], 7, beta) for i in indices]
        value = sum(value for value, _ in parts)
        elbo = torch.cat([terms.elbo for _, terms in parts])[
            torch.tensor([i for part in indices for i in part]).argsort()
        ]
        return [value, elbo, *torch.autograd.grad(value, list(model.parameters()))]

    for got, want in zip(results([5, 2, 0], [1], [6, 3, 4]), results([*range(7)]), strict=True):
        torch.testing.assert_close(got, want)


def torchrun(processes: int, *arguments: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    package = Path(train.__file__).parents[1]
    done = subprocess.run(
        [*command, *arguments],
        env=os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def history(out: Path) -> np.ndarray:
    return np.loadtxt(out / HISTORY, delimiter=",", skiprows=1)


@DISTRIBUTED
def test_two_processes_do_the_work_of_one(tmp_path: Path) -> None:
    """The same history, weights and log p(x), also where one process goes on with what two began: the noise of a
    picture does not know how many there are."""
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert train.main([*SETTINGS, "--epochs", "3", "--out", str(whole)]) == 0
    printed = torchrun(
        2, "-m", "vae_kernels.train", *SETTINGS, "--out", str(shared), "--epochs", "2", "--evaluate", "20"
    )
    assert printed.count("held-out ELBO") == 1  # one of them speaks
    trainer = Trainer(parse(["--out", str(shared), "--resume"])[0], data.digits())
    trainer.restore()
    figures = json.loads((shared / report.EVALUATION).read_text())
    assert figures == pytest.approx(report.evaluate(trainer, 20), rel=1e-12)
    np.testing.assert_allclose(history(shared), history(whole)[:2], rtol=0, atol=2e-6)  # written with six digits
    assert train.main(["--out", str(shared), "--resume", "--epochs", "3"]) == 0
    np.testing.assert_allclose(history(shared), history(whole), rtol=0, atol=2e-6)
    weights = checkpoint.load_model(whole).state_dict()
    for name, value in checkpoint.load_model(shared).state_dict().items():
        torch.testing.assert_close(value, weights[name], rtol=1e-9, atol=1e-11)


@DISTRIBUTED
def test_shards_of_a_batch() -> None:
    """Two processes compute what one does, by the local part of a DTensor and a seed for each sample. A DTensor itself
    is refused, and the message names its local part."""
    torchrun(2, str(PROGRAMS / "sharded.py"))
