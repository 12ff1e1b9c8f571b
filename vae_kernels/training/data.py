"""Training pictures: scikit-learn's digits, MNIST's IDX files, or a folder of pictures."""

import gzip
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..extras import require

SOURCES = ("digits", "mnist", "images")

_UNSIGNED_BYTE = 0x08


class Pictures(NamedTuple):
    """Training and held-out pictures, uint8 `(N, channels, height, width)` with values from 0 to `white`.

    They stay uint8, which needs a quarter of the memory of float32. `pixels` converts them to floats in [0, 1].
    """

    train: Tensor
    held_out: Tensor
    white: int
    held_out_labels: Tensor | None

    def to(self, device: torch.device) -> "Pictures":
        return self._replace(train=self.train.to(device), held_out=self.held_out.to(device))

    def pixels(self, pictures: Tensor, dtype: torch.dtype) -> Tensor:
        return pictures.to(dtype) / self.white


def load(source: str, folder: Path | None = None, image_size: int = 64) -> Pictures:
    """Load the pictures of one of `SOURCES`. All sources except "digits" are read from `folder`.

    Raises:
        ValueError: the source is unknown, `folder` is missing, or a file has the wrong format.
        FileNotFoundError: files are missing in the folder; the message names them.
        ImportError: scikit-learn or Pillow is needed and missing.
    """
    if source not in SOURCES:
        raise ValueError(f"data must be one of {', '.join(SOURCES)}, got {source!r}")
    if source == "digits":
        return digits()
    if folder is None:
        raise ValueError(f"data {source!r} is read from a folder: name it with --data-dir")
    return mnist(folder) if source == "mnist" else images(folder, image_size)


def digits() -> Pictures:
    """Load scikit-learn's 1797 handwritten digits of 8×8 pixels in 17 levels. About every fifth is held out.

    Source: Alpaydin & Kaynak 1998, "Optical recognition of handwritten digits", UCI Machine Learning Repository.
    """
    bunch = require("sklearn.datasets").load_digits()
    pictures = torch.from_numpy(bunch.images).to(torch.uint8).unsqueeze(1)
    return _split(pictures, white=16, labels=torch.from_numpy(bunch.target))


def mnist(folder: Path) -> Pictures:
    """Load the four IDX files of MNIST, or of a set in its format, gzipped or not. The test pictures are held out."""
    read = {
        (part, kind): read_idx(_find_idx(folder, f"{part}-{kind}"))
        for part in ("train", "t10k")
        for kind in ("images", "labels")
    }
    for part in ("train", "t10k"):
        pictures, labels = read[part, "images"], read[part, "labels"]
        if pictures.dim() != 3 or labels.shape != pictures.shape[:1]:
            raise ValueError(
                f"{part} must hold pictures (N, height, width) and labels (N,), got {tuple(pictures.shape)} and "
                f"{tuple(labels.shape)} in {folder}"
            )
    return Pictures(
        train=read["train", "images"].unsqueeze(1),
        held_out=read["t10k", "images"].unsqueeze(1),
        white=255,
        held_out_labels=read["t10k", "labels"].long(),
    )


def images(folder: Path, size: int) -> Pictures:
    """Load all pictures in `folder` and below, in colour, with the central square scaled to `size`×`size`."""
    image, ops = require("PIL.Image"), require("PIL.ImageOps")
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder of pictures at {folder}")
    known = image.registered_extensions()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in known)
    if len(paths) < 2:
        raise FileNotFoundError(f"{folder} holds {len(paths)} pictures, at least 2 are needed: one is held out")
    pictures = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for picture, path in zip(pictures, paths, strict=True):
        try:
            with image.open(path) as opened:
                square = ops.fit(ops.exif_transpose(opened).convert("RGB"), (size, size))
        except OSError as error:
            raise ValueError(f"{path} is not a picture that Pillow can read: {error}") from error
        colours_last = torch.frombuffer(bytearray(square.tobytes()), dtype=torch.uint8).view(size, size, 3)
        picture.copy_(colours_last.permute(2, 0, 1))
    return _split(pictures, white=255, labels=None)


def read_idx(path: Path) -> Tensor:
    """Read the array in an IDX file of unsigned bytes, gzipped or not.

    The format is: two zero bytes, the type (0x08), the number of dims, each dim as a big-endian 32-bit integer, then
    the elements.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if len(raw) < 4 or raw[:3] != bytes((0, 0, _UNSIGNED_BYTE)):
        raise ValueError(f"{path} is not an IDX file of unsigned bytes: it starts with {raw[:4].hex(' ')}")
    start = 4 + 4 * raw[3]
    shape = [int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4)]
    if len(raw) != start + prod(shape):
        raise ValueError(f"{path} should hold {prod(shape)} elements, shape {shape}, but holds {len(raw) - start}")
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8, offset=start).view(shape)


def _find_idx(folder: Path, stem: str) -> Path:
    """Find an IDX file such as `train-images-idx3-ubyte`, unpacked by hand or by torchvision, gzipped or not."""
    dims = 3 if stem.endswith("images") else 1
    names = [f"{stem}{dot}idx{dims}-ubyte{ending}" for dot in "-." for ending in ("", ".gz")]
    candidates = [place / name for place in (folder, folder / "MNIST" / "raw") for name in names]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(
            f"no {names[0]} in {folder}: MNIST's four files, {{train,t10k}}-images-idx3-ubyte and "
            "{train,t10k}-labels-idx1-ubyte, gzipped or not, must lie there; they are at "
            "https://ossci-datasets.s3.amazonaws.com/mnist/"
        )
    return found


def _split(pictures: Tensor, white: int, labels: Tensor | None) -> Pictures:
    """Hold out a fifth of the pictures, at most 10 000. They are the same for every seed of the training."""
    held_out = min(max(len(pictures) // 5, 1), 10_000)
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(0))
    return Pictures(
        train=pictures[order[held_out:]],
        held_out=pictures[order[:held_out]],
        white=white,
        held_out_labels=None if labels is None else labels[order[:held_out]],
    )
