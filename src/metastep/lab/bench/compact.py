"""The records of an experiment: those of its runs, small enough that thousands lie in one file."""

from collections.abc import Mapping, Sequence
from typing import Any

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.records import SCHEMA
from metastep.lab.runtime.provenance import provenance
from metastep.lab.tasks.table import recipe_of
from metastep.lab.tasks.task import METRICS

#: Points of a curve, at most.
POINTS = 40
#: Significant digits of a curve's numbers. The final numbers keep all.
DIGITS = 5

_KEPT = (
    *("schema", "seed", "optimizer", "schedule", "lr", "batch_size", "total_steps", "status"),
    *("final", "train_seconds", "eval_seconds", "peak_rate"),
    *("versions", "machine", "command", "git_revision", "created"),
)
#: Settings that methods differ in; those that all runs of a task share are in the experiment's plan.
_SETTINGS = ("optimizer_options", "warmup_steps", "meta")


def compact(record: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a run in an experiment.

    Args:
        record: the run's own.
        about: ``task`` (its name in the experiment), ``method``, ``budget``, ``rate_factor``, ``tuned``, ``found``.
    """
    return {
        **{name: record[name] for name in _KEPT},
        "label": about["method"],
        **about,
        "train": thinned(record["train"]),
        "valid": thinned(record["valid"]),
        "settings": {name: record["settings"][name] for name in _SETTINGS if record["settings"][name]},
    }


def failed(base: RunConfig, about: Mapping[str, Any], error: str) -> dict[str, Any]:
    """Return the record of a run that ended in an error."""
    metric = METRICS[recipe_of(base.task).kind]
    return {
        "schema": SCHEMA,
        "seed": base.seed,
        "optimizer": base.optimizer,
        "schedule": base.schedule,
        "lr": base.lr,
        "batch_size": base.batch_size,
        "total_steps": base.total_steps,
        "status": "failed",
        "error": error,
        "label": about["method"],
        **about,
        "train": {},
        "valid": {},
        "final": {"loss": None, metric: None},
        "train_seconds": 0.0,
        "eval_seconds": 0.0,
        "settings": {},
        **provenance("cpu"),
    }


def thinned(curve: Mapping[str, Sequence[Any]], points: int = POINTS) -> dict[str, list[Any]]:
    """Return a curve with at most so many points, the first and the last among them, in fewer digits.

    Example:
        >>> thinned({"step": [1, 2, 3, 4, 5], "loss": [5.0, 4.0, None, 2.0, 1.0000001]}, points=3)
        {'step': [1, 3, 5], 'loss': [5.0, None, 1.0]}
    """
    length = len(curve["step"])
    last = length - 1
    kept = range(length) if length <= points else sorted({round(k * last / (points - 1)) for k in range(points)})
    return {name: [_shorter(values[k]) for k in kept] for name, values in curve.items()}


def _shorter(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value
