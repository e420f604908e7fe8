"""LearnedLR gives a schedule that reads the optimizer its signals, in every way in which people take steps."""

import copy
import io
import warnings
from itertools import permutations

import pytest
import torch
from tests.schedules.signal_runs import OPTIMIZERS, Sines, schedule, train
from torch import nn

import metastep as ms
from metastep.core.inner import inner_product
from metastep.schedules.linearity import NotLinearInRate
from metastep.schedules.monitor import Monitor


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "options", [{}, {"scope": "layer"}, {"recurrent": True}], ids=["network", "layer", "recurrent"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_learns_from_a_rate_far_too_low_with_any_base(optimizer: str, options, dtype: torch.dtype) -> None:
    run = Sines(optimizer, dtype)
    before = run.loss().item()
    plain = Sines(optimizer, dtype)
    for _ in range(60):
        plain.backward()
        plain.optimizer.step()
    lr = ms.LearnedLR(run.optimizer, schedule(**options), total_steps=60)
    train(run, lr, 60)
    assert run.loss().item() < 0.75 * before
    assert run.loss().item() < plain.loss().item()
    assert lr.brakes == 0


def test_the_raw_numbers_are_those_of_the_present_gradient_and_the_last_displacement() -> None:
    run = Sines("adamw", torch.float64)
    watch, each = Monitor(run.optimizer, layers=False), Monitor(run.optimizer, layers=True)
    parameters = list(run.net.parameters())
    now = [p.detach().clone() for p in parameters]
    for _ in range(4):
        before, now = now, [p.detach().clone() for p in parameters]
        run.backward()
        moved = [a - b for a, b in zip(before, now, strict=True)]
        gradients = [p.grad for p in parameters]
        expected = [inner_product(a, b) for a, b in ((gradients, moved), (gradients,) * 2, (moved,) * 2, (now,) * 2)]
        network, nothing = watch.measure()
        assert nothing is None
        torch.testing.assert_close(network, torch.stack(expected), rtol=1e-12, atol=0)
        total, layers = each.measure()
        torch.testing.assert_close(total, network, rtol=1e-12, atol=0)
        torch.testing.assert_close(layers[2, 1], gradients[2].square().sum(), rtol=1e-12, atol=0)
        run.optimizer.step()
    assert expected[0] > 0


def test_parameters_of_all_kinds_are_measured_and_those_without_a_gradient_count_as_still() -> None:
    torch.manual_seed(0)
    kinds = [torch.randn(3, 2), torch.randn(4).double(), torch.randn(5).bfloat16(), torch.randn(2, dtype=torch.cfloat)]
    parameters = [nn.Parameter(kind) for kind in kinds]
    frozen, idle = nn.Parameter(torch.ones(2), requires_grad=False), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*parameters, frozen, idle], lr=0.5)
    watch = Monitor(optimizer, layers=True)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    watch.measure()
    optimizer.step()
    network, layers = watch.measure()
    assert layers[:, 1].tolist() == [6, 4, 5, 2, 0, 0]
    assert layers[:, 0].tolist() == pytest.approx([3, 2, 2.5, 1, 0, 0], rel=0.02)
    assert network.tolist() == pytest.approx(layers.sum(0).tolist())
    assert layers.dtype == torch.float64


def test_a_sparse_gradient_is_measured() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = torch.optim.SGD(table.parameters(), lr=0.1)
    table(torch.tensor([1, 1, 3])).sum().backward()
    network, _ = Monitor(optimizer, layers=False).measure()
    assert network[1] == 2 * (2**2 + 1)


def test_micro_batches_are_one_step() -> None:
    run, lr = Sines(), None
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=9)
    other = Sines()
    other_lr = ms.LearnedLR(other.optimizer, schedule(), total_steps=9)
    for _ in range(9):
        run.optimizer.zero_grad()
        for part in (slice(32), slice(32, 64)):
            loss = run.loss(part)
            (loss / 2).backward()
            lr.observe(loss)
        run.optimizer.step()
    whole = train(other, other_lr, 9)
    assert lr.steps == 9
    assert lr.get_last_lr()[0] == pytest.approx(whole[-1], rel=1e-3)


