"""What a policy does on one reference task, to look at while it is trained."""

from typing import Any

import torch
from torch import Tensor

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.members import Members
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.rules import Base

_REFERENCE: dict[str, Any] = {
    "family": "mlp",
    "data": "table:digits",
    "seed": 7,
    "train_size": 1100,
    "label_noise": 0.0,
    "input_scale": 1.0,
    "widths": (32,),
    "activation": "relu",
    "norm": "none",
    "gain": 1.0,
    "cell": "gru",
    "batch_size": 32,
    "steps": 200,
    "momentum": 0.9,
    "weight_decay": 0.0,
}


def learned_curve(policy: Policy, base: Base, weights: Tensor, points: int = 20) -> tuple[float, ...]:
    """The rates on the reference task, a perceptron on digits, at equal intervals from the second step on.

    With a rate for each layer, their geometric mean.

    Args:
        policy: what the schedule reads, and how it moves.
        base: of the optimizer.
        weights: of the schedule, (N,).
        points: how many rates.
    """
    rate = 0.1 if base == "sgd" else 1e-3
    members = Members(TaskSpec(**_REFERENCE), base, policy, torch.tensor([rate]))
    stride = _REFERENCE["steps"] // points
    members.advance(weights[None], 2)
    rates = []
    for _ in range(points):
        rates.append(float(members.rates * members.log_multiplier.mean().exp()))
        members.advance(weights[None], stride)
    return tuple(rates)
