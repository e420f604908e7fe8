"""metastep: learning rates that learn."""

from metastep.meta import MetaLearner, NotLinearInRate
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
    ScaleRule,
    Schedule,
    ScheduleFileError,
    Staircase,
    WarmRestarts,
    WarmupStableDecay,
    load_schedule,
    save_schedule,
)
from metastep.version import __version__

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "FixedOutput",
    "LearnedLR",
    "MLRSNet",
    "MetaLearner",
    "MultiStep",
    "NotLinearInRate",
    "OneCycle",
    "Phased",
    "ScaleRule",
    "Schedule",
    "ScheduleFileError",
    "Staircase",
    "WarmRestarts",
    "WarmupStableDecay",
    "__version__",
    "load_schedule",
    "save_schedule",
]
