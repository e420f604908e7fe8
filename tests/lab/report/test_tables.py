"""The tables as Markdown and CSV, and what every number on the page leads to."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import TYPE_CHECKING

import pytest
from tests.lab.report.experiment_records import make_record, make_records, with_sensitivity, write_lines

from metastep.lab.report import PaperFigure, Results, as_csv, as_markdown, read_results
from metastep.lab.report.tables import lost_runs, origins, paper_figures, results_table

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("runs")
    return read_results(write_lines(with_sensitivity(make_records()), folder / "records.jsonl"))


def test_csv_has_a_row_per_run_and_markdown_a_row_per_method(experiment: Results) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(experiment))))
    assert len(rows) == len(experiment.runs)
    assert [row["method"] for row in rows] == [run.method for run in experiment.runs]
    assert {row["status"] for row in rows} == {"finished", "diverged", "failed"}
    assert json.loads(rows[0]["settings"]) == experiment.runs[0].record.found
    text = as_markdown(experiment)
    assert len(re.findall(r"^\| method-3 \|", text, re.MULTILINE)) == 2
    assert "## Defaults, no tuning" in text
    assert '| method-2 | language-1/network | 8 | failed | 1 of 3 | RuntimeError: <no> "luck" |' in text


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_of_the_csv_is_a_formula_and_negative_numbers_stay_numbers(start: str, tmp_path: Path) -> None:
    evil = f'{start}HYPERLINK("http://x","y")'
    record = make_record(0, 2, 0, 1) | {"task": evil, "method": evil, "error": evil, "status": "failed"}
    record["final"] = {"loss": -1.5, "r2": -0.25}
    results = read_results(write_lines([record], tmp_path / "records.jsonl"))
    (row,) = csv.DictReader(io.StringIO(as_csv(results), newline=""))
    assert row["task"] == row["method"] == row["error"] == f"'{evil}"
    assert (row["test_loss"], row["test_metric"]) == ("-1.5", "-0.25")


def test_a_text_cannot_break_a_table_of_markdown(tmp_path: Path) -> None:
    record = make_record(0, 0, 0, 1) | {"method": "a|b\n\n# Heading"}
    text = as_markdown(read_results(write_lines([record], tmp_path / "records.jsonl")))
    assert "| a\\|b # Heading |" in text
    assert "\n# Heading" not in text


def test_a_lost_run_stands_beside_the_number_and_best_is_a_method_without(experiment: Results) -> None:
    rows = results_table(experiment, 8).rows
    warned = [cell.warning for row in rows for cell in row if cell.warning]
    assert warned == ["1/3 ✗", "1/3 ✗"]
    assert all(not cell.warning for row in rows for cell in row if "best" in cell.kind)
    assert lost_runs(experiment) is not None


def test_published_figures_are_marked_and_stand_beside_ours(experiment: Results) -> None:
    figure = PaperFigure(
        task="classification-0/network", method="method-3", metric="accuracy", value="95.3", citation="A paper, 2020"
    )
    both = Results(experiment.runs, title="x", figures=[figure])
    (row,) = paper_figures(both).rows
    ours = experiment.groups["classification-0/network", "method-3", 8].confidence
    assert (row[3].text, row[3].note) == ("95.3", "published")
    assert row[4].text.startswith(f"{100 * ours.mean:.1f} (")
    assert "| 95.3 [published] |" in as_markdown(both)


def test_what_all_runs_share_is_said_once_and_what_differs_with_how_many_runs(experiment: Results) -> None:
    said = {row[0].text: row[1].text for row in origins(experiment).rows}
    assert said["versions.torch"] == "2.13.0"
    assert said["optimizer"] == "sgd"
