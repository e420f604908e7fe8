"""Encoded images (PNG, JPEG, ...) to uint8 arrays: checked before they are decoded, and decoded once."""

import contextlib
import hashlib
import io
import math
import os
import struct
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metastep.compiled import cache_directory
from metastep.files import write_atomically
from metastep.lab.tasks.sources import optional_module

Labelled = tuple[NDArray[np.uint8], NDArray[np.int64]]  # (N, H, W, C) pixels, (N,) classes

#: Pixels of the largest image that is decoded: more than a camera gives, and 200 MB in memory.
MOST_PIXELS: Final = 2**26
_PNG: Final = b"\x89PNG\r\n\x1a\n"
_AREA: Final = (0.08, 1.0)  # share of the photograph
_RATIO: Final = (3 / 4, 4 / 3)  # width / height
_TRIES: Final = 10
_MARGIN: Final = 256 / 224  # of the short side, when the middle is cut out


# What a file says of itself, before anything is decoded


def image_size(encoded: bytes) -> tuple[int, int] | None:
    """Read height and width from the header of a PNG, JPEG, GIF, BMP or WebP; None for any other content.

    Example:
        >>> image_size(b"GIF89a" + bytes([3, 0, 2, 0]))
        (2, 3)
    """
    with contextlib.suppress(struct.error):
        if encoded[:8] == _PNG:
            width, height = struct.unpack_from(">II", encoded, 16)
        elif encoded[:2] == b"\xff\xd8":
            return _jpeg_size(encoded)
        elif encoded[:6] in (b"GIF87a", b"GIF89a"):
            width, height = struct.unpack_from("<HH", encoded, 6)
        elif encoded[:2] == b"BM":
            width, height = (abs(side) for side in struct.unpack_from("<ii", encoded, 18))
        elif encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP":
            return _webp_size(encoded)
        else:
            return None
        return height, width
    return None


def _jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    place = 2
    while encoded[place] == 0xFF if place < len(encoded) else False:
        marker, length = struct.unpack_from(">BH", encoded, place + 1)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame: it begins with the size
            height, width = struct.unpack_from(">HH", encoded, place + 5)
            return height, width
        # Filling bytes stand alone; everything else says how long it is.
        place += 1 if marker == 0xFF else 2 + length
    return None


def _webp_size(encoded: bytes) -> tuple[int, int] | None:
    kind = encoded[12:16]
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", encoded, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", encoded, 21)
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    elif kind == b"VP8X":
        low, high = struct.unpack_from("<IH", encoded, 24)  # 24 bits each, less one
        width, height = 1 + (low & 0xFFFFFF), 1 + (low >> 24 | high << 8)
    else:
        return None
    return height, width


def _check_png(encoded: bytes, name: str) -> None:
    """Refuse a PNG whose checksums say that it is damaged; decoders give such images half, or with other pixels."""
    place, kind = len(_PNG), b""
    while kind != b"IEND":
        if place + 12 > len(encoded):
            raise ValueError(f"{name} is a damaged PNG: it ends too early; fetch it again.")
        length, kind = struct.unpack_from(">I4s", encoded, place)
        end = place + 8 + length
        if end + 4 > len(encoded) or zlib.crc32(encoded[place + 4 : end]) != struct.unpack_from(">I", encoded, end)[0]:
            raise ValueError(f"{name} is a damaged PNG: the checksum of a part is wrong; fetch it again.")
        place = end + 4


def checked_size(encoded: bytes, name: str) -> tuple[int, int]:
    """Give height and width of an image that may be decoded.

    Raises:
        ValueError: If it is of another kind, claims too many pixels, or is a PNG with wrong checksums.
    """
    size = image_size(encoded)
    if size is None:
        raise ValueError(f"{name} must be JPEG, PNG or the like, got {len(encoded)} other bytes.")
    if not 1 <= size[0] * size[1] <= MOST_PIXELS:
        raise ValueError(f"{name} must have 1 to {MOST_PIXELS} pixels, it claims {size[1]} x {size[0]}; resize it.")
    if encoded[:8] == _PNG:
        _check_png(encoded, name)
    return size


