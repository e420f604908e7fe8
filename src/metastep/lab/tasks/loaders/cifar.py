"""CIFAR's "python version": pickled dictionaries, read without trusting them and without Python's unpickler."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metastep.lab.tasks.loaders.arrays import check_labels
from metastep.lab.tasks.loaders.encoded import Labelled

_MOST_BYTES: Final = 2**30  # of a file; the largest that is published has 155 MB
_FINE_CLASSES: Final = 100


def read_cifar(files: Sequence[Path], *, num_classes: int = _FINE_CLASSES) -> Labelled:
    """Read CIFAR-10 or CIFAR-100 batches (of the latter the fine labels).

    Args:
        files: data_batch_1 .. data_batch_5, or test_batch, or train, or test.
        num_classes: Number of classes.

    Raises:
        ValueError: If a file is no such batch; one that asks for anything but arrays, bytes and plain
            containers is refused, and nothing that it names is imported or called.
    """
    images, labels = [], []
    for path in files:
        batch = _read(path)
        pixels, classes = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
        if not isinstance(pixels, _Array) or not isinstance(classes, list):
            names = ", ".join(sorted(batch))
            raise ValueError(f"{path} must hold an array 'data' and a list of labels, got {names[:200] or 'nothing'}.")
        strange = [label for label in classes if type(label) is not int or not -(2**31) <= label < 2**31]
        if strange:
            what = repr(strange[0]) if isinstance(strange[0], (int, str, bytes)) else type(strange[0]).__name__
            raise ValueError(f"{path} must hold labels in 0..{num_classes - 1}, got {what[:60]}.")
        own = np.array(classes, np.int64)
        check_labels(own, num_classes, path)
        shape = (len(classes), 3072)
        if pixels.values is None or pixels.shape != shape:
            raise ValueError(f"{path} must hold {shape} pixels for its labels, got {pixels.shape}.")
        images.append(pixels.values.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(own)
    return np.ascontiguousarray(np.concatenate(images)), np.concatenate(labels)


def _read(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _MOST_BYTES:
        raise ValueError(f"{path} must be a pickled CIFAR batch of at most {_MOST_BYTES} bytes, got {size}.")
    try:
        batch = _PickledArrays(path.read_bytes()).load()
        if not isinstance(batch, dict):
            raise ValueError(f"it holds a {type(batch).__name__}, and no dictionary")
        return {key.decode() if isinstance(key, bytes) else key: value for key, value in batch.items()}
    # A damaged file fails in many ways.
    except (ValueError, TypeError, LookupError, OverflowError, struct.error) as error:
        raise ValueError(f"{path} must be a pickled CIFAR batch, got a file that is refused: {error}.") from error


# Stand-ins for the few things that a pickled array refers to. Files cannot write into them.


@dataclass(frozen=True, slots=True)
class _Global:
    module: str
    name: str


@dataclass(frozen=True, slots=True)
class _Type:
    code: str


@dataclass(slots=True, eq=False)
class _Array:
    """An array that is filled once, after it was made."""

    values: NDArray[np.uint8] | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return () if self.values is None else self.values.shape


def _filled(array: _Array, shape: object, kind: object, raw: object, *, by_column: bool) -> _Array:
    if not isinstance(kind, _Type) or kind.code != "u1":
        raise ValueError(f"it holds an array of type {kind.code if isinstance(kind, _Type) else type(kind).__name__}")
    sizes = shape if isinstance(shape, tuple) else (None,)
    if array.values is not None or not isinstance(raw, bytes) or not all(type(size) is int for size in sizes):
        raise ValueError("it holds an array whose content is none")
    array.values = np.frombuffer(raw, np.uint8).reshape(sizes, order="F" if by_column else "C")
    return array


class _PickledArrays:
    """A stack machine for that part of the pickle format which dictionaries of lists, bytes and uint8 arrays need.

    It imports nothing and calls nothing that the file names; what it holds is at most a few times the file's size.
    """

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._place = 0
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._encoded = 0  # bytes made from text

    def load(self) -> Any:
        """Run to the end and give what is left on the stack."""
        while (code := self._take(1)) != b".":
            operation = self._OPERATIONS.get(code)
            if operation is None:
                raise ValueError(f"it holds {code!r} at {self._place - 1}, which no array needs")
            operation(self)
        return self._pop()

    def _take(self, count: int) -> bytes:
        end = self._place + count
        if not 0 <= count <= len(self._data) - self._place:
            raise ValueError("it ends too early")
        part, self._place = self._data[self._place : end], end
        return part

    def _skip(self, count: int) -> None:
        self._take(count)

    def _number(self, form: str) -> int:
        value: int
        (value,) = struct.unpack(form, self._take(struct.calcsize(form)))
        return value

    def _line(self) -> str:
        end = self._data.find(b"\n", self._place)
        line = self._take(end - self._place) if end >= 0 else self._take(len(self._data) + 1)
        self._place += 1
        return line.decode()

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise ValueError("it takes more than was put")
        return self._stack.pop()

    def _from_mark(self) -> list[Any]:
        if not self._marks:
            raise ValueError("it takes more than was put")
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _under(self, kind: type) -> Any:
        """The container on top of the stack, which stays there."""
        container = self._pop()
        if not isinstance(container, kind):
            raise ValueError(f"it puts things into a {type(container).__name__}")
        self._stack.append(container)
        return container

    def _append(self, items: list[Any]) -> None:
        self._under(list).extend(items)

    def _set(self, items: list[Any]) -> None:
        target = self._under(dict)
        if len(items) % 2 or not all(isinstance(key, (str, bytes)) for key in items[::2]):
            raise ValueError("it holds a dictionary whose keys are no names")
        target.update(zip(items[::2], items[1::2], strict=True))

    def _tuple(self, count: int) -> None:
        self._stack.append(tuple([self._pop() for _ in range(count)][::-1]))

    def _put(self, index: int) -> None:
        value = self._pop()
        self._stack.append(value)
        self._memo[index] = value

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise ValueError(f"it refers to object {index}, which it does not hold")
        self._stack.append(self._memo[index])

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if not isinstance(module, str) or not isinstance(name, str):
            raise ValueError("it asks for something without a name")
        self._global(module, name)

    def _global(self, module: str, name: str) -> None:
        module = module.replace("numpy._core", "numpy.core")
        if (module, name) not in _CALLS and (module, name) != ("numpy", "ndarray"):
            raise ValueError(f"it asks for {module[:60]}.{name[:60]}")
        self._stack.append(_Global(module, name))

    def _reduce(self) -> None:
        arguments, function = self._pop(), self._pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise ValueError("it calls what is no function")
        call = _CALLS.get((function.module, function.name))
        if call is None:
            raise ValueError(f"it calls {function.module}.{function.name}")
        made = call(*arguments)
        if isinstance(made, bytes):
            self._encoded += len(made)
            if self._encoded > len(self._data):
                raise ValueError("it makes more bytes than it holds")
        self._stack.append(made)

    def _build(self) -> None:
        state = self._pop()
        target = self._pop()
        self._stack.append(target)
        if isinstance(target, _Array) and isinstance(state, tuple) and len(state) == 5:
            _, shape, kind, by_column, raw = state
            _filled(target, shape, kind, raw, by_column=bool(by_column))
        elif not isinstance(target, _Type):  # byte order and alignment mean nothing to single bytes
            raise ValueError(f"it writes into a {type(target).__name__}")

    def _frame(self) -> None:
        if self._number("<Q") > len(self._data) - self._place:
            raise ValueError("it ends too early")

    _OPERATIONS: Final[dict[bytes, Callable[["_PickledArrays"], None]]] = {
        b"\x80": lambda m: m._skip(1),  # the protocol
        b"\x95": _frame,
        b"\x98": lambda m: None,  # a buffer that is only read
        b"(": lambda m: m._marks.append(len(m._stack)),
        b"}": lambda m: m._stack.append({}),
        b"]": lambda m: m._stack.append([]),
        b")": lambda m: m._stack.append(()),
        b"t": lambda m: m._stack.append(tuple(m._from_mark())),
        b"\x85": lambda m: m._tuple(1),
        b"\x86": lambda m: m._tuple(2),
        b"\x87": lambda m: m._tuple(3),
        b"a": lambda m: m._append([m._pop()]),
        b"e": lambda m: m._append(m._from_mark()),
        b"s": lambda m: m._set([m._pop(), m._pop()][::-1]),
        b"u": lambda m: m._set(m._from_mark()),
        b"N": lambda m: m._stack.append(None),
        b"\x88": lambda m: m._stack.append(True),
        b"\x89": lambda m: m._stack.append(False),
        b"J": lambda m: m._stack.append(m._number("<i")),
        b"K": lambda m: m._stack.append(m._number("<B")),
        b"M": lambda m: m._stack.append(m._number("<H")),
        b"\x8a": lambda m: m._stack.append(int.from_bytes(m._take(m._number("<B")), "little", signed=True)),
        b"U": lambda m: m._stack.append(m._take(m._number("<B"))),
        b"T": lambda m: m._stack.append(m._take(m._number("<i"))),
        b"C": lambda m: m._stack.append(m._take(m._number("<B"))),
        b"B": lambda m: m._stack.append(m._take(m._number("<I"))),
        b"\x8e": lambda m: m._stack.append(m._take(m._number("<Q"))),
        b"\x96": lambda m: m._stack.append(m._take(m._number("<Q"))),
        b"\x8c": lambda m: m._stack.append(m._take(m._number("<B")).decode("utf-8", "surrogatepass")),
        b"X": lambda m: m._stack.append(m._take(m._number("<I")).decode("utf-8", "surrogatepass")),
        b"\x8d": lambda m: m._stack.append(m._take(m._number("<Q")).decode("utf-8", "surrogatepass")),
        b"q": lambda m: m._put(m._number("<B")),
        b"r": lambda m: m._put(m._number("<I")),
        b"\x94": lambda m: m._put(len(m._memo)),
        b"h": lambda m: m._get(m._number("<B")),
        b"j": lambda m: m._get(m._number("<I")),
        b"c": lambda m: m._global(m._line(), m._line()),
        b"\x93": _stack_global,
        b"R": _reduce,
        b"b": _build,
    }


def _type(code: object, *_: object) -> _Type:
    text = code.decode("latin-1") if isinstance(code, bytes) else code
    return _Type(text[:60] if isinstance(text, str) else type(code).__name__)


def _from_bytes(raw: object, kind: object, shape: object, order: object) -> _Array:
    return _filled(_Array(), shape, kind, raw, by_column=order in ("F", b"F"))


def _latin1(text: object, encoding: object) -> bytes:
    """Stand in for codecs.encode, with which old protocols write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise ValueError("it encodes what is no text of bytes")
    return text.encode("latin-1")


#: What a pickled array calls, under its old names.
_CALLS: Final[dict[tuple[str, str], Callable[..., object]]] = {
    ("numpy", "dtype"): _type,
    ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
    ("numpy.core.numeric", "_frombuffer"): _from_bytes,
    ("_codecs", "encode"): _latin1,
}
