"""Where a data set's files are looked for, and what is said when they are not there."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar


class MissingData(FileNotFoundError):
    """The files of a data set were found in none of the places looked at."""


@dataclass(frozen=True, kw_only=True)
class FileLayout:
    """One way in which a data set lies on disk.

    Args:
        folders: Folder names, the first that holds all files is taken.
        train: File patterns inside the folder, each of which must match.
        test: The same for the test files.
    """

    folders: tuple[str, ...]
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    def __str__(self) -> str:
        files = self.train + self.test
        shown = f"{files[0]} and {len(files) - 1} more" if len(files) > 2 else " and ".join(files)
        return f"{' or '.join(self.folders)} with {shown}"


LayoutT = TypeVar("LayoutT", bound=FileLayout)


@dataclass(frozen=True)
class Found(Generic[LayoutT]):
    """The files of one layout, in the order of its patterns and then of their names."""

    layout: LayoutT
    folder: Path
    train: list[Path]
    test: list[Path]


def data_roots(data_dir: Path | str | None = None) -> list[Path]:
    """Give the folders in which data sets are looked for, in order.

    A place that is named, by `data_dir` or else the environment variable METASTEP_DATA, is the only one,
    together with its `data` folder; otherwise ./data, ../shared/data, and ../shared/data beside a checkout of
    the project.
    """
    named = data_dir if data_dir is not None else os.environ.get("METASTEP_DATA") or None
    if named is not None:
        root = Path(named).expanduser()
        return [root, root / "data"]
    checkout = Path(__file__).parents[4]
    roots = [Path("data"), Path("../shared/data")]
    return [*roots, checkout.parent / "shared" / "data"] if (checkout / "pyproject.toml").exists() else roots


def visible_files(folder: Path, pattern: str) -> list[Path]:
    """Give what matches a pattern below a folder, by name; nothing hidden (.ipynb_checkpoints, macOS's ._x.png)."""
    found = folder.glob(pattern)
    return sorted(path for path in found if not any(part[0] == "." for part in path.relative_to(folder).parts))


def find_files(
    name: str, layouts: Sequence[LayoutT], data_dir: Path | str | None = None, *, where: str = ""
) -> Found[LayoutT]:
    """Find the first complete layout of a data set.

    Args:
        name: Of the data set.
        layouts: The layouts looked for, in order.
        data_dir: See `data_roots`.
        where: Where the data can be had, for the error.

    Raises:
        MissingData: If there is none; the message names the files expected and the folders looked at.
    """
    roots = data_roots(data_dir)
    partial = ""
    for root in roots:
        for layout in layouts:
            for folder in (root / f for f in layout.folders):
                train = [visible_files(folder, pattern) for pattern in layout.train]
                test = [visible_files(folder, pattern) for pattern in layout.test]
                if all(train) and all(test):
                    return Found(layout, folder, list(chain(*train)), list(chain(*test)))
                if any(train) or any(test):
                    patterns = zip(layout.train + layout.test, train + test, strict=True)
                    lacking = ", ".join(pattern for pattern, files in patterns if not files)
                    partial = partial or f" ({folder} is there, but lacks {lacking})"
    raise MissingData(
        f"{name} must be in {' or '.join(dict.fromkeys(map(os.path.abspath, roots)))}{partial}, as "
        f"{', or '.join(map(str, layouts))} (docs/tasks.md lists the files); "
        f"give its folder as data_dir (--data) or in METASTEP_DATA{f'; {where}' if where else ''}."
    )


def optional_module(name: str) -> ModuleType:
    """Import a module of the `data` extra.

    Raises:
        ImportError: If it is not installed, with the command that installs it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(f'{name} is needed to read this data; pip install "metastep[data]"') from error
