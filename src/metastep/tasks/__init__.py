"""Tasks: data, network and loss, in four named splits."""

from metastep.tasks.batches import Batch, Batches, Carry
from metastep.tasks.noise import LabelNoise
from metastep.tasks.sources import MissingData
from metastep.tasks.table import describe_tasks, load_task, task_names
from metastep.tasks.task import Task

__all__ = [
    "Batch",
    "Batches",
    "Carry",
    "LabelNoise",
    "MissingData",
    "Task",
    "describe_tasks",
    "load_task",
    "task_names",
]
