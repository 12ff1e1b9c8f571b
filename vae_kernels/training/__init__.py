"""What `python -m vae_kernels.train` is made of."""
