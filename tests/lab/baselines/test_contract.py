"""What holds for every optimizer that adapts its own step size: one table, one contract."""

import copy
import math
import pickle
from typing import get_args

import pytest
import torch
from tests.lab.baselines.adaptive_step import ADAPTIVE, assert_equal, make, snapshot, squared_error, step_once, train
from tests.optim.models import batch, network
from tests.optim.optimizers import saved

import metastep as ms
from metastep.lab import baselines
from metastep.lab.baselines.adaptive_step import StepStyle

every = pytest.mark.parametrize("name", ADAPTIVE)
MEASURING = [name for name in ADAPTIVE if ADAPTIVE[name][0].step_style != "plain"]


@every
def test_it_is_a_torch_optimizer_that_lowers_the_loss(name):
    model = network()
    optimizer = make(name, model.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert optimizer.step_style in get_args(StepStyle)
    before = squared_error(model, batch(0)).item()
    for _ in range(30):
        step_once(optimizer, model, batch(0), batch(0))
    assert squared_error(model, batch(0)).item() < 0.9 * before
    assert optimizer.rejected == 0


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_steps_a_save_a_load_and_more_steps_are_the_same_bit_for_bit(name, dtype):
    model = network(dtype)
    optimizer = make(name, model.parameters())
    train(optimizer, model, 9)
    other = copy.deepcopy(model)
    resumed = make(name, other.parameters())
    resumed.load_state_dict(saved(optimizer.state_dict()))
    train(optimizer, model, 9, start=9)
    train(resumed, other, 9, start=9)
    assert_equal(other, snapshot(model))
    assert resumed.applied_rate() == optimizer.applied_rate() > 0
    assert str(resumed.state_dict()) == str(optimizer.state_dict())


@every
def test_a_state_dict_taken_in_memory_stays_as_it_was_when_loaded(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(optimizer, model, 3)
    taken = saved(optimizer.state_dict())
    before = str(taken)
    other = copy.deepcopy(model)
    resumed = make(name, other.parameters())
    resumed.load_state_dict(taken)
    train(resumed, other, 3, start=3)
    assert str(taken) == before


@every
def test_copies_and_pickles_go_on_alone(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(optimizer, model, 3)
    copied, copied_optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    train(optimizer, model, 3, start=3)
    train(copied_optimizer, copied, 3, start=3)
    assert_equal(copied, snapshot(model))


@every
def test_parameters_without_a_gradient_stay_and_without_any_nothing_happens(name):
    model = network()
    unused = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    frozen = torch.nn.Parameter(torch.ones(2, dtype=torch.float64), requires_grad=False)
    optimizer = make(name, [*model.parameters(), unused, frozen])
    train(optimizer, model, 3)
    assert torch.equal(unused.detach(), torch.ones(3))
    assert torch.equal(frozen, torch.ones(2))
    alone = make(name, [unused])
    alone.step(*[lambda: torch.tensor(1.0)] * {"plain": 0, "loss": 1, "closure": 1, "bilevel": 2}[alone.step_style])
    assert torch.equal(unused.detach(), torch.ones(3))
    assert alone.applied_rate() == 0


@every
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_bad_gradients_are_counted_and_the_rate_stays_finite(name, poison):
    model = network()
    optimizer = make(name, model.parameters())
    train(optimizer, model, 4)
    before = snapshot(model)
    x, y = batch(4)
    step_once(optimizer, model, (x, y * poison), (x, y))
    assert optimizer.rejected == 1
    assert math.isfinite(optimizer.applied_rate())
    if name in MEASURING:
        assert_equal(model, before)
        train(optimizer, model, 3, start=5)
        assert all(p.isfinite().all() for p in model.parameters())
        assert optimizer.rejected == 1


@pytest.mark.parametrize("name", MEASURING)
def test_a_bad_loss_with_good_gradients_is_counted_and_moves_nothing(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(optimizer, model, 2)
    before = snapshot(model)
    step_once(optimizer, model, batch(2), spoil=lambda loss: loss + math.nan)
    assert optimizer.rejected == 1
    assert_equal(model, before)


@every
def test_lr_belongs_to_the_user_and_half_of_it_is_felt(name):
    model, other = network(), network()
    optimizer = make(name, model.parameters())
    lr = optimizer.param_groups[0]["lr"]
    halved = make(name, other.parameters())
    train(optimizer, model, 3)
    train(halved, other, 3)
    for group in halved.param_groups:
        group["lr"] = lr / 2
    train(optimizer, model, 1, start=3)
    train(halved, other, 1, start=3)
    assert optimizer.param_groups[0]["lr"] == lr
    assert halved.param_groups[0]["lr"] == lr / 2
    assert halved.applied_rate() <= optimizer.applied_rate()


@every
def test_a_schedule_on_top_writes_lr_and_a_rate_of_zero_stands_still(name):
    model = network()
    optimizer = make(name, model.parameters())
    lr = ms.LearnedLR(optimizer, ms.Staircase((1.0, 0.5), total_steps=4))
    base = optimizer.param_groups[0]["lr"]
    train(optimizer, model, 4)
    assert lr.get_last_lr() == [base / 2]
    assert optimizer.applied_rate() > 0
    lr.detach()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    before = snapshot(model)
    train(optimizer, model, 2, start=4)
    assert_equal(model, before)


@pytest.mark.parametrize("name", MEASURING)
def test_a_schedule_that_reads_the_loss_hears_it_from_the_closure(name):
    model = network()
    optimizer = make(name, model.parameters())
    lr = ms.LearnedLR(optimizer, ms.MLRSNet(4), num_classes=10, initial_loss=2.3)
    train(optimizer, model, 2)
    assert lr.steps == 2
    assert lr.non_finite_losses == 0


@every
def test_groups_keep_their_own_coefficient(name):
    model = network()
    first, *rest = model.parameters()
    optimizer = make(name, [{"params": [first], "lr": 0.0}, {"params": rest}])
    before = first.detach().clone()
    train(optimizer, model, 2)
    assert torch.equal(first.detach(), before)
    assert optimizer.applied_rate() > 0
    late = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer.add_param_group({"params": [late]})
    train(optimizer, model, 1, start=2)


@every
def test_a_state_of_another_optimizer_is_refused_by_the_key_it_lacks(name):
    model = network()
    optimizer = make(name, model.parameters())
    with pytest.raises(ValueError, match=r"state_dict must have '\w+' in param_groups\[0\]"):
        optimizer.load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


@every
def test_bad_rates_and_parameters_are_refused_by_name(name):
    p = torch.nn.Parameter(torch.zeros(1))
    for lr in (-1.0, math.nan, "fast"):
        with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
            make(name, [p], lr=lr)
    with pytest.raises(ValueError, match="params must be whole, real tensors"):
        make(name, [torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))])
    optimizer = make(name, [p])
    with pytest.raises(ValueError, match="lr must be a finite number"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": -1.0})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", MEASURING)
def test_a_missing_or_a_strange_loss_is_refused_with_a_remedy(name):
    optimizer = make(name, network().parameters())
    with pytest.raises(ValueError, match=r"closure must be a function that returns .*, got None; call"):
        optimizer.step()
    closures = [lambda: torch.zeros(3)] * (2 if optimizer.step_style == "bilevel" else 1)
    with pytest.raises(ValueError, match=r"closure must return .* as a single number, got \(3,\)"):
        optimizer.step(*closures)


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if ADAPTIVE[name][0].step_style == "loss"])
def test_the_closure_of_a_known_loss_is_called_once(name):
    model, calls = network(), []
    optimizer = make(name, model.parameters())
    loss = squared_error(model, batch(0))
    loss.backward()
    assert optimizer.step(lambda: calls.append(1) or loss) is loss
    assert calls == [1]


