"""``metastep report``: the page and the plots of a comparison, made again from its records."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from metastep.cli.display import output, results_table

if TYPE_CHECKING:
    from metastep.report import SummaryRow


def report(
    folder: Annotated[Path, typer.Argument(help="Folder of a comparison, or a .jsonl file of records.")],
    title: Annotated[str | None, typer.Option(help="Heading of the page.")] = None,
) -> None:
    """Write the page and the plots of a comparison again, from its records."""
    rows, page = write_report(folder, title, [])
    output.print(results_table(rows, page.parent.name))
    output.print(f"report: {page}")


def write_report(folder: Path, title: str | None, notes: list[str]) -> tuple[list[SummaryRow], Path]:
    """Write ``report.html`` and the plots beside the records; return the table's rows and the page's path."""
    from metastep.report import read_records, summarize, write_page, write_plots

    path = folder if folder.suffix == ".jsonl" else folder / "records.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"no records at {path}; give a folder that `metastep compare` made, or a .jsonl file.")
    records = read_records(path)
    place = path.parent
    page = write_page(records, place / "report.html", title=title or records[0]["task"], notes=notes)
    write_plots(records, place)
    return summarize(records), page
