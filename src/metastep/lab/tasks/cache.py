"""Decoded images are kept on disk, so that a data set is decoded once."""

import contextlib
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metastep.files import write_atomically
from metastep.lab.tasks.loaders.decode import Labelled


def cache_folder() -> Path:
    """Give the folder of decoded images: METASTEP_CACHE, or ~/.cache/metastep."""
    return Path(os.environ.get("METASTEP_CACHE") or "~/.cache/metastep").expanduser()


def decoded_once(files: Sequence[Path], decode: Callable[[], Labelled], *, variant: str) -> Labelled:
    """Give what `decode` gives, from the cache if these very files were decoded before.

    The arrays are mapped from the disk, so that processes share their memory. A cache that cannot be read is
    made anew, one that cannot be written is done without.

    Args:
        files: What is decoded; path, size and time of modification are the key.
        decode: Decodes them.
        variant: Tells different decodings of the same files apart.
    """
    key = hashlib.sha256(variant.encode())
    for path in files:
        stat = path.stat()
        key.update(f"\0{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode())
    stem = cache_folder() / f"{files[0].parent.name}-{key.hexdigest()[:24]}"
    image_file, label_file = stem.with_suffix(".images.npy"), stem.with_suffix(".labels.npy")
    with contextlib.suppress(OSError, ValueError, EOFError):
        images, labels = _mapped(image_file), _mapped(label_file)
        if images.dtype == np.uint8 and images.ndim == 4 and labels.shape == images.shape[:1]:
            return images, labels
    images, labels = decode()
    with contextlib.suppress(OSError):
        write_atomically(image_file, _as_npy(images))
        write_atomically(label_file, _as_npy(labels))
    return images, labels


def _mapped(path: Path) -> NDArray[Any]:
    # "c": the file is never changed, yet torch is content with a writable array.
    array: NDArray[Any] = np.load(path, mmap_mode="c", allow_pickle=False)
    return array


def _as_npy(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()
