"""Every example in the docstring of a public name runs; it finds ``torch``, metastep's names and a ``tmp_path``."""

import doctest
import inspect
from pathlib import Path

import pytest
import torch

import metastep

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


def test_an_example_that_fails_is_noticed(tmp_path: Path) -> None:
    assert "Expected" in run_examples(">>> 1 + 1\n3\n", namespace(tmp_path))
    assert "NameError" in run_examples(">>> nothing\n", namespace(tmp_path))
