"""metastep: learning rates that learn."""

from importlib import import_module
from typing import TYPE_CHECKING

from metastep.version import __version__ as __version__

if TYPE_CHECKING:
    from metastep.meta import *  # noqa: F403
    from metastep.optim import *  # noqa: F403
    from metastep.schedules import *  # noqa: F403

#: Whose public names are those of the package.
_PACKAGES = ("metastep.schedules", "metastep.optim", "metastep.meta")


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: ``metastep --help`` need not wait for torch."""
    if name == "__all__":
        value: object = sorted(
            {"__version__", *(each for package in _PACKAGES for each in import_module(package).__all__)}
        )
    elif name.startswith("_"):
        raise AttributeError(f"module 'metastep' has no attribute {name!r}")
    else:
        for package in _PACKAGES:
            module = import_module(package)
            if name in module.__all__:
                value = getattr(module, name)
                break
        else:
            raise AttributeError(f"module 'metastep' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    names: object = __getattr__("__all__")
    return names if isinstance(names, list) else []
