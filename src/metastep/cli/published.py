"""Figures of papers that an experiment's page shows beside ours, read where their logs are found."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING

from metastep.lab.report import Published
from metastep.lab.tasks.sources import data_roots

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

#: Logs of the published runs of MLR-SNet, by task.
_LOGS = {"cifar10/resnet18": "resnet18_cifar10.csv", "cifar100/wrn-28-10": "wrn28_10_cifar100.csv"}
_CITATION = "arXiv 2007.14546, the authors' log: test accuracy after the last of {epochs} epochs, one run"


def published_figures(tasks: Collection[str]) -> list[Published]:
    """Return what is published of these tasks; empty where the logs are not on this machine.

    They are looked for as data are, in the folder ``reference/mlrsnet`` of a place or beside its ``data``.

    Raises:
        ValueError: for a log that is none.
    """
    return [
        _figure(task, path)
        for task, name in _LOGS.items()
        if task in tasks and (path := next(_places(name), None)) is not None
    ]


def _places(name: str) -> Iterator[Path]:
    for root in data_roots():
        for place in (root, root.parent):
            if (path := place / "reference" / "mlrsnet" / name).is_file():
                yield path


def _figure(task: str, path: Path) -> Published:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        last = rows[-1]
        accuracy, epochs = float(last["test_acc"]), int(last["epoch"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a log with the columns epoch and test_acc, got something else.") from error
    return Published(
        task=task,
        method="sgd/mlr-snet",
        metric="accuracy",
        value=f"{accuracy:.2f} %",
        citation=_CITATION.format(epochs=epochs),
    )
