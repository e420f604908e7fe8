"""``metastep report``: the page of a comparison or of a whole experiment, made again from its records."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import say, show
from metastep.cli.tables import results_table
from metastep.files import write_atomically


class Format(StrEnum):
    """How the results of an experiment are written."""

    HTML = "html"
    MD = "md"
    CSV = "csv"


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison or an experiment, or a .jsonl file.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File to write; a comparison's plots stay beside its records.")
    ] = None,
    format: Annotated[
        Format, typer.Option(help="Of an experiment: a page, Markdown tables, or a row per run.")
    ] = Format.HTML,
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    json: o.Json = False,
) -> None:
    """Write the page of a comparison or of a whole experiment, from its records."""
    from metastep.cli.experiment import is_experiment

    if not (folder / "compare.json").is_file() and folder.exists() and is_experiment(folder):
        _write_experiment(folder, output, format, title, json=json)
        return
    if format is not Format.HTML:
        raise ValueError(f"format must be html for a comparison, got {format.value}; md and csv are of an experiment.")
    show_report(folder, title, output=output, json=json)


def _write_experiment(folder: Path, output: Path | None, format: Format, title: str | None, *, json: bool) -> None:
    from metastep.cli.experiment import load_experiment
    from metastep.lab.report import as_csv, as_markdown, write_experiment_page

    experiment = load_experiment(folder, title)
    beside = folder if folder.is_dir() else folder.parent
    path = output or beside / f"report.{format.value}"
    if format is Format.HTML:
        write_experiment_page(experiment, path)
    else:
        write_atomically(path, as_markdown(experiment) if format is Format.MD else as_csv(experiment))
    if json:
        o.print_json({"report": str(path), "runs": len(experiment.cells), "methods": experiment.methods})
        return
    say(f"report: {path}")


def show_report(folder: Path, title: str | None, *, output: Path | None = None, json: bool) -> None:
    """Write ``report.html`` and the plots beside the records, and print the table."""
    from metastep.lab.report import read_records, summarize, write_page, write_plots

    path = folder if folder.suffix == ".jsonl" else folder / "records.jsonl"
    if not path.is_file():
        if (path.parent / "compare.json").is_file():
            resume = o.resume_command("compare", path.parent)
            raise FileNotFoundError(f"the comparison in {folder} is not finished; go on with: {resume}")
        raise FileNotFoundError(f"no records at {path}; give a folder that `metastep compare` made, or a .jsonl file.")
    records = read_records(path)
    beside = path.with_name("notes.txt")
    notes = beside.read_text().splitlines() if beside.is_file() else []
    rows = summarize(records)
    page = write_page(records, output or path.with_name("report.html"), title=title or records[0]["task"], notes=notes)
    write_plots(records, path.parent)
    if json:
        o.print_json({"folder": str(path.parent), "report": str(page), "rows": [asdict(row) for row in rows]})
        return
    show(results_table(rows, records[0]["task"]))
    for line in notes:
        say(line)
    say(f"report: {page}")
