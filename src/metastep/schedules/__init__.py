"""Schedules: from the training loss to the learning rate."""

from typing import TYPE_CHECKING

from metastep.schedules.averaging import AveragedModel as AveragedModel
from metastep.schedules.averaging import polynomial_average as polynomial_average
from metastep.schedules.base import LearnedSchedule as LearnedSchedule
from metastep.schedules.base import Schedule as Schedule
from metastep.schedules.files import ScheduleFileError as ScheduleFileError
from metastep.schedules.files import load_schedule as load_schedule
from metastep.schedules.files import save_schedule as save_schedule
from metastep.schedules.files import shipped_schedules as shipped_schedules
from metastep.schedules.learned_lr import LearnedLR as LearnedLR
from metastep.schedules.registry import *  # noqa: F403 -- the classes of the registry
from metastep.schedules.registry import REGISTRY
from metastep.schedules.scale import ScaleRule as ScaleRule

#: What is imported above by its own name, and the registry's.
_OTHERS = ("AveragedModel", "LearnedLR", "LearnedSchedule", "ScaleRule", "Schedule", "ScheduleFileError")
_FUNCTIONS = ("load_schedule", "polynomial_average", "save_schedule", "shipped_schedules")

if not TYPE_CHECKING:  # type checkers take the names as they are imported above
    __all__ = sorted([*REGISTRY, *_OTHERS, *_FUNCTIONS])
