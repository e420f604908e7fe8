"""The curves of a run: JSON lines that survive a kill, TensorBoard events beside them, and columns for the record."""

import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from metastep.lab.records import Curve, Layers
from metastep.lab.runtime.folder import JsonLog, Line, LogMark


class CurveLog:
    """Appends entries to ``metrics.jsonl`` and, if tensorboard is installed, to event files in the same folder.

    Args:
        folder: the run's folder.
        mark: how far the log had come at the checkpoint that is resumed; None: unknown, or the run begins.
        after: entries of later steps, of a life that was killed before its next checkpoint, are cut off.
        clock: seconds of training until then.
        tensorboard: whether to write event files.
    """

    def __init__(
        self,
        folder: Path,
        *,
        mark: LogMark | None = None,
        after: int = 0,
        clock: float = math.inf,
        tensorboard: bool = True,
    ) -> None:
        self.path = folder / "metrics.jsonl"
        self._log = JsonLog(self.path, mark=mark, after=after, clock=clock)
        self._events = _event_file(folder, after) if tensorboard else None

    @property
    def damage(self) -> str | None:
        """A sentence if the log was not what the checkpoint says."""
        return self._log.damage

    def write(self, split: str, step: int, values: Mapping[str, float]) -> None:
        """Add the entry of a split ("train", "valid", "meta") at a step; what is not finite becomes null."""
        self._log.append({"split": split, "step": step, **values})
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(f"{split}/{name}", value, step)

    def sync(self) -> LogMark:
        """Bring everything to the disk, as a checkpoint is about to rely on it; return how far the log is."""
        mark = self._log.sync()
        if self._events is not None:
            self._events.flush()
        return mark

    def entries(self) -> list[Line]:
        """All that was written.

        Raises:
            OSError: if the file no longer holds it.
        """
        return self._log.read()

    def close(self) -> None:
        """Let go of the files; what was not synced may be lost."""
        try:
            self._log.close()
        finally:
            if self._events is not None:
                self._events.close()


def columns_of(entries: Iterable[Line], split: str, names: tuple[str, ...]) -> Curve:
    """The curve of a split: a list for each name. An entry that lost its clock is left out."""
    of_split = [entry for entry in entries if entry.get("split") == split and entry.get("seconds") is not None]
    return {name: [_number(entry.get(name)) for entry in of_split] for name in names}


def layers_of(entries: Iterable[Line]) -> Layers | None:
    """The rates of layers in a log; None where it has none."""
    written = [entry for entry in entries if entry.get("split") == "layers"]
    if not written:
        return None
    names = [name for name in written[-1] if name not in ("split", "step")]
    return Layers(
        names=names,
        step=[int(_number(entry["step"]) or 0) for entry in written],
        rates=[[_number(entry.get(name)) for entry in written] for name in names],
    )


def _number(value: int | float | str | None) -> int | float | None:
    return None if isinstance(value, str) or (value is not None and not math.isfinite(value)) else value


# ---- TensorBoard


class EventFile:
    """An event file with numbers by tag and step.

    Args:
        folder: where.
        purge_step: what a life before this one, which was killed, wrote at this step and later is hidden.

    Raises:
        ImportError: without tensorboard (the extra ``track``).
        OSError: if it cannot be written.
    """

    def __init__(self, folder: Path, purge_step: int) -> None:
        from tensorboard.compat.proto import event_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar

        self._event: Any = event_pb2.Event
        self._scalar: Any = scalar
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file: BinaryIO = (folder / name).open("wb")
        self._records: Any = RecordWriter(self._file)
        self._write(step=purge_step, file_version="brain.Event:2")
        self._write(step=purge_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Add a number."""
        self._write(step=step, summary=self._scalar(tag, value))

    def flush(self) -> None:
        """Hand everything to the system."""
        self._file.flush()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def _write(self, **event: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **event).SerializeToString())


def _event_file(folder: Path, after: int) -> EventFile | None:
    try:
        return EventFile(folder, purge_step=after + 1)  # hides what a killed life wrote beyond
    except ImportError:  # the extra "track" is not installed
        return None
