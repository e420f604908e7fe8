"""The site in a real browser: pages render without complaint, fit a phone, and follow the reader's mode."""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.lab.report.chromium import MARKS, ask, set_media, set_width, showing

PAGES = (
    "index.html", "concepts.html", "command-line.html", "theory/hypergradients.html", "optimizers.html",
    "reference/schedules.html",
)  # fmt: skip

pytestmark = MARKS


class Quiet(SimpleHTTPRequestHandler):
    """Serves files without a word."""

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def browser(address: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with showing(f"{address}index.html", tmp_path_factory.mktemp("browser")) as driver:
        yield driver


@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_a_phone_and_a_desk_without_an_error(browser: Any, address: str, page: str) -> None:
    for width in (390, 1280):
        set_width(browser, width)
        browser.get(address + page)
        assert ask(browser, "document.documentElement.scrollWidth") <= width
    wide = "[...document.querySelectorAll('pre code')].filter((code) => code.scrollWidth > code.clientWidth)"
    assert ask(browser, f"{wide}.map((code) => code.innerText)") == []  # on a desk; test_pages counts for all pages
    short = "[...document.querySelectorAll(':not(pre) > code')].filter((code) => /^\\S{1,32}$/.test(code.innerText))"
    broken = f"{short}.filter((code) => code.getClientRects().length > 1)"
    assert ask(browser, f"{broken}.map((code) => code.innerText)") == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    fetched = ask(browser, "performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in fetched if not name.startswith(address)] == []
    missing = "[...document.images].filter((image) => image.complete && !image.naturalWidth).map((image) => image.src)"
    assert ask(browser, missing) == []


def test_equations_are_as_dark_or_light_as_the_words(browser: Any, address: str) -> None:
    set_width(browser, 1280)
    seen = []
    for scheme in ("light", "dark"):
        set_media(browser, scheme=scheme)
        browser.get(f"{address}theory/hypergradients.html")
        style = "getComputedStyle(document.querySelector('{}')).{}"
        words, drawn = (
            ask(browser, style.format(what, how)) for what, how in (("p", "color"), ("svg.equation", "fill"))
        )
        assert words == drawn
        seen.append(words)
    set_media(browser)
    assert seen[0] != seen[1]


def test_an_equation_stands_in_its_line(browser: Any, address: str) -> None:
    browser.get(f"{address}theory/hypergradients.html")
    heights = ask(
        browser, "[...document.querySelectorAll('p > .equation svg')].map((e) => e.getBoundingClientRect().height)"
    )
    assert len(heights) > 10
    assert all(6 < height < 32 for height in heights)
