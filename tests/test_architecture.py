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

LIBRARY = {"core", "schedules", "optim", "meta"}
#: What each room may look into, besides itself and the ground floor. A file in no room here is refused.
ROOMS: dict[str, set[str]] = {
    "core": set(),
    "schedules": {"core"},
    "optim": {"core"},
    "meta": {"core", "schedules", "optim"},
    "integrations": LIBRARY,
    "metastep": LIBRARY,  # __init__.py: the public names
    "lab": set(),
    "lab.records": set(),
    "lab.tasks": {"core"},
    "lab.runtime": {"core"},
    "lab.report": {"core", "lab.records"},
    "lab.baselines": LIBRARY,
    "lab.bench": {*LIBRARY, "lab.records", "lab.tasks", "lab.runtime", "lab.baselines"},
    "cli": {
        *LIBRARY, "metastep", "integrations", "lab.records", "lab.tasks", "lab.runtime", "lab.report", "lab.baselines",
        "lab.bench",
    },
    "__main__": {"cli"},
}  # fmt: skip
#: Single files that import nothing of the package; every room may use them, but core, which knows no files.
GROUND = {"version", "files", "compiled"}
SPEAKS_DISTRIBUTED = "core/distributed.py"
FILES_AND_LOGGING = {"os", "io", "pathlib", "shutil", "tempfile", "glob", "json", "csv", "pickle", "logging"}
NOT_IN_CORE = {"torch.optim", "torch.save", "torch.load", "safetensors", "open", *FILES_AND_LOGGING}


class Mention(NamedTuple):
    """A dotted name that a file imports or uses, at the top, lazily, or for type checkers alone."""

    line: int
    name: str


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
    for node in ast.walk(tree):
        for name in names_in(node, package):
            yield Mention(getattr(node, "lineno", 0), name)


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
    parts = module.split(".")
    if parts[1:2] == ["lab"]:
        return ".".join(parts[1:3])
    return parts[min(1, len(parts) - 1)]


def upward_imports(package: Path) -> list[str]:
    """Imports against the direction, and files that belong to no room."""
    known = sources(package)
    found = [f"{path}: in no room" for name, path in known.items() if room(name) not in {*ROOMS, *GROUND}]
    for module, mention in inner_imports(package):
        here, there = room(module), room(mention.name)
        allowed = ROOMS.get(here, set()) | {here}
        if here in ROOMS:
            allowed |= GROUND - {"files", "compiled"} if here == "core" else GROUND
        if there not in allowed:
            found.append(f"{known[module]}:{mention.line}: {here} must not import {mention.name}")
    return found


def import_cycles(package: Path) -> list[str]:
    """The first cycle between files, if any; lazy imports and imports for types alone close one, too."""
    graph: dict[str, set[str]] = {module: set() for module in sources(package)}
    for module, mention in inner_imports(package):
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
        "cli": "import metastep as ms\ndef main():\n    from metastep.lab import bench, report",
        "version": "v = 1",
        "files": "import os",
        "core/a": "import torch\nfrom metastep.version import v",
        "core/distributed": "import torch.distributed",
        "schedules/a": "from ..core import a\nfrom .b import x\nfrom metastep.files import y",
        "schedules/b": "import torch.optim\nif TYPE_CHECKING:\n    from metastep.core.a import x",
        "optim/a": "from metastep.core import a",
        "meta/a": "from metastep.core.a import x\nfrom metastep import schedules, optim",
        "lab/tasks/a": "import os\nopen('x')",
        "lab/bench/a": "import metastep.meta.a\nfrom metastep.lab.tasks import a",
        "lab/report/a": "from . import b",
        "lab/report/b": "",
        "integrations/a": "def f():\n    from metastep.meta import a",
    }
    rooms = {str(folder) for place in {**files, **changed} for folder in Path(place).parents} - {"."}
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
        ("meta/b", "if TYPE_CHECKING:\n    import metastep.lab.tasks.a", "meta must not import metastep.lab.tasks.a"),
        ("core/b", "from metastep import lab", "core must not import metastep.lab"),
        ("lab/tasks/b", "from metastep import optim", "lab.tasks must not import metastep.optim"),
        ("lab/tasks/b", "importlib.import_module('metastep.lab.bench.a')", "must not import metastep.lab.bench.a"),
        ("lab/bench/b", "from metastep.lab.report import a", "lab.bench must not import metastep.lab.report.a"),
        ("lab/bench/b", "from metastep.cli import main", "lab.bench must not import metastep.cli"),
        ("lab/report/c", "from metastep.lab.bench import a", "lab.report must not import metastep.lab.bench.a"),
        ("integrations/b", "import metastep.lab.bench", "integrations must not import metastep.lab.bench"),
        ("version", "import metastep.core", "version must not import metastep.core"),
        ("__main__", "import metastep.lab.bench", "__main__ must not import metastep.lab.bench"),
        ("__init__", "from metastep.lab.tasks import a", "metastep must not import metastep.lab.tasks.a"),
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
        ({"lab/report/b": "from metastep.lab.report.a import x"}, "lab.report.a lab.report.b"),
        ({"lab/report/b": "def f():\n    from . import a"}, "lab.report.a lab.report.b"),
        ({"lab/report/b": "if TYPE_CHECKING:\n    from . import a"}, "lab.report.a lab.report.b"),
        ({"lab/report/b": "import metastep.lab.report.b"}, "lab.report.b"),
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
        ("lab/tasks/b", "from torch.distributed.tensor import DTensor"),
        ("integrations/b", "def f():\n    return torch.distributed.get_rank()"),
        ("core/b", "import torch.distributed"),
        ("core/b", "from torch import optim"),
        ("core/b", "x = torch.optim.SGD"),
        ("core/b", "torch.save(1, 'x')"),
        ("core/b", "import logging"),
        ("core/b", "from pathlib import Path"),
        ("core/b", "x = open('x')"),
        ("core/distributed", "import os.path"),
    ],
)
def test_a_misplaced_library_is_found(file: str, text: str, tmp_path: Path) -> None:
    (found,) = misplaced_libraries(plant(tmp_path, {file: text}))
    assert f"{file}.py:" in found
