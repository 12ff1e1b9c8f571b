"""Pictures: what is read is what is there, and what is missing is named."""

import gzip
import struct

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from vae_kernels.training import data

RNG = np.random.default_rng(0)


def idx(array):
    """An IDX file as the format's description has it."""
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist_arrays():
    return {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (7, 4, 3), dtype=np.uint8),
        "train-labels-idx1-ubyte": RNG.integers(0, 10, 7, dtype=np.uint8),
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (2, 4, 3), dtype=np.uint8),
        "t10k-labels-idx1-ubyte": RNG.integers(0, 10, 2, dtype=np.uint8),
    }


def test_digits():
    digits, bunch = data.digits(), load_digits()
    assert digits.train.shape == (1438, 1, 8, 8) and digits.held_out.shape == (359, 1, 8, 8)
    # Every picture is in one of the two parts once.
    parts = torch.cat((digits.train, digits.held_out)).flatten(1).numpy()
    order = np.lexsort(parts.T)
    whole = bunch.images.reshape(1797, 64).astype(np.uint8)
    np.testing.assert_array_equal(parts[order], whole[np.lexsort(whole.T)])
    # And those held out kept their labels.
    labels = {picture.tobytes(): label for picture, label in zip(whole, bunch.target, strict=True)}
    want = [labels[picture.numpy().tobytes()] for picture in digits.held_out.flatten(1)]
    assert digits.held_out_labels.tolist() == want
    pixels = digits.pixels(digits.train, torch.float32)
    assert pixels.dtype == torch.float32 and pixels.min() == 0 and pixels.max() == 1


@pytest.mark.parametrize("write", [lambda b: b, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("place", [".", "MNIST/raw"])
@pytest.mark.parametrize("separator", "-.")
def test_mnist(tmp_path, mnist_arrays, write, place, separator):
    folder = tmp_path / place
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in mnist_arrays.items():
        ending = "" if write(b"") == b"" else ".gz"
        (folder / (name.replace("-idx", f"{separator}idx") + ending)).write_bytes(write(idx(array)))
    read = data.load("mnist", tmp_path)
    train, _, held_out, held_out_labels = mnist_arrays.values()
    np.testing.assert_array_equal(read.train[:, 0].numpy(), train)
    np.testing.assert_array_equal(read.held_out[:, 0].numpy(), held_out)
    np.testing.assert_array_equal(read.held_out_labels.numpy(), held_out_labels)
    assert read.white == 255


def test_mnist_missing_or_mismatched(tmp_path, mnist_arrays):
    with pytest.raises(FileNotFoundError, match=r"no train-images-idx3-ubyte in .*four files.*https://"):
        data.load("mnist", tmp_path)
    for name, array in mnist_arrays.items():
        (tmp_path / name).write_bytes(idx(array))
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match="no t10k-labels-idx1-ubyte"):
        data.load("mnist", tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(3, dtype=np.uint8)))
    with pytest.raises(ValueError, match=r"t10k must hold .* got \(2, 4, 3\) and \(3,\)"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an IDX file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "unsigned bytes: it starts with 00 00 0d 01"),
        (b"\0\0\x08\x01\0\0\0\x05abc", r"should hold 5 elements, shape \[5\], but holds 3"),
        (gzip.compress(idx(np.zeros(9, dtype=np.uint8)), mtime=0)[:-9], "not a whole gzip file"),
    ],
)
def test_broken_idx(tmp_path, content, message):
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.read_idx(tmp_path / "file")


def test_images(tmp_path):
    """Central square, colours in order, grey and transparent pictures too, folders below included."""
    (tmp_path / "below").mkdir()
    left_red = np.zeros((16, 32, 3), dtype=np.uint8)
    left_red[:, :16, 0] = 200
    left_red[:, :8] = left_red[:, 24:] = 77  # cropped away
    Image.fromarray(left_red).save(tmp_path / "a.png")
    Image.fromarray(np.full((40, 20), 90, dtype=np.uint8)).save(tmp_path / "below" / "b.BMP")
    Image.fromarray(np.full((16, 16, 4), 50, dtype=np.uint8)).save(tmp_path / "below" / "c.png")
    (tmp_path / "notes.txt").write_text("no picture")
    read = data.load("images", tmp_path, image_size=16)
    assert read.train.shape == (2, 3, 16, 16) and read.held_out.shape == (1, 3, 16, 16)
    assert read.white == 255 and read.held_out_labels is None
    pictures = {int(p.float().mean()): p for p in torch.cat((read.train, read.held_out))}
    assert pictures.keys() == {33, 90, 50}  # 200 in a half of one colour of three
    red = pictures[33]
    assert (red[0, :, :8] == 200).all() and (red[0, :, 8:] == 0).all() and (red[1:] == 0).all()


def test_images_missing_or_broken(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder of pictures at"):
        data.load("images", tmp_path / "none")
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(FileNotFoundError, match="holds 1 pictures, at least 2"):
        data.load("images", tmp_path)
    (tmp_path / "b.png").write_bytes(b"no png")
    with pytest.raises(ValueError, match=r"b\.png is not a picture that Pillow can read"):
        data.load("images", tmp_path)


def test_refused():
    with pytest.raises(ValueError, match="data must be one of digits, mnist, images, got 'cifar'"):
        data.load("cifar")
    with pytest.raises(ValueError, match="'mnist' is read from a folder: name it with --data-dir"):
        data.load("mnist")
