"""CIFAR's "python version": pickled dictionaries, read without trusting them."""

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.loaders.decode import Labelled


class _Type:
    """Stands in for numpy.dtype: remembers the code, ignores the rest."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment mean nothing to single bytes."""


class _Array:
    """Stands in for an array that is filled after it was made."""

    values: NDArray[np.uint8] = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, by_column, raw = state
        self.values = _unsigned_bytes(raw, kind, shape, "F" if by_column else "C").values


def _unsigned_bytes(raw: bytes, kind: _Type, shape: tuple[int, ...], order: Any) -> _Array:
    if kind.code != "u1":
        raise pickle.UnpicklingError(f"it holds an array of type {kind.code}")
    array = _Array()
    array.values = np.frombuffer(raw, np.uint8).reshape(shape, order=order)
    return array


def _latin1(text: str, encoding: str) -> bytes:
    """Stands in for codecs.encode, with which old protocols write bytes."""
    return text.encode({"latin1": "latin1", "latin-1": "latin1"}[encoding])


# All that a pickled dictionary of bytes, lists and uint8 arrays refers to, under old and new names. Nothing
# that a file names is imported or called: each name has a stand-in here.
_STAND_INS: Final[dict[tuple[str, str], Callable[..., object]]] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.numeric", "_frombuffer"): _unsigned_bytes,
    ("numpy._core.numeric", "_frombuffer"): _unsigned_bytes,
    ("_codecs", "encode"): _latin1,
}


# A damaged file fails in many ways.
_DAMAGE: Final = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    OverflowError,
)


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Callable[..., object]:
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def read_cifar(files: Sequence[Path]) -> Labelled:
    """Read CIFAR-10 or CIFAR-100 batches (of the latter the fine labels).

    Args:
        files: data_batch_1 .. data_batch_5, or test_batch, or train, or test.

    Raises:
        ValueError: If a file is no such batch; one that asks for anything but arrays, bytes and plain
            containers is refused before anything of it runs.
    """
    images, labels = [], []
    for path in files:
        batch = _read(path)
        pixels = batch.get("data")
        classes = batch.get("fine_labels", batch.get("labels"))
        if not isinstance(pixels, _Array) or not isinstance(classes, list):
            raise ValueError(f"{path} must hold an array 'data' and a list of labels, got {sorted(batch)}.")
        strange = [label for label in classes if not (isinstance(label, int) and 0 <= label < 100)]
        if strange:
            raise ValueError(f"{path} must hold labels in 0..99, got {strange[0]!r}.")
        shape = (len(classes), 3072)
        if pixels.values.shape != shape:
            raise ValueError(f"{path} must hold {shape} pixels for its labels, got {pixels.values.shape}.")
        images.append(pixels.values.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels += classes
    return np.ascontiguousarray(np.concatenate(images)), np.array(labels, np.int64)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            batch = _ArraysOnly(file, encoding="bytes").load()
    except _DAMAGE as error:
        raise ValueError(f"{path} must be a pickled CIFAR batch, got a file that is refused: {error}.") from error
    if not isinstance(batch, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(batch).__name__}.")
    return {key.decode() if isinstance(key, bytes) else str(key): value for key, value in batch.items()}
