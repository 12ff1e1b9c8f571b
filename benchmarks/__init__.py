"""Benchmarks of vae_kernels: `python -m benchmarks --help`, and README.md beside this file."""
