"""The report of an experiment: what it shows, what every number leads to, and its other formats."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.report.cells import make_record, make_records, with_sensitivity
from typer.testing import CliRunner

from metastep.cli.app import app
from metastep.cli.experiment import load_experiment
from metastep.lab.report import Experiment, Published, Scores, as_csv, as_markdown, write_experiment_page
from metastep.lab.report.vector import Line, plot

if TYPE_CHECKING:
    from pathlib import Path


def write(records: list[dict[str, Any]], folder: Path) -> Path:
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Experiment:
    return load_experiment(write(with_sensitivity(make_records()), tmp_path_factory.mktemp("runs")), "A <field>")


@pytest.fixture(scope="module")
def page(experiment: Experiment, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_experiment_page(experiment, tmp_path_factory.mktemp("page") / "page.html").read_text("utf-8")


def test_every_number_leads_to_records_and_every_run_is_listed(experiment: Experiment, page: str) -> None:
    places = re.findall(r'<details id="(r-[\d-]+)">', page)
    assert len(places) == len(set(places)) == len(experiment.groups)
    targets = re.findall(r'href="#([^"]+)"', page)
    assert set(targets) == set(places)
    for cell in experiment.cells:
        assert f"<code>{cell.source}</code>" in page


def test_the_page_loads_nothing_and_escapes_what_records_say(page: str) -> None:
    assert "<title>A &lt;field&gt;</title>" in page
    assert "RuntimeError: &lt;no&gt; &quot;luck&quot;" in page
    assert "<no>" not in page
    assert not re.search(r'(?:src|href)="(?!#)', page)
    assert "$" not in re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def test_a_diverged_run_counts_against_its_method_and_is_never_the_best(experiment: Experiment, page: str) -> None:
    key = ("classification-0/network", "method-1", 8)
    assert experiment.scores.losses[key].mean < math.inf  # of the seeds that finished
    assert page.count("1/3 ✗") == 4  # a diverged and a failed run at either budget
    profile = next(one for one in experiment.scores.profiles if (one.method, one.budget) == ("method-1", 8))
    assert max(profile.shares) <= 3 / 4  # of four tasks
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", page)
    bold = [row for row in rows if 'class="best"' in row]
    assert not any(re.search(r'class="best">[^✗]*?</td>', row) is None for row in bold)


def test_methods_are_listed_from_the_largest_area(experiment: Experiment) -> None:
    areas = {one.method: one.area for one in experiment.scores.profiles if one.budget == 8}
    assert [areas[method] for method in experiment.methods] == sorted(areas.values(), reverse=True)


def test_sensitivity_is_the_loss_over_that_at_the_chosen_rate(experiment: Experiment) -> None:
    for one in experiment.scores.sensitivities:
        assert one.factors == [0.1, 1.0, 10.0]
        assert one.losses[1] == pytest.approx(1.0)
        assert one.losses[0] > 1
    assert {one.method for one in experiment.scores.sensitivities} == set(experiment.methods)
    assert len(experiment.cells) == 2 * 4 * 6 * 3  # runs at other rates are not among the results


def test_time_is_compared_with_plain_sgd_on_the_same_task(experiment: Experiment) -> None:
    assert experiment.scores.overheads["method-2"] == pytest.approx(1.2)
    assert "sgd/constant" not in experiment.scores.overheads


def test_published_figures_are_marked_and_stand_beside_ours(experiment: Experiment, tmp_path: Path) -> None:
    figure = Published(
        task="classification-0/network", method="method-3", metric="accuracy", value="95.3", citation="A paper, 2020"
    )
    both = Experiment(title="x", cells=experiment.cells, scores=experiment.scores, published=[figure])
    text = write_experiment_page(both, tmp_path / "page.html").read_text("utf-8")
    ours = experiment.scores.qualities["classification-0/network", "method-3", 8]
    assert '95.3 <b class="published">published</b>' in text
    assert f"{100 * ours.mean:.1f} <small>" in text.split("published</b>")[1]
    assert "| 95.3 (published) |" in as_markdown(both)


def test_csv_has_a_row_per_run_and_markdown_a_row_per_method(experiment: Experiment) -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(experiment))))
    assert len(rows) == len(experiment.cells)
    assert [row["method"] for row in rows] == [cell.method for cell in experiment.cells]
    assert {row["status"] for row in rows} == {"finished", "diverged", "failed"}
    assert json.loads(rows[0]["settings"]) == dict(experiment.cells[0].found)
    text = as_markdown(experiment)
    assert len(re.findall(r"^\| method-3 \|", text, re.MULTILINE)) == 2
    assert "## Defaults, no tuning" in text
    assert 'method-2 on language-1/network, best of 8 trials, seed 1: failed, RuntimeError: <no> "luck"' in text


def test_a_method_that_was_not_run_on_every_task_is_shown_but_not_ranked(tmp_path: Path) -> None:
    records = [r for r in make_records() if r["method"] != "method-4" or r["task"] != "regression-2/network"]
    experiment = load_experiment(write(records, tmp_path))
    assert "method-4" in experiment.methods
    assert ("method-4", 8) not in experiment.scores.ranks
    assert any("method-4" in remark for remark in experiment.scores.remarks)


def test_an_experiment_of_one_run_has_a_page(tmp_path: Path) -> None:
    experiment = load_experiment(write([make_record(0, 0, 0, 1)], tmp_path))
    assert "<li>1 run</li>" in write_experiment_page(experiment, tmp_path / "page.html").read_text("utf-8")


def test_an_experiment_without_runs_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^cells must hold at least one run, got none; run the experiment first\.$"):
        Experiment(title="x", cells=[], scores=Scores(losses={}, qualities={}))


# The command


@pytest.mark.parametrize(("options", "name"), [([], "report.html"), (["--format", "md"], "report.md")])
def test_the_command_writes_beside_the_records(tmp_path: Path, options: list[str], name: str) -> None:
    result = CliRunner().invoke(app, ["report", str(write(make_records(3, 2, 1, (1,)), tmp_path)), *options])
    assert result.exit_code == 0, result.output
    assert (tmp_path / name).stat().st_size > 500


def test_the_command_writes_where_it_is_told(tmp_path: Path) -> None:
    folder, place = write(make_records(3, 2, 1, (1,)), tmp_path), tmp_path / "rows.csv"
    result = CliRunner().invoke(app, ["report", str(folder), "-o", str(place), "--format", "csv"])
    assert result.exit_code == 0, result.output
    assert len(place.read_text().splitlines()) == 7


def test_a_half_written_last_record_is_skipped_with_a_warning(tmp_path: Path) -> None:
    folder = write(make_records(3, 2, 1, (1,)), tmp_path)
    with (folder / "records.jsonl").open("a") as file:
        file.write('{"schema": 1, "task": "cla')
    with pytest.warns(UserWarning, match=r"^records\.jsonl:7 is cut off and was skipped"):
        assert len(load_experiment(folder).cells) == 6


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"schema": 99}', r"records\.jsonl:1: schema must be at most 1, got 99; use a newer metastep"),
        ('{"schema": 1}', r"records\.jsonl:1: final must be there, got only schema"),
        ("{nonsense", r"records\.jsonl:1 must be one JSON object"),
        ("[1]", r"records\.jsonl:1 must be a record with a schema"),
    ],
)
def test_what_is_no_record_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "records.jsonl").write_text(line + "\n")
    with pytest.raises(ValueError, match=message):
        load_experiment(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no records \(\*\.jsonl\) in"):
        load_experiment(tmp_path)


# Plots


def points(svg: str) -> list[list[tuple[float, float]]]:
    paths = re.findall(r'class="line[^"]*".*? d="([^"]*)"', svg)
    return [[(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)] for path in paths]


def test_a_plot_places_points_by_their_axes_and_leaves_gaps() -> None:
    line = Line(name="a", slot=0, x=[1, 10, 100, 1000], y=[0.0, math.nan, 0.5, 1.0])
    svg = plot([line], label="", x_label="x", x_scale="log", y_ends=(0, 1), width=200, height=100)
    (drawn,) = points(svg)
    assert svg.count("M46.0") == 1
    assert len(drawn) == 3
    left, middle, right = drawn
    assert middle[0] == pytest.approx(left[0] + 2 / 3 * (right[0] - left[0]), abs=0.2)
    assert middle[1] == pytest.approx((left[1] + right[1]) / 2, abs=0.2)


def test_a_line_that_blew_up_does_not_flatten_the_others() -> None:
    calm = [Line(name=str(k), slot=k, x=[0, 1, 2], y=[1.0, 0.8, 0.5 + 0.01 * k]) for k in range(9)]
    wild = Line(name="wild", slot=9, x=[0, 1, 2], y=[1.0, 1e6, 1e9])
    drawn = points(plot([*calm, wild], label="", x_label="x"))
    assert drawn[0][0][1] < drawn[0][2][1] - 50  # pixels; the axis up grows downwards


def test_nothing_to_draw_is_an_empty_plot() -> None:
    assert points(plot([], label="", x_label="x", x_scale="log", y_scale="log")) == []
