"""LearnedLR and its optimizer: who writes which rate when."""

import math
from contextlib import nullcontext
from itertools import pairwise

import pytest
import torch
from tests.schedules.loops import Null, Regression, net, null, rates
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

import metastep as ms


def attached(optimizer, **options):
    return ms.LearnedLR(optimizer, net(), **{"initial_loss": 2.3, "num_classes": 10, **options})


# ---- the rate of each step


def test_the_first_step_already_has_the_schedules_rate() -> None:
    optimizer, network = null(0.1), net()
    lr = ms.LearnedLR(optimizer, network, initial_loss=2.3, num_classes=10)
    alpha, _ = network.query(1.9, network.init_state())
    rates(lr, optimizer, [1.9])
    assert optimizer.used == [[alpha * ms.ScaleRule().gamma(2.3, 10)]]


def test_a_relative_schedule_multiplies_the_initial_rate() -> None:
    optimizer = null(0.4)
    ms.LearnedLR(optimizer, ms.MultiStep([2], gamma=0.5))
    for _ in range(3):
        optimizer.step()
    assert optimizer.used == [[0.4], [0.4], [0.2]]


@pytest.mark.parametrize("zero_first", [False, True])
def test_ratios_between_groups_are_kept(zero_first: bool) -> None:
    optimizer = null(*([0.0] if zero_first else []), 0.2, 0.1, 0.6)
    lr = attached(optimizer)
    rates(lr, optimizer, [2.3, 1.0])
    for used in optimizer.used:
        *zeros, first, half, triple = used
        assert (zeros, half / first, triple / first) == ([0.0] * zero_first, 0.5, pytest.approx(3.0))


def test_a_group_that_joins_later_keeps_the_ratio_of_the_rate_it_came_with() -> None:
    optimizer = null(0.2)
    lr = attached(optimizer)
    rates(lr, optimizer, [2.3])
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))], "lr": 0.05})
    rates(lr, optimizer, [2.0])
    assert optimizer.used[1][1] / optimizer.used[1][0] == 0.25


def test_a_group_that_joins_later_with_the_default_tensor_is_like_the_first() -> None:
    optimizer = Null([nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.2))
    lr = attached(optimizer)
    rates(lr, optimizer, [2.3])
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})
    assert optimizer.param_groups[1]["lr"] is optimizer.param_groups[0]["lr"]
    copy_of_it = null(0.2)
    rates(lr, optimizer, [2.0])
    assert rates(attached(copy_of_it), copy_of_it, [2.3, 2.0])[1] == pytest.approx(optimizer.used[1][0], rel=1e-6)
    assert optimizer.used[1][0] == optimizer.used[1][1]


def test_warm_up_is_linear_and_ends_at_the_full_rate() -> None:
    full, warm = null(), null()
    plain = rates(attached(full), full, [2.0] * 6)
    ramp = rates(attached(warm, warmup_steps=4), warm, [2.0] * 6)
    shares = [a / b for a, b in zip(ramp, plain, strict=True)]
    assert shares == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])


