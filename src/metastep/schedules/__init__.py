"""Schedules: from the training loss to the learning rate."""

from metastep.schedules.annealing import Cosine, OneCycle, WarmRestarts, WarmupStableDecay
from metastep.schedules.attach import LearnedLR
from metastep.schedules.base import Schedule
from metastep.schedules.checkpoint import ScheduleFileError, load_schedule, save_schedule
from metastep.schedules.closed_form import Constant, Exponential, MultiStep, Staircase
from metastep.schedules.mlrsnet import MLRSNet
from metastep.schedules.phased import FixedOutput, Phased
from metastep.schedules.plateau import ReduceOnPlateau
from metastep.schedules.scale import ScaleRule
from metastep.schedules.shipped import shipped_schedules
from metastep.schedules.signal import SignalSchedule

__all__ = [
    "Constant",
    "Cosine",
    "Exponential",
    "FixedOutput",
    "LearnedLR",
    "MLRSNet",
    "MultiStep",
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
    "load_schedule",
    "save_schedule",
    "shipped_schedules",
]
