"""Files that are whole or not there (written beside, synced, renamed), and JSON that is what its reader expects."""

import os
import re
import tempfile
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")
_ENDLESS_NUMBER = re.compile(r"\d{300}")  # no float holds it, and whoever computes with it fails much later


def decode_json(data: bytes | str, kind: type[T], what: str) -> T:
    """Decode JSON and check it against a type, strictly: no number stands for a string, no null for a number.

    Args:
        data: the document, UTF-8.
        kind: what it must be: a dataclass or ``msgspec.Struct`` (whose own checks run, too), or a type such as
            ``dict[str, int]``.
        what: names the document in an error, such as the file's path.

    Raises:
        ValueError: one line: the document, what is wrong and where. Also for JSON that is nested too deeply, or holds
            a number that no float can.

    Example:
        >>> decode_json('{"steps": 3}', dict[str, int], "run.json")
        {'steps': 3}
    """
    try:
        if _ENDLESS_NUMBER.search(data if isinstance(data, str) else data.decode()):
            raise ValueError("it holds a number of 300 digits or more")
        return msgspec.json.decode(data, type=kind, strict=True)
    except RecursionError:
        raise ValueError(f"{what} is refused: its JSON is nested too deeply.") from None
    except (ValueError, OverflowError) as error:  # msgspec's own errors are ValueErrors
        raise ValueError(f"{what} is refused: {_one_line(error)}") from error


def read_json(path: Path, kind: type[T]) -> T:
    """Read a JSON file and check it as :func:`decode_json` does; errors name the path.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not what it must be; one line that names the file.
    """
    return decode_json(path.read_bytes(), kind, str(path))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith(".") else f"{text}."


def write_atomically(path: Path, data: bytes | str) -> None:
    """Replace ``path`` by ``data`` so that at every moment the old or the new content is complete.

    The data goes to a temporary file in the same folder, is synced to the disk, and takes the name by a rename. A
    full disk, a kill or a power cut leaves the old file as it was.

    Args:
        path: the file to write; its folder is created if needed.
        data: the content; text is encoded as UTF-8.

    Raises:
        OSError: if the folder cannot be written or the disk is full; ``path`` is then untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(beside, 0o666 & ~umask)
        os.replace(beside, path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
