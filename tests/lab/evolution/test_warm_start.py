"""The supervised warm start: what a sweep over rates finds, and the weights that are fitted to it."""

import dataclasses
import math

import pytest
import torch

from metastep.core.policy import signal_policy, unpack_weights
from metastep.lab.evolution import Policy
from metastep.lab.evolution.population import Population
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.evolution.warm_start import LEVELS, RateSweep, fit_policy, sweep_rates


def test_the_fit_raises_a_rate_that_is_too_low_and_lowers_one_that_is_too_high(policy: Policy) -> None:
    """Made-up tasks of which the feature "update" tells the level and "alignment" where the best level is."""
    generator, sweeps = torch.Generator().manual_seed(0), []
    names = [*policy.signals, "horizon_known", "loss_known"]
    levels = torch.arange(len(LEVELS)).float()
    for _ in range(30):
        best = 3 + 5 * torch.rand((), generator=generator)
        features = torch.zeros(5, len(levels), len(names))
        features[..., names.index("update")] = levels / 6 - 1
        features[..., names.index("alignment")] = best / 6 - 1
        positions = levels.expand(5, -1)
        sweeps.append(RateSweep(features.half(), positions, torch.linspace(0, 0.5, 5), 0.1 * (levels - best).square()))
    weights = fit_policy(sweeps, policy, seed=0, steps=300)
    parts = unpack_weights(weights, policy.features, policy.hidden, recurrent=False)
    for best in (4.0, 7.0):
        x = torch.zeros(2, len(names))
        x[:, names.index("update")] = torch.tensor([best - 2, best + 2]) / 6 - 1
        x[:, names.index("alignment")] = best / 6 - 1
        low, high = signal_policy(parts, x, x.new_zeros(2, 0))[0].tolist()
        assert low > 0.1
        assert high < -0.1


def test_a_sweep_finds_that_far_too_low_levels_are_bad(policy: Policy, spec: TaskSpec) -> None:
    population = Population(
        dataclasses.replace(spec, steps=80), "sgd", policy, (math.log(0.01),) * 2, 0.05, 1, horizon_known=True,
        loss_known=True,
    )  # fmt: skip
    sweep = sweep_rates(population)
    assert sweep.features.shape == (len(sweep.moments), 2 * len(LEVELS), policy.features)
    assert sweep.fitness.shape == LEVELS.shape
    fixed, others = sweep.positions.split(len(LEVELS), dim=1)
    torch.testing.assert_close(fixed, torch.arange(len(LEVELS)).float().expand_as(fixed), atol=1e-4, rtol=0)
    assert ((others[0] != others[-1]) & (others[0] > 0)).all()  # each changes once, from a level that was tried
    update = sweep.features[-1, :, policy.signals.index("update")]
    assert torch.equal(update.argsort()[:2], sweep.positions[-1].argsort()[:2])  # where they are is what they see
    assert sweep.fitness.argmin() > 2
    assert sweep.fitness[0] > sweep.fitness.min() + 0.3


def test_without_a_sweep_or_for_a_recurrent_policy_there_is_nothing_to_fit(policy: Policy) -> None:
    with pytest.raises(ValueError, match="sweeps must hold a task at least"):
        fit_policy([], policy, seed=0, steps=1)
