"""Benchmarks of vae_kernels: see `python -m benchmarks --help`, and README.md in this folder."""
