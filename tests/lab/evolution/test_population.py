"""Evolution strategies estimate the gradient that they claim to estimate."""

import math

import pytest
import torch

from metastep.lab.evolution.strategies import Perturbations


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
