"""TensorBoard event files, written at once: an error is met where it is made, not in a thread that prints it."""

import os
import socket
import time
from pathlib import Path
from typing import Any, BinaryIO


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
