"""No file of the package reads bytes in a way that could run what is in them; each loader has a trap test of its own.

The traps are in ``tests/schedules`` (files, shipped names), ``tests/integrations/test_hub.py`` (folders, the hub),
``tests/lab/runtime/test_folder.py`` and ``tests/cli`` (runs), and
``tests/lab/tasks/test_loaders.py`` (CIFAR's batches).
"""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Processes of one run that talk over a pipe of their own: nothing of a stranger's gets there.
OWN_PIPES = {"lab/runtime/executor.py"}
#: Calls that run code, or can, unless the keyword has the value.
SAFE_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
REFUSED = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "joblib.load", "dill.load", "dill.loads", "cloudpickle.load",
    "cloudpickle.loads", "yaml.load", "yaml.unsafe_load", "eval", "exec", "marshal.loads", "shelve.open", "numpy.load",
    "torch.jit.load", "torch.hub.load", "pd.read_pickle",
}  # fmt: skip


def unsafe_calls(source: str) -> list[str]:
    """Calls that could run what they read, with their line."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        keyword, value = SAFE_WITH.get(name, ("", None))
        given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
        if name in REFUSED or (keyword and given.get(keyword, ...) is not value):
            found.append(f"{node.lineno}: {name}")
    return found


def test_no_loader_can_run_what_it_reads() -> None:
    package = ROOT / "src" / "metastep"
    found = {
        path.relative_to(package).as_posix(): calls
        for path in sorted(package.rglob("*.py"))
        if (calls := unsafe_calls(path.read_text(encoding="utf-8")))
    }
    assert {path: calls for path, calls in found.items() if path not in OWN_PIPES} == {}


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(f)",
        "torch.load(f, weights_only=False)",
        "torch.load(f, weights_only=w)",
        "pickle.loads(b)",
        "np.load(p)",
        "np.load(p, allow_pickle=True)",
        "eval(text)",
        "yaml.load(f)",
    ],
)
def test_an_unsafe_call_is_found(source: str) -> None:
    assert len(unsafe_calls(f"x = 1\ny = {source}")) == 1


@pytest.mark.parametrize(
    "source", ["torch.load(f, weights_only=True)", "np.load(p, allow_pickle=False)", "json.load(f)"]
)
def test_a_safe_call_is_passed(source: str) -> None:
    assert unsafe_calls(source) == []


@pytest.mark.parametrize(
    "path",
    [
        "schedules/test_checkpoint.py",
        "schedules/test_shipped.py",
        "integrations/test_hub.py",
        "lab/runtime/test_folder.py",
        "cli/test_bad_input.py",
        "lab/tasks/test_loaders.py",
    ],
)
def test_every_loader_has_its_trap(path: str) -> None:
    assert "__reduce__" in (ROOT / "tests" / path).read_text(encoding="utf-8")
