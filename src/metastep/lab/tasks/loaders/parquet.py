"""Parquet files with encoded images, in the layout of the well-known dataset hub."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from metastep.lab.tasks.loaders.decode import Labelled, decode_images
from metastep.lab.tasks.sources import optional_module


def read_parquet(
    files: Sequence[Path], *, channels: int, label_columns: Sequence[str] = ("label", "fine_label")
) -> Labelled:
    """Read labelled images from the shards of one split.

    Args:
        files: Shards, in order.
        channels: 3 for red, green, blue; 1 for grey.
        label_columns: Names of the label column; the first that is there counts.

    Raises:
        ValueError: If a shard is missing, or a column is: `img` or `image` with the encoded bytes (a struct
            with a field `bytes`, or binary), and an integer label.
    """
    _check_complete(files)
    pa = optional_module("pyarrow")
    parquet = optional_module("pyarrow.parquet")
    encoded, labels = [], []
    for path in files:
        try:
            names = parquet.read_schema(path).names
            columns = [
                next((name for name in wanted if name in names), None) for wanted in (("img", "image"), label_columns)
            ]
            if None in columns:
                raise ValueError(
                    f"{path} must have a column img or image, and one of {', '.join(label_columns)}; got {names}."
                )
            image_column, label_column = parquet.read_table(path, columns=columns, use_threads=False)
        except pa.ArrowException as error:
            raise ValueError(f"{path} must be a parquet file, got a broken one: {error}.") from error
        if not pa.types.is_integer(label_column.type) or label_column.null_count:
            raise ValueError(f"{path} must have an integer label for every image, got {label_column.type}.")
        for chunk in image_column.chunks:
            column = chunk.field("bytes") if pa.types.is_struct(chunk.type) else chunk
            encoded += [np.frombuffer(value.as_buffer() or b"", np.uint8) for value in column]
        labels.append(label_column.to_numpy())
    images = decode_images(
        len(encoded), encoded.__getitem__, name=lambda i: f"image {i} of {files[0].parent}", channels=channels
    )
    return images, np.concatenate(labels).astype(np.int64)


def _check_complete(files: Sequence[Path]) -> None:
    """Refuse shards i-of-n that are fewer than n."""
    for path in files:
        match = re.search(r"-(\d+)-of-(\d+)", path.stem)
        if match and len(files) != int(match[2]):
            raise ValueError(
                f"{path.parent} must hold {int(match[2])} shards like {path.name}, got {len(files)}; "
                "fetch the others, or remove left-overs."
            )
