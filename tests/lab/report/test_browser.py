"""The page in a real browser: it renders without complaint, and follows what a reader does."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.lab.report.chromium import MARKS, ask, set_media, set_width, showing
from tests.lab.report.runs import make_records

from metastep.lab.report import write_page

PLOTS = ("train_loss", "valid_loss", "valid_metric", "lr")

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    page = write_page(make_records(), folder / "report.html", title="A comparison")
    with showing(page, folder) as driver:
        yield driver


def test_the_page_renders_without_an_error(browser: Any) -> None:
    assert ask(browser, "document.querySelector('h1').textContent") == "A comparison"
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


@pytest.mark.parametrize("plot", PLOTS)
def test_every_plot_has_points_of_every_schedule(browser: Any, plot: str) -> None:
    lengths = ask(browser, f"document.getElementById('{plot}').data.map((trace) => trace.x.length)")
    assert len(lengths) >= 5
    assert max(lengths) > 5


def test_the_clock_can_be_seconds(browser: Any) -> None:
    longest = "Math.max(...document.getElementById('train_loss').data.flatMap((trace) => Array.from(trace.x)))"
    steps = ask(browser, longest)
    click = "[...document.querySelectorAll('.switch input')].find((input) => input.value === '{}').click()"
    browser.execute_script(click.format("seconds"))
    seconds = ask(browser, longest)
    browser.execute_script(click.format("step"))
    assert steps == 400
    assert 0 < seconds < 20


def test_dark_mode_changes_the_page_and_the_words_in_the_plots(browser: Any) -> None:
    seen = []
    for scheme in ("light", "dark"):
        set_media(browser, scheme=scheme)
        page = ask(browser, "getComputedStyle(document.documentElement).backgroundColor")
        words = ask(browser, "document.getElementById('lr').layout.font.color")
        seen.append((page, words))
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page(browser: Any, width: int) -> None:
    set_width(browser, width)
    assert ask(browser, "document.documentElement.scrollWidth") <= width
