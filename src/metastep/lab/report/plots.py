"""Plots as PNG files, for READMEs: drawn on white, so that they also read on a dark page."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from metastep.files import write_atomically
from metastep.lab.report.curves import series_of
from metastep.lab.report.records import metric_of
from metastep.lab.report.summary import summarize

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path
    from types import ModuleType

    from metastep.lab.report.records import Record


def write_plots(records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw loss, accuracy (or perplexity) and learning rate over steps as PNG files and return their paths.

    Lines are means over seeds, bands reach from the lowest to the highest seed, and a run that diverged is
    dotted and ends in a cross.

    Args:
        records: runs of one task, as `read_records` returns them.
        folder: where ``loss.png``, ``accuracy.png`` or ``perplexity.png``, and ``learning_rate.png`` go.

    Raises:
        ValueError: ``records`` is empty or mixes tasks.
        ModuleNotFoundError: matplotlib is not installed.
    """
    drawing = _drawing()
    order = {row.label: place for place, row in enumerate(summarize(records))}
    series = sorted(series_of(records), key=lambda one: order[one.label])
    metric = metric_of(records[0])
    plots = {
        "loss": [("train_loss", "Training loss", "log"), ("valid_loss", "Validation loss", "log")],
        metric: [("valid_metric", f"Validation {metric}", "percent" if metric == "accuracy" else "log")],
        "learning_rate": [("lr", "Learning rate", "linear")],
    }
    paths = []
    for name, panels in plots.items():
        paths.append(folder / f"{name}.png")
        write_atomically(paths[-1], drawing.comparison(series, panels))
    return paths


def rate_plot(
    curves: Mapping[str, Sequence[float]],
    path: Path,
    *,
    title: str,
    reference: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Draw what a schedule answers, query by query, to losses that fall, rise or stay, and return the path.

    Args:
        curves: name of the loss sequence -> the rate at each query.
        path: the PNG file to write.
        title: the heading.
        reference: the same sequences answered by another schedule; drawn dashed, in the same colours.

    Raises:
        ValueError: there is no curve, or a curve is empty.
        ModuleNotFoundError: matplotlib is not installed.
    """
    if not curves or not all(curves.values()):
        raise ValueError("curves must hold at least one sequence of rates and none empty; query the schedule first.")
    write_atomically(path, _drawing().rates(curves, reference or {}, title))
    return path


def _drawing() -> ModuleType:
    try:
        return import_module("metastep.lab.report.drawing")
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("metastep"):
            raise
        raise ModuleNotFoundError(
            'matplotlib must be installed to draw plots; pip install "metastep[report]".', name=error.name
        ) from error