@pytest.mark.parametrize("observes", [True, False])
def test_a_closure_is_measured_after_its_backward_pass(observes: bool) -> None:
    run, other = Sines(), Sines()
    lr, other_lr = (ms.LearnedLR(each.optimizer, schedule(), total_steps=12) for each in (run, other))

    def closure():
        loss = run.backward()
        if observes:
            lr.observe(loss)
        return loss

    used = []
    for _ in range(12):
        run.optimizer.step(closure)
        used.append(lr.get_last_lr()[0])
    assert used == train(other, other_lr, 12)


def test_without_a_loss_it_goes_by_the_other_signals() -> None:
    run = Sines()
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=40)
    before = run.loss().item()
    for _ in range(40):
        run.backward()
        run.optimizer.step()
    assert run.loss().item() < 0.75 * before
    assert lr.steps == 40


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
@pytest.mark.parametrize("options", [{}, {"scope": "layer"}])
@pytest.mark.parametrize("optimizer", ["sgd-momentum", "adamw"])
def test_a_run_resumed_in_any_order_is_the_unbroken_one_to_the_last_bit(options, optimizer: str, order) -> None:
    def start() -> tuple[Sines, ms.LearnedLR]:
        run = Sines(optimizer)
        return run, ms.LearnedLR(run.optimizer, schedule(**options), total_steps=30)

    def spoil(step: int, run: Sines) -> None:
        if step == 8:
            run.net[0].weight.grad.fill_(float("nan"))

    run, lr = start()
    train(run, lr, 12, spoil)
    file = io.BytesIO()
    torch.save([run.net.state_dict(), run.optimizer.state_dict(), lr.state_dict()], file)
    expected, expected_values = train(run, lr, 18), run.values()
    file.seek(0)
    other, other_lr = start()
    train(other, other_lr, 3)
    parts, saved = (other.net, other.optimizer, other_lr), torch.load(file, weights_only=True)
    for place in order:
        parts[place].load_state_dict(saved[place])
    assert other_lr.brakes == 1
    assert train(other, other_lr, 18) == expected
    assert all(torch.equal(a, b) for a, b in zip(other.values(), expected_values, strict=True))


def test_a_copy_of_a_run_goes_on_by_itself() -> None:
    run = Sines()
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=30)
    train(run, lr, 10)
    other, other_lr = copy.deepcopy((run, lr))
    assert train(other, other_lr, 10) == train(run, lr, 10)


def test_one_rate_for_each_parameter_keeps_the_ratios_and_options_of_the_groups() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(
        [
            {"params": list(net[0].named_parameters()), "lr": 0.1},
            {"params": list(net[2].named_parameters()), "lr": 0.2, "momentum": 0.5},
        ]
    )
    lr = ms.LearnedLR(optimizer, ms.SignalSchedule(scope="layer", total_steps=20))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1] * 4
    assert [group["param_names"] for group in optimizer.param_groups] == [["weight"], ["bias"]] * 2
    assert [group["momentum"] for group in optimizer.param_groups] == [0, 0, 0.5, 0.5]
    assert sum(p.numel() for group in optimizer.param_groups for p in group["params"]) == 21
    net(torch.ones(3)).backward()
    optimizer.step()
    rates = lr.get_last_lr()
    assert rates[2] / rates[0] == pytest.approx(2, rel=0.1)  # the multipliers differ by what the layers saw
    assert lr.state_dict()["last_rate"].shape == (4,)
    assert f"rate {rates[0]:.3g}" in repr(lr)


def test_a_group_that_joins_is_measured_with_one_rate_and_refused_with_one_for_each() -> None:
    for options in ({}, {"scope": "layer"}):
        run = Sines()
        lr = ms.LearnedLR(run.optimizer, schedule(**options), total_steps=20)
        train(run, lr, 3)
        late = nn.Parameter(torch.ones(2))
        late.grad = torch.ones(2)
        run.optimizer.add_param_group({"params": [late], "lr": 1e-3})
        if options:
            with pytest.raises(ValueError, match=r"must keep the 4 parameters .* it has 5"):
                train(run, lr, 1)
        else:
            assert train(run, lr, 3)[-1] > 0


