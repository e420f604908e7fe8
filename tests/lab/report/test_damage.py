"""Damaged records end in one line or in a right report, whatever was done to them; never in a traceback."""

from __future__ import annotations

import json
import math
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from tests.faults.damage import damages, json_edit, memory_bound
from tests.lab.report.comparison_records import make_record as make_comparison_record
from tests.lab.report.comparison_records import with_layers
from tests.lab.report.experiment_records import make_record

from metastep.lab.report import Results, as_csv, as_markdown, read_results
from metastep.lab.report.page import content
from metastep.lab.report.tables import origins

if TYPE_CHECKING:
    from pathlib import Path

RECORDS = {
    "comparison": with_layers(make_comparison_record("cosine", 0), ["stem", "head"]),
    "experiment": make_record(2, 1, 1, 8, points=5),
    "off": make_record(3, 0, 0, 8, points=5, factor=10.0),
}
STRANGE = [
    *("5", "{}", "null", "[]", '"x"', "[" * 100_000, "\x00"),
    *('{"schema": 1}', '{"schema": null}', '{"schema": 1e999}'),
]


def everything(results: Results) -> None:
    """Make all that a report shows, but no picture."""
    as_markdown(results)
    as_csv(results)
    origins(results)
    text = json.dumps(content(results))
    assert not any(word in text for word in ("NaN", "Infinity"))


def ends_well(file: Path, what: str) -> bool:
    """Whether there is a report; else there was one line."""
    results, said = None, ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        try:
            results = read_results(file)
        except ValueError as error:
            said = str(error)
    assert said.count("\n") == 0, what
    assert len(said) < 1000, what
    if results is None:
        return False
    everything(results)
    return True


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_ends_in_a_line_or_a_report(name: str, tmp_path: Path) -> None:
    good = json.dumps(RECORDS[name]).encode()
    other = json.dumps(make_record(0, 0, 0, 8, points=3)).encode()
    file, reports = tmp_path / "records.jsonl", 0
    with memory_bound(1000):
        for data, what in damages(good, 350, seed=len(name), edit=json_edit):
            file.write_bytes(data + b"\n" + other + b"\n")
            reports += ends_well(file, what)
    assert 0 < reports < 350


@pytest.mark.parametrize("text", STRANGE)
def test_what_is_no_record_is_refused_by_its_place(text: str, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(text + "\n")
    with pytest.raises(ValueError, match=r"^record\.json:1") as raised:
        read_results(tmp_path / "record.json")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("value", [1e308, -1e308, 5e-324, 0.0, -1.0, None])
def test_extreme_numbers_have_a_report(value: float | None, tmp_path: Path) -> None:
    def replaced(part: Any) -> Any:
        if isinstance(part, dict):
            return {name: replaced(one) for name, one in part.items()}
        if isinstance(part, list):
            return [replaced(one) for one in part]
        return value if isinstance(part, float) else part

    record = RECORDS["comparison"]
    steps = {name: {**replaced(record[name]), "seconds": record[name]["seconds"]} for name in ("train", "valid")}
    changed = record | steps | {"final": replaced(record["final"]), "layers": replaced(record["layers"])}
    (tmp_path / "records.jsonl").write_text(json.dumps(changed) + "\n")
    results = read_results(tmp_path)
    everything(results)
    assert results.runs[0].cost == math.inf or results.runs[0].cost >= 1e-7
