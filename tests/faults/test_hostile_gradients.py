"""Whatever the gradients and losses are: 2,000 generated cases for each optimizer, and for each schedule."""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import metastep as ms

CASES = 2000
many = settings(
    max_examples=CASES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
NASTY = (math.nan, math.inf, -math.inf, 3.4e38, -3.4e38, 1e20, 1e-45, 1e-38, -0.0, 0.0, 1.0, -1.0)
numbers = st.one_of(st.sampled_from(NASTY), st.floats(width=32))
OPTIMIZERS = ("HyperSGD", "HyperAdam", "HyperAdamW", "HyperRMSprop", "HyperAdagrad", "Hyper")
SCHEDULES = {
    "MLRSNet": lambda: ms.MLRSNet(hidden_size=3),
    "FixedOutput": lambda: ms.FixedOutput(0.3),
    "Phased": lambda: ms.Phased([ms.MLRSNet(hidden_size=2), ms.FixedOutput(0.1)], total_steps=4),
    "Constant": ms.Constant,
    "MultiStep": lambda: ms.MultiStep([2, 4]),
    "Exponential": lambda: ms.Exponential(0.9),
    "Staircase": lambda: ms.Staircase((1.0, 0.1), total_steps=4),
    "Cosine": lambda: ms.Cosine(4),
    "WarmRestarts": lambda: ms.WarmRestarts(3),
    "OneCycle": lambda: ms.OneCycle(4),
    "WarmupStableDecay": lambda: ms.WarmupStableDecay(4),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_rates_of_an_optimizer_are_positive_finite_and_bounded(name: str) -> None:
    seen = []

    @many
    @given(gradients=st.lists(st.lists(numbers, min_size=3, max_size=3), min_size=2, max_size=3))
    def holds(gradients: list[list[float]]) -> None:
        seen.append(gradients)
        weight, empty = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(0))
        levels = ("global", "layer")
        if name == "Hyper":
            optimizer = ms.Hyper(torch.optim.SGD([weight, empty], lr=0.1), levels=levels)
        else:
            optimizer = getattr(ms, name)([weight, empty], lr=0.1, levels=levels)
        for values in gradients:
            weight.grad, empty.grad = torch.tensor(values), torch.ones(0)
            optimizer.step()
        rates = optimizer.rates()[0]
        for rate in (rates["global"], *rates["layer"].values()):
            assert ((rate.double() >= 1e-5 * 0.999) & (rate.double() <= 1e3 * 1.001)).all()  # False for NaN, too

    holds()
    assert len(seen) >= CASES


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_of_a_schedule_are_finite_and_bounded(name: str) -> None:
    schedule, seen = SCHEDULES[name](), []

    @many
    @given(losses=st.lists(numbers, min_size=1, max_size=4))
    def holds(losses: list[float]) -> None:
        seen.append(losses)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        lr = ms.LearnedLR(optimizer, schedule, initial_loss=2.3, num_classes=10, total_steps=4, max_lr=5.0)
        for loss in (1.0, *losses[:3]):
            lr.observe(loss)
            optimizer.step()
            (rate,) = lr.get_last_lr()
            assert math.isfinite(rate)
            assert 0 <= rate <= 5.0  # a closed form may end at 0
            assert rate > 0 or not isinstance(schedule, ms.MLRSNet | ms.FixedOutput | ms.Phased)

    holds()
    assert len(seen) >= CASES
