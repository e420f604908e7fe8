"""Every example runs: those in docstrings of public names, and the blocks of the documentation that say so.

A Python block of a page runs if the line before it is ``<!-- runs -->``. The blocks of a page share their names; they
and the docstrings' examples find ``torch``, all of metastep's names and a ``tmp_path``.
"""

import doctest
import inspect
import re
from pathlib import Path

import pytest
import torch

import metastep

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]
RUNS = re.compile(r"^<!-- runs -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
PUBLIC = [name for name in metastep.__all__ if not name.startswith("__")]


def namespace(tmp_path: Path) -> dict[str, object]:
    names = {name: getattr(metastep, name) for name in metastep.__all__}
    return {**names, "metastep": metastep, "ms": metastep, "torch": torch, "tmp_path": tmp_path}


def run_examples(text: str, names: dict[str, object]) -> str:
    """Run a docstring's examples; return what went wrong."""
    example = doctest.DocTestParser().get_doctest(text, names, "example", None, 0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(example, out=report.append, clear_globs=False)
    return "".join(report)


@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of_a_public_name_run(name: str, tmp_path: Path) -> None:
    thing = getattr(metastep, name)
    text = inspect.getdoc(thing) or ""
    torch.manual_seed(0)
    assert run_examples(text, namespace(tmp_path)) == ""


def test_classes_and_functions_that_people_construct_have_an_example() -> None:
    things = [getattr(metastep, name) for name in PUBLIC]
    things = [thing for thing in things if inspect.isclass(thing) or inspect.isroutine(thing)]
    without = [thing for thing in things if ">>>" not in (inspect.getdoc(thing) or "")]
    assert [
        thing.__name__
        for thing in without
        if not (inspect.isabstract(thing) or (inspect.isclass(thing) and issubclass(thing, Exception)))
    ] == []


@pytest.mark.parametrize("page", [page for page in PAGES if RUNS.search(page.read_text())], ids=lambda page: page.name)
def test_the_marked_blocks_of_a_page_run(page: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = namespace(tmp_path)
    for block in RUNS.findall(page.read_text()):
        exec(compile(block, str(page), "exec"), names)


def test_every_mark_stands_before_a_python_block() -> None:
    marks = {page.name: page.read_text().count("<!-- runs -->") for page in PAGES}
    assert marks == {page.name: len(RUNS.findall(page.read_text())) for page in PAGES}
    assert marks["schedules.md"] >= 4
    assert marks["meta-learning.md"] >= 2


def test_an_example_that_fails_is_noticed(tmp_path: Path) -> None:
    assert "Expected" in run_examples(">>> 1 + 1\n3\n", namespace(tmp_path))
    assert "NameError" in run_examples(">>> nothing\n", namespace(tmp_path))
