"""The site builds without a warning, holds every public name, and loads nothing from elsewhere."""

import doctest
import re
from pathlib import Path

import docs_site.docstrings
import docs_site.equations
import pytest
from docs_site.build import SiteError, build, navigation
from docs_site.check import forget_hosts, problems
from docs_site.equations import svg
from docs_site.stage import BrokenLink, Stage
from tests.docs.blocks import ROOT

import metastep

PUBLIC = [name for name in metastep.__all__ if not name.startswith("__")]


def page(site: Path, name: str, text: str) -> Path:
    """Write a page into a made-up site."""
    path = site / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_it_builds_strictly_and_every_page_of_the_navigation_is_there(site: Path) -> None:
    for name in navigation():
        assert (site / name).with_suffix(".html").is_file(), name
    assert problems(site) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_entry(site: Path, name: str) -> None:
    entries = [path for path in (site / "reference").glob("*.html") if f'id="metastep.{name}"' in path.read_text()]
    assert len(entries) == 1, "name its module in a page of docs/reference: <!-- names: metastep.room -->"


def test_no_equation_is_left_as_it_was_written(site: Path) -> None:
    paths = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    pages = {name: path.read_text() for name, path in paths.items() if not name.startswith("repository/")}
    assert [name for name, text in pages.items() if "arithmatex" in text or re.search(r"\\\[|\$\$|:math:", text)] == []
    assert pages["theory/hypergradients.html"].count('class="equation"') > 20


def test_every_test_that_the_questions_name_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs" / "faq.md").read_text()))
    defined = {
        name for path in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", path.read_text())
    }
    assert len(named) > 30
    assert named - defined == set()


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/x.css">',
        '<img src="http://example.com/x.png">',
        '<img srcset="https://example.com/x.png 2x">',
        '<p style="background: url(https://example.com/x.png)">',
    ],
)
def test_whatever_is_loaded_from_elsewhere_is_found(text: str, tmp_path: Path) -> None:
    page(tmp_path, "index.html", text)
    (found,) = problems(tmp_path)
    assert found.startswith("index.html: loads ")


def test_what_styles_and_scripts_load_from_elsewhere_is_found_and_the_latter_forgotten(tmp_path: Path) -> None:
    page(tmp_path, "x.css", '@import "https://fonts.example/x.css"; a { background: url("//example.com/x.png") }')
    page(tmp_path, "x.js", 'load("https://unpkg.com/mermaid@11/x.js")')
    assert len(problems(tmp_path)) == 3
    forget_hosts(tmp_path)
    assert (tmp_path / "x.js").read_text() == 'load("about:blank")'
    assert len(problems(tmp_path)) == 2


def test_a_link_that_leads_nowhere_is_found(tmp_path: Path) -> None:
    page(tmp_path, "a/b.html", '<h1 id="here">B</h1>')
    page(tmp_path, "index.html", '<a href="a/b.html#here"></a><a href="a/c.html"></a><a href="a/b.html#there"></a>')
    assert problems(tmp_path) == [
        "index.html: a/c.html leads nowhere",
        "index.html: a/b.html#there names no place there",
    ]


def test_a_link_out_of_the_pages_is_followed_and_code_is_left_alone(tmp_path: Path) -> None:
    page(tmp_path, "docs/a/page.md", "[r](../../records/x.json) [f](../../records) `[c](nothing.md)` [b](b.md#part)")
    page(tmp_path, "docs/a/b.md", "# B")
    page(tmp_path, "records/x.json", "{}")
    stage = Stage(tmp_path / "stage", tmp_path)
    stage.pages()
    assert (stage.out / "a" / "page.md").read_text() == (
        "[r](../repository/records/x.json) [f](../repository/records/index.md) `[c](nothing.md)` [b](b.md#part)"
    )
    assert (stage.out / "repository" / "records" / "x.json").read_text() == "{}"
    assert "[x.json](x.json)" in (stage.out / "repository" / "records" / "index.md").read_text()


def test_a_link_to_what_the_repository_does_not_have_is_refused(tmp_path: Path) -> None:
    page(tmp_path, "docs/page.md", "[r](../records/x.json)")
    with pytest.raises(BrokenLink, match=r"docs/page\.md links to \.\./records/x\.json"):
        Stage(tmp_path / "stage", tmp_path).pages()


def test_a_page_that_the_navigation_leaves_out_stops_the_build(tmp_path: Path) -> None:
    page(tmp_path, "docs/index.md", "# Home")
    page(tmp_path, "docs/lost.md", "# Lost")
    page(tmp_path, "mkdocs.yml", "site_name: x\nnav:\n  - Home: index.md\n")
    with pytest.raises(SiteError, match=r"leaves out: \['lost\.md'\]"):
        build(tmp_path / "out", root=tmp_path)


def test_a_page_that_is_awaited_may_be_missing_from_the_folder_but_no_other(tmp_path: Path) -> None:
    page(tmp_path, "docs/index.md", "# Home")
    text = "site_name: x\nextra:\n  awaited: [later.md]\nnav:\n  - Home: index.md\n  - Later: later.md\n"
    page(tmp_path, "mkdocs.yml", text)
    assert navigation(tmp_path) == ["index.md"]
    page(tmp_path, "mkdocs.yml", text + "  - Never: never.md\n")
    with pytest.raises(SiteError, match=r"not there: \['never\.md'\]"):
        build(tmp_path / "out", root=tmp_path)


def test_an_equation_has_its_source_for_a_screen_reader_and_its_size_for_a_line() -> None:
    short, long = svg(r"\alpha"), svg(r"\alpha = \frac{1}{2} \beta < 1")
    assert 'role="img"' in short
    assert r'aria-label="\alpha"' in short
    assert "&lt; 1" in long

    def width(drawn: str) -> float:
        return float(re.search(r"width:([\d.]+)em", drawn)[1])

    assert 0.3 < width(short) < 1 < width(long) < 6


@pytest.mark.parametrize(
    ("written", "known"), [(r"\tfrac14", r"\frac{1}{4}"), (r"\sqrt\pi", r"\sqrt{\pi}"), ("&=", "=")]
)
def test_what_latex_writes_shorter_is_drawn_the_same(written: str, known: str) -> None:
    assert svg(written) == svg(known)


def test_an_equation_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ValueError, match="Unknown symbol"):
        svg(r"\nosuch")


@pytest.mark.parametrize("module", [docs_site.docstrings, docs_site.equations])
def test_the_builders_own_examples_run(module: object) -> None:
    failed, tried = doctest.testmod(module)
    assert failed == 0 < tried
