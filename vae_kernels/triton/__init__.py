"""Triton kernels for NVIDIA and AMD GPUs. With `TRITON_INTERPRET=1` they also run on CPU tensors, for tests.

They need Triton 3.6 or later: without it the import raises ImportError. The import registers the ops of
`vae_kernels.ops` in the namespace `vae_kernels_triton`.
"""

import triton

from .. import ops
from . import versions  # noqa: F401  raises for versions that are not supported
from .categorical import categorical_backward, categorical_forward
from .latent import latent_backward, latent_forward
from .likelihood import likelihood_backward, likelihood_forward
from .multinomial import multinomial_backward, multinomial_forward

NAMESPACE = "vae_kernels_triton"
OPS = {
    "latent_forward": latent_forward,
    "latent_backward": latent_backward,
    "likelihood_forward": likelihood_forward,
    "likelihood_backward": likelihood_backward,
    "categorical_forward": categorical_forward,
    "categorical_backward": categorical_backward,
    "multinomial_forward": multinomial_forward,
    "multinomial_backward": multinomial_backward,
}
# torch calls ROCm devices "cuda" as well.
DEVICES = ("cuda", "cpu") if triton.knobs.runtime.interpret else ("cuda",)

library = ops.define(NAMESPACE)
for name, op in OPS.items():
    for device in DEVICES:
        library.impl(name, op, device.upper())
