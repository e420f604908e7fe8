"""The records of an experiment on disk: a line each, added as runs end, and read whatever a kill left behind."""

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from metastep.lab.bench.records import SCHEMA


def records_of(file: Path, where: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read JSON lines; give file:line and record.

    A last line that a killed run left unfinished is skipped with a warning.

    Args:
        file: to read.
        where: what to call it; None: its name.

    Raises:
        ValueError: if a line is no record, or of a newer schema; it names the line.
    """
    lines = file.read_bytes().split(b"\n")
    for row, line in enumerate(lines, start=1):
        place = f"{where or file.name}:{row}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            if row == len(lines):
                warnings.warn(f"{place} is cut off and was skipped; that run has to be repeated.", stacklevel=2)
                continue
            raise ValueError(f"{place} must be one JSON object, got {error}; remove or repeat that run.") from error
        if not isinstance(record, dict) or not isinstance(record.get("schema"), int):
            raise ValueError(f"{place} must be a record with a schema, got something else.")
        if record["schema"] > SCHEMA:
            raise ValueError(f"{place}: schema must be at most {SCHEMA}, got {record['schema']}; use a newer metastep.")
        yield place, record


class RecordsFile:
    """Within ``with``, records are added to a file, each on the disk before the next.

    Args:
        path: the file; a last line that a kill cut short is taken away.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Self:
        self._file = self._path.open("ab+")
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Add a record.

        Raises:
            OSError: if the disk is full.
        """
        self._file.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
