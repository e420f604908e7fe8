"""Tasks: data, network and loss, in four named splits."""

from metastep.lab.tasks.batches import Batch, Batches, Carry
from metastep.lab.tasks.sources import MissingData
from metastep.lab.tasks.splits import LabelNoise
from metastep.lab.tasks.table import describe_tasks, load_task, task_names
from metastep.lab.tasks.task import Task

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
