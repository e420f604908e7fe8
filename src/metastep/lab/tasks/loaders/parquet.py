"""Parquet files with encoded images, in the layout of the well-known dataset hub."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.loaders.arrays import check_labels
from metastep.lab.tasks.loaders.encoded import Labelled, decode_images
from metastep.lab.tasks.sources import optional_module

IMAGE_COLUMNS: Final = ("img", "image")
LABEL_COLUMNS: Final = ("label", "fine_label")


def read_parquet(
    files: Sequence[Path], *, channels: int, num_classes: int | None = None, fit: int | None = None
) -> Labelled:
    """Read labelled images from the shards of one split.

    Args:
        files: Shards, in order.
        channels: 3 for red, green, blue; 1 for grey.
        num_classes: Number of classes; None: as many as there are.
        fit: See `decode_images`.

    Raises:
        ValueError: If a shard is missing, or a column is: `img` or `image` with the encoded bytes (a struct
            with a field `bytes`, or binary), and an integer `label` or `fine_label`.
    """
    _check_complete(files)
    encoded: list[Any] = []
    names: list[str] = []
    labels: list[NDArray[np.int64]] = []
    for path in files:
        images, classes = _read_shard(path)
        check_labels(classes, 2**31 if num_classes is None else num_classes, path)
        encoded += images
        names += [f"image {i} of {path}" for i in range(len(images))]
        labels.append(classes)
    pixels = decode_images(
        len(encoded), lambda i: encoded[i].as_py(), name=names.__getitem__, channels=channels, fit=fit
    )
    return pixels, np.concatenate(labels)


def _read_shard(path: Path) -> tuple[list[Any], NDArray[np.int64]]:
    pa = optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            columns = [next((n for n in wanted if n in names), None) for wanted in (IMAGE_COLUMNS, LABEL_COLUMNS)]
            if None in columns:
                raise ValueError(
                    f"{path} must have a column {' or '.join(IMAGE_COLUMNS)}, and one of {', '.join(LABEL_COLUMNS)}; "
                    f"got {', '.join(names)[:200]}."
                )
            image_type, label_type = (file.schema_arrow.field(column).type for column in columns)
            _check_types(pa, path, image_type, label_type)
            table = file.read(columns=columns, use_threads=False)
            table.validate(full=True)
            image_column, label_column = (table.column(column) for column in columns)
    # Damaged files fail in many ways, also with OSError; a missing one is none of them.
    except (pa.ArrowException, OSError, UnicodeDecodeError, OverflowError, MemoryError, TypeError, KeyError) as error:
        if isinstance(error, FileNotFoundError | PermissionError):
            raise
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} must be a parquet file, got a broken one: {reason}.") from error
    if label_column.null_count:
        raise ValueError(
            f"{path} must have an integer label for every image, got {label_column.null_count} empty ones."
        )
    images = [value for chunk in image_column.chunks for value in _bytes_of(pa, chunk)]
    empty = next((i for i, value in enumerate(images) if not value.is_valid), None)
    if empty is not None:
        raise ValueError(
            f"image {empty} of {path} must be JPEG, PNG or the like, got none; "
            "if the file holds paths, put the content of the image files into it."
        )
    return images, label_column.to_numpy().astype(np.int64)


def _bytes_of(pa: Any, chunk: Any) -> Iterator[Any]:
    return iter(chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk)


def _check_types(pa: Any, path: Path, images: Any, labels: Any) -> None:
    if pa.types.is_struct(images):
        index = images.get_field_index("bytes")
        images = images.field(index).type if index >= 0 else images
    if not (pa.types.is_binary(images) or pa.types.is_large_binary(images)):
        raise ValueError(
            f"{path} must hold encoded images (bytes of PNG or JPEG files), got {str(images)[:100]}; "
            "write the content of the image files into the column, not paths or lists of pixels."
        )
    if not pa.types.is_integer(labels):
        raise ValueError(f"{path} must have an integer label for every image, got {str(labels)[:100]}.")


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse shards i-of-n that are fewer than n."""
    for path in files:
        match = re.search(r"-(\d+)-of-(\d+)", path.stem)
        if match and len(files) != int(match[2]):
            raise ValueError(
                f"{path.parent} must hold {int(match[2])} shards like {path.name}, got {len(files)}; "
                "fetch the others, or remove left-overs."
            )
