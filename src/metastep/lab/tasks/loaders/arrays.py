"""IDX files, MNIST's own format, plain or compressed with gzip."""

import gzip
import math
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.loaders.decode import Labelled

_UNSIGNED_BYTE = 8


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Read one array of unsigned bytes.

    The file: two zero bytes, the type (8: unsigned byte), the number of dimensions d, d sizes as big-endian
    32-bit integers, then the values, last dimension fastest.

    Args:
        path: The file; compressed if its name ends in .gz.

    Raises:
        ValueError: If it is not such a file, or longer or shorter than it says.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a gzip file, got a broken one: {error}.") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise ValueError(f"{path} must be an IDX file of unsigned bytes, got one that begins {data[:4]!r}.")
    header = 4 + 4 * data[3]
    if len(data) < header:
        raise ValueError(f"{path} must hold {data[3]} sizes in its header, got only {len(data)} bytes.")
    shape = tuple(int(size) for size in np.frombuffer(data[4:header], ">u4"))
    if len(data) - header != math.prod(shape):
        raise ValueError(f"{path} must hold {shape} bytes after its header, got {len(data) - header}.")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape).copy()


def read_idx_pair(files: Sequence[Path]) -> Labelled:
    """Read grey images and their labels.

    Args:
        files: The images' file, then the labels'.

    Raises:
        ValueError: If they are not (N, H, W) and (N,).
    """
    images, labels = map(read_idx, files)
    if images.ndim != 3 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"{files[0]} and {files[1]} must be (N, H, W) and (N,), got {images.shape} and {labels.shape}."
        )
    return images[..., None], labels.astype(np.int64)