def test_bounds_hold_for_the_first_group_and_ratios_beyond_it() -> None:
    optimizer = null(0.1, 0.2)
    rates(attached(optimizer, min_lr=0.9, max_lr=1.0), optimizer, [2.3])
    assert optimizer.used == [[0.9, 1.8]]
    optimizer = null(0.1)
    rates(attached(optimizer, max_lr=1e-3), optimizer, [2.3])
    assert optimizer.used == [[1e-3]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_rates_are_written_in_place(dtype: torch.dtype) -> None:
    tensors = [torch.tensor(0.1, dtype=dtype), torch.tensor([0.2], dtype=dtype)]
    optimizer = null(*tensors)
    lr = attached(optimizer)
    rates(lr, optimizer, [2.3, 2.0])
    assert [group["lr"] is tensor for group, tensor in zip(optimizer.param_groups, tensors, strict=True)] == [True] * 2
    assert lr.get_last_lr() == optimizer.used[1]
    assert lr.get_last_lr()[1] == pytest.approx(2 * lr.get_last_lr()[0])


def test_the_list_of_last_rates_is_a_fresh_one_each_time() -> None:
    optimizer = null(torch.tensor(0.1))
    lr = attached(optimizer)
    seen = []
    for loss in (2.3, 2.0, 1.0):
        lr.observe(loss)
        optimizer.step()
        seen.append(lr.get_last_lr())
    assert seen == optimizer.used
    assert all(a != b for a, b in pairwise(seen))


def test_before_the_first_step_the_rates_are_read_as_they_stand() -> None:
    optimizer = null(0.1, 0.2)
    assert attached(optimizer).get_last_lr() == [0.1, 0.2]


def test_a_torch_scheduler_beside_it_neither_sets_the_rate_nor_hides_it() -> None:
    alone, beside = null(0.1), null(0.1)
    lr = attached(beside)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(beside, 0.1)
    shown = []
    for loss in (2.3, 2.0, 1.0):
        lr.observe(loss)
        with pytest.warns(UserWarning, match="LearnedLR sets the rate") if loss == 2.0 else nullcontext():
            beside.step()
        scheduler.step()
        shown += lr.get_last_lr()
    assert shown == rates(attached(alone), alone, [2.3, 2.0, 1.0])
    assert [[rate] for rate in shown] == beside.used


# ---- which steps count


def test_a_step_without_an_observed_loss_is_an_error_that_says_what_to_do() -> None:
    optimizer = null()
    lr = attached(optimizer)
    rates(lr, optimizer, [2.0])
    with pytest.raises(RuntimeError, match=r"without an observed loss.*observe\(loss\)"):
        optimizer.step()
    assert lr.steps == 1
    rates(lr, optimizer, [1.0])  # and the run can go on
    assert lr.steps == 2


def test_a_schedule_that_needs_no_loss_asks_for_none() -> None:
    optimizer = null(0.1)
    lr = ms.LearnedLR(optimizer, ms.Cosine(), total_steps=10)
    optimizer.step()
    assert lr.steps == 1


MAKERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.1),
    "adam-tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.1)),
    "adam-zero": lambda p: torch.optim.Adam(p, lr=0.0),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
}


#: Refused: no factor makes a rate of 0 another one.
ZERO = ("adam-zero", ms.Constant)


@pytest.mark.filterwarnings("ignore:MLRSNet measures the scale of its rate by a rule for sgd")
@pytest.mark.parametrize(
    ("make", "schedule"), [(make, kind) for make in MAKERS for kind in (net, ms.Constant) if (make, kind) != ZERO]
)
def test_the_empty_step_of_torchs_distributed_checkpoints_is_no_step(make: str, schedule) -> None:
    run = Regression(MAKERS[make])
    lr = ms.LearnedLR(run.optimizer, schedule(), num_classes=10)
    before = [p.detach().clone() for p in run.model.parameters()]
    saved = get_optimizer_state_dict(run.model, run.optimizer)
    assert lr.steps == 0
    assert saved["param_groups"][0]["lr"] == pytest.approx(0.0 if make == "adam-zero" else 0.1)
    assert all(torch.equal(p, q) for p, q in zip(run.model.parameters(), before, strict=True))
    lr.observe(run.backward(0))
    run.optimizer.step()
    assert lr.steps == 1


