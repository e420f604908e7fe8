"""The code on every page runs: Python in order in one namespace a page, commands as far as their options are read."""

import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import typer
from tests.docs.blocks import PAGES, ROOT, Block, blocks_in, commands, name_of, python_blocks
from tests.docs.readers import AFTER, ALTERNATIVES, BEFORE, prelude, runnable

from metastep.cli.app import app

CODE = {name_of(page): python_blocks(page) for page in PAGES}
NEEDY = [block for blocks in CODE.values() for block in blocks if block.needs]
COMMANDS = [(place, words) for page in PAGES for place, words in commands(page) if "metastep" in words]
GROUP = typer.main.get_command(app)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder of the test's own; compiled models that are only traced; trainers without their advice."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compile_(model, backend="eager"))
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState, GradientState

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


def run(block: Block, names: dict[str, object]) -> None:
    """Run a block; a traceback shows the page and its line."""
    exec(compile("\n" * (block.line - 1) + runnable(block.code), str(ROOT / block.page), "exec"), names)


@pytest.mark.parametrize("page", [page for page, blocks in CODE.items() if blocks])
def test_the_python_blocks_of_a_page_run(page: str, tmp_path: Path) -> None:
    ready = [block for block in CODE[page] if not block.missing()]
    if not ready:
        pytest.skip(f"{page} needs {', '.join(sorted({need for block in CODE[page] for need in block.missing()}))}")

    def reader() -> dict[str, object]:
        torch.manual_seed(0)
        names = prelude(tmp_path)
        BEFORE.get(page, lambda names: None)(names)
        return names

    names = reader()
    for block in ready:
        names = reader() if page in ALTERNATIVES else names
        run(block, names)
    if ready == CODE[page]:
        AFTER.get(page, lambda names: None)(names)


@pytest.mark.parametrize("block", NEEDY, ids=lambda block: block.name)
def test_what_a_block_needs_is_here(block: Block) -> None:
    if missing := block.missing():
        pytest.skip(f"{block.name} needs {', '.join(missing)}")


@pytest.mark.parametrize(("place", "words"), COMMANDS, ids=[f"{place} {' '.join(words)}" for place, words in COMMANDS])
def test_the_options_of_a_command_are_those_that_there_are(place: str, words: list[str]) -> None:
    arguments = words[words.index("metastep") + 1 :]
    with GROUP.make_context("metastep", list(arguments), resilient_parsing=False) as context:
        if not arguments or arguments[0].startswith("-"):
            return
        name, command, rest = GROUP.resolve_command(context, arguments)
        command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_scripts_and_targets_that_a_page_names_are_there(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    for place, words in commands(page):
        for word in words:
            if word.endswith(".py") and word.startswith(("benchmarks/", "examples/")):
                assert (ROOT / word).is_file(), place
        if words[0] == "make":
            assert words[1] in targets, place
    for script in re.findall(r"`(?:python )?((?:benchmarks|examples)/\w+\.py)[^`]*`", page.read_text("utf-8")):
        assert (ROOT / script).is_file(), script


def test_a_fence_in_a_list_and_what_it_needs_are_read() -> None:
    text = "* a\n\n  <!-- needs: gpu, torch -->\n  ```python\n  if x:\n      y\n  ```\n\n```\nmake x\n```\n"
    first, second = blocks_in(text, "page")
    assert (first.code, first.needs, first.line) == ("if x:\n    y\n", ("gpu", "torch"), 5)
    assert (second.language, second.code, second.needs) == ("", "make x\n", ())
    assert set(first.missing()) <= {"gpu"}


def test_a_block_that_fails_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(NameError, match="nothing"):
        run(Block(page="page", line=1, language="python", code="nothing\n"), prelude(tmp_path))


def test_a_wrong_option_is_noticed() -> None:
    with pytest.raises(typer.BadParameter.__bases__[0], match="No such option"):
        test_the_options_of_a_command_are_those_that_there_are("page", ["metastep", "train", "digits/mlp", "--no-such"])
