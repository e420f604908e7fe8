"""The closed forms against torch.optim.lr_scheduler over whole runs, and what holds for any argument."""

import copy
import json
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedulers

from metastep.schedules.closed_form import (
    ClosedForm,
    Constant,
    Cosine,
    Exponential,
    MultiStep,
    OneCycle,
    Staircase,
    Triangular,
    WarmRestarts,
    WarmupStableDecay,
)

fixed = settings(derandomize=True, deadline=None, max_examples=100)


def run(schedule: ClosedForm, steps: int) -> list[float]:
    """The factors of ``steps`` steps, passing the state on as a training loop does."""
    state, factors = schedule.init_state(), []
    for _ in range(steps):
        factor, state = schedule(math.nan, state)
        factors.append(factor)
    return factors


def torch_rates(make: Callable[[torch.optim.Optimizer], Any], lr: float, steps: int) -> list[float]:
    """The rates that torch's scheduler makes an optimizer use at ``steps`` steps."""
    optimizer = torch.optim.SGD([torch.zeros(1, dtype=torch.float64, requires_grad=True)], lr=lr)
    scheduler, rates = make(optimizer), []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def assert_same(schedule: ClosedForm, make: Callable[..., Any], steps: int, lr: float = 0.3) -> None:
    ours = [lr * factor for factor in run(schedule, steps)]
    assert ours == pytest.approx(torch_rates(make, lr, steps), rel=1e-12, abs=0.0)


def test_multistep_is_torchs() -> None:
    milestones = [1, 7, 8, 30]
    assert_same(MultiStep(milestones, 0.3), lambda o: torch_schedulers.MultiStepLR(o, milestones, 0.3), 40)


def test_exponential_is_torchs() -> None:
    assert_same(Exponential(0.97), lambda o: torch_schedulers.ExponentialLR(o, 0.97), 200)


@pytest.mark.parametrize("min_factor", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 3, 200])
def test_cosine_is_torchs(steps: int, min_factor: float) -> None:
    assert_same(
        Cosine(steps, min_factor),
        lambda o: torch_schedulers.CosineAnnealingLR(o, T_max=steps, eta_min=0.3 * min_factor),
        steps,
    )


@pytest.mark.parametrize(("half_cycle", "gamma"), [(1, 1.0), (10, 1.0), (7, 0.5), (3, 0.8)])
def test_triangles_are_torchs(half_cycle: int, gamma: float) -> None:
    assert_same(
        Triangular(half_cycle, 0.25, gamma),
        lambda o: torch_schedulers.CyclicLR(
            o,
            base_lr=0.3 * 0.25,
            max_lr=0.3,
            step_size_up=half_cycle,
            scale_fn=lambda cycle: gamma ** (cycle - 1),
            cycle_momentum=False,
        ),
        100,
    )


@pytest.mark.parametrize("min_factor", [0.0, 0.05])
@pytest.mark.parametrize(("T_0", "T_mult"), [(1, 1), (1, 2), (10, 1), (7, 2), (3, 3)])
def test_warm_restarts_are_torchs(T_0: int, T_mult: int, min_factor: float) -> None:
    assert_same(
        WarmRestarts(T_0, T_mult, min_factor),
        lambda o: torch_schedulers.CosineAnnealingWarmRestarts(o, T_0, T_mult, eta_min=0.3 * min_factor),
        300,
    )


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
@pytest.mark.parametrize(("steps", "pct_start"), [(200, 0.3), (97, 0.11), (7, 0.5), (3, 0.1), (50, 0.0)])
def test_one_cycle_is_torchs(steps: int, pct_start: float, anneal_strategy: Any, three_phase: bool) -> None:
    options: dict[str, Any] = {
        "pct_start": pct_start,
        "anneal_strategy": anneal_strategy,
        "div_factor": 20.0,
        "final_div_factor": 500.0,
        "three_phase": three_phase,
    }
    assert_same(
        OneCycle(steps, **options),
        lambda o: torch_schedulers.OneCycleLR(o, 0.3, total_steps=steps, cycle_momentum=False, **options),
        steps,
    )


def test_one_cycle_has_torchs_defaults() -> None:
    assert_same(
        OneCycle(60),
        lambda o: torch_schedulers.OneCycleLR(o, 0.3, total_steps=60, cycle_momentum=False),
        60,
    )


@pytest.mark.parametrize("anneal_strategy", ["cos", "linear"])
def test_warmup_stable_decay_is_the_stated_lambda(anneal_strategy: Any) -> None:
    warmup, decay, steps, floor = 8, 20, 80, 0.1

    def stated(t: int) -> float:
        if t < warmup:
            return (t + 1) / (warmup + 1)
        if t < steps - decay:
            return 1.0
        done = (t - (steps - decay)) / decay
        left = (1 + math.cos(math.pi * done)) / 2 if anneal_strategy == "cos" else 1 - done
        return floor + (1 - floor) * left

    schedule = WarmupStableDecay(steps, warmup / steps, decay / steps, anneal_strategy, floor)
    assert_same(schedule, lambda o: torch_schedulers.LambdaLR(o, stated), steps)


