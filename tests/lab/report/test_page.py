"""The page is one file that loads nothing, hides nothing and trusts no string; the plots are real pictures."""

import builtins
import json
import os
import re
from pathlib import Path

import pytest
from PIL import Image
from tests.lab.report.runs import make_records, with_layers

from metastep.lab.report import rate_plot, write_page, write_plots


def data_of(page: Path) -> dict:
    """The numbers that the page carries."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)
    assert found is not None
    return json.loads(found.group(1))


def pixels(png: Path) -> tuple[int, int, int]:
    """Width and height of a PNG, and how many colours it has."""
    with Image.open(png) as image:
        assert image.format == "PNG"
        return *image.size, len(image.convert("RGB").getcolors(maxcolors=1 << 24))


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = write_page(make_records(), tmp_path / "report.html", title="a comparison").read_text()
    own = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)  # plotly's source names hosts that it never asks
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", own)
    assert not re.search(r"url\(\s*['\"]?https?:", own)
    assert "default-src 'none'" in page


def test_strings_from_records_are_shown_and_never_run(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    records = [record | {"label": evil, "command": evil} for record in make_records(diverged=None)[:1]]
    page = write_page(records, tmp_path / "report.html", title=evil, notes=[evil]).read_text()
    assert evil not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_every_run_is_in_the_numbers_and_a_diverged_one_is_named(tmp_path: Path) -> None:
    records = make_records(diverged=("constant", 2))
    path = write_page(records, tmp_path / "report.html", title="t")
    text = json.dumps(data_of(path))
    assert all(label in text for label in {record["label"] for record in records})
    assert "Diverged: 1 of 3 runs of constant" in path.read_text()
    assert "NaN" not in text


@pytest.mark.parametrize(("language", "metric"), [(False, "accuracy"), (True, "perplexity")])
def test_the_metric_is_that_of_the_task(language: bool, metric: str, tmp_path: Path) -> None:
    records = make_records(language=language)
    page = write_page(records, tmp_path / "report.html", title="t").read_text()
    assert f"Validation {metric}" in page
    assert {path.name for path in write_plots(records, tmp_path)} == {"loss.png", f"{metric}.png", "learning_rate.png"}


def test_rates_of_layers_have_a_plot_only_where_a_record_has_them(tmp_path: Path) -> None:
    records = make_records(diverged=None)[:2]
    without = write_page(records, tmp_path / "a.html", title="t").read_text()
    layered = [with_layers(records[0], ["stem.weight", "head.weight"]), records[1]]
    page = write_page(layered, tmp_path / "b.html", title="t").read_text()
    assert "stem.weight" in page
    assert "stem.weight" not in without


def test_a_failure_leaves_the_old_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_page(make_records(diverged=None)[:1], path, title="t")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_runs_of_two_tasks_are_not_one_comparison(tmp_path: Path) -> None:
    records = [make_records(diverged=None)[0], make_records(language=True, diverged=None)[0]]
    with pytest.raises(ValueError, match="one task"):
        write_page(records, tmp_path / "report.html", title="t")


def test_the_plots_are_pictures_with_something_on_them(tmp_path: Path) -> None:
    for path in write_plots(make_records(), tmp_path):
        width, height, different = pixels(path)
        assert width > 1200
        assert height > 500
        assert different > 20


def test_a_rate_plot_needs_a_curve(tmp_path: Path) -> None:
    curves = {"falling": [0.3, 0.2, 0.1], "rising": [0.1, 0.2, 0.3]}
    path = rate_plot(curves, tmp_path / "rates.png", title="t", reference={"falling": [0.2, 0.2, 0.2]})
    assert pixels(path)[2] > 20
    with pytest.raises(ValueError, match="curves"):
        rate_plot({"falling": []}, tmp_path / "none.png", title="t")


def test_a_missing_library_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: object, **kwargs: object) -> object:
        if name.partition(".")[0] == "plotly":
            raise ModuleNotFoundError("No module named 'plotly'", name="plotly")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(ModuleNotFoundError, match=r"metastep\[report\]"):
        write_page(make_records(diverged=None)[:1], tmp_path / "report.html", title="t")
