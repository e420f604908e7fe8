"""Folders of images: one folder per class, and TinyImageNet's own arrangement."""

import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.loaders.encoded import Labelled, decode_files
from metastep.lab.tasks.loaders.text import read_text
from metastep.lab.tasks.sources import visible_files

ANNOTATIONS: Final = "val_annotations.txt"
IMAGE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def class_names(files: Sequence[Path]) -> list[str]:
    """Give the names of the classes, in the order in which they are numbered; a class is a file's folder."""
    return sorted({path.parent.name for path in files})


def class_numbers(files: Sequence[Path], names: Sequence[str]) -> NDArray[np.int64]:
    """Give the class of every file, (files,), numbered as `names` says.

    Args:
        files: CLASS/FILE.
        names: The classes of the training images. Every split is numbered by them.

    Raises:
        ValueError: If a file belongs to a class that has no number.
    """
    numbers = {name: i for i, name in enumerate(names)}
    for path in files:
        if path.parent.name not in numbers:
            raise ValueError(
                f"{path.parent} must be of a class that has training images, got none of {path.parent.name!r}; "
                f"the classes are {', '.join(names[:10])}{', ...' if len(names) > 10 else ''}."
            )
    return np.array([numbers[path.parent.name] for path in files], np.int64)


def read_image_files(
    files: Sequence[Path], *, channels: int, names: Sequence[str] | None = None, fit: int | None = None
) -> Labelled:
    """Read images whose class is the name of their folder.

    Args:
        files: The images, all of one size.
        channels: 3 for red, green, blue; 1 for grey.
        names: The classes in order, those of the training images; None: of these files.
        fit: See `decode_images`.

    Raises:
        ValueError: If an image cannot be decoded, differs in size, or belongs to a class without training images.
    """
    labels = class_numbers(files, class_names(files) if names is None else names)
    return decode_files(files, channels=channels, fit=fit), labels


def image_files(folder: Path) -> list[Path]:
    """Give CLASS/*.png (or .jpg, .jpeg, .bmp, .webp) below a folder; one warning counts what is left out.

    Hidden files and folders (.ipynb_checkpoints, macOS's ._x.png) are no images, and are not counted.
    """
    files = [path for path in visible_files(folder, "**/*") if path.is_file()]
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES and path.parent.parent == folder]
    if left_out := set(files) - set(images):
        kinds = Counter(path.suffix.lower() or "no suffix" for path in left_out)
        kinds_text = ", ".join(f"{count} x {kind}" for kind, count in sorted(kinds.items()))
        warnings.warn(
            f"{folder}: {len(left_out)} files are left out ({kinds_text}), such as "
            f"{min(left_out).relative_to(folder)}; read are CLASS/*{{{','.join(IMAGE_SUFFIXES)}}}.",
            stacklevel=2,
        )
    return images


def read_image_folder(
    folder: Path | str, *, channels: int = 3, names: Sequence[str] | None = None
) -> tuple[Labelled, list[str]]:
    """Read CLASS/*.png (or .jpg, .jpeg, .bmp, .webp) below a folder.

    Args:
        folder: The folder that holds one folder per class.
        channels: 3 for red, green, blue; 1 for grey.
        names: The classes in order; give those of the training images when the test images are read.

    Returns:
        (images (N, H, W, channels) uint8, labels (N,) int64), and the names of the classes.

    Raises:
        ValueError: If there are no images, they differ in size, or are of a class that is not in `names`.
    """
    files = image_files(Path(folder))
    if not files:
        raise ValueError(f"folder must hold CLASS/*{{{','.join(IMAGE_SUFFIXES)}}}, got none in {folder}.")
    names = class_names(files) if names is None else list(names)
    return read_image_files(files, channels=channels, names=names), names


def read_tiny_imagenet(files: Sequence[Path]) -> Labelled:
    """Read TinyImageNet: train/WNID/images/*.JPEG, or val/images/*.JPEG with val/val_annotations.txt.

    Classes are numbered in the order of their names, as wnids.txt beside the folders lists them. Grey images become
    grey in colour.

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
        rows = (line.split("\t") for line in read_text(annotated).splitlines())
        class_of = {row[0]: row[1] for row in rows if len(row) > 1}
        unknown = [path.name for path in images if path.name not in class_of]
        if unknown:
            raise ValueError(f"{annotated} must have a line for every image, got none for {unknown[0]}.")
        names = [class_of[path.name] for path in images]
        listing = annotated.parents[1] / "wnids.txt"
    if not listing.is_file():
        raise ValueError(f"{listing} must be there and list the classes, got none; unpack the whole archive.")
    numbers = {name: i for i, name in enumerate(sorted(read_text(listing).split()))}
    strange = sorted(set(names) - set(numbers))
    if strange:
        raise ValueError(f"{listing} must list every class, got none called {strange[0]}.")
    return decode_files(images, channels=3), np.array([numbers[name] for name in names], np.int64)
