"""``metastep report``: the page and the plots of a comparison, made again from its records."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from metastep.cli import options as o
from metastep.cli.display import say, show
from metastep.cli.tables import results_table


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison, or a .jsonl file of records.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
    json: o.Json = False,
) -> None:
    """Write the page and the plots of a comparison again, from its records."""
    show_report(folder, title, json=json)


def show_report(folder: Path, title: str | None, *, json: bool) -> None:
    """Write ``report.html`` and the plots beside the records, and print the table."""
    from metastep.report import read_records, summarize, write_page, write_plots

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
    page = write_page(records, path.with_name("report.html"), title=title or records[0]["task"], notes=notes)
    write_plots(records, path.parent)
    if json:
        o.print_json({"folder": str(path.parent), "report": str(page), "rows": [asdict(row) for row in rows]})
        return
    show(results_table(rows, records[0]["task"]))
    for line in notes:
        say(line)
    say(f"report: {page}")
