"""TinyImageNet's folders: train/WNID/images/*.JPEG, and val/images/*.JPEG with val/val_annotations.txt."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from metastep.lab.tasks.loaders.decode import Labelled, decode_images

ANNOTATIONS: Final = "val_annotations.txt"


def read_tiny_imagenet(files: Sequence[Path]) -> Labelled:
    """Read the training images, or the validation images and their annotations; grey ones become grey in colour.

    Classes are numbered in the order of their names, as wnids.txt beside the folders lists them.

    Args:
        files: The images, and for validation the file of annotations.

    Raises:
        ValueError: If an image has no class, or cannot be decoded.
    """
    annotated = next((path for path in files if path.name == ANNOTATIONS), None)
    images = [path for path in files if path.name != ANNOTATIONS]
    if annotated is None:
        names = [path.parents[1].name for path in images]
        listing = images[0].parents[3] / "wnids.txt"
    else:
        rows = (line.split("\t") for line in annotated.read_text("utf-8").splitlines())
        class_of = {row[0]: row[1] for row in rows if len(row) > 1}
        unknown = [path.name for path in images if path.name not in class_of]
        if unknown:
            raise ValueError(f"{annotated} must have a line for every image, got none for {unknown[0]}.")
        names = [class_of[path.name] for path in images]
        listing = annotated.parents[1] / "wnids.txt"
    if not listing.is_file():
        raise ValueError(f"{listing} must be there and list the classes, got none; unpack the whole archive.")
    numbers = {name: i for i, name in enumerate(sorted(listing.read_text("utf-8").split()))}
    strange = sorted(set(names) - set(numbers))
    if strange:
        raise ValueError(f"{listing} must list every class, got none called {strange[0]}.")
    pixels = decode_images(
        len(images),
        lambda i: np.frombuffer(images[i].read_bytes(), np.uint8),
        name=lambda i: str(images[i]),
        channels=3,
    )
    return pixels, np.array([numbers[name] for name in names], np.int64)
