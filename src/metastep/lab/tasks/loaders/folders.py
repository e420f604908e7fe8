"""A folder of images per class: train/CLASS/*.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from metastep.lab.tasks.loaders.decode import Labelled, decode_images

_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_image_files(files: Sequence[Path], *, channels: int) -> Labelled:
    """Read images whose class is the name of their folder, classes numbered in the names' order.

    Args:
        files: The images, all of one size.
        channels: 3 for red, green, blue; 1 for grey.

    Raises:
        ValueError: If an image cannot be decoded or differs in size.
    """
    classes = {name: i for i, name in enumerate(sorted({path.parent.name for path in files}))}
    images = decode_images(
        len(files),
        lambda i: np.frombuffer(files[i].read_bytes(), np.uint8),
        name=lambda i: str(files[i]),
        channels=channels,
    )
    return images, np.array([classes[path.parent.name] for path in files], np.int64)


def read_image_folder(folder: Path | str, *, channels: int = 3) -> tuple[Labelled, list[str]]:
    """Read CLASS/*.png (or .jpg, .jpeg, .bmp, .webp) below a folder.

    Args:
        folder: The folder that holds one folder per class.
        channels: 3 for red, green, blue; 1 for grey.

    Returns:
        (images (N, H, W, channels) uint8, labels (N,) int64), and the names of the classes.

    Raises:
        ValueError: If there are no images, or they differ in size.
    """
    files = sorted(path for path in Path(folder).glob("*/*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise ValueError(f"folder must hold CLASS/*{{{','.join(_SUFFIXES)}}}, got none in {folder}.")
    return read_image_files(files, channels=channels), sorted({path.parent.name for path in files})
