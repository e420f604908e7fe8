"""Small tasks and policies for the tests of populations."""

import dataclasses

import numpy as np
import pytest

from metastep.core.policy import ActionBounds
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.task_distribution import TaskSpec, sample_task
from metastep.lab.evolution.trainer import SIGNALS


@pytest.fixture
def policy() -> Policy:
    """What shipped schedules read, with a small network."""
    bounds = ActionBounds(
        start=-2.3, max_increase=60.0, max_decrease=60.0, lower=-25.0, upper=25.0, initial_update=0.25, anneals=True
    )
    return Policy(SIGNALS, hidden=4, bounds=bounds)


@pytest.fixture
def spec() -> TaskSpec:
    """A perceptron of 16 units on digits, 12 steps of 16."""
    drawn = sample_task(np.random.default_rng(0), "sgd", families=("mlp",))
    changes = {"data": "table:digits", "widths": (16,), "activation": "tanh", "norm": "none", "steps": 12}
    return dataclasses.replace(drawn, **changes, train_size=100, batch_size=16, momentum=0.9, label_noise=0.0)
