"""One record per (schedule, seed): what a file of them must hold, and how it is read.

A record is one JSON object on one line. NaN and infinity are written as null, so any number of a curve may be
null.
"""

from __future__ import annotations

import json
import warnings
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NotRequired, TypedDict, cast

if TYPE_CHECKING:
    from pathlib import Path

SCHEMA = 1

Metric = Literal["accuracy", "perplexity", "r2"]
Numbers = list[float | None]


class TrainCurve(TypedDict):
    """What was seen while training; every list has one entry per logging point."""

    step: list[int]
    seconds: list[float]  # the training clock alone
    loss: Numbers  # mean training loss since the last entry
    lr: Numbers  # the rate that was really used


class ValidCurve(TypedDict):
    """What the outer validation split said; one of the metrics is there."""

    step: list[int]
    seconds: list[float]
    loss: Numbers
    accuracy: NotRequired[Numbers]  # in [0, 1]
    perplexity: NotRequired[Numbers]
    r2: NotRequired[Numbers]


class Final(TypedDict):
    """The test split, read once when training had ended."""

    loss: float | None
    accuracy: NotRequired[float | None]
    perplexity: NotRequired[float | None]
    r2: NotRequired[float | None]


class Layers(TypedDict):
    """Rates per layer of an optimizer that adapts its own: rates[i][k] is that of names[i] at step[k]."""

    step: list[int]
    names: list[str]
    rates: list[Numbers]


class Record(TypedDict):
    """One training run."""

    schema: int
    task: str
    schedule: str
    label: str
    seed: int
    optimizer: str
    lr: float
    batch_size: int
    total_steps: int
    status: Literal["finished", "diverged"]
    train: TrainCurve
    valid: ValidCurve
    final: Final
    train_seconds: float
    eval_seconds: float
    peak_rate: float | None
    versions: dict[str, Any]
    machine: dict[str, Any]
    command: str
    git_revision: str | None
    created: str
    settings: dict[str, Any]
    learned: NotRequired[bool]  # the schedule was learned: plots highlight it
    layers: NotRequired[Layers | None]


_FIELDS: dict[str, tuple[type, ...]] = {
    "task": (str,),
    "schedule": (str,),
    "label": (str,),
    "seed": (int,),
    "optimizer": (str,),
    "lr": (int, float),
    "batch_size": (int,),
    "total_steps": (int,),
    "status": (str,),
    "train": (dict,),
    "valid": (dict,),
    "final": (dict,),
    "train_seconds": (int, float),
    "eval_seconds": (int, float),
    "peak_rate": (int, float, type(None)),
    "versions": (dict,),
    "machine": (dict,),
    "command": (str,),
    "git_revision": (str, type(None)),
    "created": (str,),
    "settings": (dict,),
}
_METRICS: tuple[Metric, ...] = ("accuracy", "perplexity", "r2")


def read_records(path: Path) -> list[Record]:
    """Read a file of records, one JSON object per line, and check each of them.

    A last line that a killed run left unfinished is skipped with a warning; anything else that is wrong is an
    error, for a comparison with a run missing looks like a comparison.

    Args:
        path: the file, as written by ``metastep compare``.

    Returns:
        The records in the order of the file, at least one.

    Raises:
        ValueError: a line is not a record, or repeats the label and seed of another; the line is named.
    """
    lines = path.read_bytes().split(b"\n")
    records: list[Record] = []
    seen: dict[tuple[str, int], int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path.name}, line {number}"
        try:
            content = json.loads(line, parse_constant=_refuse_constant)
        except ValueError as error:
            if number == len(lines):  # no newline after it: the writer was stopped in the middle
                warnings.warn(f"{where} is cut off and was skipped; that run has to be repeated.", stacklevel=2)
                continue
            raise ValueError(f"{where} must be one JSON object, got {error}; remove or repeat that run.") from error
        record = check_record(content, where)
        key = (record["label"], record["seed"])
        if key in seen:
            raise ValueError(
                f"{where} must hold a new run, got label {key[0]!r} and seed {key[1]} again, as in"
                f" line {seen[key]}; keep one of the two."
            )
        seen[key] = number
        records.append(record)
    if not records:
        raise ValueError(f"{path.name} must hold at least one record, got none; run a comparison first.")
    return records


