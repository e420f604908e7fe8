"""Nothing that a wrapped package says while it is imported reaches whoever compares methods."""

import importlib
import sys
import warnings
from pathlib import Path

import pytest

from metastep.lab.baselines.packages import quiet_import
from metastep.lab.bench.optimizers import OPTIMIZERS

#: Prints and warns as packages do: of an escape sequence when it is compiled, of an old call when it is run.
NOISY = """'''A docstring with \\g in it.'''
import warnings
print("welcome")
warnings.warn("this package is old", DeprecationWarning)
warnings.warn("and will change", FutureWarning)
VALUE = 3
"""


@pytest.fixture
def noisy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported and makes noise, compiled anew."""
    (tmp_path / "noisy_package.py").write_text(NOISY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "noisy_package", raising=False)
    return "noisy_package"


def test_without_the_door_the_noise_is_an_error_or_is_printed(noisy, capsys):
    with pytest.raises((SyntaxError, DeprecationWarning)):  # warnings are errors in these tests
        importlib.import_module(noisy)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        importlib.import_module(noisy)
    assert {"this package is old", "and will change"} <= {str(one.message) for one in heard}
    assert capsys.readouterr().out == "welcome\n"


def test_an_import_through_the_door_is_silent_and_leaves_warnings_as_they_were(noisy, capsys):
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        with quiet_import():
            module = importlib.import_module(noisy)
        assert heard == []
        warnings.warn("of the run itself", UserWarning, stacklevel=1)
    assert module.VALUE == 3
    assert [str(one.message) for one in heard] == ["of the run itself"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [name for name, one in OPTIMIZERS.items() if one.package])
def test_every_wrapper_imports_its_package_through_the_door(name, tmp_path, monkeypatch, capsys):
    package, wrapper = OPTIMIZERS[name].package, OPTIMIZERS[name].place.rpartition(".")[0]
    for module in [m for m in sys.modules if m.partition(".")[0] == package or m == wrapper]:
        monkeypatch.delitem(sys.modules, module)
    (tmp_path / f"{package}.py").write_text(NOISY + BASES)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        importlib.import_module("metastep.lab.baselines.packages"), wrapper.rpartition(".")[2], None, False
    )
    made = OPTIMIZERS[name].load()
    assert made.__module__ == wrapper
    assert sys.modules[package].__file__ == str(tmp_path / f"{package}.py")
    assert capsys.readouterr() == ("", "")
    for module in (package, wrapper):
        del sys.modules[module]


#: Any class of a package that a wrapper asks for.
BASES = """
from torch.optim import Optimizer

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (Optimizer,), {})
"""
