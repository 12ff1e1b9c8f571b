"""Seeds and words that the noise is tested with, its true values at the edges, and how far two results are apart."""

import mpmath
import numpy as np
import torch
from torch import Tensor

ONES = 0xFFFFFFFF

# Random123, kat_vectors: counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]

SEEDS = (0, 1, 42, 2**32 - 1, 2**32, 2**32 + 1, 0x299F31D0A4093822, 2**63 - 1)

# Words whose radius or angle lies at the end of its range, or next to a zero of sine or cosine.
EDGES = (0, 1, 2, 0xFF, 2**24, 2**29, 2**30 - 1, 2**30, 2**31 - 1, 2**31, 3 * 2**30 - 1, 3 * 2**30, ONES - 1, ONES)


def edge_words() -> tuple[Tensor, Tensor]:
    """Every pair of the edges."""
    word0, word1 = torch.meshgrid(torch.tensor(EDGES), torch.tensor(EDGES), indexing="ij")
    return word0.flatten(), word1.flatten()


def edge_normals() -> list[np.ndarray]:
    """The two normals of each pair of the edges, as float64."""
    pairs = list(zip(*(word.tolist() for word in edge_words()), strict=True))
    with mpmath.workdps(30):
        radii = [
            mpmath.sqrt(-2 * mpmath.log(mpmath.mpf(float(np.float32(np.float32(a) * 2**-32 + 2**-33)))))
            for a, _ in pairs
        ]
        angles = [2 * mpmath.pi * (b + mpmath.mpf(1) / 2) / 2**32 for _, b in pairs]
        return [
            np.array([float(r * function(angle)) for r, angle in zip(radii, angles, strict=True)])
            for function in (mpmath.sin, mpmath.cos)
        ]


def ulp_apart(got: Tensor, want: np.ndarray) -> float:
    """The largest distance in ulp of float32 at the true value."""
    return float((abs(got.double().cpu().numpy() - want) / np.spacing(abs(want).astype(np.float32))).max())
