"""The log of a run: JSON lines that survive a kill, and TensorBoard events beside them."""

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from metastep.files import write_atomically
from metastep.lab.bench.events import EventFile


class CurveLog:
    """Appends entries to ``metrics.jsonl`` and, if tensorboard is installed, to event files in the same folder.

    Args:
        folder: the run's folder.
        after: entries of later steps, of a life that was killed before its next checkpoint, are cut off.
        tensorboard: whether to write event files.
    """

    def __init__(self, folder: Path, *, after: int = 0, tensorboard: bool = True) -> None:
        self.path = folder / "metrics.jsonl"
        entries = [entry for entry in read_entries(self.path) if entry["step"] <= after]
        write_atomically(self.path, "".join(json.dumps(entry) + "\n" for entry in entries))
        self._file: TextIO = self.path.open("a")
        self._events = _writer(folder, after) if tensorboard else None

    def write(self, split: str, step: int, values: dict[str, float]) -> None:
        """Add the entry of a split ("train", "valid", "meta") at a step; what is not finite becomes null."""
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        self._file.write(json.dumps({"split": split, "step": step, **finite}) + "\n")
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> None:
        """Bring everything to the disk, as a checkpoint is about to rely on it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        if self._events is not None:
            self._events.flush()

    def close(self) -> None:
        """Let go of the files; what was not synced may be lost."""
        try:
            self._file.close()
        finally:
            if self._events is not None:
                self._events.close()


class SilentLog(CurveLog):
    """Writes nothing: for the processes of a run that leave that to the first."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "metrics.jsonl"

    def write(self, split: str, step: int, values: dict[str, float]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def read_entries(path: Path) -> Iterator[dict[str, Any]]:
    """The entries of a log; a last line that a kill cut short is left out."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                return


def _writer(folder: Path, after: int) -> EventFile | None:
    try:
        return EventFile(folder, purge_step=after + 1)  # hides what a killed life wrote beyond
    except ImportError:  # the extra "track" is not installed
        return None
