"""The page in a real browser: it renders without complaint, runs no text, and follows what a reader does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.report import comparison_records
from tests.lab.report.chromium import MARKS, ask, set_media, set_width, showing
from tests.lab.report.experiment_records import make_records, with_sensitivity, write_lines

from metastep.lab.report import read_results, write_page

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = MARKS
TASKS = 12  # as many as an experiment has, which a sheet of paper must hold
HOSTILE = "<img src=x onerror='document.title=1'></script><script>document.title=1</script>"
CANVASES = "document.querySelectorAll('.chart canvas').length"


def comparison(folder: Path) -> Path:
    """A page of schedules on one task, one of them with a hostile name."""
    records = comparison_records.make_records()
    records = [record | {"label": HOSTILE} if record["label"] == "cosine" else record for record in records]
    records[0] = comparison_records.with_layers(records[0], ["stem.weight", HOSTILE])
    return write_page(read_results(write_lines(records, folder / "records.jsonl"), "A page"), folder / "report.html")


def experiment(folder: Path) -> Path:
    """A page of twelve methods on twelve tasks."""
    records = with_sensitivity(make_records(methods=12, tasks=TASKS))
    return write_page(read_results(write_lines(records, folder / "records.jsonl"), "A page"), folder / "report.html")


@pytest.fixture(scope="module", params=[comparison, experiment])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    with showing(request.param(folder), folder) as driver:
        driver.kind = request.param.__name__
        drawn(driver)
        yield driver


def drawn(browser: Any) -> None:
    """Wait until every chart is there."""
    browser.execute_async_script(
        "const done = arguments[0];"
        "const look = () => document.body.dataset.drawn ? done() : setTimeout(look, 50); look();"
    )


def redrawn(browser: Any, act: str) -> None:
    """Do something in the page, and wait until every chart is drawn again."""
    browser.execute_script(f"delete document.body.dataset.drawn; {act}")
    drawn(browser)


def pixels(browser: Any, place: int) -> Any:
    """A chart as it is drawn."""
    return ask(browser, f"document.querySelector('#chart-{place} canvas').toDataURL()")


def test_every_chart_is_drawn_without_a_complaint_and_no_text_is_run(browser: Any) -> None:
    assert ask(browser, CANVASES) == (4 + 1 + 1 if browser.kind == "comparison" else 2 + 2 + 1 + 2 * TASKS)
    assert ask(browser, "document.title") == "A page"
    assert ask(browser, "document.querySelectorAll('img').length") == 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert ask(browser, "performance.getEntriesByType('resource').length") == 0


def test_a_number_opens_its_records(browser: Any) -> None:
    browser.execute_script("document.querySelector('.scores tbody a').click()")
    target = "document.getElementById(location.hash.slice(1))"
    assert ask(browser, f"{target}.open")
    assert ask(browser, f"{target}.querySelectorAll('tbody tr').length") == 3
    assert ask(browser, f"{target}.getBoundingClientRect().top < innerHeight")


def test_a_method_takes_and_leaves_its_colour_in_the_charts_by_its_button(browser: Any) -> None:
    last = "[...document.querySelectorAll('#legend button')].at(-1)"
    was, before = ask(browser, f"{last}.ariaPressed"), pixels(browser, 1)
    browser.execute_script(f"{last}.click()")
    assert ask(browser, f"{last}.ariaPressed") != was
    assert (changed := pixels(browser, 1)) != before
    browser.execute_script(f"{last}.click()")
    assert ask(browser, f"{last}.ariaPressed") == was
    assert pixels(browser, 1) != changed


def test_the_scale_and_the_clock_can_be_chosen(browser: Any) -> None:
    losses = 0 if browser.kind == "comparison" else 5
    before = pixels(browser, losses)
    choose = "[...document.querySelectorAll('.switch input')].find((one) => one.value === '{}').click()"
    redrawn(browser, choose.format("linear"))
    assert pixels(browser, losses) != before
    redrawn(browser, "document.querySelector('.switch input[value=\"\"]').click()")
    assert pixels(browser, losses) == before
    if browser.kind == "comparison":
        redrawn(browser, choose.format("seconds"))
        assert pixels(browser, losses) != before
        redrawn(browser, choose.format("step"))


def test_a_head_sorts_the_table_by_its_column(browser: Any) -> None:
    column = "[...document.querySelector('.scores').tBodies[0].rows].map((row) => row.cells[1].dataset.value)"
    head = "document.querySelectorAll('.scores thead th')[1].click()"
    for sign in (1, -1):
        browser.execute_script(head)
        values = [sign * float(value) for value in ask(browser, column) if value is not None]
        assert values == sorted(values)


def test_dark_mode_changes_the_page_and_the_charts(browser: Any) -> None:
    seen = []
    for scheme in ("light", "dark"):
        browser.execute_script("delete document.body.dataset.drawn")
        set_media(browser, scheme=scheme)
        if scheme == "dark":  # light is what it was drawn in
            drawn(browser)
        page = ask(browser, "getComputedStyle(document.documentElement).backgroundColor")
        seen.append((page, pixels(browser, 0)))
    set_media(browser)
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page_and_names_are_legible(browser: Any, width: int) -> None:
    set_width(browser, width)
    assert ask(browser, "document.documentElement.scrollWidth") <= width
    charts = "Math.max(...[...document.querySelectorAll('.chart canvas')].map((c) => c.getBoundingClientRect().right))"
    assert ask(browser, charts) <= width
    names = "Math.min(...[...document.querySelectorAll('.scores tbody th')].map((one) => one.offsetHeight))"
    assert ask(browser, names) < 80  # not a letter a line


def test_on_paper_tables_are_not_cut_off(browser: Any) -> None:
    set_width(browser, 1032)  # A4 landscape within its margins
    set_media(browser, media="print")
    widest = "Math.max(...[...document.querySelectorAll('.scores')].map((one) => one.getBoundingClientRect().right))"
    assert ask(browser, widest) <= 1032
    set_media(browser)
