"""A folder in which work can be stopped and resumed: one process at a time, whole files, a checkpoint, a log.

Used by everything that takes long: a run, a comparison, an experiment, a search, a training of schedules. Files are
replaced as a whole, so a kill, a full disk or a power cut leaves the old or the new one, and what a killed process left
behind half written is removed when the next one begins.
"""

import errno
import hashlib
import io
import math
import os
import pickle
import shutil
import struct
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, TypeVar

import msgspec
import torch
from filelock import FileLock, Timeout

from metastep.files import decode_json, sync_folder, write_atomically

T = TypeVar("T")
#: What a file system without locks answers.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
#: What a killed process leaves behind, half written.
_LEFT_BEHIND = (".*.part", "snapshots/.*.part", ".checkpoint.pt.complete")
#: What checkpoints began with until the first release: this line, a SHA-256 digest, and then what ``torch.save`` wrote.
_OLD_HEADER = b"metastep checkpoint 1\n"
_OLD_DIGEST = hashlib.sha256().digest_size
#: What torch's reader raises for bytes that are no pickle: a right checksum does not make them one.
_GARBLED = (EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError, MemoryError, struct.error)


class FolderInUse(OSError):
    """Another process works in the folder."""


class FolderGone(OSError):
    """The folder, or a file that it needs, was deleted or renamed while its process was at work."""


class CheckpointError(ValueError):
    """No readable checkpoint: which files were tried and what was wrong with each."""


class Folder:
    """Within ``with``, the folder belongs to this process; the kernel lets go of it however the process ends.

    Args:
        path: made on entering, if needed.

    Raises:
        FolderInUse: on entering, if another holder is alive.

    Example:
        >>> with Folder(tmp_path / "run") as folder:
        ...     folder.write("settings.json", "{}")
        ...     folder.save({"step": 3})
        >>> Folder(tmp_path / "run").checkpoint.load()
        ({'step': 3}, None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.checkpoint = CheckpointFile(path / "checkpoint.pt")
        self._lock: FileLock | None = None
        self._identity: tuple[int, int] | None = None
        #: Names of files that must stay while work goes on; :meth:`check` looks.
        self.needed: set[str] = set()

    def __enter__(self) -> Self:
        self.path.mkdir(parents=True, exist_ok=True)
        place = self.path / ".lock"
        lock = FileLock(place, timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise FolderInUse(f"{self.path} is in use by {_holder(place)}; wait for it, or stop it first.") from None
        except (OSError, NotImplementedError) as error:  # the second is filelock's word for ENOSYS
            if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"the file system of {self.path} has no locks, so that nothing keeps a second command out of this "
                "folder; start only one there.",
                stacklevel=2,
            )
        else:
            self._lock = lock
            with suppress(OSError):  # where a locked file cannot be written
                place.write_text(str(os.getpid()))
        self._identity = _identity(self.path)
        for left in (found for pattern in _LEFT_BEHIND for found in self.path.glob(pattern)):
            left.unlink(missing_ok=True)
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = self._identity = None

    def check(self) -> None:
        """Make sure that this is still the folder that was entered, with the files that it needs.

        Raises:
            FolderGone: if it was deleted, or renamed, or a file was.
        """
        if self._identity is None:
            return
        if _identity(self.path) != self._identity:
            raise FolderGone(
                f"{self.path} was deleted or renamed while work was going on in it; what was saved before is where the "
                "folder is now. Give it its name back and resume, or begin again in a new folder."
            )
        if missing := sorted(name for name in self.needed if not (self.path / name).exists()):
            raise FolderGone(
                f"{', '.join(missing)} in {self.path} was deleted or renamed while work was going on there; put it "
                "back and resume, or begin again in a new folder."
            )

    def write(self, name: str, data: bytes | str) -> None:
        """Replace a file of the folder as a whole.

        Raises:
            FolderGone: if the folder was deleted or renamed.
            OSError: if it cannot be written; the file is then as it was.
        """
        with self._noticing_its_loss():
            write_atomically(self.path / name, data)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; see :meth:`CheckpointFile.save`.

        Raises:
            FolderGone: if the folder was deleted or renamed.
            OSError: if it cannot be written; the checkpoints are then as they were.
        """
        with self._noticing_its_loss():
            self.checkpoint.save(state)

    @contextmanager
    def _noticing_its_loss(self) -> Iterator[None]:
        """Check before something is written; where writing fails, say first if that is because the folder is gone."""
        self.check()
        try:
            yield
        except FileNotFoundError:
            self.check()
            raise


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _holder(lock: Path) -> str:
    try:
        process = lock.read_text().strip()
    except (OSError, ValueError):
        process = ""
    return f"process {process}" if process.isdigit() else "another process"


