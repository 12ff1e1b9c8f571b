"""The rate-distortion curve of a model: `python -m vae_kernels.sweep --betas 0.5 1 2 4 [options of vae_kernels.train]`.

One run for each beta, in a folder of its own below `--out`, and from their last epochs' held-out terms
`rate_distortion.csv` and `.png`: rate is the KL, distortion −log p(x|z). Small betas buy fidelity with nats of latents,
large ones save them (Alemi et al. 2018, "Fixing a Broken ELBO").
"""

import argparse
import csv
import sys
from pathlib import Path

from . import train
from .training import history, pictures

CURVE = "rate_distortion"


def main(arguments: list[str] | None = None) -> int:
    """The command. Returns its exit status: 0, or that of the first run that did not finish."""
    parser = argparse.ArgumentParser(prog="python -m vae_kernels.sweep", description=__doc__.splitlines()[0])
    parser.add_argument("--betas", type=float, nargs="+", required=True, help="weights of the KL, one run for each")
    parser.add_argument(
        "--out", type=Path, default=Path("out/sweep"), help="folder for the runs and the curve (out/sweep)"
    )
    options, of_training = parser.parse_known_args(arguments)
    curve = []
    for beta in sorted(set(options.betas)):
        folder = options.out / f"beta-{beta:g}"
        if status := train.main([*of_training, "--beta", str(beta), "--out", str(folder)]):
            return status
        last = history.read(folder)[-1]
        curve.append((beta, last.held_out_kl, -last.held_out_log_px))
    _write(options.out, curve)
    return 0


def _write(folder: Path, curve: list[tuple[float, float, float]]) -> None:
    with (folder / f"{CURVE}.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("beta", "rate", "distortion"))
        writer.writerows((f"{beta:g}", f"{rate:.6f}", f"{distortion:.6f}") for beta, rate, distortion in curve)
    path = folder / f"{CURVE}.png"
    pictures.draw_rate_distortion(path, *map(list, zip(*curve, strict=True)))
    print("rate and distortion:", path)


if __name__ == "__main__":
    sys.exit(main())
