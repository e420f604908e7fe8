"""Optimizers that adapt their own rates.

`HYPER_OPTIMIZERS` is the one list of the optimizers over a base of torch.optim. A new one is a file and a line in it;
the names here and in `metastep`, the names of the command line and the benchmark (`hyper-sgd`), the rows of the
documentation and the contract tests follow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from metastep.optim.optimizers import HyperAdagrad as HyperAdagrad
    from metastep.optim.optimizers import HyperAdam as HyperAdam
    from metastep.optim.optimizers import HyperAdamW as HyperAdamW
    from metastep.optim.optimizers import HyperRMSprop as HyperRMSprop
    from metastep.optim.optimizers import HyperSGD as HyperSGD
    from metastep.optim.readout import log_rates as log_rates
    from metastep.optim.wrapper import Hyper as Hyper

#: Class to the module that defines it; nothing is imported before it is asked for.
HYPER_OPTIMIZERS: dict[str, str] = {
    "HyperSGD": "metastep.optim.optimizers",
    "HyperAdam": "metastep.optim.optimizers",
    "HyperAdamW": "metastep.optim.optimizers",
    "HyperRMSprop": "metastep.optim.optimizers",
    "HyperAdagrad": "metastep.optim.optimizers",
}
_MODULES = {**HYPER_OPTIMIZERS, "Hyper": "metastep.optim.wrapper", "log_rates": "metastep.optim.readout"}

if not TYPE_CHECKING:  # type checkers take the names as they are imported above
    __all__ = sorted(_MODULES)


def short_name(name: str) -> str:
    """What the command line and the benchmark call one of `HYPER_OPTIMIZERS`: `hyper-sgd` for `HyperSGD`."""
    return f"hyper-{name.removeprefix('Hyper').lower()}"


def __getattr__(name: str) -> Any:
    """Import a class when it is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value
