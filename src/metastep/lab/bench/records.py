"""The record of a run: everything a comparison or a reader needs, as one JSON object."""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

from metastep.files import write_atomically
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.curves import layers_of, read_entries
from metastep.lab.runtime.provenance import provenance

SCHEMA = 1


class TaskFacts(Protocol):
    """What a record says of a task; :class:`metastep.lab.tasks.Task` knows it."""

    @property
    def metric(self) -> str:
        """What is measured besides the loss."""

    @property
    def notes(self) -> str:
        """Of its data."""

    @property
    def splits(self) -> Mapping[str, int]:
        """Examples of each split."""


def make_record(
    config: RunConfig,
    task: TaskFacts,
    *,
    status: str,
    entries: Path,
    final: dict[str, float],
    inner: dict[str, float],
    train_seconds: float,
    eval_seconds: float,
    scale: float | None,
    learned: bool,
) -> dict[str, Any]:
    """Return the record of a run from its log and its last numbers; what is not finite becomes null."""
    written = list(read_entries(entries))
    train = _columns(written, "train", ("step", "seconds", "loss", "lr"))
    quality = task.metric
    settings = json.loads(config.to_json())
    return {
        "schema": SCHEMA,
        "task": config.task,
        "schedule": config.schedule,
        "label": config.schedule,
        "seed": config.seed,
        "optimizer": config.optimizer,
        "lr": config.lr,
        "batch_size": config.batch_size,
        "total_steps": config.total_steps,
        "status": status,
        "train": train,
        "valid": _columns(written, "valid", ("step", "seconds", "loss", quality)),
        "layers": msgspec.to_builtins(layers_of(written)),
        "meta": _columns(written, "meta", ("step", "seconds", "loss")),
        "final": {name: _finite(final.get(name)) for name in ("loss", quality)},
        "inner": {name: _finite(inner.get(name)) for name in ("loss", quality)},
        "train_seconds": train_seconds,
        "eval_seconds": eval_seconds,
        "peak_rate": max((rate for rate in train["lr"] if rate is not None), default=None),
        "scale": scale,
        "learned": learned,
        "settings": {**settings, "data": task.notes, "splits": dict(task.splits)},
        **provenance(config.device),
    }


def read_record(folder: Path) -> dict[str, Any] | None:
    """Return the record of the run in a folder; None if it has not come to its end.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / "record.json"
    if not path.is_file():
        return None
    try:
        record: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); without it the run's last steps are taken again.") from error
    return record


def write_record(record: dict[str, Any], path: Path) -> None:
    """Write one record as a whole."""
    write_atomically(path, json.dumps(record, allow_nan=False) + "\n")


def write_records(records: Iterable[dict[str, Any]], path: Path) -> None:
    """Write records as JSON lines."""
    write_atomically(path, "".join(json.dumps(record, allow_nan=False) + "\n" for record in records))


def _columns(entries: Iterable[dict[str, Any]], split: str, names: tuple[str, ...]) -> dict[str, list[Any]]:
    of_split = [entry for entry in entries if entry["split"] == split]
    return {name: [entry.get(name) for entry in of_split] for name in names}


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
