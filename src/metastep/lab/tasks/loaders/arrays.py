"""Raw arrays on disk: IDX files (MNIST's own format, plain or compressed with gzip) and SVHN's MATLAB files."""

import math
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.loaders.encoded import Labelled
from metastep.lab.tasks.sources import optional_module

_UNSIGNED_BYTE: Final = 8
_MOST_BYTES: Final = 2**30  # of one array, 20 times MNIST's largest: a short gzip file may claim any length


def check_labels(labels: NDArray[np.int64], num_classes: int, path: Path | str) -> None:
    """Refuse labels that are no class.

    Raises:
        ValueError: If a label is not in 0..num_classes - 1; the message names the file.
    """
    strange = labels[(labels < 0) | (labels >= num_classes)]
    if strange.size:
        raise ValueError(
            f"{path} must hold labels in 0..{num_classes - 1}, got {strange[0]} "
            f"({strange.size} of {labels.size} labels are none)."
        )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one array of unsigned bytes.

    The file: two zero bytes, the type (8: unsigned byte), the number of dimensions d, d sizes as big-endian
    32-bit integers, then the values, last dimension fastest.

    Args:
        path: The file; compressed if its name ends in .gz.

    Raises:
        ValueError: If it is not such a file, or longer or shorter than it says.
    """
    data = _decompressed(path) if path.suffix == ".gz" else path.read_bytes()
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise ValueError(f"{path} must be an IDX file of unsigned bytes, got one that begins {data[:4]!r}.")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError(f"{path} must hold {data[3]} sizes in its header, got only {len(data)} bytes.")
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], ">u4"))
    if len(shape) not in (1, 2, 3):
        raise ValueError(f"{path} must have 1 to 3 dimensions, got {len(shape)}.")
    if len(data) - header != math.prod(shape):
        raise ValueError(f"{path} must hold {shape} bytes after its header, got {len(data) - header}.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def _decompressed(path: Path) -> bytes:
    inflate = zlib.decompressobj(wbits=31)  # gzip, with its checksum
    try:
        data = inflate.decompress(path.read_bytes(), _MOST_BYTES)
    except zlib.error as error:
        raise ValueError(f"{path} must be a gzip file, got a broken one: {error}.") from error
    if not inflate.eof:
        how = f"it holds more than {_MOST_BYTES} bytes" if inflate.unconsumed_tail else "it ends too early"
        raise ValueError(f"{path} must be a gzip file, got a broken one: {how}.")
    return data


def read_idx_pair(files: Sequence[Path], *, num_classes: int = 256) -> Labelled:
    """Read grey images and their labels.

    Args:
        files: The images' file, then the labels'.
        num_classes: Number of classes.

    Raises:
        ValueError: If they are not (N, H, W) and (N,), or a label is no class.
    """
    images, labels = map(read_idx, files)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{files[0]} and {files[1]} must be (N, H, W) and (N,), got {images.shape} and {labels.shape}."
        )
    check_labels(labels.astype(np.int64), num_classes, files[1])
    return images[..., None], labels.astype(np.int64)


def read_svhn(files: Sequence[Path]) -> Labelled:
    """Read train_32x32.mat, or test_32x32.mat; the label 10 stands for the digit 0.

    Raises:
        ValueError: If a file is no such file.
    """
    loadmat = optional_module("scipy.io").loadmat
    images, labels = [], []
    for path in files:
        try:
            found = loadmat(path, variable_names=("X", "y"))
        except Exception as error:  # a damaged file fails in many ways
            raise ValueError(f"{path} must be a MATLAB file, got one that is refused: {error}.") from error
        pixels, digits = found.get("X"), found.get("y")
        if pixels is None or digits is None:
            raise ValueError(f"{path} must hold X and y, got {sorted(name for name in found if name[0] != '_')}.")
        if pixels.dtype != np.uint8 or pixels.shape != (32, 32, 3, digits.size):
            raise ValueError(
                f"{path} must hold (32, 32, 3, {digits.size}) uint8 pixels for its labels, "
                f"got {pixels.shape} {pixels.dtype}."
            )
        classes = digits.ravel().astype(np.int64)
        if classes.size and not 0 <= classes.min() <= classes.max() <= 10:
            raise ValueError(f"{path} must hold labels in 1..10, got {classes.min()}..{classes.max()}.")
        images.append(pixels.transpose(3, 0, 1, 2))
        labels.append(classes % 10)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)
