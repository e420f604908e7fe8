"""Records are read whole or refused with the line that is wrong; their summary is what a hand would compute."""

import json
from pathlib import Path

import pytest
from tests.lab.report.runs import make_records, write_lines

from metastep.lab.report import read_records, summarize, verdict


def small(label: str, seed: int, loss: float | None, *, status: str = "finished") -> dict:
    """A record of one step with the given test loss."""
    record = next(r for r in make_records(diverged=None) if r["seed"] == 0)
    final = {"loss": loss, "accuracy": None if loss is None else 1 - loss}
    return record | {"label": label, "schedule": label, "seed": seed, "final": final, "status": status}


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    records = make_records()
    assert read_records(write_lines(records, tmp_path / "records.jsonl")) == records


def test_a_last_line_that_a_kill_cut_short_is_left_out_and_said(tmp_path: Path) -> None:
    records = make_records(diverged=None)[:3]
    path = write_lines(records, tmp_path / "records.jsonl")
    path.write_text(path.read_text()[:-40])
    with pytest.warns(UserWarning, match="line 3 is cut off"):
        assert read_records(path) == records[:2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 2}, "schema"),
        ({"seed": "0"}, "seed"),
        ({"train": {"step": [1], "seconds": [0.1], "loss": [1.0, 2.0], "lr": [0.1]}}, "train"),
    ],
)
def test_a_wrong_record_is_refused_by_line_and_key(change: dict, message: str, tmp_path: Path) -> None:
    records = make_records(diverged=None)[:2]
    with pytest.raises(ValueError, match=rf"line 2.*{message}"):
        read_records(write_lines([records[0], records[1] | change], tmp_path / "records.jsonl"))


@pytest.mark.parametrize("key", ["task", "valid", "final", "status", "command"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    record = make_records(diverged=None)[0]
    del record[key]
    with pytest.raises(ValueError, match=key):
        read_records(write_lines([record], tmp_path / "records.jsonl"))


def test_a_broken_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    lines = [json.dumps(record) for record in make_records(diverged=None)[:3]]
    lines[1] = lines[1][:100]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="line 2"):
        read_records(path)


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    record = make_records(diverged=None)[0]
    with pytest.raises(ValueError, match="line 2"):
        read_records(write_lines([record, record], tmp_path / "records.jsonl"))


def test_a_summary_has_means_and_ranges_over_the_runs_that_finished_best_first() -> None:
    records = [small("a", 0, 0.3), small("a", 1, 0.5), small("b", 0, 0.2), small("b", 1, 0.1)]
    b, a = summarize(records)
    assert (a.label, b.label) == ("a", "b")
    assert a.test_loss is not None
    assert (a.test_loss.mean, a.test_loss.low, a.test_loss.high, a.test_loss.n) == (pytest.approx(0.4), 0.3, 0.5, 2)
    assert a.test_loss.half_range == pytest.approx(0.1)
    assert b.test_metric is not None
    assert b.test_metric.mean == pytest.approx(0.85)


def test_a_diverged_run_is_counted_and_its_label_comes_last() -> None:
    records = [small("a", 0, 0.1), small("a", 1, None, status="diverged"), small("b", 0, 0.4), small("b", 1, 0.4)]
    first, last = summarize(records)
    assert (first.label, last.label) == ("b", "a")
    assert (last.finished, last.diverged, last.seeds) == (1, 1, 2)


def test_the_verdict_names_a_winner_only_beyond_the_noise_of_the_seeds() -> None:
    apart = [small("a", 0, 0.10), small("a", 1, 0.12), small("b", 0, 0.30), small("b", 1, 0.32)]
    mixed = [small("a", 0, 0.10), small("a", 1, 0.32), small("b", 0, 0.30), small("b", 1, 0.12)]
    assert "no other range overlaps" in " ".join(verdict(summarize(apart)))
    assert "within the noise between seeds" in " ".join(verdict(summarize(mixed)))


def test_the_verdict_says_when_nobody_finished() -> None:
    said = " ".join(verdict(summarize([small("a", 0, None, status="diverged")])))
    assert "none is named best" in said
    assert "Diverged: 1 of 1 runs of a" in said
