"""Encoded images (JPEG, PNG, ...) to one uint8 array, on several threads."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.sources import optional_module

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, H, W, C) pixels, (N,) classes


def decode_images(
    count: int, encoded: Callable[[int], NDArray[np.uint8]], *, name: Callable[[int], str], channels: int
) -> NDArray[np.uint8]:
    """Decode `count` images of one size.

    Args:
        count: Number of images.
        encoded: Gives the bytes of image i as a 1-D array.
        name: What image i is called in errors.
        channels: 3 for red, green, blue; 1 for grey.

    Returns:
        (count, H, W, channels).

    Raises:
        ValueError: If an image cannot be decoded or differs in size from the first.
    """
    cv2 = optional_module("cv2")
    # The camera's orientation is ignored: the pixels are wanted as they are stored.
    flags = (cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION

    def decode(i: int) -> NDArray[np.uint8]:
        source = encoded(i)
        image: NDArray[np.uint8] | None = cv2.imdecode(source, flags) if source.size else None
        if image is None:
            raise ValueError(f"{name(i)} must be JPEG, PNG or the like, got {source.size} other bytes.")
        if channels == 3:
            return cast("NDArray[np.uint8]", cv2.cvtColor(image, cv2.COLOR_BGR2RGB))
        return image[:, :, None]

    if count == 0:
        return np.empty((0, 1, 1, channels), np.uint8)
    first = decode(0)
    images = np.empty((count, *first.shape), np.uint8)

    def fill(start: int) -> None:
        for i in range(start, min(start + stretch, count)):
            image = decode(i)
            if image.shape != first.shape:
                raise ValueError(
                    f"{name(i)} must have the size of {name(0)}, {first.shape[:2]}, got {image.shape[:2]}; "
                    "resize the images beforehand."
                )
            images[i] = image

    stretch = 512
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, count, stretch)))
    return images