def test_the_horizon_may_be_extended_while_a_run_goes_on() -> None:
    run = Sines()
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=10)
    used = train(run, lr, 15)
    assert used[10:] == [used[9]] * 5
    lr.extend(60)
    longer = train(run, lr, 45)
    assert longer[0] != used[9]
    assert all(0 < rate < 1 for rate in longer)
    with pytest.raises(ValueError, match="total_steps must be a whole number >= 61, got 60; 60 steps are done"):
        lr.extend(60)


def test_a_run_may_be_resumed_under_another_horizon() -> None:
    run = Sines()
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=10)
    train(run, lr, 10)
    longer = ms.LearnedLR(Sines().optimizer, schedule(), total_steps=20)
    longer.load_state_dict(lr.state_dict())
    assert (longer.steps, longer.schedule.total_steps) == (10, 20)
    other = ms.LearnedLR(Sines().optimizer, schedule(recurrent=True), total_steps=20)
    with pytest.raises(ValueError, match="state_dict has config"):
        other.load_state_dict(lr.state_dict())


def test_extending_a_closed_form_stretches_it_and_one_without_a_horizon_does_not_notice() -> None:
    for made, notices in ((ms.Cosine(), True), (ms.Exponential(0.9), False)):
        run = Sines()
        lr = ms.LearnedLR(run.optimizer, made, total_steps=10)
        train(run, lr, 5)
        lr.extend(100)
        expected = ms.Cosine(100).factor_at(5) if notices else 0.9**5
        assert train(run, lr, 1)[0] == pytest.approx(1e-3 * expected)


@pytest.mark.parametrize(("trained_for", "optimizer"), [("sgd", "sgd-momentum"), ("adamw", "sgd"), ("sgd", "adamw")])
def test_another_base_than_the_one_trained_for_is_named_once(trained_for: str, optimizer: str) -> None:
    run = Sines(optimizer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lr = ms.LearnedLR(run.optimizer, schedule(trained_for=trained_for), total_steps=9)
        train(run, lr, 9)
    assert [warning.filename for warning in caught] == [__file__]
    assert f"trained for {trained_for}, the optimizer is {optimizer}:" in str(caught[0].message)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_base_that_it_was_trained_for_warns_of_nothing(optimizer: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ms.LearnedLR(Sines(optimizer).optimizer, schedule(trained_for=optimizer))
        ms.LearnedLR(Sines(optimizer).optimizer, schedule(trained_for=f"lion, {optimizer}"))


@pytest.mark.parametrize("make", [torch.optim.Rprop, torch.optim.ASGD, torch.optim.LBFGS], ids=lambda m: m.__name__)
def test_an_optimizer_that_is_not_linear_in_its_rate_is_refused_at_its_first_step(make) -> None:
    run = Sines()
    optimizer = make(run.net.parameters(), lr=0.1)
    ms.LearnedLR(optimizer, schedule(), total_steps=9)
    before = run.values()
    with pytest.raises(NotLinearInRate, match=make.__name__):
        optimizer.step(run.backward)
    assert all(torch.equal(a, b) for a, b in zip(run.values(), before, strict=True))


def test_gradients_of_a_grad_scaler_are_measured_unscaled() -> None:
    run, other = Sines(), Sines()
    lr, other_lr = (ms.LearnedLR(each.optimizer, schedule(), total_steps=9) for each in (run, other))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(9):
        run.optimizer.zero_grad()
        loss = run.loss()
        scaler.scale(loss).backward()
        lr.observe(loss)
        scaler.step(run.optimizer)
        scaler.update()
    assert lr.get_last_lr()[0] == train(other, other_lr, 9)[-1]


def test_a_step_that_the_scaler_skips_is_no_step() -> None:
    run = Sines()
    lr = ms.LearnedLR(run.optimizer, schedule(), total_steps=9)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    train(run, lr, 3)
    state = lr.state.clone()
    run.optimizer.zero_grad()
    scaler.scale(run.loss()).backward()
    run.net[0].bias.grad[0] = float("inf")
    scaler.step(run.optimizer)
    assert (lr.steps, lr.brakes) == (3, 0)
    assert torch.equal(lr.state, state)
