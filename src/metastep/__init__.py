"""metastep: learning rates that learn."""

from importlib import import_module
from typing import TYPE_CHECKING

from metastep.version import __version__

if TYPE_CHECKING:
    from metastep.meta import MetaLearner, NotLinearInRate
    from metastep.optim import (
        Hyper,
        HyperAdagrad,
        HyperAdam,
        HyperAdamW,
        HyperRMSprop,
        HyperSGD,
    )
    from metastep.schedules import (
        Constant,
        Cosine,
        Exponential,
        FixedOutput,
        LearnedLR,
        MLRSNet,
        MultiStep,
        OneCycle,
        Phased,
        ReduceOnPlateau,
        ScaleRule,
        Schedule,
        ScheduleFileError,
        SignalSchedule,
        Staircase,
        WarmRestarts,
        WarmupStableDecay,
        load_schedule,
        save_schedule,
        shipped_schedules,
    )

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "FixedOutput",
    "Hyper",
    "HyperAdagrad",
    "HyperAdam",
    "HyperAdamW",
    "HyperRMSprop",
    "HyperSGD",
    "LearnedLR",
    "MLRSNet",
    "MetaLearner",
    "MultiStep",
    "NotLinearInRate",
    "OneCycle",
    "Phased",
    "ReduceOnPlateau",
    "ScaleRule",
    "Schedule",
    "ScheduleFileError",
    "SignalSchedule",
    "Staircase",
    "WarmRestarts",
    "WarmupStableDecay",
    "__version__",
    "load_schedule",
    "save_schedule",
    "shipped_schedules",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first asked for: ``metastep --help`` need not wait for torch."""
    if name in __all__:
        for room in ("metastep.schedules", "metastep.meta", "metastep.optim"):
            module = import_module(room)
            if name in module.__all__:
                value: object = getattr(module, name)
                globals()[name] = value
                return value
    raise AttributeError(f"module 'metastep' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
