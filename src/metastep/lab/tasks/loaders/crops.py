"""Encoded photographs of any size to windows of one size, as networks for ImageNet are trained and tested."""

import math
from random import Random
from typing import Final

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.sources import optional_module

_AREA: Final = (0.08, 1.0)  # share of the photograph
_RATIO: Final = (3 / 4, 4 / 3)  # width / height
_TRIES: Final = 10
_MARGIN: Final = 256 / 224  # of the short side, when the middle is cut out


def decode_crop(encoded: bytes, *, size: int, seed: int | None, name: str) -> NDArray[np.uint8]:
    """Decode a photograph and cut a square window out of it.

    Args:
        encoded: Its bytes.
        size: Height and width of the result.
        seed: Draws a window of 8 to 100 % of the area, and whether it is mirrored (Szegedy et al. 2015); None: the
            middle, after the short side was made 8/7 of the size.
        name: What it is called in errors.

    Returns:
        (size, size, 3): red, green, blue.

    Raises:
        ValueError: If it cannot be decoded.
    """
    cv2 = optional_module("cv2")
    source = np.frombuffer(encoded, np.uint8)
    image = cv2.imdecode(source, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION) if source.size else None
    if image is None:
        raise ValueError(f"{name} must be JPEG, PNG or the like, got {source.size} other bytes.")
    height, width = image.shape[:2]
    if seed is None:
        side = min(height, width) / _MARGIN
        top, left = round((height - side) / 2), round((width - side) / 2)
        window = (top, left, max(1, round(side)), max(1, round(side)))
        mirrored = False
    else:
        random = Random(seed)
        window = random_window(height, width, random)
        mirrored = random.random() < 0.5
    top, left, rows, columns = window
    part = image[top : top + rows, left : left + columns]
    shrinks = rows > size
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    pixels: NDArray[np.uint8] = cv2.cvtColor(part[:, ::-1] if mirrored else part, cv2.COLOR_BGR2RGB)
    return pixels


def random_window(height: int, width: int, random: Random) -> tuple[int, int, int, int]:
    """Draw (top, left, rows, columns); the largest central window of a fitting shape if ten tries do not fit."""
    for _ in range(_TRIES):
        area = height * width * random.uniform(*_AREA)
        ratio = math.exp(random.uniform(math.log(_RATIO[0]), math.log(_RATIO[1])))
        columns, rows = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows <= height and 0 < columns <= width:
            return random.randint(0, height - rows), random.randint(0, width - columns), rows, columns
    ratio = min(max(width / height, _RATIO[0]), _RATIO[1])
    columns, rows = min(width, round(height * ratio)), min(height, round(width / ratio))
    return (height - rows) // 2, (width - columns) // 2, rows, columns