def metric_of(record: Record) -> Metric:
    """Name the metric that this record carries beside the loss."""
    return next(name for name in _METRICS if name in record["valid"])


def check_record(content: object, where: str) -> Record:
    """Return ``content`` as a record.

    Raises:
        ValueError: a key is missing or has another type, lists of a curve differ in length, clocks run
            backwards, or the schema is not the one this version writes; ``where`` starts the message.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{where}: a record must be a JSON object, got {type(content).__name__}.")
    schema = content.get("schema")
    if schema != SCHEMA:
        raise ValueError(f"{where}: schema must be {SCHEMA}, got {schema!r}; read it with the metastep that wrote it.")
    for name, types in _FIELDS.items():
        value = _get(content, name, where)
        if not isinstance(value, types) or isinstance(value, bool):
            allowed = " or ".join("null" if kind is type(None) else kind.__name__ for kind in types)
            raise ValueError(f"{where}: {name} must be {allowed}, got {type(value).__name__}.")
    if content["status"] not in ("finished", "diverged"):
        raise ValueError(f"{where}: status must be 'finished' or 'diverged', got {content['status']!r}.")

    metrics = [name for name in _METRICS if name in content["valid"]]
    if len(metrics) != 1:
        raise ValueError(f"{where}: valid must hold accuracy, perplexity or r2, got {metrics or 'none'}.")
    _check_curve(content["train"], ("loss", "lr"), f"{where}: train")
    _check_curve(content["valid"], ("loss", metrics[0]), f"{where}: valid")
    for name in ("loss", metrics[0]):
        value = _get(content["final"], name, f"{where}: final")
        if value is not None and not _is_number(value):
            raise ValueError(f"{where}: final.{name} must be a number or null, got {type(value).__name__}.")
    if content.get("layers") is not None:
        _check_layers(content["layers"], f"{where}: layers")
    return cast("Record", content)


def _check_curve(curve: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    steps = _get_list(curve, "step", where)
    for name in ("seconds", *names):
        values = _get_list(curve, name, where)
        if len(values) != len(steps):
            raise ValueError(f"{where}.{name} must have {len(steps)} entries as step has, got {len(values)}.")
    if None in steps or any(later <= earlier for earlier, later in pairwise(steps)):
        raise ValueError(f"{where}.step must grow from entry to entry, got {steps}.")
    seconds = curve["seconds"]
    if None in seconds or any(later < earlier for earlier, later in pairwise(seconds)):
        raise ValueError(f"{where}.seconds must not run backwards and not be null, got {seconds}.")


def _check_layers(layers: object, where: str) -> None:
    if not isinstance(layers, dict):
        raise ValueError(f"{where} must be an object, got {type(layers).__name__}.")
    steps = _get_list(layers, "step", where)
    names, rates = _get(layers, "names", where), _get(layers, "rates", where)
    if not isinstance(names, list) or not isinstance(rates, list) or len(rates) != len(names):
        raise ValueError(f"{where} must hold one list of rates per name, got other numbers of names and rates.")
    for name, values in zip(names, rates, strict=True):
        if len(_get_list({"rates": values}, "rates", where)) != len(steps):
            raise ValueError(f"{where}.rates of {name!r} must have {len(steps)} entries as step has.")


def _get(content: dict[str, Any], name: str, where: str) -> Any:
    if name not in content:
        raise ValueError(f"{where}: {name} must be there, got only {', '.join(sorted(content)) or 'nothing'}.")
    return content[name]


def _get_list(content: dict[str, Any], name: str, where: str) -> list[Any]:
    values = _get(content, name, where)
    if not isinstance(values, list) or not all(value is None or _is_number(value) for value in values):
        raise ValueError(f"{where}.{name} must be a list of numbers and nulls.")
    return values


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name}, which JSON does not have (null stands for it)")
