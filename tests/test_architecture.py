"""Imports run one way: read from the source of every file and held to the plan of the rooms.

Each rule is also run on a small made-up package that breaks it, so that a rule which cannot fail is noticed.
"""

import ast
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "metastep"

#: What each room may look into, besides itself and the ground floor. A file in no room here is refused.
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "schedules": {"core"},
    "optim": {"core"},
    "meta": {"core", "schedules", "optim"},
    "tasks": set(),
    "bench": {"core", "schedules", "optim", "meta", "tasks"},
    "report": set(),
    "integrations": {"core", "schedules", "optim", "meta"},
    "cli": {"metastep", "core", "schedules", "optim", "meta", "tasks", "bench", "report", "integrations"},
    "metastep": {"core", "schedules", "optim", "meta"},  # __init__.py: the public names
    "__main__": {"cli"},
}
#: Single files that import nothing of the package; every room may use them, except that core knows no files.
GROUND = {"version", "files"}
SPEAKS_DISTRIBUTED = "core/collectives.py"
FILES_AND_LOGGING = {"os", "io", "pathlib", "shutil", "tempfile", "glob", "json", "csv", "pickle", "logging"}
NOT_IN_CORE = {"torch.optim", "torch.save", "torch.load", "safetensors", "open", *FILES_AND_LOGGING}


class Mention(NamedTuple):
    """A dotted name that a file imports or uses; ``typing_only`` if it stands under ``if TYPE_CHECKING``."""

    line: int
    name: str
    typing_only: bool


def sources(package: Path) -> dict[str, Path]:
    """The package's files by dotted module name; a package's name stands for its ``__init__.py``."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def names_in(node: ast.AST, package: list[str]) -> list[str]:
    """What one node imports, at the top or lazily, or the ``torch.x`` that it is, or the ``open`` call."""
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            base = [*(package[: len(package) - level + 1] if level else []), *([module] if module else [])]
            return [".".join([*base, alias.name]) for alias in names]
        case ast.Call(
            func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
            args=[ast.Constant(value=str(target)), *_],
        ):
            return [target]
        case ast.Call(func=ast.Name(id="open")):
            return ["open"]
        case ast.Attribute(value=ast.Name(id="torch"), attr=attribute):
            return [f"torch.{attribute}"]
    return []


def mentions(module: str, path: Path) -> Iterator[Mention]:
    """All that a file imports from anywhere, and its direct uses of ``torch.x`` and ``open``."""
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    guards = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    typing_only = {id(node) for guard in guards for part in guard.body for node in ast.walk(part)}
    for node in ast.walk(tree):
        for name in names_in(node, package):
            yield Mention(getattr(node, "lineno", 0), name, id(node) in typing_only)


def inner_imports(package: Path) -> Iterator[tuple[str, Mention]]:
    """Importing module and imported module, for imports within the package."""
    known = sources(package)
    for module, path in known.items():
        for mention in mentions(module, path):
            target = mention.name
            while target not in known and "." in target:
                target = target.rpartition(".")[0]
            if target in known:
                yield module, mention._replace(name=target)


def room(module: str) -> str:
    """The room or single file that a module belongs to; the package's own name for its ``__init__.py``."""
    return module.split(".")[min(1, module.count("."))]


def upward_imports(package: Path) -> list[str]:
    """Imports against the direction, and files that belong to no room."""
    known = sources(package)
    found = [f"{path}: in no room" for name, path in known.items() if room(name) not in {*ROOMS, *GROUND}]
    for module, mention in inner_imports(package):
        here, there = room(module), room(mention.name)
        allowed = ROOMS.get(here, set()) | {here}
        if here in ROOMS:
            allowed |= GROUND - {"files"} if here == "core" else GROUND
        if there not in allowed:
            found.append(f"{known[module]}:{mention.line}: {here} must not import {mention.name}")
    return found


def import_cycles(package: Path) -> list[str]:
    """The first cycle between files, if any; a lazy import closes one, an import for types alone does not."""
    graph: dict[str, set[str]] = {module: set() for module in sources(package)}
    for module, mention in inner_imports(package):
        if not mention.typing_only:
            graph[module].add(mention.name)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return ["import cycle: " + " -> ".join(reversed(error.args[1]))]
    return []


def misplaced_libraries(package: Path) -> list[str]:
    """torch.distributed outside the one file that speaks it; optimizers, files and logging in core."""
    found = []
    for module, path in sources(package).items():
        refused = set(NOT_IN_CORE) if room(module) == "core" else set()
        if path.relative_to(package).as_posix() != SPEAKS_DISTRIBUTED:
            refused.add("torch.distributed")
        found += [
            f"{path}:{mention.line}: {mention.name} has no place here"
            for mention in mentions(module, path)
            if any(f"{mention.name}.".startswith(f"{library}.") for library in refused)
        ]
    return found


RULES = pytest.mark.parametrize("rule", [upward_imports, import_cycles, misplaced_libraries])


@RULES
def test_the_package_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(PACKAGE) == []