def test_staircase_is_the_stated_lambda() -> None:
    def stated(t: int) -> float:
        return (0.729, 0.036, 0.018)[(t >= 33) + (t >= 67)]

    schedule = Staircase((0.729, 0.036, 0.018), total_steps=100)
    assert_same(schedule, lambda o: torch_schedulers.LambdaLR(o, stated), 100)


def test_staircase_steps_where_its_boundaries_are() -> None:
    schedule = Staircase((2.0, 0.5), boundaries=(0.25,), total_steps=8)
    assert run(schedule, 8) == [2.0, 2.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]


def test_constant_is_one() -> None:
    assert run(Constant(), 5) == [1.0] * 5


fraction = st.floats(0.0, 1.0)
gammas = st.floats(1e-3, 1.0)
lengths = st.integers(1, 10_000_000)
strategies = st.sampled_from(["cos", "linear"])
divisors = st.floats(1.0, 1e8)
with_horizon = st.one_of(
    st.builds(Cosine, lengths, fraction),
    st.builds(OneCycle, lengths, fraction, strategies, divisors, divisors),
    st.builds(OneCycle, lengths, st.floats(0.0, 0.5), strategies, divisors, divisors, st.just(True)),
    st.builds(
        lambda steps, warmup, share, strategy, floor: WarmupStableDecay(
            steps, warmup, share * (1 - warmup), strategy, floor
        ),
        lengths, fraction, fraction, strategies, fraction,
    ),
    st.builds(Staircase, st.lists(gammas, min_size=1, max_size=5), st.none(), lengths),
)  # fmt: skip
floored = st.one_of(
    st.builds(Cosine, lengths, fraction),
    st.builds(WarmRestarts, st.integers(1, 10_000), st.integers(1, 5), fraction),
)
falling = st.one_of(
    st.just(Constant()),
    st.builds(MultiStep, st.lists(st.integers(1, 10_000), unique=True, max_size=8).map(sorted), gammas),
    st.builds(Exponential, st.floats(0.999, 1.0)),
    st.builds(Cosine, lengths, fraction),
)
any_closed_form = st.one_of(with_horizon, floored, falling)
steps = st.integers(0, 100_000)


@fixed
@given(any_closed_form, steps)
def test_every_factor_is_positive_and_at_most_the_peak(schedule: ClosedForm, step: int) -> None:
    factor = schedule.factor_at(step)
    assert type(factor) is float
    assert 0.0 < factor <= 1.0 + 1e-12


@fixed
@given(floored, steps)
def test_no_factor_lies_below_its_floor(schedule: Cosine | WarmRestarts, step: int) -> None:
    assert schedule.factor_at(step) >= schedule.min_factor - 1e-12


@fixed
@given(falling, steps)
def test_decays_never_climb(schedule: ClosedForm, step: int) -> None:
    assert schedule.factor_at(step + 1) <= schedule.factor_at(step) + 1e-15


@fixed
@given(any_closed_form, st.integers(0, 10_000), st.integers(1, 20))
def test_a_run_resumed_at_any_step_goes_on_the_same(schedule: ClosedForm, done: int, more: int) -> None:
    whole = [schedule.factor_at(step) for step in range(done + more)][done:]
    saved = json.loads(json.dumps({"config": schedule.config(), "state": done}))
    again, state = type(schedule)(**saved["config"]), saved["state"]
    resumed = []
    for _ in range(more):
        factor, state = again.query(1.0, state)
        resumed.append(factor)
    assert resumed == whole


@fixed
@given(with_horizon, st.integers(0, 1000))
def test_after_the_horizon_the_last_factor_stays(schedule: Any, beyond: int) -> None:
    last = schedule.factor_at(schedule.total_steps - 1)
    assert schedule.factor_at(schedule.total_steps + beyond) == last


@fixed
@given(with_horizon, lengths)
def test_a_horizon_can_come_later(schedule: Any, total_steps: int) -> None:
    unbound = type(schedule)(**{**schedule.config(), "total_steps": None})
    bound = unbound.with_total_steps(total_steps)
    assert unbound.total_steps is None
    assert bound.config() == {**schedule.config(), "total_steps": total_steps}
    assert bound.with_total_steps(total_steps + 1) is bound


@pytest.mark.parametrize("schedule", [Constant(), MultiStep([3]), Exponential(0.9), WarmRestarts(5)])
def test_a_schedule_without_a_horizon_takes_none(schedule: ClosedForm) -> None:
    assert schedule.with_total_steps(10) is schedule


@pytest.mark.parametrize("kind", [Cosine, OneCycle, WarmupStableDecay, lambda: Staircase((1.0, 0.1))])
def test_a_missing_horizon_is_said_with_a_remedy(kind: Callable[[], ClosedForm]) -> None:
    with pytest.raises(ValueError, match=r"total_steps must be known .* with_total_steps\(n\)"):
        kind()(1.0, 0)