def decode_image(encoded: bytes, *, channels: int, name: str) -> NDArray[np.uint8]:
    """Decode one image.

    Args:
        encoded: Its bytes.
        channels: 3 for red, green, blue; 1 for grey.
        name: What it is called in errors.

    Returns:
        (H, W, channels).

    Raises:
        ValueError: If it cannot be decoded or is too large.
    """
    return _decoded(encoded, checked_size(encoded, name), channels, name)


def _decoded(encoded: bytes, size: tuple[int, int], channels: int, name: str) -> NDArray[np.uint8]:
    cv2 = optional_module("cv2")
    # The camera's orientation is ignored: the pixels are wanted as they are stored.
    flags = (cv2.IMREAD_COLOR if channels == 3 else cv2.IMREAD_GRAYSCALE) | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image: NDArray[np.uint8] | None = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    except cv2.error:
        image = None
    if image is None or image.shape[:2] != size:
        raise ValueError(f"{name} is damaged: it begins like an image of {size[1]} x {size[0]} and cannot be decoded.")
    return image[:, :, ::-1] if channels == 3 else image[:, :, None]  # OpenCV has blue first; a view


# Images of one size, whole


def decode_images(
    count: int,
    encoded: Callable[[int], bytes],
    *,
    name: Callable[[int], str],
    channels: int,
    fit: int | None = None,
) -> NDArray[np.uint8]:
    """Decode `count` images of one size, on all cores.

    Args:
        count: Number of images.
        encoded: Gives the bytes of image i.
        name: What image i is called in errors.
        channels: 3 for red, green, blue; 1 for grey.
        fit: Images of several sizes, or with a side above this, are all scaled to so many pixels squared; None:
            they are refused if they differ.

    Returns:
        (count, H, W, channels).

    Raises:
        ValueError: If an image cannot be decoded or differs in size from the first.
    """
    if count == 0:
        return np.empty((0, 1, 1, channels), np.uint8)
    size = checked_size(encoded(0), name(0))
    scaled = fit is not None and (max(size) > fit or any(image_size(encoded(i)) != size for i in range(count)))
    if scaled:
        assert fit is not None
        size = (fit, fit)
    try:
        images = np.empty((count, *size, channels), np.uint8)
    except MemoryError:
        raise ValueError(
            f"{count} images of {size[1]} x {size[0]} pixels need {count * math.prod(size) * channels / 1e9:.0f} GB "
            "of memory; resize them."
        ) from None

    def fill(start: int) -> None:
        for i in range(start, min(start + stretch, count)):
            source = encoded(i)
            own = checked_size(source, name(i))
            if own != size and not scaled:
                raise ValueError(
                    f"{name(i)} must have the size of {name(0)}, {size}, got {own}; resize the images beforehand."
                )
            image = _decoded(source, own, channels, name(i))
            images[i] = _scaled(image, size) if scaled else image

    stretch = 512
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(fill, range(0, count, stretch)))
    return images


def _scaled(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    cv2 = optional_module("cv2")
    result = cv2.resize(np.ascontiguousarray(image), size, interpolation=cv2.INTER_AREA)
    return result.reshape(*size, image.shape[2])  # type: ignore[no-any-return]


def decode_files(files: Sequence[Path], *, channels: int, fit: int | None = None) -> NDArray[np.uint8]:
    """Decode image files; see `decode_images`."""
    return decode_images(
        len(files), lambda i: files[i].read_bytes(), name=lambda i: str(files[i]), channels=channels, fit=fit
    )


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
    stem = cache_directory() / f"{files[0].parent.name}-{key.hexdigest()[:24]}"
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


# Windows of photographs of any size


def decode_crop(encoded: bytes, *, size: int, seed: int | None, name: str) -> NDArray[np.uint8]:
    """Decode a photograph and cut a square window out of it, as networks for ImageNet are trained and tested.

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
    image = decode_image(encoded, channels=3, name=name)
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
    part = np.ascontiguousarray(image[top : top + rows, left : left + columns])
    shrinks = rows > size
    part = cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return np.ascontiguousarray(part[:, ::-1] if mirrored else part)


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
