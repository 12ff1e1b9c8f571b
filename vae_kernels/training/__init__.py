"""The parts of `python -m vae_kernels.train`."""
