"""A run's checkpoint on disk: checksummed, replaced as a whole, with the one before it kept."""

import hashlib
import io
import os
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import torch

from metastep.files import sync_folder, write_atomically

_MAGIC = b"metastep checkpoint 1\n"
_DIGEST = hashlib.sha256().digest_size
#: What torch's reader raises for bytes that are no pickle: a right checksum does not make them one.
_GARBLED = (EOFError, LookupError, TypeError, ValueError, AttributeError, AssertionError, struct.error)


class CheckpointError(ValueError):
    """No readable checkpoint: which files were tried and what was wrong with each."""


class CheckpointFile:
    """Saves and loads nested dicts, lists and tuples of tensors and plain values.

    The file is a line of text, a SHA-256 digest, and what ``torch.save`` wrote; it is read with ``weights_only=True``
    and only if the digest agrees. Saving keeps the checkpoint before under the name ``previous``: a kill, a full disk
    or a broken file costs one interval, never the run.

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
        payload = buffer.getbuffer()
        complete = self.path.with_name(f".{self.path.name}.complete")
        write_atomically(complete, b"".join((_MAGIC, hashlib.sha256(payload).digest(), payload)))
        if self.path.exists():
            self._keep_previous()
        os.replace(complete, self.path)
        sync_folder(self.path.parent)

    def load(self) -> tuple[dict[str, Any], str | None]:
        """Return the newest good state, and a sentence if it is not that of the newest file.

        Raises:
            CheckpointError: if neither file can be read.
        """
        reasons = []
        for path in (self.path, self.previous):
            try:
                state = _read(path)
            except (OSError, CheckpointError) as error:
                reasons.append(f"{path.name} {error}")
                continue
            return state, f"{reasons[0]}; went back to {path.name}." if reasons else None
        raise CheckpointError(f"no readable checkpoint in {self.path.parent}: {'; '.join(reasons)}.")

    def _keep_previous(self) -> None:
        beside = self.previous.with_name(f".{self.previous.name}.part")
        beside.unlink(missing_ok=True)
        try:
            os.link(self.path, beside)
        except OSError:  # no hard links here
            shutil.copyfile(self.path, beside)
        os.replace(beside, self.previous)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointError("is missing")
    data = path.read_bytes()
    if not data.startswith(_MAGIC):
        raise CheckpointError("is no metastep checkpoint, or its beginning is damaged")
    start = len(_MAGIC) + _DIGEST
    if hashlib.sha256(data[start:]).digest() != data[len(_MAGIC) : start]:
        raise CheckpointError("is truncated or damaged (its checksum does not agree)")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data[start:]), weights_only=True, map_location="cpu")
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise CheckpointError("is refused: it holds more than tensors and plain values") from error
    except _GARBLED as error:
        raise CheckpointError(f"is no state that torch can read ({type(error).__name__})") from error
    return state
