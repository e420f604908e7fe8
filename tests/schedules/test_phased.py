"""Snapshots one after another: shares of the run, the state handed on, the scale measured again, the control."""

import pytest
import torch
from tests.schedules.loops import net, null, rates

import metastep as ms


def three(total_steps: int | None = 9, **options) -> ms.Phased:
    return ms.Phased([net(seed, **options) for seed in range(3)], total_steps=total_steps)


def test_each_snapshot_drives_a_third_and_takes_over_the_state() -> None:
    phased, snapshots = three(11), [net(seed) for seed in range(3)]
    state, inner = phased.init_state(), snapshots[0].init_state()
    for step in range(14):
        loss = 2.0 - step / 10
        alpha, state = phased.query(loss, state)
        expected, inner = snapshots[min(step // 3, 2)].query(loss, inner)  # 11 // 3 steps each, the last takes the rest
        assert alpha == expected


def test_the_long_path_agrees_with_the_short_one() -> None:
    phased = three()
    short, long = phased.init_state(), phased.init_state()
    for step in range(9):
        alpha, short = phased.query(2.0 - step / 10, short)
        expected, long = phased(2.0 - step / 10, long)
        assert alpha == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("mode", ["recompute", "freeze", "floor"])
def test_the_scale_is_measured_again_at_each_switch_and_nowhere_else(mode: str) -> None:
    rule = ms.ScaleRule(mode=mode, floor=0.5)
    optimizer, measured, losses = null(), [], iter([0.5, 0.11])

    def measure() -> float:
        measured.append(lr.steps)
        return next(losses)

    lr = ms.LearnedLR(
        optimizer, three(scale=rule), initial_loss=2.3, num_classes=10, total_steps=9, measure_loss=measure
    )
    scales = []
    for _ in range(9):
        rates(lr, optimizer, [1.0])
        scales.append(lr.scale)
    first = rule.gamma(2.3, 10)
    expected = [first, rule.gamma(0.5, 10, first=first), rule.gamma(0.11, 10, first=first)]
    assert measured == [3, 6]
    assert scales == [scale for scale in expected for _ in range(3)]


def test_without_a_way_to_measure_the_running_mean_of_the_losses_counts() -> None:
    optimizer, losses = null(), [2.3, 2.0, 1.0, 0.5]
    lr = ms.LearnedLR(optimizer, three(9), num_classes=10)
    rates(lr, optimizer, losses)
    mean = losses[0]
    for loss in losses:
        mean += 0.02 * (loss - mean)
    assert lr.scale == pytest.approx(ms.ScaleRule().gamma(mean, 10))


def test_a_measured_loss_that_is_not_finite_leaves_the_scale() -> None:
    optimizer = null()
    lr = ms.LearnedLR(optimizer, three(), initial_loss=2.3, num_classes=10, measure_loss=lambda: float("nan"))
    rates(lr, optimizer, [1.0] * 9)
    assert lr.scale == ms.ScaleRule().gamma(2.3, 10)


def test_measuring_needs_no_graph() -> None:
    optimizer, modes = null(), []

    def measure() -> float:
        modes.append(torch.is_grad_enabled())
        return 1.0

    lr = ms.LearnedLR(optimizer, three(), initial_loss=2.3, num_classes=10, measure_loss=measure)
    rates(lr, optimizer, [1.0] * 9)
    assert modes == [False, False]


def test_the_running_mean_is_kept_for_any_schedule_that_measures_again() -> None:
    class Restless(ms.FixedOutput):
        def remeasures(self, step: int) -> bool:
            return step == 2

    optimizer = null()
    lr = ms.LearnedLR(optimizer, Restless(0.5), initial_loss=2.3, num_classes=10)
    rates(lr, optimizer, [1.0] * 3)
    assert lr.scale == pytest.approx(ms.ScaleRule().gamma(1.0, 10))


def test_the_horizon_may_come_from_the_run() -> None:
    phased = three(None)
    bound = phased.with_total_steps(9)
    assert bound.boundaries == (3, 6)
    assert all(a is b for a, b in zip(bound.schedules, phased.schedules, strict=True))
    assert bound.with_total_steps(30) is bound
    optimizer = null()
    ms.LearnedLR(optimizer, phased).observe(1.0)
    with pytest.raises(RuntimeError, match="pass total_steps"):
        optimizer.step()


def test_the_staircase_holds_the_heights_at_which_the_snapshots_settle() -> None:
    phased = three()
    control = phased.staircase(loss=1.2)
    assert control.boundaries == phased.boundaries
    state = control.init_state()
    for phase in range(3):
        settled, inner = 0.0, net(phase).init_state()
        for _ in range(200):
            settled, inner = net(phase).query(1.2, inner)
        for loss in (0.1, 5.0, 2.0):
            alpha, state = control.query(loss, state)
            assert alpha == settled


def test_the_published_snapshots_settle_at_the_published_heights(reference) -> None:
    first, middle = (ms.load_schedule(reference / f"mlr_snet_{n}.pth") for n in (1, 100))
    control = ms.Phased([first, middle], total_steps=10).staircase()
    heights = [member.alpha for member in control.schedules]
    assert heights == pytest.approx([0.729, 0.036], abs=2e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "schedules must hold at least one"),
        (([net(), net(hidden_size=9)],), "equal kind, size and scale rule"),
        (([net(), net(scale=ms.ScaleRule(text=True))],), "equal kind, size and scale rule"),
        (([ms.Constant()],), "schedules must be learned"),
        (([net(), net()], 1), "total_steps must be >= 2"),
        (([net(), net()], None, [0]), "boundaries must be"),
        (([net(), net(), net()], None, [5, 5]), "boundaries must be"),
        (([net(), net()], None, [5, 6]), "boundaries must be"),
    ],
)
def test_snapshots_that_do_not_fit_are_refused(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ms.Phased(*arguments)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0, float("nan")])
def test_a_fixed_output_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must be in"):
        ms.FixedOutput(alpha)


def test_a_change_of_weights_reaches_every_snapshot() -> None:
    phased = three()
    before = [schedule.query(1.0, schedule.init_state())[0] for schedule in phased.schedules]
    for schedule in phased.schedules:
        schedule.cells[0].hidden_gates.bias.data += 1.0  # which nobody sees
    phased.weights_changed()
    after = [schedule.query(1.0, schedule.init_state())[0] for schedule in phased.schedules]
    assert all(a != b for a, b in zip(after, before, strict=True))
