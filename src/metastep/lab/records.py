"""What is kept of a training run: one schema for a single run, a comparison and an experiment, and its files.

A record is one JSON object; a file of several holds one a line. Numbers that are not finite are written as null.
Whoever writes a record makes a :class:`Record`; whoever reads one gets a :class:`Record` or an error that names the
line. What older versions wrote is brought to the present form in :func:`_migrate`, and nowhere else.
"""

import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from metastep.files import decode_json, write_atomically

SCHEMA = 1

Metric = Literal["accuracy", "perplexity", "r2"]
METRICS: tuple[Metric, ...] = ("accuracy", "perplexity", "r2")
#: Columns of the same length by name; null where a number was not finite.
Curve = dict[str, list[int | float | None]]

_COLUMNS: dict[str, tuple[str, ...]] = {
    "train": ("step", "seconds", "loss", "lr"),
    "valid": ("step", "seconds", "loss", *METRICS),
    "meta": ("step", "seconds", "loss"),
}


class Layers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Rates per layer of an optimizer that adapts its own: ``rates[i][k]`` is that of ``names[i]`` at ``step[k]``."""

    names: list[str]
    step: list[int]
    rates: list[list[float | None]]

    def __post_init__(self) -> None:
        if len(self.rates) != len(self.names) or any(len(rates) != len(self.step) for rates in self.rates):
            raise ValueError("layers must hold one list of rates a name, and one rate a step in each")


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One training run.

    Attributes:
        schema: version of this form.
        task: name of the task.
        schedule: name or files of the schedule.
        label: what the run is called beside others.
        seed: of weights, data order and dropout.
        optimizer: name of the base optimizer.
        lr: base rate.
        batch_size: examples a step.
        total_steps: optimizer steps of the run.
        status: "finished"; "diverged" (a result); "stopped" (not at its end); "failed" (an error, said in ``error``).
        train: ``step``; ``seconds`` of the training clock; ``loss``, the mean since the last entry; ``lr``, as used.
        valid: ``step``, ``seconds``, ``loss`` and the metric on outer_valid.
        final: ``loss`` and the metric on the test split, which is read once, at the end.
        train_seconds: of training alone.
        eval_seconds: of evaluations.
        peak_rate: largest rate of the training curve.
        settings: the run's configuration; in an experiment, what of it differs among its methods.
        versions: of Python, torch and metastep.
        machine: processor, cores, threads, device, processes, system.
        command: that was typed.
        git_revision: of the checkout that ran; None: it ran from elsewhere.
        created: when, ISO 8601.
        meta: of a schedule that is learned in the run: the validation loss of its meta-updates.
        layers: rates of the layers, of an optimizer that adapts its own.
        inner: ``loss`` and the metric on inner_valid at the end, as the objective of a search.
        scale: that a schedule measured for itself.
        learned: whether the schedule is a learned one.
        method: of an experiment: name of the method.
        budget: trials that the method's settings were chosen from; 1: its defaults.
        rate_factor: by which the chosen rate was multiplied, to see what that costs.
        tuned: what the method tunes and over which values, by name.
        found: the settings it was run with, by name.
        error: of a run that failed.
    """

    schema: int = msgspec.field(default_factory=lambda: SCHEMA)  # a factory, so that it is always written
    task: str
    schedule: str
    label: str
    seed: int
    optimizer: str
    lr: float
    batch_size: int
    total_steps: int
    status: Literal["finished", "diverged", "stopped", "failed"]
    train: Curve
    valid: Curve
    final: dict[str, float | None]
    train_seconds: float
    eval_seconds: float
    peak_rate: float | None = None
    settings: dict[str, Any]
    versions: dict[str, Any]
    machine: dict[str, Any]
    command: str
    git_revision: str | None = None
    created: str
    meta: Curve | None = None
    layers: Layers | None = None
    inner: dict[str, float | None] | None = None
    scale: float | None = None
    learned: bool = False
    method: str | None = None
    budget: int = 1
    rate_factor: float = 1.0
    tuned: dict[str, Any] = {}
    found: dict[str, Any] = {}
    error: str | None = None

    def __post_init__(self) -> None:
        for name in _COLUMNS:
            if (curve := getattr(self, name)) is not None:
                _check_curve(name, curve)
        if len([name for name in METRICS if name in self.final or name in self.valid]) != 1:
            raise ValueError(f"final and valid must hold one of {', '.join(METRICS)}")
        for name in ("final", "inner"):
            if unknown := (getattr(self, name) or {}).keys() - {"loss", *METRICS}:
                raise ValueError(f"{name} must hold loss and a metric, got {', '.join(sorted(unknown))}")

    @property
    def metric(self) -> Metric:
        """What was measured beside the loss."""
        return next(name for name in METRICS if name in self.final or name in self.valid)

    def as_dict(self) -> dict[str, Any]:
        """The record as plain values."""
        return {name: msgspec.to_builtins(value) for name, value in msgspec.structs.asdict(self).items()}


