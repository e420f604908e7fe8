"""A policy with a rate for each layer begins as the policy with one rate that it is made from."""

import pytest
import torch

import metastep as ms
from metastep.lab.evolution.base_optimizers import Base
from metastep.lab.evolution.policy import Policy, per_layer_weights
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.evolution.vectorised_trainer import VectorisedTrainer


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("base", ["sgd", "adamw"])
def test_a_policy_made_for_layers_sets_in_every_layer_the_rate_of_the_network(
    base: Base, recurrent: bool, policy: Policy, spec: TaskSpec
) -> None:
    policy = policy._replace(recurrent=recurrent, bounds=policy.bounds._replace(max_increase=6.0, max_decrease=6.0))
    layered = policy._replace(scope="layer")
    narrow = torch.randn(2, policy.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    wide = torch.stack([per_layer_weights(row, layered) for row in narrow])
    assert wide.shape == (2, layered.size)
    rates = torch.tensor([0.01, 0.1])
    one, each = (VectorisedTrainer(spec, base, p, rates, dtype=torch.float64) for p in (policy, layered))
    for _ in range(spec.steps):
        one.advance(narrow, 1)
        each.advance(wide, 1)
        expected = one.log_multiplier[:, None].expand_as(each.log_multiplier)
        torch.testing.assert_close(each.log_multiplier, expected, rtol=1e-9, atol=0)
    for found, part in zip(each.packing.split(each.parameters), one.packing.split(one.parameters), strict=True):
        torch.testing.assert_close(found, part, rtol=0, atol=1e-9)


def test_a_schedule_for_layers_takes_the_weights_made_for_it(policy: Policy) -> None:
    schedule = ms.SignalSchedule(policy.signals, policy.hidden, scope="layer", bounds=policy.bounds)
    schedule.load_flat(per_layer_weights(torch.ones(policy.size), policy))
    assert int((schedule.flat_weights() == 0).sum()) == len(schedule.layer_signals) * policy.hidden


def test_weights_of_another_policy_are_refused(policy: Policy) -> None:
    with pytest.raises(ValueError, match=rf"weights must hold the {policy.size} weights .* got shape \(3,\)"):
        per_layer_weights(torch.ones(3), policy)
