"""The exact meta-gradient of a policy with a rate for each layer; test_trainer.py has that of one rate."""

import dataclasses

import pytest
import torch

from metastep.lab.evolution.distribution import TaskSpec
from metastep.lab.evolution.exact import exact_gradient
from metastep.lab.evolution.jobs import fitness
from metastep.lab.evolution.members import Members
from metastep.lab.evolution.policy import Policy


@pytest.fixture
def layered(policy: Policy) -> Policy:
    """Each layer moves by itself, and within its bounds."""
    return policy._replace(scope="layer", reach=policy.reach._replace(climb=6.0, fall=6.0))


def test_with_a_rate_for_each_layer_the_gradient_is_that_of_finite_differences(layered: Policy, spec: TaskSpec) -> None:
    spec = dataclasses.replace(spec, steps=8)
    weights = torch.randn(layered.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    _, gradient = exact_gradient(spec, layered, weights, 0.05)
    generator = torch.Generator().manual_seed(1)
    own = torch.zeros(layered.size).double()  # the input weights of the layers' own signals
    own[layered._replace(scope="network").features * layered.hidden : layered.features * layered.hidden] = 1
    for mask in (own, 1 - own):
        direction = torch.randn(layered.size, generator=generator).double() * mask
        above, below = (exact_gradient(spec, layered, weights + s * 1e-5 * direction, 0.05)[0] for s in (1, -1))
        assert float(gradient @ direction) == pytest.approx((above - below) / 2e-5, rel=1e-4)
        assert abs(float(gradient @ direction)) > 1e-6


def test_with_a_rate_for_each_layer_the_exact_run_is_that_of_the_population(layered: Policy, spec: TaskSpec) -> None:
    weights = torch.randn(1, layered.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    members = Members(spec, "sgd", layered, torch.tensor([0.05]), dtype=torch.float64)
    reached, _ = exact_gradient(spec, layered, weights[0], 0.05)
    assert reached == pytest.approx(float(fitness(*members.run(weights))), rel=1e-9)