def _check_curve(name: str, curve: Curve) -> None:
    if not curve:  # of a run that failed before its first entry
        return
    if unknown := curve.keys() - set(_COLUMNS[name]):
        raise ValueError(f"{name} must hold {', '.join(_COLUMNS[name])} only, got {', '.join(sorted(unknown))}")
    if missing := {"step", "loss"} - curve.keys():
        raise ValueError(f"{name} must hold {' and '.join(sorted(missing))}")
    steps = curve["step"]
    if any(len(values) != len(steps) for values in curve.values()):
        raise ValueError(f"{name} must have {len(steps)} entries in every list, as in step")
    if not all(isinstance(step, int) for step in steps) or any(b <= a for a, b in pairwise(steps)):  # type: ignore[operator]
        raise ValueError(f"{name}.step must be whole numbers that grow from entry to entry")
    seconds = curve.get("seconds", [])
    if None in seconds or any(b < a for a, b in pairwise(seconds)):  # type: ignore[operator]
        raise ValueError(f"{name}.seconds must not be null and not run backwards")


# ---- reading and writing


class NewerRecord(ValueError):
    """A record that a later version wrote."""


def encode_record(record: Record) -> bytes:
    """Return a record as one line of JSON, with the end of the line."""
    return msgspec.json.encode(record) + b"\n"


def decode_record(data: bytes | str, what: str) -> Record:
    """Return the record of a JSON text, whichever version wrote it.

    Args:
        data: the text.
        what: names it in an error.

    Raises:
        ValueError: if it is no record, or one of a newer version; one line.
    """
    version = decode_json(data, _Version, what).schema
    if version > SCHEMA:
        raise NewerRecord(f"{what}: schema must be at most {SCHEMA}, got {version}; use a newer metastep.")
    if version < SCHEMA:
        data = _migrate(data, version, what)
    return decode_json(data, Record, what)


class _Version(msgspec.Struct):
    schema: int


def _migrate(data: bytes | str, version: int, what: str) -> bytes | str:
    """Bring a record of an older version to the present form. Version 1 is the first, so there is none yet."""
    raise ValueError(f"{what}: schema must be at least 1, got {version}; this is no record of metastep.")


def read_record(path: Path) -> Record:
    """Return the record of a file that holds one.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is damaged; it names the file.
    """
    return decode_record(path.read_bytes(), str(path))


def read_records(path: Path, where: str | None = None) -> Iterator[tuple[str, Record]]:
    """Read a file of records; yield "file:line" and the record.

    A last line that a killed run left unfinished is skipped with a warning.

    Args:
        path: to read.
        where: what to call it; None: its name.

    Raises:
        ValueError: if a line is no record, or of a newer version; it names the line.
    """
    lines = path.read_bytes().split(b"\n")
    for row, line in enumerate(lines, start=1):
        place = f"{where or path.name}:{row}"
        if not line.strip():
            continue
        try:
            yield place, decode_record(line, place)
        except NewerRecord:
            raise
        except ValueError as error:
            if row < len(lines):
                raise ValueError(f"{str(error).rstrip('.')}; remove or repeat that run.") from error
            warnings.warn(f"{place} is cut off and was skipped; that run has to be repeated.", stacklevel=2)


def write_records(records: Iterable[Record], path: Path) -> None:
    """Write records, a line each, as a whole."""
    write_atomically(path, b"".join(map(encode_record, records)))


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

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, record: Record) -> None:
        """Add a record.

        Raises:
            OSError: if the disk is full.
        """
        self._file.write(encode_record(record))
        self._file.flush()
        os.fsync(self._file.fileno())
