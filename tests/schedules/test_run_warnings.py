"""Mistakes that a run shows: each is said once, with what to do; a run without one says nothing (pytest would fail)."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from tests.schedules.loops import Null, null
from torch import nn
from torch.optim import lr_scheduler

import metastep as ms


def steps(optimizer: torch.optim.Optimizer, count: int, after: Callable[[], object] = lambda: None) -> list[str]:
    """Take steps; return what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(count):
            optimizer.step()
            after()
    return [str(warning.message) for warning in caught]


def calibrated(**options: int) -> tuple[torch.optim.Optimizer, ms.LearnedLR]:
    parameter = nn.Parameter(torch.ones(3))
    parameter.grad = torch.ones(3)
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    return optimizer, ms.LearnedLR(optimizer, **options)


# ---- somebody else sets the rate

SCHEDULERS = {
    "every step": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "at times": lambda o: lr_scheduler.StepLR(o, 3, 0.1),
    "warm-up": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=9),
}


@pytest.mark.parametrize("make", SCHEDULERS.values(), ids=SCHEDULERS)
@pytest.mark.parametrize("tensor", [False, True])
def test_a_torch_scheduler_beside_it_is_to_be_removed(make, tensor: bool) -> None:
    optimizer = null(torch.tensor(0.1) if tensor else 0.1)
    lr = ms.LearnedLR(optimizer, ms.Constant())
    (said,) = steps(optimizer, 12, make(optimizer).step)
    assert "LearnedLR sets the rate" in said
    assert "remove the other scheduler" in said
    assert lr.get_last_lr() == [pytest.approx(0.1)]


def test_a_rate_that_a_loop_changes_again_and_again_is_noticed() -> None:
    optimizer = null(0.1)
    ms.LearnedLR(optimizer, ms.Constant())
    (said,) = steps(optimizer, 9, lambda: optimizer.param_groups[0].update(lr=0.5))
    assert "remove the other scheduler" in said


def test_checkpoints_look_aheads_and_late_groups_change_rates_and_are_no_scheduler() -> None:
    optimizer = null(0.1)
    lr = ms.LearnedLR(optimizer, ms.Cosine(40))
    assert steps(optimizer, 3) == []
    saved = copy.deepcopy((lr.state_dict(), optimizer.state_dict()))
    assert steps(optimizer, 3) == []
    for _ in range(3):
        lr.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        assert steps(optimizer, 2) == []
    optimizer.load_state_dict(saved[1])  # alone
    assert steps(optimizer, 2) == []
    for _ in range(3):
        with lr.override(0.7):
            optimizer.step()
        assert steps(optimizer, 1) == []
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.3})
    assert steps(optimizer, 2) == []


# ---- another length than was said


def test_a_step_beyond_the_horizon_says_extend() -> None:
    optimizer, _ = calibrated(total_steps=12)
    assert steps(optimizer, 12) == []
    (said,) = steps(optimizer, 5)
    assert "step 13 is beyond total_steps=12" in said
    assert "extend(total_steps)" in said


def test_a_run_that_is_extended_or_cooled_says_nothing() -> None:
    optimizer, lr = calibrated(total_steps=12)
    assert steps(optimizer, 12) == []
    lr.extend(14)
    assert steps(optimizer, 2) == []
    lr.cool(3)
    assert steps(optimizer, 3) == []
    lr.detach()


def test_a_run_that_ends_early_says_what_the_rate_was() -> None:
    optimizer, lr = calibrated(total_steps=1000)
    assert steps(optimizer, 501) == []
    with pytest.warns(UserWarning, match="the run ended after 501: the rate was still at 5[0-9]% of its peak") as said:
        lr.check_end()
    assert "total_steps=1,000" in str(said[0].message)
    assert "lr.cool(steps)" in str(said[0].message)
    lr.detach()  # not again


@pytest.mark.parametrize("count", [9, 45, 50])
def test_a_trial_and_a_run_that_comes_to_its_end_say_nothing(count: int) -> None:
    optimizer, lr = calibrated(total_steps=50)
    assert steps(optimizer, count) == []
    lr.detach()


@pytest.mark.parametrize("schedule", [ms.Constant(), ms.Cosine(100, min_factor=1.0), ms.Exponential(0.99)])
def test_an_end_that_changes_nothing_is_not_missed(schedule: ms.Schedule) -> None:
    optimizer = null(0.1)
    lr = ms.LearnedLR(optimizer, schedule)
    assert steps(optimizer, 20) == []
    lr.detach()


@pytest.mark.parametrize("schedule", [ms.Cosine(100), ms.Linear(100), ms.OneCycle(100), ms.WarmupStableDecay(100)])
def test_every_schedule_with_an_end_that_matters_is_missed(schedule: ms.Schedule) -> None:
    optimizer = null(0.1)
    lr = ms.LearnedLR(optimizer, schedule)
    assert steps(optimizer, 50) == []
    with pytest.warns(UserWarning, match="total_steps=100, but the run ended after 50"):
        lr.detach()


def test_a_run_of_unknown_length_that_was_never_cooled_says_cool() -> None:
    optimizer, lr = calibrated()
    assert steps(optimizer, 20) == []
    with pytest.warns(UserWarning, match=r"after 20 steps without total_steps.*call lr\.cool\(steps\)"):
        lr.detach()


def test_copies_and_what_is_thrown_away_say_nothing() -> None:
    optimizer, lr = calibrated(total_steps=100)
    assert steps(optimizer, 30) == []
    copied = copy.deepcopy(lr)
    del copied
    again = Null([nn.Parameter(torch.zeros(1))])
    ms.LearnedLR(again, ms.Cosine(100))
    assert steps(again, 20) == []
    del again
