"""``metastep report``: the page, the tables or the pictures of a comparison or an experiment, from its records."""

from __future__ import annotations

import csv
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import say, show
from metastep.cli.tables import results_table
from metastep.files import write_atomically

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from metastep.lab.report import PaperFigure, Results

#: Logs of the published runs of MLR-SNet, by task.
_LOGS = {"cifar10/resnet18": "resnet18_cifar10.csv", "cifar100/wrn-28-10": "wrn28_10_cifar100.csv"}
_CITATION = "arXiv 2007.14546, the authors' log: test accuracy after the last of {epochs} epochs, one run"


class Format(StrEnum):
    """How results are written."""

    HTML = "html"
    MD = "md"
    CSV = "csv"
    PNG = "png"
    SVG = "svg"


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison, an experiment or runs, or a .jsonl file.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write, or folder for pictures; default: beside the records."),
    ] = None,
    format: Annotated[
        Format, typer.Option(help="A page, Markdown tables, a row per run, or the charts as pictures.")
    ] = Format.HTML,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    json: o.Json = False,
) -> None:
    """Write the page of a comparison or of a whole experiment, from its records."""
    show_report(folder, title, output=output, format=format, json=json)


def show_report(
    folder: Path,
    title: str | None = None,
    *,
    output: Path | None = None,
    format: Format = Format.HTML,
    json: bool = False,
) -> None:
    """Write what is asked for, beside the records unless said otherwise, and say what came out.

    The page of a comparison on one task gets its pictures beside it; its table is printed, too.

    Raises:
        FileNotFoundError: if there are no records; if a comparison is not finished it says how to resume it.
    """
    results = _read(folder, title)
    beside = folder if folder.is_dir() else folder.parent
    written = _write(results, format, beside, output)
    runs, lost = len(results.all_runs), sum(not run.finished for run in results.all_runs)
    if json:
        found = {"folder": str(beside), "report": str(written), "runs": runs, "not_finished": lost}
        rows = [group.summary() for budget in results.budgets for group in results.ordered(budget)]
        o.print_json({**found, "methods": results.methods, **({"rows": rows} if results.one_task else {})})
        return
    if results.one_task:
        for budget in results.budgets:
            show(results_table(results.ordered(budget), results.tasks[0]))
    else:
        say(f"{runs} runs, of which {lost} diverged or failed")
    for line in results.notes:
        say(line)
    say(f"report: {written}")


def _read(folder: Path, title: str | None) -> Results:
    from metastep.lab.report import read_results

    try:
        return read_results(folder, title, figures=paper_figures)
    except FileNotFoundError as error:
        for name in ("compare.json", "experiment.json"):
            if (folder / name).is_file():
                resume = o.resume_command("compare", folder)
                raise FileNotFoundError(
                    f"the comparison in {folder} is not finished; resume it with: {resume}"
                ) from error
        raise


def _write(results: Results, format: Format, beside: Path, output: Path | None) -> Path:
    from metastep.lab.report import as_csv, as_markdown, write_page, write_pictures

    if format in (Format.PNG, Format.SVG):
        write_pictures(results, output or beside, format.value)
        return output or beside
    path = output or beside / f"report.{format.value}"
    if format is Format.HTML:
        write_page(results, path)
        if results.one_task:
            write_pictures(results, path.parent)
    else:
        write_atomically(path, as_markdown(results) if format is Format.MD else as_csv(results))
    return path


def paper_figures(tasks: Collection[str]) -> list[PaperFigure]:
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
    from metastep.lab.tasks.sources import data_roots

    for root in data_roots():
        for place in (root, root.parent):
            if (path := place / "reference" / "mlrsnet" / name).is_file():
                yield path


def _figure(task: str, path: Path) -> PaperFigure:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        last = rows[-1]
        accuracy, epochs = float(last["test_acc"]), int(last["epoch"])
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} must be a log with the columns epoch and test_acc, got something else.") from error
    from metastep.lab.report import PaperFigure

    return PaperFigure(
        task=task,
        method="sgd/mlr-snet",
        metric="accuracy",
        value=f"{accuracy:.2f} %",
        citation=_CITATION.format(epochs=epochs),
    )
