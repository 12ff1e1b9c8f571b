"""Several processes share the work of one: torchrun, gloo, two CPU processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

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


SHARDED = """
import torch
import vae_kernels as vk
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor, init_device_mesh


def main():
    mesh = init_device_mesh("cpu", (2,))
    shard, replicate = [Shard(0)], [Replicate()]
    generator = torch.Generator().manual_seed(0)
    mu, logvar, prior, spread, weight = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((6, 4), (6, 4), (4,), (4,), (6,))
    )
    x, seeds = torch.rand(6, 4, generator=generator, dtype=torch.float64), torch.arange(6)

    def loss(mu, logvar, prior, spread, x, seeds):
        z, kl = vk.reparameterize_kl(mu, logvar, prior_mu=prior, seed=seeds)
        return kl - vk.gaussian_log_likelihood(z, x, spread)

    def distributed(tensor, placements):
        return distribute_tensor(tensor, mesh, placements).requires_grad_(tensor.is_floating_point())

    whole = [t.clone().requires_grad_() for t in (mu, logvar, prior, spread)]
    want = loss(*whole, x, seeds)
    wanted = torch.autograd.grad((want * weight).sum(), whole)

    parts = [*(distributed(t, shard) for t in (mu, logvar)), *(distributed(t, replicate) for t in (prior, spread))]
    local = [t.to_local() for t in parts[:2]] + [t.to_local(grad_placements=[Partial()]) for t in parts[2:]]
    part = loss(*local, distributed(x, shard).to_local(), distributed(seeds, shard).to_local())
    found = DTensor.from_local(part, mesh, shard)
    gradients = torch.autograd.grad((found * distributed(weight, shard)).sum(), parts)
    for got, expected in zip((found, *gradients), (want, *wanted)):
        torch.testing.assert_close(got.full_tensor(), expected)

    plain = [mu, logvar, prior, spread, x, seeds]
    names = ["mu", "logvar", "prior_mu", "logvar", "x", "seed"]
    for i, name in enumerate(names):
        try:
            loss(*plain[:i], distributed(plain[i], replicate), *plain[i + 1 :])
        except TypeError as error:
            assert str(error).startswith(f"{name} must be a plain tensor, got a DTensor"), error
            assert f"{name}.to_local()" in str(error)
        else:
            raise AssertionError(name)


torch.distributed.init_process_group("gloo")
main()
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""


@DISTRIBUTED
def test_shards_of_a_batch(tmp_path: Path) -> None:
    """A DTensor is refused, with the way out: by its local part and a seed for each sample two processes compute what
    one does, gradients of replicated parameters being partial sums."""
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    torchrun(2, str(script))