def plant(folder: Path, changed: dict[str, str]) -> Path:
    """A small package that keeps every rule, with some files changed."""
    files = {
        "__init__": "from metastep.meta.a import x\nfrom metastep.version import v",
        "__main__": "from metastep.cli import main",
        "cli": "import metastep as ms\ndef main():\n    from metastep import bench, report",
        "version": "v = 1",
        "files": "import os",
        "core/a": "import torch\nfrom metastep.version import v",
        "core/collectives": "import torch.distributed",
        "schedules/a": "from ..core import a\nfrom .b import x\nfrom metastep.files import y",
        "schedules/b": "import torch.optim\nif TYPE_CHECKING:\n    from metastep.schedules.a import x",
        "optim/a": "from metastep.core import a",
        "meta/a": "from metastep.core.a import x\nfrom metastep import schedules, optim",
        "tasks/a": "import os\nopen('x')",
        "bench/a": "import metastep.meta.a\nfrom metastep.tasks import a",
        "report/a": "from . import b",
        "report/b": "",
        "integrations/a": "def f():\n    from metastep.meta import a",
    }
    rooms = {place.partition("/")[0] for place in {**files, **changed} if "/" in place}
    for place, text in {**files, **{f"{room}/__init__": "" for room in rooms}, **changed}.items():
        path = folder / "metastep" / f"{place}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder / "metastep"


@RULES
def test_a_package_that_keeps_the_rules_is_passed(rule: Callable[[Path], list[str]], tmp_path: Path) -> None:
    assert rule(plant(tmp_path, {})) == []


@pytest.mark.parametrize(
    ("file", "text", "culprit"),
    [
        ("core/b", "import metastep.optim.a", "core must not import metastep.optim.a"),
        ("core/b", "from metastep.files import x", "core must not import metastep.files"),
        ("core/b", "def f():\n    from metastep.optim import a", "core must not import metastep.optim.a"),
        ("core/b", "from ..optim import a", "core must not import metastep.optim.a"),
        ("core/b", "from .. import schedules", "core must not import metastep.schedules"),
        ("core/__init__", "from ..schedules import a", "core must not import metastep.schedules.a"),
        ("schedules/c", "from metastep.optim.a import x", "schedules must not import metastep.optim.a"),
        ("optim/b", "from metastep.schedules import a", "optim must not import metastep.schedules.a"),
        ("optim/b", "from metastep.meta import x", "optim must not import metastep.meta"),
        ("meta/b", "import metastep as ms", "meta must not import metastep"),
        ("meta/b", "if TYPE_CHECKING:\n    import metastep.tasks.a", "meta must not import metastep.tasks.a"),
        ("tasks/b", "from metastep import optim", "tasks must not import metastep.optim"),
        ("tasks/b", "importlib.import_module('metastep.bench.a')", "tasks must not import metastep.bench.a"),
        ("bench/b", "from metastep.report import a", "bench must not import metastep.report.a"),
        ("bench/b", "from metastep.cli import main", "bench must not import metastep.cli"),
        ("report/c", "from metastep.bench import a", "report must not import metastep.bench.a"),
        ("integrations/b", "import metastep.bench", "integrations must not import metastep.bench"),
        ("version", "import metastep.core", "version must not import metastep.core"),
        ("__main__", "import metastep.bench", "__main__ must not import metastep.bench"),
        ("__init__", "from metastep.tasks import a", "metastep must not import metastep.tasks.a"),
        ("cli", "import metastep.__main__", "cli must not import metastep.__main__"),
        ("shared/__init__", "", "in no room"),
    ],
)
def test_an_import_against_the_direction_is_found(file: str, text: str, culprit: str, tmp_path: Path) -> None:
    (found,) = upward_imports(plant(tmp_path, {file: text}))
    assert found.endswith(culprit)
    assert f"{file}.py:" in found


@pytest.mark.parametrize(
    ("changed", "cycle"),
    [
        ({"report/b": "from metastep.report.a import x"}, "report.a report.b"),
        ({"report/b": "def f():\n    from . import a"}, "report.a report.b"),
        ({"report/b": "import metastep.report.b"}, "report.b"),
        ({"core/b": "from metastep.core import x", "core/__init__": "from .b import y"}, "core core.b"),
        ({"core/b": "from .c import x", "core/c": "import metastep.core.d", "core/d": "from . import b"},
         "core.b core.c core.d"),
    ],
)  # fmt: skip
def test_an_import_cycle_is_found(changed: dict[str, str], cycle: str, tmp_path: Path) -> None:
    (found,) = import_cycles(plant(tmp_path, changed))
    files = found.removeprefix("import cycle: ").split(" -> ")
    assert files[0] == files[-1]
    assert sorted(set(files)) == [f"metastep.{file}" for file in cycle.split()]


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("meta/b", "import torch.distributed as dist"),
        ("optim/b", "from torch import distributed"),
        ("tasks/b", "from torch.distributed.tensor import DTensor"),
        ("integrations/b", "def f():\n    return torch.distributed.get_rank()"),
        ("core/b", "import torch.distributed"),
        ("core/b", "from torch import optim"),
        ("core/b", "x = torch.optim.SGD"),
        ("core/b", "torch.save(1, 'x')"),
        ("core/b", "import logging"),
        ("core/b", "from pathlib import Path"),
        ("core/b", "x = open('x')"),
        ("core/collectives", "import os.path"),
    ],
)
def test_a_misplaced_library_is_found(file: str, text: str, tmp_path: Path) -> None:
    (found,) = misplaced_libraries(plant(tmp_path, {file: text}))
    assert f"{file}.py:" in found
