"""The rate-distortion curve of a model: `python -m vae_kernels.sweep --betas 0.5 1 2 4 [options of vae_kernels.train]`.

Each beta gets one training run, in its own folder below `--out`. The held-out terms of the last epochs are written to
`rate_distortion.csv` and drawn in `rate_distortion.png`. The rate is the KL, the distortion is −log p(x|z). A small
beta gives a low distortion at a high rate, a large beta the reverse (Alemi et al. 2018, "Fixing a Broken ELBO").
"""

import argparse
import csv
import sys
from pathlib import Path

from . import train
from .training import history, pictures

CURVE = "rate_distortion"


def main(arguments: list[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, or the status of the first run that did not finish."""
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
