"""The code of the documentation: which blocks there are, and what they need.

A block says what it needs in a comment before it: ``<!-- needs: gpu -->``, ``network``, ``torchrun``, or libraries,
such as ``<!-- needs: lightning, tensorboard -->``. Every other block runs as it stands.
"""

import importlib.util
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCE = re.compile(r"^( *)```([\w-]*)[^\n]*\n(.*?)^\1```[ ]*$", re.DOTALL | re.MULTILINE)
_NEEDS = re.compile(r"<!-- needs: ([\w, .-]+) -->\s*\Z")
_INLINE = re.compile(r"(?<!`)`(metastep [^`]+)`(?!`)")
_SHELLS = {"", "bash", "console", "sh", "shell"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block of a page."""

    page: str  # relative to the repository
    line: int  # of its first line of code
    language: str
    code: str
    needs: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Where it stands."""
        return f"{self.page}:{self.line}"

    def missing(self) -> list[str]:
        """What it needs and does not find here."""
        return [need for need in self.needs if not _is_there(need)]


def _is_there(need: str) -> bool:
    match need:
        case "gpu":
            return torch.cuda.is_available()
        case (
            "network" | "torchrun"
        ):  # tests use no network; those in tests/distributed run the blocks for several processes
            return False
        case _:
            return importlib.util.find_spec(need) is not None


def name_of(page: Path) -> str:
    """The page's path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks_in(text: str, page: str) -> list[Block]:
    """The fenced blocks of a text, in order."""
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        needs = _NEEDS.search(before)
        indent = len(fence[1])
        code = "".join(line[indent:] if line.strip() else line for line in fence[3].splitlines(keepends=True))
        found.append(
            Block(
                page=page,
                line=before.count("\n") + 2,
                language=fence[2],
                code=code,
                needs=tuple(need.strip() for need in needs[1].split(",")) if needs else (),
            )
        )
    return found


def python_blocks(page: Path) -> list[Block]:
    """The Python blocks of a page, in order."""
    return [block for block in blocks_in(page.read_text("utf-8"), name_of(page)) if block.language == "python"]


def commands(page: Path) -> list[tuple[str, list[str]]]:
    """The command lines in a page's shell blocks, and those of metastep in its prose, each with its place."""
    text = page.read_text("utf-8")
    found = []
    for block in blocks_in(text, name_of(page)):
        if block.language in _SHELLS:
            for line in block.code.replace("\\\n", " ").splitlines():
                try:
                    words = shlex.split(line.removeprefix("$ "), comments=True)
                except ValueError:  # no shell: the words of a picture in letters
                    continue
                if words:
                    found.append((block.name, words))
    prose = _FENCE.sub("", text)
    written = [shlex.split(code) for code in _INLINE.findall(prose) if "..." not in code and "COMMAND" not in code]
    found += [(name_of(page), words) for words in written if len(words) > 2]  # `metastep report` is a name
    return found
