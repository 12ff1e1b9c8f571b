"""The VAE of Pyro's examples (examples/vae/vae.py of pyro-ppl), small: with Pyro's distributions, and with ours."""

from collections.abc import Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI
from pyro.optim import Adam
from torch import Tensor, nn

from vae_kernels.distributions.pyro import DiagonalNormal, IndependentBernoulli

PIXELS, HIDDEN, LATENT = 64, 32, 5


class Vae(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(PIXELS, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, 2 * LATENT))
        self.decoder = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.Softplus(), nn.Linear(HIDDEN, PIXELS))

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("latent", self.prior(x))
            pyro.sample("obs", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("latent", self.posterior(*self.encoder(x).chunk(2, 1)))


class Original(Vae):
    def prior(self, x: Tensor) -> dist.Distribution:
        z_loc = x.new_zeros((len(x), LATENT))
        return dist.Normal(z_loc, torch.ones_like(z_loc)).to_event(1)

    def posterior(self, z_loc: Tensor, log_scale: Tensor) -> dist.Distribution:
        return dist.Normal(z_loc, torch.exp(log_scale)).to_event(1)

    def likelihood(self, logits: Tensor) -> dist.Distribution:
        return dist.Bernoulli(torch.sigmoid(logits), validate_args=False).to_event(1)


class Ours(Vae):
    def prior(self, x: Tensor) -> dist.Distribution:
        return DiagonalNormal.standard(LATENT, device=x.device)

    def posterior(self, z_loc: Tensor, log_scale: Tensor) -> dist.Distribution:
        return DiagonalNormal(z_loc, 2 * log_scale)

    def likelihood(self, logits: Tensor) -> dist.Distribution:
        return IndependentBernoulli(logits)


def pictures(number: int = 256, seed: int = 0) -> Tensor:
    """Binary pictures of 64 pixels with a few degrees of freedom."""
    generator = torch.Generator().manual_seed(seed)
    places = 8 * torch.rand((number, 2, 1), generator=generator)
    along = torch.exp(-((torch.arange(8) - places) ** 2) / 4)
    dark = along[:, 0, :, None] * along[:, 1, None, :]
    return (torch.rand((number, 8, 8), generator=generator) < 0.05 + 0.9 * dark).float().flatten(1)


def training(kind: type[Vae], loss: pyro.infer.ELBO, seed: int, epochs: int = 5) -> Iterator[float]:
    """The loss of each step, in nats per picture."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    vae, x = kind(), pictures()
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-2}), loss=loss)
    for _ in range(epochs):
        for batch in x.split(64):
            yield svi.step(batch) / len(batch)