class CheckpointFile:
    """Saves and loads nested dicts, lists and tuples of tensors and plain values.

    The file is what ``torch.save`` writes, and ``torch.load(path, weights_only=True)`` opens it. Its SHA-256 checksum
    lies beside it, as ``sha256sum`` writes it. Saving keeps the checkpoint before under the name ``previous``: a kill,
    a full disk or a broken file costs one interval, never the run.

    Args:
        path: the file.

    Example:
        >>> file = CheckpointFile(tmp_path / "checkpoint.pt")
        >>> file.save({"steps": 1})
        >>> file.save({"steps": 2})
        >>> file.load()
        ({'steps': 2}, None)
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.previous = path.with_name(f"{path.stem}.previous{path.suffix}")

    def exists(self) -> bool:
        """True if there is something to load."""
        return self.path.exists() or self.previous.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Write the state; the checkpoint that was there becomes ``previous``.

        Raises:
            OSError: if the disk is full or the folder cannot be written; both older files are then as they were.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        payload = buffer.getvalue()
        complete = self.path.with_name(f".{self.path.name}.complete.part")
        checksum = complete.with_name(f".{_beside(self.path).name}.complete.part")
        try:
            write_atomically(complete, payload)
            write_atomically(checksum, f"{hashlib.sha256(payload).hexdigest()}  {self.path.name}\n")
            # From here on only names change, so that for a moment alone both names stand for one file.
            if self.path.exists():
                self._keep_previous()
            # A kill between these two lines leaves the older file under a newer checksum; previous has the older one.
            os.replace(checksum, _beside(self.path))
            os.replace(complete, self.path)
        finally:
            complete.unlink(missing_ok=True)
            checksum.unlink(missing_ok=True)
        sync_folder(self.path.parent)

    def load(self) -> tuple[dict[str, Any], str | None]:
        """Return the newest good state, and a sentence if it is not that of the newest file, or was not checked.

        Raises:
            CheckpointError: if neither file can be read.
        """
        reasons = []
        checksums = {_checksum(self.path), _checksum(self.previous)}
        for path in (self.path, self.previous):
            try:
                state, unchecked = _read(path, checksums)
            except (OSError, CheckpointError) as error:
                reasons.append(f"{path.name} {error}")
                continue
            notes = [f"{reasons[0]}; went back to {path.name}."] if reasons else []
            return state, " ".join([*notes, *([unchecked] if unchecked else [])]) or None
        raise CheckpointError(f"no readable checkpoint in {self.path.parent}: {'; '.join(reasons)}.")

    def _keep_previous(self) -> None:
        _duplicate(self.path, self.previous)
        if _beside(self.path).exists():
            _duplicate(_beside(self.path), _beside(self.previous))
        else:  # this one is of an older version and holds its own checksum
            _beside(self.previous).unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _duplicate(path: Path, copy: Path) -> None:
    beside = copy.with_name(f".{copy.name}.part")
    beside.unlink(missing_ok=True)
    try:
        os.link(path, beside)
    except OSError:  # no hard links here
        shutil.copyfile(path, beside)
    os.replace(beside, copy)


def _checksum(path: Path) -> str | None:
    """The checksum that lies beside a file; None where there is none, "" where it cannot be read."""
    try:
        return _beside(path).read_text("ascii").partition(" ")[0].strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""


def _read(path: Path, checksums: set[str | None]) -> tuple[dict[str, Any], str | None]:
    """A file's state, and a sentence if there was no checksum to check it by."""
    if not path.is_file():
        raise CheckpointError("is missing")
    data = path.read_bytes()
    note = None
    if data.startswith(_OLD_HEADER):
        start = len(_OLD_HEADER) + _OLD_DIGEST
        digest, data = data[len(_OLD_HEADER) : start], data[start:]
        good = hashlib.sha256(data).digest() == digest
    else:
        # The other's will do: a kill while the names change leaves a file without its own, or under a newer one.
        good = hashlib.sha256(data).hexdigest() in checksums
        if not good and _checksum(path) is None:
            good, note = True, f"{path.name} has no checksum beside it and was read unchecked."
    if not good:
        raise CheckpointError("is truncated or damaged (its checksum does not agree)")
    try:
        state = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError("is refused: it holds more than tensors and plain values, or is damaged") from error
    except _GARBLED as error:
        raise CheckpointError(f"is no state that torch can read ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"is no state: it holds one {type(state).__name__}")
    return state, note


@dataclass(frozen=True)
class LogMark:
    """How far a log had come when a checkpoint was written: its lines, its bytes, and their SHA-256."""

    lines: int
    size: int
    sha256: str


#: A line of a log: a whole number ``step``; maybe ``split``, the name of the series that it belongs to; else numbers.
Line = dict[str, int | float | str | None]


class JsonLog:
    """Appends JSON objects to a file, a line each, and knows what a checkpoint says must be there.

    Where the file does not hold what the mark says (it is missing, cut, or changed), what can still be read is kept,
    and :attr:`damage` says so.

    Args:
        path: the file.
        mark: from :meth:`sync`, kept in the checkpoint that is resumed; None: nothing is known of the file.
        after: lines of later steps are cut off; a life that was killed before its next checkpoint wrote them.
        clock: ``seconds`` of the last line cannot be more, if it is known.

    Example:
        >>> with JsonLog(tmp_path / "log.jsonl") as log:
        ...     log.append({"step": 1, "loss": 0.5})
        ...     log.sync().lines
        1
    """

    def __init__(self, path: Path, *, mark: LogMark | None = None, after: int = 0, clock: float = math.inf) -> None:
        self.path = path
        self.damage: str | None = None
        content = path.read_bytes() if path.exists() else b""
        if mark is not None and _holds(content, mark):
            content = content[: mark.size]
        else:
            lines, unread = read_lines(path)
            kept = _in_order((line for line in lines if _step(line) <= after), clock)
            if mark is not None or unread or (after > 0 and not path.exists()):
                whole = "" if mark is None else f" of {mark.lines}"
                self.damage = (
                    f"{path.name} is not what was written until step {after} (missing, cut or changed): "
                    f"{len(kept)}{whole} lines could be read and are kept."
                )
            content = b"".join(msgspec.json.encode(line) + b"\n" for line in kept)
        write_atomically(path, content)
        self._lines, self._size, self._digest = content.count(b"\n"), len(content), hashlib.sha256(content)
        self._file: BinaryIO = path.open("ab")

    def append(self, line: Mapping[str, int | float | str | None]) -> None:
        """Add a line; numbers that are not finite become null."""
        data = msgspec.json.encode(line) + b"\n"
        self._file.write(data)
        self._digest.update(data)
        self._lines, self._size = self._lines + 1, self._size + len(data)

    def sync(self) -> LogMark:
        """Bring everything to the disk, as a checkpoint is about to rely on it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return LogMark(self._lines, self._size, self._digest.hexdigest())

    def read(self) -> list[Line]:
        """Return all lines.

        Raises:
            OSError: if the file no longer holds what was written.
        """
        mark = self.sync()
        if not self.path.exists() or not _holds(self.path.read_bytes(), mark):
            raise OSError(f"{self.path} was changed while work was going on; resume to keep what can still be read")
        return read_lines(self.path)[0]

    def close(self) -> None:
        """Let go of the file; what was not synced may be lost."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def read_lines(path: Path) -> tuple[list[Line], int]:
    """Return the lines of a log that can be read, and how many others there are.

    A last line that a kill cut short is neither.
    """
    if not path.exists():
        return [], 0
    pieces = path.read_bytes().split(b"\n")
    lines, unread = list[Line](), 0
    for number, piece in enumerate(pieces, start=1):
        if not piece.strip():
            continue
        try:
            line = decode_json(piece, Line, path.name)
        except ValueError:
            unread += number < len(pieces)
            continue
        words = {name for name, value in line.items() if isinstance(value, str)}
        if isinstance(line.get("step"), int) and words <= {"split"}:
            lines.append(line)
        else:
            unread += 1
    return lines, unread


def _step(line: Line) -> int:
    step = line["step"]
    assert isinstance(step, int)
    return step


def _in_order(lines: Iterable[Line], clock: float) -> list[Line]:
    """As many lines of each series as go together: steps grow, and ``seconds`` runs to the clock and not backwards."""
    series = dict[Any, list[tuple[int, Line]]]()
    for place, line in enumerate(lines):
        series.setdefault(line.get("split"), []).append((place, line))
    kept = dict[int, Line]()
    for found in series.values():
        seconds = 0.0
        for place, line in _longest_growing(found):
            now = line.get("seconds", seconds)
            if isinstance(now, (int, float)) and seconds <= now <= clock:
                seconds, kept[place] = now, line
    return [kept[place] for place in sorted(kept)]


def _longest_growing(lines: list[tuple[int, Line]]) -> list[tuple[int, Line]]:
    """The longest part whose steps grow: one wrong step in the middle costs one line."""
    ends, steps = list[int](), list[int]()  # the best ends of growing parts by their length, and their steps
    before = list[int]()
    for number, (_, line) in enumerate(lines):
        length = bisect_left(steps, _step(line))
        before.append(ends[length - 1] if length else -1)
        ends[length : length + 1] = [number]
        steps[length : length + 1] = [_step(line)]
    part, number = list[tuple[int, Line]](), ends[-1] if ends else -1
    while number >= 0:
        part.append(lines[number])
        number = before[number]
    return part[::-1]


def _holds(content: bytes, mark: LogMark) -> bool:
    return len(content) >= mark.size and hashlib.sha256(content[: mark.size]).hexdigest() == mark.sha256


def state_of(state: dict[str, Any], kind: type[T], what: str) -> T:
    """Check a state that was loaded from a checkpoint against a type, as :func:`metastep.files.decode_json` does.

    Raises:
        CheckpointError: one line: what it is, what is wrong and where.
    """
    try:
        return msgspec.convert(state, kind, strict=True)
    except (*_GARBLED, RuntimeError) as error:  # msgspec looks into tensors, too
        raise CheckpointError(f"{what} is refused: {' '.join(str(error).split())}.") from error
