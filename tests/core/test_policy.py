"""The network of a signal schedule: many weights at once are each by itself, and the multiplier keeps its bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metastep.core.policy import (
    NOMINAL_STEPS,
    ActionBounds,
    apply_action,
    calibrate,
    init_hidden,
    signal_policy,
    unpack_weights,
    weight_count,
    weight_shapes,
)

F, H = 5, 3


def weights(*leading: int, recurrent: bool) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*leading, weight_count(F, H, recurrent), dtype=torch.float64)


def by_hand(flat: Tensor, features: Tensor, hidden: Tensor, recurrent: bool) -> tuple[float, Tensor]:
    w, place = {}, 0
    for name, shape in weight_shapes(F, H, recurrent).items():
        size = math.prod(shape)
        w[name], place = flat[place : place + size].view(shape), place + size
    assert place == len(flat)
    z = features @ w["input"] + w["bias"]
    if recurrent:
        z = z + hidden @ w["recurrent"]
        gate = 1 / (1 + torch.exp(-z[:H]))
        hidden = (1 - gate) * hidden + gate * torch.tanh(z[H:])
        unit = hidden
    else:
        unit = torch.tanh(z)
    return math.tanh(float(unit @ w["output"] + w["output_bias"])), hidden


@pytest.mark.parametrize("recurrent", [False, True])
def test_each_member_of_a_population_has_its_own_weights(recurrent: bool) -> None:
    flat, x = weights(4, recurrent=recurrent), torch.randn(4, F, dtype=torch.float64)
    hidden = init_hidden((4,), H, recurrent, x)
    expected = [hidden[k] for k in range(4)]
    for _ in range(3):
        action, hidden = signal_policy(unpack_weights(flat, F, H, recurrent), x, hidden)
        for k in range(4):
            alone, expected[k] = by_hand(flat[k], x[k], expected[k], recurrent)
            assert action[k].item() == pytest.approx(alone, abs=1e-14)
    torch.testing.assert_close(hidden, torch.stack(expected), rtol=0, atol=1e-14)


def test_the_layers_of_a_population_share_the_weights_of_their_member() -> None:
    flat, x = weights(2, recurrent=True), torch.randn(2, 4, F, dtype=torch.float64)
    whole, _ = signal_policy(unpack_weights(flat[:, None], F, H, True), x, init_hidden((2, 4), H, True, x))
    for k in range(2):
        one, _ = signal_policy(unpack_weights(flat[k], F, H, True), x[k], init_hidden((4,), H, True, x))
        torch.testing.assert_close(whole[k], one, rtol=0, atol=1e-15)


numbers = st.floats(-1, 1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    actions=st.lists(numbers, min_size=1, max_size=40),
    total=st.integers(1, 10**5),
    known=st.booleans(),
    anneals=st.booleans(),
    backoff=st.booleans(),
)
def test_the_multiplier_moves_by_bounded_steps_and_keeps_its_bounds(actions, total, known, anneals, backoff) -> None:
    bounds = ActionBounds(anneals=anneals)
    m = torch.tensor(bounds.start).double()
    pace = 1 / (total if known else NOMINAL_STEPS)
    for step, action in enumerate(actions):
        moved = apply_action(m, torch.tensor(action).double(), float(backoff), total, known, bounds, step=step)
        assert bounds.lower <= moved <= bounds.upper
        change = float(moved - m)
        assert change <= min(1.0, bounds.max_increase * pace) + 1e-12
        if not anneals and not backoff:
            assert change >= -min(math.log(10), bounds.max_decrease * pace) - 1e-12
        if backoff and not anneals:
            assert change == pytest.approx(max(-math.log(10), bounds.lower - float(m)))
        m = moved


def test_annealing_alone_falls_in_proportion_to_what_is_left() -> None:
    m = torch.tensor(0.0).double()
    for step in range(20):
        m = apply_action(m, torch.zeros(()).double(), 0.0, 20, True, ActionBounds(start=0.0, anneals=True), step=step)
        assert m.exp().item() == pytest.approx(1 - step / 20)


def test_the_calibration_goes_to_its_update_once_and_looks_for_a_rate_that_moves() -> None:
    bounds, zero = ActionBounds(initial_update=0.7), torch.zeros(()).double()
    landed = calibrate(torch.tensor(-9.0).double(), torch.tensor(1e-6).double(), zero + 1, 100, True, bounds)
    assert landed.exp().item() == pytest.approx(math.exp(-9) * (0.7 / 10) / 1e-6)
    moving = calibrate(landed, torch.tensor(0.07).double(), zero, 100, True, bounds, tried=zero + 5)
    assert moving == landed
    still = calibrate(zero - 9, zero, zero, 100, True, bounds, tried=zero + 2)
    assert still == -8
    assert calibrate(zero - 9, zero, zero, 100, True, bounds, tried=zero + 1) == -9  # the first step has not come
    assert calibrate(zero - 9, zero + 1, zero + 1, 100, True, ActionBounds()) == -9  # no calibration asked for