def test_an_own_rate_of_zero_excuses_no_missing_loss() -> None:
    class Zero(ms.FixedOutput):
        relative = True

    run = Regression(MAKERS["sgd"])
    schedule = Zero(0.5)
    schedule.alpha = 0.0
    lr = ms.LearnedLR(run.optimizer, schedule)
    lr.observe(run.backward(0))
    run.optimizer.step()
    assert lr.get_last_lr() == [0.0]
    with pytest.raises(RuntimeError, match="without an observed loss"):
        run.optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_amp_skips_ticks_nothing(fused: bool) -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1, fused=fused)
    lr = attached(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, loss in ((1.0, 2.0), (math.inf, 4.0), (1.0, 1.0)):
        optimizer.zero_grad()
        scaler.scale((parameter * factor).sum()).backward()
        before, state, steps = parameter.detach().clone(), lr.state_dict(), lr.steps
        lr.observe(loss)
        scaler.step(optimizer)
        scaler.update()
        if factor == math.inf:
            assert torch.equal(parameter, before)
            assert (lr.steps, lr.get_last_lr()) == (1, [state["last_rate"]])
            assert torch.equal(lr.state, state["state"])
        else:
            assert lr.steps == steps + 1
    other = null()
    assert lr.get_last_lr() == rates(attached(other), other, [2.0, 2.5])[1:]  # the skipped loss counts in the next


# ---- attaching


def test_hooks_of_others_see_the_new_rate_if_they_came_later() -> None:
    optimizer, seen = null(0.1), []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    lr = attached(optimizer)
    optimizer.register_step_pre_hook(lambda o, *_: seen.append(o.param_groups[0]["lr"]))
    rates(lr, optimizer, [2.3])
    assert seen == [0.1, optimizer.used[0][0]]


def test_a_second_schedule_on_one_optimizer_is_refused_until_the_first_lets_go() -> None:
    optimizer = null(0.1)
    lr = attached(optimizer)
    with pytest.raises(ValueError, match=r"detach\(\)"):
        attached(optimizer)
    lr.detach()
    lr.detach()
    again = ms.LearnedLR(optimizer, ms.Constant())
    optimizer.step()
    assert (lr.steps, again.steps, optimizer.used) == (0, 1, [[0.1]])


def test_after_detaching_rates_stay_and_no_loss_is_wanted() -> None:
    optimizer = null()
    lr = attached(optimizer)
    (rate,) = rates(lr, optimizer, [2.3])
    lr.detach()
    optimizer.step()
    assert optimizer.used == [[rate], [rate]]


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"initial_loss": math.nan}, "initial_loss"),
        ({"num_classes": 1}, "num_classes"),
        ({"total_steps": 0}, "total_steps"),
        ({"warmup_steps": -1}, "warmup_steps"),
        ({"warmup_steps": 9, "total_steps": 9}, "warmup_steps must be less than total_steps, got 9 of 9"),
        ({"min_lr": -1.0}, "min_lr"),
        ({"min_lr": 2.0, "max_lr": 1.0}, "min_lr"),
        ({"max_lr": 0.0}, "min_lr"),
        ({"max_lr": math.nan}, "min_lr"),
    ],
)
def test_a_bad_argument_is_named_and_nothing_is_attached(options: dict[str, float], name: str) -> None:
    optimizer = null()
    with pytest.raises(ValueError, match=f"^{name}"):
        ms.LearnedLR(optimizer, net(), **options)
    optimizer.step()


def test_a_warm_up_as_long_as_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="warmup_steps must be less than total_steps, got 10 of 10"):
        ms.LearnedLR(null(), ms.Cosine(10), warmup_steps=10)
    ms.LearnedLR(null(), ms.Cosine(10), warmup_steps=9).detach()
    ms.LearnedLR(null(), net(), warmup_steps=10).detach()  # of no known length


def test_wrong_types_are_refused() -> None:
    with pytest.raises(TypeError, match="optimizer must be"):
        ms.LearnedLR([0.1], net())
    with pytest.raises(TypeError, match=r"schedule must be.*load_schedule"):
        ms.LearnedLR(null(), 3)
    with pytest.raises(FileNotFoundError, match=r"no schedule file 'mlr_snet_1.pth'"):
        ms.LearnedLR(null(), "mlr_snet_1.pth")
