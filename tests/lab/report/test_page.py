"""The page is one file that loads nothing, hides nothing and trusts no text; pictures are real pictures."""

import builtins
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tests.lab.report import comparison_records
from tests.lab.report.experiment_records import make_record, make_records, with_sensitivity, write_lines

from metastep.lab.report import Results, read_results, write_page, write_pictures, write_rate_picture

HOSTILE = (
    "<script>alert(1)</script>",
    "</script><img src=x onerror=alert(1)>",
    "$\\frac{a_{b$",
    "${title}",
    "a'\"`b\\",
)


def read(records: list[dict[str, Any]], folder: Path, title: str | None = None) -> Results:
    return read_results(write_lines(records, folder / "records.jsonl"), title)


def data_of(page: str) -> dict[str, Any]:
    """The numbers that the page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def without_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def pixels(png: Path) -> tuple[int, int, int]:
    """Width and height of a PNG, and how many colours it has."""
    with Image.open(png) as image:
        assert image.format == "PNG"
        return *image.size, len(image.convert("RGB").getcolors(maxcolors=1 << 24))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return read(with_sensitivity(make_records()), tmp_path_factory.mktemp("runs"), "A <field>")


@pytest.fixture(scope="module")
def page(experiment: Results, tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_page(experiment, tmp_path_factory.mktemp("page") / "page.html").read_text("utf-8")


def test_every_number_leads_to_records_and_every_run_is_listed(experiment: Results, page: str) -> None:
    places = re.findall(r'<details id="(r-[\d-]+)">', page)
    assert len(places) == len(set(places)) == len(experiment.groups)
    assert set(re.findall(r'href="#([^"]+)"', page)) == set(places)
    for run in experiment.runs:
        assert f">{run.source}</td>" in page


def test_the_page_loads_nothing_and_escapes_what_records_say(page: str) -> None:
    own = without_scripts(page)  # Vega's source names hosts that it never asks
    assert "<title>A &lt;field&gt;</title>" in own
    assert "RuntimeError: &lt;no&gt; &quot;luck&quot;" in own
    assert "<no>" not in page
    assert not re.search(r'(?:src|href)="(?!#)', own)
    assert not re.search(r"url\(", own)
    assert "$" not in own
    assert "default-src 'none'" in own
    assert "unsafe-eval" not in own


def test_what_draws_the_charts_is_there_once_whatever_their_number(page: str) -> None:
    assert page.count("window.vegaEmbed") == 1
    panels = data_of(page)["panels"]
    assert page.count('<div class="chart') == len(panels) == 2 + 2 + 1 + 2 * 4
    assert len(data_of(page)["specifications"]) < 10


def test_texts_from_records_are_shown_and_never_run(tmp_path: Path) -> None:
    record = comparison_records.make_record("cosine", 0)
    records = [record | {"label": text, "command": text, "task": HOSTILE[0]} for text in HOSTILE]
    (tmp_path / "notes.txt").write_text(HOSTILE[1])
    results = read(records, tmp_path, title=HOSTILE[0])
    page = write_page(results, tmp_path / "report.html").read_text()
    assert sorted(data_of(page)["methods"]) == sorted(HOSTILE)
    assert page.count("</script>") == 3
    assert not any(text in page for text in HOSTILE if "<" in text)
    assert all(pixels(path)[2] > 20 for path in write_pictures(results, tmp_path))


def test_every_run_is_in_the_numbers_and_a_diverged_one_is_named(tmp_path: Path) -> None:
    results = read(comparison_records.make_records(diverged=("constant", 2)), tmp_path)
    page = write_page(results, tmp_path / "report.html").read_text()
    assert data_of(page)["methods"] == results.methods
    assert "Diverged: 1 of 3 runs of constant" in page
    assert re.search(r"seed 2 after step \d+ of 400", page)
    assert "NaN" not in json.dumps(data_of(page))


@pytest.mark.parametrize(("language", "metric"), [(False, "accuracy"), (True, "perplexity")])
def test_the_metric_is_that_of_the_task(language: bool, metric: str, tmp_path: Path) -> None:
    results = read(comparison_records.make_records(language=language), tmp_path)
    assert f"Validation {metric}" in write_page(results, tmp_path / "report.html").read_text()
    found = write_pictures(results, tmp_path)
    assert [path.name for path in found] == ["loss.png", f"{metric}.png", "learning_rate.png"]
    for path in found:
        width, height, different = pixels(path)
        assert width > 800
        assert height > 500
        assert different > 20


def test_the_pictures_of_an_experiment_can_be_vectors(experiment: Results, tmp_path: Path) -> None:
    found = write_pictures(experiment, tmp_path, "svg")
    names = ["validation_loss", "learning_rate", "profiles", "ranks", "sensitivity"]
    assert [path.name for path in found] == [f"{name}.svg" for name in names]
    assert all(path.read_text().startswith("<svg") and "method-3" in path.read_text() for path in found)


@pytest.mark.parametrize("points", [0, 1, 20])
def test_an_experiment_of_one_run_has_a_page(points: int, tmp_path: Path) -> None:
    record = make_record(0, 0, 0, 1, points=max(points, 1))
    if not points:
        record |= {"train": {}, "valid": {}, "status": "failed", "error": "no luck", "peak_rate": None}
        record["final"] = {"loss": None, "accuracy": None}
    assert "<li>1 run</li>" in write_page(read([record], tmp_path), tmp_path / "page.html").read_text("utf-8")


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = read([make_record(0, 0, 0, 1)], tmp_path)
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_page(results, path)
    assert path.read_text() == "old"
    assert {p.name for p in tmp_path.iterdir()} == {"records.jsonl", "report.html"}


def test_a_picture_of_rates_needs_rates(tmp_path: Path) -> None:
    rates = {"falling": [0.3, 0.2, 0.1], "rising": [0.1, 0.2, 0.3]}
    assert pixels(write_rate_picture(rates, tmp_path / "rates.png", title="t"))[2] > 20
    with pytest.raises(ValueError, match="rates"):
        write_rate_picture({"falling": []}, tmp_path / "none.png", title="t")


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = read([make_record(0, 0, 0, 1)], tmp_path)
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "altair":
            raise ModuleNotFoundError("No module named 'altair'", name="altair")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    monkeypatch.delitem(__import__("sys").modules, "metastep.lab.report.charts", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"altair must be installed .*metastep\[report\]"):
        write_page(results, tmp_path / "report.html")
