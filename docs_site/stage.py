"""Lays out what the site is made of: the pages of ``docs/`` and whatever of the repository they point to.

A page may link to ``../results/x.json`` or ``../CONTRIBUTING.md``, which a code host follows. The site has one root, so
that file is laid beside the pages and the link is bent to it. A folder becomes a page that lists its files.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
#: The target of a Markdown link or picture, but for addresses, anchors of the page itself and code in backticks.
_LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)\s#]+)(#[^)\s]*)?(?=\))")
_NAMES = re.compile(r"<!-- names: (metastep[\w.]*) -->")
_TABLE = re.compile(r"<!-- table: (metastep[\w.]*) -->")
_CODE = re.compile(r"(^```.*?^```$|^~~~.*?^~~~$|`[^`\n]+`)", re.DOTALL | re.MULTILINE)


class BrokenLink(ValueError):
    """A page points to something that the repository does not have."""


def outside_code(text: str) -> Iterator[tuple[bool, str]]:
    """The pieces of a page in order, each with whether it is prose."""
    for number, piece in enumerate(_CODE.split(text)):
        yield number % 2 == 0, piece


def public_names(module: str, root: Path = ROOT) -> list[str]:
    """What a module offers: its ``__all__``, or the classes and functions that it defines."""
    if root == ROOT and (offered := getattr(import_module(module), "__all__", None)) is not None:
        return [name for name in offered if not name.startswith("__")]
    path = root / "src" / Path(*module.split("."))
    tree = ast.parse((path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text("utf-8"))
    defined = (node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef))
    return [node.name for node in defined if not node.name.startswith("_")]


def entries(module: str, root: Path = ROOT) -> str:
    """What mkdocstrings reads for every public name of a module; by the short name, where the package itself has it."""
    short = set(public_names("metastep", root))
    return "\n\n".join(
        f"::: metastep.{name}" if name in short else f"::: {module}.{name}" for name in public_names(module, root)
    )


class Stage:
    """The folder of pages that zensical reads.

    Args:
        out: where to lay them; emptied first.
        root: the repository.
    """

    def __init__(self, out: Path, root: Path = ROOT) -> None:
        self.out, self.root, self.docs = out, root, root / "docs"
        self._staged: set[Path] = set()
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)

    def pages(self) -> None:
        """Lay out everything below ``docs/``, notebooks apart."""
        for path in sorted(self.docs.rglob("*")):
            if path.is_file() and path.suffix not in {".ipynb", ".toml"} and "__pycache__" not in path.parts:
                self.add(path)

    def place_of(self, path: Path) -> Path:
        """Where a file of the repository lies on the stage."""
        if path.is_relative_to(self.docs):
            return self.out / path.relative_to(self.docs)
        return self.out / "repository" / path.relative_to(self.root)

    def add(self, path: Path) -> Path:
        """Lay out a file or a folder; return where it lies."""
        place = self.place_of(path)
        if path.is_dir():
            place /= "index.md"
        if path in self._staged:
            return place
        self._staged.add(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            self.write(self._listing(path), path / "index.md", place)
        elif path.suffix == ".md":
            self.write(path.read_text("utf-8"), path, place)
        else:
            shutil.copyfile(path, place)
        return place

    def write(self, text: str, source: Path, place: Path) -> None:
        """Write a page whose links are those of ``source``, bent to the stage."""

        def bend(link: re.Match[str]) -> str:
            target = Path(os.path.normpath(source.parent / link[1]))
            if target.is_relative_to(self.docs) and target.suffix in {".md", ".ipynb"}:
                staged = self.place_of(target).with_suffix(".md")  # zensical looks whether it is there
            elif target.exists() and target.is_relative_to(self.root):
                staged = self.add(target)
            else:
                raise BrokenLink(f"{source.relative_to(self.root)} links to {link[1]}, which does not exist.")
            return Path(os.path.relpath(staged, place.parent)).as_posix() + (link[2] or "")

        text = _NAMES.sub(lambda found: entries(found[1], self.root), text)
        text = _TABLE.sub(lambda found: str(import_module(found[1]).table()), text)
        pieces = (_LINK.sub(bend, piece) if prose else piece for prose, piece in outside_code(text))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(pieces), "utf-8")

    def _listing(self, folder: Path) -> str:
        """A page for a folder: its README, and its files."""
        readme = folder / "README.md"
        name = folder.relative_to(self.root).as_posix()
        head = readme.read_text("utf-8").rstrip() if readme.is_file() else f"# {name}"
        files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != readme]
        rows = [f"* [{path.relative_to(folder)}]({path.relative_to(folder)})" for path in files]
        return "\n".join([head, "", f"## Files of `{name}`", "", *rows, ""])
