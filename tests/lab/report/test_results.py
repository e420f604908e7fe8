"""What the records say together: groups, verdicts and scores are what a hand would compute."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.report import comparison_records
from tests.lab.report.experiment_records import make_record, make_records, with_sensitivity, write_lines

from metastep.lab.records import decode_record
from metastep.lab.report import Interval, Results, read_results, verdict
from metastep.lab.report.panels import band, curves, layers
from metastep.lab.report.results import Run, one_configuration

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder = tmp_path_factory.mktemp("runs")
    write_lines(with_sensitivity(make_records()), folder / "records.jsonl")
    return read_results(folder)


def small(label: str, seed: int, loss: float | None, *, status: str = "finished") -> dict[str, Any]:
    """A record of a comparison with the given test loss."""
    record = make_record(0, 0, seed, 1, points=3)
    final = {"loss": loss, "accuracy": None if loss is None else 1 - loss}
    return record | {"label": label, "method": None, "final": final, "status": status}


def comparison(folder: Path, *records: dict[str, Any]) -> Results:
    return read_results(write_lines(list(records), folder / "records.jsonl"))


# Groups and verdicts


def test_a_group_has_means_and_ranges_over_the_runs_that_finished_best_first(tmp_path: Path) -> None:
    results = comparison(tmp_path, small("a", 0, 0.3), small("a", 1, 0.5), small("b", 0, 0.2), small("b", 1, 0.1))
    b, a = results.ordered(1)
    assert (a.method, b.method) == ("a", "b")
    assert a.test_loss == Interval(mean=pytest.approx(0.4), low=0.3, high=0.5, n=2)
    assert a.test_loss.half_range == pytest.approx(0.1)
    assert b.test_metric is not None
    assert b.test_metric.mean == pytest.approx(0.85)
    assert results.methods == ["b", "a"]


def test_a_lost_run_is_counted_and_its_method_comes_last_and_is_never_the_best(tmp_path: Path) -> None:
    lost = small("a", 1, None, status="diverged")
    results = comparison(tmp_path, small("a", 0, 0.1), lost, small("b", 0, 0.4), small("b", 1, 0.4))
    first, last = results.ordered(1)
    assert (first.method, last.method) == ("b", "a")
    assert (len(last.finished), last.lost) == (1, 1)
    assert results.best(results.tasks[0], 1) == "b"


def test_the_verdict_names_a_winner_only_beyond_the_noise_of_the_seeds(tmp_path: Path) -> None:
    a = [small("a", 0, 0.10), small("a", 1, 0.12)]
    apart = comparison(tmp_path, *a, small("b", 0, 0.30), small("b", 1, 0.32))
    assert "no other range overlaps" in " ".join(verdict(apart))
    mixed = comparison(tmp_path, *a, small("b", 0, 0.30), small("b", 1, 0.11))
    said = " ".join(verdict(mixed))
    assert "within the noise between seeds" in said
    assert "Seed by seed, a was below b in 1 of 2" in said
    single = comparison(tmp_path, small("a", 0, 0.1), small("b", 0, 0.2))
    assert "With a single seed nothing tells a difference from noise" in " ".join(verdict(single))


def test_the_verdict_says_when_nobody_finished(tmp_path: Path) -> None:
    said = " ".join(verdict(comparison(tmp_path, small("a", 0, None, status="diverged"))))
    assert "none is named best" in said
    assert "Diverged: 1 of 1 runs of a" in said


def test_of_several_tasks_the_verdict_names_the_largest_area_and_tests_the_ranks(experiment: Results) -> None:
    lead, *rest = verdict(experiment)
    areas = experiment.standings[8].areas
    assert lead.startswith(f"{max(areas, key=lambda name: areas[name])} has the largest area")
    assert any("all methods perform equally" in text for text in rest)


# Scores


def test_a_diverged_run_counts_against_its_method(experiment: Results) -> None:
    group = experiment.groups["classification-0/network", "method-1", 8]
    assert group.cost == math.inf
    assert group.confidence is not None  # of the seeds that finished
    assert max(experiment.standings[8].shares["method-1"]) <= 3 / 4  # of four tasks


def test_methods_are_listed_from_the_largest_area(experiment: Results) -> None:
    areas = experiment.standings[8].areas
    assert [areas[method] for method in experiment.methods] == sorted(areas.values(), reverse=True)


def test_sensitivity_is_the_loss_over_that_at_the_chosen_rate(experiment: Results) -> None:
    for one in experiment.sensitivities:
        assert one.factors == [0.1, 1.0, 10.0]
        assert one.losses[1] == pytest.approx(1.0)
        assert one.losses[0] > 1
    assert {one.method for one in experiment.sensitivities} == set(experiment.methods)
    assert len(experiment.runs) == 2 * 4 * 6 * 3  # runs at other rates are not among the results


def test_one_configuration_is_the_best_on_all_tasks_but_the_one_it_is_for(tmp_path: Path) -> None:
    def run(task: int, name: str, valid: float, factor: float, seed: int = 0, **more: Any) -> dict[str, Any]:
        record = make_record(0, task, seed, 1, points=1, factor=factor) | {"method": name, "label": name, **more}
        return record | {"valid": {**record["valid"], "loss": [valid]}}

    # b at a tenth has the lowest losses and was not run everywhere; b at its own rate diverges on task 0
    losses = {("a", 1.0): (1.0, 1.5, 3.0), ("b", 3.0): (2.0, 1.0, 1.0), ("b", 0.1): (0.1, 0.1)}
    records = [run(task, name, at[task], f) for (name, f), at in losses.items() for task in range(len(at))]
    records += [run(task, "b", 0.01, 1.0, seed=1) for task in range(3)]
    records += [run(0, "b", 0.01, 1.0, status="diverged"), run(0, "a", 0.001, 1.0, budget=8)]
    records += [run(task, "b", 1e9, 1.0) for task in (1, 2)]
    runs = [Run(record=decode_record(json.dumps(record), "it"), source="") for record in records]
    chosen = one_configuration(runs)
    assert [(one.task.partition("/")[0][-1], one.method, one.rate_factor) for one in chosen] == [
        ("0", "b", 3.0),
        ("1", "b", 3.0),
        ("2", "a", 1.0),
    ]
    assert [(run.record.valid["loss"], run.cost) for run in chosen[2].runs] == [([3.0], runs[2].cost)]
    with pytest.raises(ValueError, match="runs must be of a candidate that was run on two tasks at least, got 1 on 1"):
        one_configuration(runs[:1])


def test_time_is_compared_with_plain_sgd_on_the_same_task(experiment: Results) -> None:
    assert experiment.overheads["method-2"] == pytest.approx(1.2)
    assert "sgd/constant" not in experiment.overheads


def test_a_method_that_was_not_run_on_every_task_is_shown_but_not_ranked(tmp_path: Path) -> None:
    records = [r for r in make_records() if r["method"] != "method-4" or r["task"] != "regression-2/network"]
    results = comparison(tmp_path, *records)
    assert "method-4" in results.methods
    assert results.standings[8].left_out == ["method-4"]
    assert "method-4" not in results.standings[8].areas
    assert any("method-4" in text for text in verdict(results))


# Reading


def test_a_file_and_a_folder_say_the_same_and_curves_of_runs_at_work_are_left_out(tmp_path: Path) -> None:
    file = write_lines(make_records(3, 2, 1, (1,)), tmp_path / "records.jsonl")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "metrics.jsonl").write_text('{"split": "train"}\n')
    (tmp_path / "notes.txt").write_text("A note.\n")
    (tmp_path / "experiment.json").write_text('{"title": "The field", "methods": []}')
    one, other = read_results(file), read_results(tmp_path)
    assert [run.record for run in one.runs] == [run.record for run in other.runs]
    assert (one.title, one.notes) == (other.title, other.notes) == ("The field", ["A note."])


def test_a_half_written_last_record_is_skipped_with_a_warning(tmp_path: Path) -> None:
    file = write_lines(make_records(3, 2, 1, (1,)), tmp_path / "records.jsonl")
    with file.open("a") as lines:
        lines.write('{"schema": 1, "task": "cla')
    with pytest.warns(UserWarning, match=r"^records\.jsonl:7 is cut off and was skipped"):
        assert len(read_results(tmp_path).runs) == 6


def test_the_same_run_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    record = make_record(0, 0, 3, 1)
    with pytest.raises(ValueError, match=r"^records\.jsonl:2 must hold a new run, .* seed 3 .*records\.jsonl:1;"):
        comparison(tmp_path, record, record)


def test_an_empty_folder_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^no records in"):
        read_results(tmp_path)
    (tmp_path / "records.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="at least one record, got none"):
        read_results(tmp_path)


# Curves


def test_a_band_starts_where_the_last_seed_starts_and_a_gap_of_one_seed_is_a_gap_of_all() -> None:
    import numpy as np

    early = (np.array([0.0, 10.0, 20.0]), np.array([3.0, 2.0, 1.0]))
    late = (np.array([10.0, 30.0]), np.array([4.0, 2.0]))
    whole = band([early, late], 10)
    assert whole == {"x": [10, 20, 30], "y": [3, 2, 1.5], "low": [2, 1, 1], "high": [4, 3, 2]}
    broken = band([(early[0], np.array([3.0, math.nan, 1.0])), early], 10)
    assert broken is not None
    assert broken["y"] == [3, None, 1]
    assert band([(early[0][:0], early[1][:0])], 10) is None


def test_a_run_that_blew_up_does_not_flatten_the_others(tmp_path: Path) -> None:
    records = [small(str(k), 0, 0.3) for k in range(9)]
    wild = small("wild", 0, 1e9)
    for name in ("train", "valid"):
        wild[name] = {**wild[name], "loss": [1.0, 1e6, 1e9]}
    loss = curves(comparison(tmp_path, *records, wild), "classification-0/network")[0]
    calm = max(max(record["train"]["loss"]) for record in records)
    assert loss.domain["linear"][1] < 12 * calm
    assert loss.domain["log"][1] < 100 * calm


def test_a_run_that_diverged_has_a_line_of_its_own_with_a_mark_at_its_end(tmp_path: Path) -> None:
    results = comparison(tmp_path, *comparison_records.make_records(diverged=("constant", 2)))
    panel = curves(results, results.tasks[0])[0]
    (lost,) = [row for row in panel.rows["step"] if "seed" in row]
    assert (lost["method"], lost["seed"], lost["end"][-1], sum(lost["end"])) == ("constant", 2, 1, 1)
    assert set(panel.rows) == {"step", "seconds"}
    assert max(max(row["x"]) for row in panel.rows["seconds"]) < 20


def test_rates_of_layers_have_a_panel_only_where_a_record_has_them(tmp_path: Path) -> None:
    records = comparison_records.make_records(diverged=None)[:2]
    assert layers(comparison(tmp_path, *records)) == []
    layered = comparison_records.with_layers(records[0], ["stem.weight", "head.weight"])
    (panel,) = layers(comparison(tmp_path, layered, records[1]))
    assert [row["method"] for row in panel.rows["step"]] == ["stem.weight", "head.weight"]


def test_a_folder_of_single_runs_is_read(tmp_path: Path) -> None:
    for seed in (0, 1):
        folder = tmp_path / f"run-{seed}"
        folder.mkdir()
        write_lines([make_record(0, 0, seed, 1)], folder / "record.json")
        (folder / "metrics.jsonl").write_text('{"step": 1}\n')
    assert [run.record.seed for run in read_results(tmp_path).all_runs] == [0, 1]
    record = {**make_record(0, 0, 1, 1), "method": None}
    for name in ("low", "high"):
        (tmp_path / name).mkdir()
        write_lines([record], tmp_path / name / "record.json")
    methods = {run.method for run in read_results(tmp_path).all_runs}
    assert {f"{record['label']}, low", f"{record['label']}, high"} <= methods
