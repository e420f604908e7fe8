"""docs/architecture.md is true: the files that it names exist, and hold what it says they hold."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "metastep"
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(set(re.findall(r"`((?:\w+/)*\w+\.py)`", TEXT)) - {"tests/test_architecture.py"})
#: A file, and a name that is defined in it, as the journeys and the last table write them.
PLACES = re.findall(r"`((?:\w+/)+\w+\.py)`, `(\w+)`", TEXT)


def defined_in(path: Path) -> set[str]:
    """Functions, methods and classes of a file."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, kinds)}


def test_the_page_names_files_and_places() -> None:
    assert len(FILES) > 20
    assert len(PLACES) > 18


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_the_page_names_exists(file: str) -> None:
    assert (PACKAGE / file).is_file()


@pytest.mark.parametrize(("file", "name"), PLACES)
def test_a_name_is_defined_in_the_file_that_the_page_says(file: str, name: str) -> None:
    assert name in defined_in(PACKAGE / file)


def test_every_package_of_the_two_storeys_is_on_the_page() -> None:
    library = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()} - {"lab"}
    laboratory = {f"lab/{path.name}" for path in (PACKAGE / "lab").iterdir() if (path / "__init__.py").is_file()}
    assert {name for name in library | laboratory if f"`{name}`" not in TEXT} == set()