BAD = [
    (baselines.L4, {"direction": "sgd"}, "direction must be one of momentum, adam, got 'sgd'"),
    (baselines.L4, {"momentum": 1.0}, r"momentum must be a finite number in \[0, 1\), got 1.0"),
    (baselines.L4, {"betas": (0.9, 1.0)}, r"betas\[1\] must be a finite number in \[0, 1\)"),
    (baselines.L4, {"eps": 0.0}, "eps must be > 0, got 0.0"),
    (baselines.L4, {"floor": 1.0}, r"floor must be a finite number in \[0, 1\)"),
    (baselines.L4, {"start": 1.5}, r"start must be a finite number in \[0, 1\], got 1.5"),
    (baselines.L4, {"forget": 0}, "forget must be a whole number >= 1, got 0"),
    (baselines.SPS, {"variant": "min"}, "variant must be one of smooth_iter, max, plain"),
    (baselines.SPS, {"c": 0.0}, "c must be > 0"),
    (baselines.SPS, {"f_star": math.inf}, "f_star must be finite, got inf"),
    (baselines.SPS, {"growth": 0.5}, "growth must be >= 1, got 0.5"),
    (baselines.SPS, {"steps_per_epoch": 2.0}, "steps_per_epoch must be a whole number >= 1, got 2.0"),
    (baselines.DFW, {"momentum": 1.0}, r"momentum must be a finite number in \[0, 1\)"),
    (baselines.DFW, {"weight_decay": -1.0}, "weight_decay must be a finite number >= 0"),
    (baselines.DFW, {"eps": 0.0}, "eps must be > 0"),
    (baselines.Armijo, {"condition": "wolfe"}, "condition must be one of armijo, goldstein"),
    (baselines.Armijo, {"c": 0.0}, r"c must be in \(0, 1\), got 0.0"),
    (baselines.Armijo, {"condition": "goldstein", "c": 0.6}, r"c must be a finite number in \[0, 0.5\)"),
    (baselines.Armijo, {"backtrack": 1.0}, "backtrack must be"),
    (baselines.Armijo, {"backtrack": 0.0}, r"backtrack must be in \(0, 1\)"),
    (baselines.Armijo, {"max_trials": 0}, "max_trials must be a whole number >= 1"),
    (baselines.Armijo, {"expand": 1.0}, "expand must be > 1"),
    (baselines.Armijo, {"max_lr": 0.0}, "max_lr must be > 0"),
    (baselines.Mechanic, {"s_init": 0.0}, "s_init must be > 0"),
    (baselines.Mechanic, {"num_betas": 0}, "num_betas must be a whole number >= 1, got 0"),
    (baselines.GeN, {"every": 0}, "every must be a whole number >= 1, got 0"),
    (baselines.GeN, {"smoothing": 1.0}, r"smoothing must be a finite number in \[0, 1\)"),
    (baselines.ScheduleFreePlus, {"beta": 1.0}, r"beta must be a finite number in \[0, 1\)"),
    (baselines.ScheduleFreePlus, {"beta_max": 0.0}, "beta_max must be > 0"),
    (baselines.MetaOptimize, {"gamma": 1.5}, r"gamma must be a finite number in \[0, 1\]"),
    (baselines.MetaOptimize, {"meta_betas": (0.9, 1.0)}, r"meta_betas\[1\] must be a finite number in \[0, 1\)"),
    (baselines.SALSA, {"c": 0.5}, r"c must be a finite number in \[0, 0.5\)"),
    (baselines.SALSA, {"steps_per_epoch": 0}, "steps_per_epoch must be a whole number >= 1, got 0"),
    (baselines.SALSA, {"drop": 1.0}, "drop must be > 1"),
    (baselines.SASA, {"nu": 1.5}, r"nu must be a finite number in \[0, 1\]"),
    (baselines.SASA, {"weight_decay": -1.0}, "weight_decay must be a finite number >= 0"),
    (baselines.SASA, {"drop": 1.0}, "drop must be > 1"),
    (baselines.SASA, {"significance": 1.0}, r"significance must be in \(0, 1\)"),
    (baselines.SASA, {"variance": "bm"}, "variance must be one of batch_means, overlapping, iid"),
    (baselines.SASA, {"min_samples": 3}, "min_samples must be a whole number >= 4"),
    (baselines.SASA, {"warmup": -1}, "warmup must be a whole number >= 0"),
]


@pytest.mark.parametrize(("cls", "arguments", "message"), BAD)
def test_bad_arguments_are_refused_by_name(cls, arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        cls([torch.nn.Parameter(torch.zeros(1))], **arguments)


@pytest.mark.parametrize("name", [name for name in ADAPTIVE if ADAPTIVE[name][0].step_style != "bilevel"])
def test_sparse_gradients_are_refused(name):
    p = torch.nn.Parameter(torch.zeros(3, 2))
    optimizer = make(name, [p])
    p.grad = torch.sparse_coo_tensor([[0]], torch.ones(1, 2), (3, 2), check_invariants=True)
    with pytest.raises(RuntimeError, match="does not take sparse gradients"):
        optimizer.step(*[lambda: 1.0] * (optimizer.step_style != "plain"))