@fixed
@given(any_closed_form)
def test_the_repr_builds_the_schedule_again(schedule: ClosedForm) -> None:
    kinds = (Constant, MultiStep, Exponential, Staircase, Cosine, WarmRestarts, OneCycle, WarmupStableDecay)
    again = eval(repr(schedule), {kind.__name__: kind for kind in kinds})
    assert type(again) is type(schedule)
    assert again.config() == schedule.config()


def test_arguments_are_fixed_at_construction() -> None:
    schedule = Cosine(total_steps=10)
    with pytest.raises(AttributeError, match="total_steps is fixed at construction; build a new Cosine"):
        schedule.total_steps = 20
    assert schedule.eval().training is False


def test_a_copy_and_a_state_dict_carry_nothing_but_the_arguments() -> None:
    schedule = OneCycle(total_steps=10)
    assert copy.deepcopy(schedule).config() == schedule.config()
    assert schedule.state_dict() == {}
    assert list(schedule.parameters()) == []


def test_query_is_forward() -> None:
    schedule = WarmupStableDecay(total_steps=20)
    assert [schedule.query(0.5, step) for step in range(25)] == [schedule(0.5, step) for step in range(25)]


def test_restarts_are_where_they_should_be_far_out() -> None:
    schedule = WarmRestarts(T_0=3, T_mult=3)
    starts = [3 * (3**period - 1) // 2 for period in range(30)]
    assert [schedule.factor_at(start) for start in starts] == [1.0] * 30
    assert all(schedule.factor_at(later - 1) < 0.6 for _, later in pairwise(starts))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MultiStep([0, 5]), "milestones must be a whole number >= 1, got 0"),
        (lambda: MultiStep([5, 5]), r"milestones must be increasing, got \[5, 5\]"),
        (lambda: MultiStep([2.5]), "milestones must be a whole number >= 1, got 2.5"),
        (lambda: MultiStep([5], gamma=0.0), r"gamma must be in \(0, 1\], got 0.0; for a rate that grows"),
        (lambda: Exponential(1.01), r"gamma must be in \(0, 1\], got 1.01"),
        (lambda: Exponential(math.nan), r"gamma must be in \(0, 1\], got nan"),
        (lambda: Exponential("fast"), r"gamma must be in \(0, 1\], got 'fast'"),
        (lambda: Cosine(0), "total_steps must be a whole number >= 1, got 0; count in optimizer steps"),
        (lambda: Cosine(10.0), "total_steps must be a whole number >= 1, got 10.0"),
        (lambda: Cosine(True), "total_steps must be a whole number >= 1, got True"),
        (lambda: Cosine(10, min_factor=-0.1), r"min_factor must be in \[0, 1\], got -0.1; .* not a rate"),
        (lambda: Cosine(10, min_factor=2.0), r"min_factor must be in \[0, 1\], got 2.0"),
        (lambda: Cosine().with_total_steps(-3), "total_steps must be a whole number >= 1, got -3"),
        (lambda: WarmRestarts(0), "T_0 must be a whole number >= 1, got 0"),
        (lambda: WarmRestarts(5, T_mult=1.5), "T_mult must be a whole number >= 1, got 1.5"),
        (lambda: OneCycle(10, pct_start=1.2), r"pct_start must be in \[0, 1\], got 1.2"),
        (lambda: OneCycle(10, pct_start=0.6, three_phase=True), r"pct_start must be in \[0, 0.5\], got 0.6"),
        (
            lambda: OneCycle(10, anneal_strategy="sqrt"),
            "anneal_strategy must be 'cos' or 'linear', got",
        ),
        (lambda: OneCycle(10, div_factor=0.5), r"div_factor must be in \[1, inf\), got 0.5"),
        (lambda: OneCycle(10, final_div_factor=math.inf), r"final_div_factor must be in \[1, inf\), got inf"),
        (
            lambda: WarmupStableDecay(10, pct_warmup=100),
            r"pct_warmup must be in \[0, 1\], got 100; ",
        ),
        (lambda: WarmupStableDecay(10, 0.6, 0.6), "pct_decay must be <= 1 - pct_warmup, got 0.6"),
        (lambda: Staircase(()), r"factors must be one or more finite numbers > 0, got \(\)"),
        (lambda: Staircase((1.0, -1.0)), "factors must be one or more finite numbers > 0"),
        (lambda: Staircase((1.0, 0.1), (0.5, 0.7)), r"boundaries must be 1 increasing fractions in \(0, 1\)"),
        (lambda: Staircase((1.0, 0.1, 0.01), (0.7, 0.5)), r"boundaries must be 2 increasing fractions"),
        (lambda: Staircase((1.0, 0.1), (50,)), r"boundaries must be 1 increasing fractions in \(0, 1\)"),
    ],
)
def test_bad_arguments_are_refused_by_name(make: Callable[[], ClosedForm], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make()
