"""Evolution strategies estimate the gradient that they claim to estimate, and a population follows the exact one."""

import dataclasses
import math

import pytest
import torch
from tests.oracles.exact_policy_gradient import exact_gradient
from torch.nn.functional import cosine_similarity

from metastep.lab.evolution import Policy
from metastep.lab.evolution.population import Perturbations, Population, fitness, judge
from metastep.lab.evolution.task_distribution import TaskSpec
from metastep.lab.evolution.vectorised_trainer import WORST_LOSS, VectorisedTrainer


def test_the_estimate_is_the_gradient_of_a_quadratic_on_average() -> None:
    """For F = |x - a|^2 smoothing changes only a constant: the mean estimate is 2 (x - a)."""
    center, goal = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 2.0])
    perturbations = Perturbations(20_000, 3, 0.1, seed=0)
    members = perturbations.around(center)
    estimate = perturbations.gradient((members - goal).square().sum(1), robust=False)
    torch.testing.assert_close(estimate, 2 * (center - goal), rtol=0.05, atol=0.05)


def test_a_pair_is_a_perturbation_and_its_mirror_image() -> None:
    center = torch.arange(4.0)
    members = Perturbations(3, 4, 0.5, seed=1).around(center)
    torch.testing.assert_close(members[:3] + members[3:], (2 * center).expand(3, -1))
    assert torch.equal(members, Perturbations(3, 4, 0.5, seed=1).around(center))


def unrolled(persistent: bool) -> torch.Tensor:
    """The gradient of y_2 by w, from unrolls of one step of y <- y / 2 + w each; judged by y after each of two."""
    strategy = Perturbations(40_000, 1, 0.1, seed=2, persistent=persistent)
    center, y = torch.tensor([0.3]), torch.zeros(80_000)
    total = torch.zeros(1)
    for _ in range(4):
        y = y / 2 + strategy.around(center)[:, 0]
        total = strategy.gradient(y, robust=False)
    return total


def test_persistent_estimates_hold_what_earlier_unrolls_did_and_truncated_ones_do_not() -> None:
    """dy_4 / dw = 1 + 1/2 + 1/4 + 1/8; what a truncated estimate sees of it is the last unroll's 1."""
    assert float(unrolled(persistent=True)) == pytest.approx(1.875, abs=0.05)
    assert float(unrolled(persistent=False)) == pytest.approx(1.0, abs=0.05)


def test_robust_estimates_do_not_depend_on_the_scale_of_large_differences() -> None:
    perturbations = Perturbations(50, 2, 0.1, seed=3)
    slopes = perturbations.around(torch.zeros(2)) @ torch.tensor([3.0, -1.0])
    one, many = (perturbations.gradient(slopes * scale) for scale in (100.0, 1000.0))
    torch.testing.assert_close(one, many, rtol=0.02, atol=0)
    lost = slopes.clone()
    lost[0] = 1e6  # one member that diverged does not own the estimate
    assert math.isfinite(float(perturbations.gradient(lost).norm()))
    assert float(perturbations.gradient(lost).norm()) < 5 * float(one.norm())


def test_the_exact_gradient_is_that_of_finite_differences(policy: Policy, spec: TaskSpec) -> None:
    spec = dataclasses.replace(spec, steps=8)
    weights = torch.randn(policy.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    _, gradient = exact_gradient(spec, policy, weights, 0.05)
    direction = torch.randn(policy.size, generator=torch.Generator().manual_seed(1)).double()
    above, below = (exact_gradient(spec, policy, weights + s * 1e-5 * direction, 0.05)[0] for s in (1, -1))
    assert float(gradient @ direction) == pytest.approx((above - below) / 2e-5, rel=1e-4)


def test_the_exact_run_is_that_of_vectorised_training(policy: Policy, spec: TaskSpec) -> None:
    weights = torch.randn(1, policy.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    training, validation = VectorisedTrainer(spec, "sgd", policy, torch.tensor([0.05]), dtype=torch.float64).run(
        weights
    )
    reached, _ = exact_gradient(spec, policy, weights[0], 0.05)
    assert reached == pytest.approx(float(validation.log() + 0.2 * training.log()), rel=1e-9)


@pytest.fixture
def layered(policy: Policy) -> Policy:
    """Each layer moves by itself, and within its bounds."""
    return policy._replace(scope="layer", bounds=policy.bounds._replace(max_increase=6.0, max_decrease=6.0))


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


def test_with_a_rate_for_each_layer_the_exact_run_is_that_of_vectorised_training(
    layered: Policy, spec: TaskSpec
) -> None:
    weights = torch.randn(1, layered.size, generator=torch.Generator().manual_seed(0)).double() * 0.3
    trainer = VectorisedTrainer(spec, "sgd", layered, torch.tensor([0.05]), dtype=torch.float64)
    reached, _ = exact_gradient(spec, layered, weights[0], 0.05)
    assert reached == pytest.approx(float(fitness(*trainer.run(weights))), rel=1e-9)


def test_evolution_points_where_the_exact_gradient_points(policy: Policy, spec: TaskSpec) -> None:
    spec = dataclasses.replace(spec, steps=10)
    weights = torch.randn(policy.size, generator=torch.Generator().manual_seed(0)) * 0.3
    _, exact = exact_gradient(spec, policy, weights, 0.05)
    population = Population(spec, "sgd", policy, (-3.0,) * 200, sigma=0.02, seed=1, horizon_known=True, loss_known=True)
    estimate = population.evaluate(weights).gradient
    assert estimate is not None
    assert float(cosine_similarity(estimate.double(), exact, dim=0)) > 0.8  # of 57 dimensions and 200 pairs


def test_a_population_that_diverged_wholly_has_no_gradient() -> None:
    lost = torch.full((4,), WORST_LOSS)
    perturbations = Perturbations(2, 3, 0.1, seed=0)
    perturbations.around(torch.zeros(3))
    assert judge(perturbations, lost, lost).gradient is None
    partly = judge(perturbations, lost, torch.tensor([0.5, WORST_LOSS, 1.0, WORST_LOSS]))
    assert partly.gradient is not None
    assert partly.diverged == 0.5
