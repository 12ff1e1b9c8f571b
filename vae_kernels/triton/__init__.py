"""Triton kernels for NVIDIA and AMD GPUs; under `TRITON_INTERPRET=1` they run on CPU tensors too, for tests.

Triton 3.6 and later is supported. Importing registers the ops of `vae_kernels.fakes` in the namespace
`vae_kernels_triton`. Raises ImportError without such a Triton.
"""

import torch
import triton

from .. import fakes
from . import versions  # noqa: F401  raises under those that no kernel is for
from .categorical import categorical_backward, categorical_forward
from .latent import (
    latent_backward,
    latent_forward,
    latent_packed_backward,
    latent_packed_forward,
    latent_plain_backward,
    latent_plain_forward,
    latent_prior_backward,
    latent_prior_forward,
)
from .likelihood import (
    likelihood_backward,
    likelihood_forward,
    likelihood_pair_backward,
    likelihood_pair_forward,
    likelihood_triple_backward,
    likelihood_triple_forward,
)

NAMESPACE = "vae_kernels_triton"
OPS = {
    "latent_forward": latent_forward,
    "latent_backward": latent_backward,
    "latent_plain_forward": latent_plain_forward,
    "latent_plain_backward": latent_plain_backward,
    "latent_prior_forward": latent_prior_forward,
    "latent_prior_backward": latent_prior_backward,
    "latent_packed_forward": latent_packed_forward,
    "latent_packed_backward": latent_packed_backward,
    "likelihood_forward": likelihood_forward,
    "likelihood_backward": likelihood_backward,
    "likelihood_pair_forward": likelihood_pair_forward,
    "likelihood_pair_backward": likelihood_pair_backward,
    "likelihood_triple_forward": likelihood_triple_forward,
    "likelihood_triple_backward": likelihood_triple_backward,
    "categorical_forward": categorical_forward,
    "categorical_backward": categorical_backward,
}
# CUDA is what torch calls ROCm devices too.
DEVICES = ("cuda", "cpu") if triton.knobs.runtime.interpret else ("cuda",)

library = torch.library.Library(NAMESPACE, "DEF")
for name, op in OPS.items():
    library.define(name + fakes.SCHEMAS[name])
    for device in DEVICES:
        library.impl(name, op, device.upper())
fakes.register(NAMESPACE)
