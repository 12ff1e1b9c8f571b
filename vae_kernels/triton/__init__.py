"""Triton kernels for NVIDIA and AMD GPUs; under `TRITON_INTERPRET=1` they run on CPU tensors too, for tests.

Triton 3.6 and later is supported. Importing registers the ops of `vae_kernels.ops` in the namespace
`vae_kernels_triton`. Raises ImportError without such a Triton.
"""

import triton

from .. import ops
from . import versions  # noqa: F401  raises under those that no kernel is for
from .categorical import categorical_backward, categorical_forward
from .latent import latent_backward, latent_forward
from .likelihood import likelihood_backward, likelihood_forward

NAMESPACE = "vae_kernels_triton"
OPS = {
    "latent_forward": latent_forward,
    "latent_backward": latent_backward,
    "likelihood_forward": likelihood_forward,
    "likelihood_backward": likelihood_backward,
    "categorical_forward": categorical_forward,
    "categorical_backward": categorical_backward,
}
# CUDA is what torch calls ROCm devices too.
DEVICES = ("cuda", "cpu") if triton.knobs.runtime.interpret else ("cuda",)

library = ops.define(NAMESPACE)
for name, op in OPS.items():
    for device in DEVICES:
        library.impl(name, op, device.upper())
