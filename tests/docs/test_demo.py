"""The demo at a tiny size: a page with its pictures, verdicts from the numbers, and nothing written elsewhere."""

import json
import math
import os
import re
import runpy
import subprocess
import sys
from html import unescape
from pathlib import Path
from types import SimpleNamespace

import pytest

import metastep as ms

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "demo.py"


@pytest.fixture(scope="module")
def demo() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(DEMO), run_name="demo"))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder that a run was started in, and what it said. It has no SciPy, no scikit-learn and no home."""
    home = tmp_path_factory.mktemp("demo")
    without = home.parent / "without"
    without.mkdir()
    for name in ("scipy", "sklearn", "ray", "lightning", "transformers", "optuna"):
        (without / f"{name}.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')\n")
    path = os.pathsep.join([str(without), str(ROOT / "src")])
    fresh = {"HOME": str(home), "TMPDIR": str(home), "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(DEMO), "--steps", "20", "--seeds", "1", "--workers", "1"]
    done = subprocess.run(command, cwd=home, env={**os.environ, **fresh}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home, done.stdout


def test_everything_is_written_into_one_folder(ran: tuple[Path, str]) -> None:
    home, _ = ran
    written = {str(path.relative_to(home)) for path in home.rglob("*") if path.is_file()}
    assert written == {"demo/index.html", "demo/learned/schedule.safetensors"}
    assert len(ms.load_schedule(home / "demo" / "learned" / "schedule.safetensors").schedules) == 3


def test_the_page_says_what_the_terminal_said(ran: tuple[Path, str]) -> None:
    home, said = ran
    page = (home / "demo" / "index.html").read_text("utf-8")
    verdicts = [unescape(text) for text in re.findall(r'<p class="verdict">(.*?)</p>', page)]
    assert len(verdicts) == 3
    assert all(f"   {verdict}\n" in said and re.search(r"\d\.\d{3}", verdict) for verdict in verdicts)


def test_the_page_has_a_place_for_each_chart_and_loads_nothing(ran: tuple[Path, str]) -> None:
    page = (ran[0] / "demo" / "index.html").read_text("utf-8")
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    charts = json.loads(found)["charts"]
    assert len(charts) == 6
    assert re.findall(r'id="chart-(\d)"', page) == [str(place) for place in range(6)]
    assert all(chart["data"]["values"] for chart in charts)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page.split("<script>")[0])
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("ours", "theirs", "result"),
    [
        ([1, 2], [3, 4], "better"),
        ([3, 4], [1, 2], "worse"),
        ([1, 3], [2, 4], "not told apart"),
        ([1], [math.inf], "better"),
    ],
)
def test_methods_are_told_apart_where_no_range_overlaps(
    demo: SimpleNamespace, ours: list, theirs: list, result: str
) -> None:
    assert demo.against(ours, theirs) == result


def test_a_verdict_says_that_ours_lost(demo: SimpleNamespace) -> None:
    rates = (1e-5, 1e-3, 0.1)
    same, other = {lr: [0.2, 0.3] for lr in rates}, {lr: [lr] for lr in rates}
    lost = demo.verdict_on_rates("AdamW", same, other, 0.01, [0.1, 0.1])
    assert "reaches the same test loss (0.250)" in lost
    assert "is worse than the cosine" in lost
    won = demo.verdict_on_rates("AdamW", other, {lr: [math.inf] for lr in rates}, 0.01, [0.2])
    assert "not the same test loss (0.000 to 0.100), AdamW alone diverged, diverged and diverged" in won
    assert "is better than the cosine" in won
    assert demo.verdict_on_mending(1e-4, [2.0], [1.0], [0.1], 1e-5).startswith("The rate is made worse")
    assert demo.verdict_on_mending(1e-4, [0.5], [1.0], [0.1], 1e-3).startswith("The rate is mended in part")
    assert "loses to the constant 0.1" in demo.verdict_on_carrying([2.0], [1.0], 0.3, [1.0])
    assert "is not told apart from the constant" in demo.verdict_on_carrying([1.0], [1.0], 0.3, [1.0])
