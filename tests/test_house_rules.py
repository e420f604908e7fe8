"""What holds for every published file: silent, documented, and at home on any machine.

Each rule is also shown something that breaks it.
"""

import ast
import inspect
import re
import types
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path

import pytest

import metastep

ROOT = Path(__file__).parents[1]
FOLDERS = ("src", "tests", "docs", "docs_site", "benchmarks", "examples", "results", ".ci", ".github")
FILES = (
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "CITATION.cff", "Makefile", "pyproject.toml",
    "constraints.txt",
)  # fmt: skip

#: An absolute path below a folder that differs between machines; "../shared/work/x" and addresses are none.
MACHINE_PATH = re.compile(
    r"(?<![\w.~$})\]-])/(?:home|Users|root|work|workspace|scratch|mnt|media|srv|tmp|opt|Volumes)/[\w.-]+"
    r"|\b[A-Za-z]:\\+Users\b"
)


def text_files(place: Path) -> Iterator[tuple[Path, list[str]]]:
    """The files in a folder, or one file, with their lines; pictures and caches are left out."""
    for path in [place] if place.is_file() else sorted(place.rglob("*")):
        if "__pycache__" in path.parts or not path.is_file():
            continue
        try:
            yield path, path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:  # a picture
            continue


def machine_paths(place: Path) -> list[str]:
    """Lines that name an absolute path of some machine."""
    return [
        f"{path}:{number}: {hit[0]}"
        for path, lines in text_files(place)
        for number, line in enumerate(lines, 1)
        if (hit := MACHINE_PATH.search(line))
    ]


def prints(folder: Path) -> list[str]:
    """Calls of print; those in docstrings are none."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.py"))}
    return [
        f"{path}:{node.lineno}: prints"
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def undocumented(module: types.ModuleType) -> list[str]:
    """Public names without a docstring of their own; an inherited or a made-up one does not count."""
    found = []
    for name in set(module.__all__) - {"__version__"}:
        thing = getattr(module, name)
        if inspect.isclass(thing):
            text = vars(thing).get("__doc__") or ""
        else:
            text = inspect.getdoc(thing) or "" if inspect.isroutine(thing) else ""
        if not text or text.startswith(f"{name}("):  # a dataclass writes its own signature
            found.append(name)
    return sorted(found)


def test_no_published_file_names_a_path_of_a_machine() -> None:
    assert [line for name in (*FOLDERS, *FILES) for line in machine_paths(ROOT / name)] == []


def test_the_library_never_prints() -> None:
    assert prints(ROOT / "src") == []


def test_every_public_name_is_documented() -> None:
    assert undocumented(metastep) == []


# Written in parts, so that this file keeps its own rule.
@pytest.mark.parametrize("path", ["home/ann/x", "root/x.py", "tmp/x", "srv/x", "mnt/a", "work/main", "opt/b-c"])
@pytest.mark.parametrize("line", ["{}", "open('{}')", "--out={} # here", "see {}.", "[a]: {}"])
def test_a_machine_path_is_found(line: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("fine\n" + line.format("/" + path))
    (found,) = machine_paths(tmp_path)
    assert found.startswith(f"{tmp_path / 'notes.md'}:2: ")


def test_a_machine_path_of_windows_is_found(tmp_path: Path) -> None:
    notes = tmp_path / "notes.py"
    notes.write_text(r"x = 'C:\\" + "Users'")
    assert machine_paths(notes) == [f"{notes}:1: " + r"C:\\" + "Users"]


@pytest.mark.parametrize(
    "line",
    [
        "../shared/tmp/x",
        "https://host.example/home/x",
        "$HOME/work/x",
        "{root}/" + "opt/x",
        "~/" + "work/x",
        "and/or/home/",
        "#!/usr/bin/env bash",
        "/usr/bin/chromium",
        "/dev/null",
    ],
)
def test_a_path_of_no_machine_is_passed(line: str, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text(line)
    assert machine_paths(tmp_path) == []


def test_a_print_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text('def f():\n    """>>> print(1)"""\n    console.print(2)\n    print(3)\n')
    assert prints(tmp_path) == [f"{tmp_path / 'a.py'}:4: prints"]


def test_a_public_name_without_a_docstring_is_found() -> None:
    class Documented:
        """Yes."""

    class Heir(Documented):
        pass

    module = types.ModuleType("made_up")
    bad = {"Heir": Heir, "LIMIT": 3, "MadeUp": make_dataclass("MadeUp", ["x"]), "silent": lambda: None}
    vars(module).update(bad, Documented=Documented, __version__="1", __all__=["__version__", "Documented", *bad])
    assert undocumented(module) == sorted(bad)
