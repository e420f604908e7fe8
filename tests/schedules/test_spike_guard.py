"""The spike guard: what leaves the normal range moves nothing, spoils no buffer, cuts the rate, and is counted."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.schedules.signal_runs import OPTIMIZERS, Sines, schedule, train

import metastep as ms
from metastep.schedules.monitor import SkippedStep

STEPS = 40


def started(optimizer: str, steps: int = 20, **options) -> tuple[Sines, ms.LearnedLR]:
    run = Sines(optimizer)
    lr = ms.LearnedLR(run.optimizer, schedule(**options), total_steps=STEPS)
    train(run, lr, steps)
    return run, lr


def bad_step(run: Sines, lr: ms.LearnedLR, kind: str) -> None:
    loss = run.backward()
    if kind.startswith("gradient"):
        run.net[0].weight.grad[0, 0] = {"nan": math.nan, "inf": -math.inf, "far": 1e6}[kind.split()[1]]
    else:
        loss = {"nan": math.nan, "inf": math.inf, "far": 1e4}[kind.split()[1]]
    lr.observe(loss)
    run.optimizer.step()


KINDS = ["gradient nan", "gradient inf", "gradient far", "loss nan", "loss inf", "loss far"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("options", [{}, {"scope": "layer"}], ids=["network", "layer"])
def test_a_step_out_of_range_changes_no_parameter_and_no_buffer_and_cuts_the_rate(kind, optimizer, options) -> None:
    run, lr = started(optimizer, **options)
    before, rate = run.values(), torch.tensor(lr.get_last_lr())
    bad_step(run, lr, kind)
    assert all(torch.equal(a, b) for a, b in zip(run.values(), before, strict=True))
    assert lr.get_last_lr() == [0.0] * len(lr.get_last_lr())
    assert (lr.brakes, lr.steps) == (1, 21)
    assert run.net[0].weight.grad is not None  # given back after the step
    train(run, lr, 1)
    assert lr.brakes == 1
    ratio = torch.tensor(lr.get_last_lr()) / rate
    assert ((ratio > 0.07) & (ratio < 0.12)).all()  # a tenth, and two steps of annealing
    assert not torch.equal(run.values()[0], before[0])


def test_one_loss_of_a_window_that_is_not_finite_is_enough() -> None:
    run, lr = started("sgd")
    run.backward()
    lr.observe(0.5)
    lr.observe(math.nan)
    run.optimizer.step()
    assert (lr.brakes, lr.non_finite_losses) == (1, 1)
    train(run, lr, 1)
    assert lr.brakes == 1


def test_the_verdict_on_a_window_survives_a_save_in_its_middle() -> None:
    _, lr = started("sgd")
    lr.observe(math.nan)
    other = ms.LearnedLR(Sines("sgd").optimizer, schedule(), total_steps=STEPS)
    other.load_state_dict(lr.state_dict())
    other.observe(0.5)
    other.optimizer.step()
    assert other.brakes == 1


@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_where_the_verdict_stays_on_a_device_nothing_that_is_not_finite_gets_anywhere(optimizer: str) -> None:
    run = Sines(optimizer)
    for group in run.optimizer.param_groups:
        group["lr"] = torch.tensor(group["lr"])
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=STEPS)
    lr._on_host = False  # the accelerator's branch, on the CPU
    train(run, lr, 20)
    parameters, state = [p.detach().clone() for p in run.net.parameters()], lr.state
    bad_step(run, lr, "gradient nan")
    assert all(torch.equal(p, before) for p, before in zip(run.net.parameters(), parameters, strict=True))
    assert all(tensor.isfinite().all() for tensor in run.values())
    assert lr.brakes == 1
    assert lr.state is state  # written in place, so that a captured graph goes on from it


def test_a_scalar_verdict_of_no_leaves_gradients_as_they_are() -> None:
    run = Sines()
    run.backward()
    before = [p.grad.clone() for p in run.net.parameters()]
    skipped = SkippedStep(run.optimizer)
    for verdict in (False, torch.tensor(False)):
        skipped.decide(verdict)
        skipped.prepare()
        assert all(torch.equal(p.grad, g) for p, g in zip(run.net.parameters(), before, strict=True))
    skipped.decide(True)
    skipped.prepare()
    assert all(p.grad is None for p in run.net.parameters())
    skipped.over()
    assert all(torch.equal(p.grad, g) for p, g in zip(run.net.parameters(), before, strict=True))


def test_a_closure_whose_gradients_are_out_of_range_moves_nothing() -> None:
    run, lr = started("sgd-momentum")
    before = run.values()

    def closure():
        loss = run.backward()
        run.net[0].weight.grad.fill_(math.nan)
        return loss

    run.optimizer.step(closure)
    assert lr.brakes == 1
    assert all(torch.equal(a, b) for a, b in zip(run.values(), before, strict=True))


def test_a_lower_bound_of_the_rate_does_not_move_a_skipped_step() -> None:
    run = Sines("sgd")
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=STEPS, min_lr=0.01)
    train(run, lr, 20)
    before = run.values()
    bad_step(run, lr, "gradient nan")
    assert all(torch.equal(a, b) for a, b in zip(run.values(), before, strict=True))
    assert lr.get_last_lr() == [0.0]


def test_a_network_thrown_far_off_comes_back() -> None:
    run, lr = started("sgd-momentum")
    start = run.loss().item()
    with torch.no_grad():
        run.net[2].weight.mul_(50)
    before = run.loss().item()
    longer = 400
    lr.extend(longer)
    train(run, lr, 300)
    assert before > 100 * start
    assert run.loss().item() < before / 2
    assert 1 <= lr.brakes <= 5


def test_a_run_of_nothing_but_broken_gradients_stays_where_it_is() -> None:
    run = Sines("adamw")
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=STEPS)
    before = run.values()

    def spoil(step: int, run: Sines) -> None:
        run.net[2].bias.grad.fill_(math.nan)

    train(run, lr, 30, spoil)
    assert lr.brakes == 30
    assert all(torch.equal(a, b) for a, b in zip(run.values(), before, strict=True))


anything = st.one_of(st.floats(width=32, allow_nan=True, allow_infinity=True), st.floats(-3, 3, width=32))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    events=st.lists(st.tuples(anything, anything, st.booleans()), min_size=1, max_size=14),
    optimizer=st.sampled_from(list(OPTIMIZERS)),
    layers=st.booleans(),
)
def test_whatever_losses_and_gradients_come_rates_and_parameters_stay_finite(events, optimizer, layers) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    other = torch.nn.Parameter(torch.zeros(2))
    run = OPTIMIZERS[optimizer]([weight, other])
    lr = ms.LearnedLR(run, schedule(scope="layer" if layers else "network"), total_steps=10, max_lr=10.0)
    for loss, gradient, both in events:
        weight.grad = torch.full((3,), gradient)
        other.grad = torch.ones(2) if both else None
        lr.observe(loss)
        run.step()
        assert all(0 <= rate <= 10.0 for rate in lr.get_last_lr())
        assert lr.state.isfinite().all()
    finite = abs(torch.tensor([event[1] for event in events]).nan_to_num(0, 0, 0)).max() < 1e15
    if finite:  # beyond, a step within the bounds of the rate may leave float32
        assert weight.isfinite().all()
        assert other.isfinite().all()
    assert lr.steps == len(events)
    assert 0 <= lr.brakes <= len(events)


@pytest.mark.parametrize("options", [{}, {"scope": "layer"}], ids=["network", "layer"])
def test_without_losses_the_run_goes_on_after_a_brake(options) -> None:
    """The zero rates of a skipped step are not the zeros by which a checkpoint makes an optimizer create its state."""
    run = Sines()
    lr = ms.LearnedLR(run.optimizer, schedule(**options), total_steps=STEPS)
    for step in range(15):
        run.backward()
        if step == 10:
            run.net[0].weight.grad[0, 0] = math.nan
        run.optimizer.step()
        assert (lr.get_last_lr()[0] == 0) == (step == 10)
    assert (lr.brakes, lr.steps) == (1, 15)
