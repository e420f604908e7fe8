"""The page of an experiment in a real browser."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from tests.lab.report.cells import make_records, with_sensitivity
from tests.lab.report.chromium import MARKS, ask, set_media, set_width, showing

from metastep.cli.experiment import load_experiment
from metastep.lab.report import write_experiment_page

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = MARKS
TASKS = 12  # as many as an experiment has, which a sheet of paper must hold


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tmp_path_factory.mktemp("browser")
    records = with_sensitivity(make_records(methods=12, tasks=TASKS))
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    page = write_experiment_page(load_experiment(folder), folder / "report.html")
    with showing(page, folder) as driver:
        yield driver


def test_the_page_renders_without_an_error(browser: Any) -> None:
    assert ask(browser, "document.querySelectorAll('svg.figure').length") == 2 + 1 + 2 * TASKS
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_a_number_opens_its_records(browser: Any) -> None:
    browser.execute_script("document.querySelector('.scores tbody a').click()")
    target = "document.getElementById(location.hash.slice(1))"
    assert ask(browser, f"{target}.open")
    assert ask(browser, f"{target}.querySelectorAll('tbody tr').length") == 3
    assert ask(browser, f"{target}.getBoundingClientRect().top < innerHeight")


def test_a_method_is_lit_in_every_figure_by_its_button(browser: Any) -> None:
    lit = "document.querySelectorAll('.line.lit[data-m=\"11\"]').length"
    assert ask(browser, lit) == 0
    browser.execute_script("document.querySelector('#legend button[data-m=\"11\"]').click()")
    assert ask(browser, lit) >= 2 * TASKS + 2
    assert ask(browser, "document.querySelector('#legend button[data-m=\"11\"]').ariaPressed") == "true"
    browser.execute_script("document.querySelector('#legend button[data-m=\"11\"]').click()")
    assert ask(browser, lit) == 0


def test_dark_mode_changes_the_page_and_the_lines(browser: Any) -> None:
    seen = []
    for scheme in ("light", "dark"):
        set_media(browser, scheme=scheme)
        page = ask(browser, "getComputedStyle(document.documentElement).backgroundColor")
        seen.append((page, ask(browser, "getComputedStyle(document.querySelector('.line.lit')).stroke")))
    set_media(browser)
    assert seen[0][0] != seen[1][0]
    assert seen[0][1] != seen[1][1]


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_of_the_page_and_names_are_legible(browser: Any, width: int) -> None:
    set_width(browser, width)
    assert ask(browser, "document.documentElement.scrollWidth") <= width
    assert ask(browser, "document.querySelector('.scores tbody th').offsetHeight") < 80  # not a letter a line


def test_on_paper_tables_are_not_cut_off(browser: Any) -> None:
    set_width(browser, 1032)  # A4 landscape within its margins
    set_media(browser, media="print")
    widest = "Math.max(...[...document.querySelectorAll('.scores')].map((one) => one.getBoundingClientRect().right))"
    assert ask(browser, widest) <= 1032
    set_media(browser)
