"""A run that is saved and loaded goes on as if it had never stopped."""

import copy
import io
import pickle
from itertools import product

import pytest
import torch
from tests.schedules.loops import Regression, net, null, rates

import metastep as ms

SCHEDULES = {
    "learned": net,
    "deep": lambda: net(num_layers=2),
    "text": lambda: net(scale=ms.ScaleRule(text=True)),
    "phased": lambda: ms.Phased([net(0), net(1), net(2)], total_steps=24),
    "staircase-control": lambda: ms.Phased([net(0), net(1)], total_steps=24).staircase(),
    "cosine": lambda: ms.Cosine(24),
}
OPTIMIZERS = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam-tensor": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01)),
}


def start(schedule: str, optimizer: str) -> tuple[Regression, ms.LearnedLR]:
    run = Regression(OPTIMIZERS[optimizer])
    return run, ms.LearnedLR(run.optimizer, SCHEDULES[schedule](), num_classes=10, warmup_steps=5)


def train(run: Regression, lr: ms.LearnedLR, steps: range) -> list[list[float]]:
    used = []
    for step in steps:
        lr.observe(run.backward(step))
        run.optimizer.step()
        used.append(lr.get_last_lr())
    return used


def through_a_file(thing: object) -> object:
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("lr_first", [True, False])
@pytest.mark.filterwarnings("ignore:.* measures the scale of its rate by a rule for sgd")
@pytest.mark.parametrize(("schedule", "optimizer"), list(product(SCHEDULES, OPTIMIZERS)))
def test_a_resumed_run_is_the_unbroken_one_to_the_last_bit(schedule: str, optimizer: str, lr_first: bool) -> None:
    whole, whole_lr = start(schedule, optimizer)
    expected = train(whole, whole_lr, range(24))

    run, lr = start(schedule, optimizer)
    found = train(run, lr, range(10))
    parts = [run.model.state_dict(), run.optimizer.state_dict(), lr.state_dict(), torch.random.get_rng_state()]
    saved = through_a_file(parts)
    other, other_lr = start(schedule, optimizer)
    train(other, other_lr, range(3))  # somewhere else entirely
    other.model.load_state_dict(saved[0])
    if lr_first:
        other_lr.load_state_dict(saved[2])
        other.optimizer.load_state_dict(saved[1])
    else:
        other.optimizer.load_state_dict(saved[1])
        other_lr.load_state_dict(saved[2])
    assert other_lr.get_last_lr() == found[-1]
    torch.random.set_rng_state(saved[3])
    assert found + train(other, other_lr, range(10, 24)) == expected
    for p, q in zip(whole.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_an_open_window_is_saved_with_its_losses() -> None:
    optimizer, other, third = null(), null(), null()
    lr, resumed, expected = (ms.LearnedLR(o, net(), num_classes=10) for o in (optimizer, other, third))
    rates(lr, optimizer, [2.3])
    lr.observe(1.0)
    lr.observe(float("nan"))
    resumed.load_state_dict(lr.state_dict())
    resumed.observe(2.0)
    other.step()
    assert resumed.get_last_lr()[0] == rates(expected, third, [2.3, 1.5])[1]
    assert resumed.non_finite_losses == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_copy_of_model_optimizer_and_schedule_goes_its_own_way(copied) -> None:
    run, lr = start("learned", "momentum")
    train(run, lr, range(5))
    copy_of_it, lr_of_the_copy = copied((run, lr))
    rng = torch.random.get_rng_state()
    expected = train(run, lr, range(5, 10))
    torch.random.set_rng_state(rng)
    assert train(copy_of_it, lr_of_the_copy, range(5, 10)) == expected
    assert lr_of_the_copy.optimizer is copy_of_it.optimizer is not run.optimizer
    assert (lr.steps, lr_of_the_copy.steps) == (10, 10)
    assert len(copy_of_it.optimizer._optimizer_step_pre_hooks) == 1


def test_a_copy_of_a_detached_one_is_detached() -> None:
    run, lr = start("learned", "momentum")
    lr.detach()
    copy_of_it, _ = copy.deepcopy((run, lr))
    copy_of_it.backward(0)
    copy_of_it.optimizer.step()  # asks for no loss


def test_a_state_dict_shares_nothing_with_the_run() -> None:
    run, lr = start("learned", "momentum")
    train(run, lr, range(3))
    saved = lr.state_dict()
    kept = copy.deepcopy(saved)
    train(run, lr, range(3, 6))
    with torch.no_grad():
        lr.schedule.output.bias.add_(1)
    assert torch.equal(saved["state"], kept["state"])
    assert torch.equal(saved["weights"]["output.bias"], kept["weights"]["output.bias"])
    assert saved["bases"] == kept["bases"]
    resumed = start("learned", "momentum")[1]
    resumed.load_state_dict(saved)
    resumed.state.add_(1)
    with torch.no_grad():
        resumed.schedule.output.bias.add_(1)
    resumed.groups.bases.append(7.0)
    assert torch.equal(saved["state"], kept["state"])
    assert torch.equal(saved["weights"]["output.bias"], kept["weights"]["output.bias"])
    assert (saved.keys(), saved["bases"]) == (kept.keys(), kept["bases"])


BROKEN = {
    "key": (lambda s: s.pop("steps"), "state_dict lacks steps"),
    "schema": (lambda s: s.update(schema=99), "schema 99"),
    "schedule": (lambda s: s.update(schedule="Cosine"), "schedule 'Cosine'"),
    "config": (lambda s: s["config"].update(hidden_size=9), "config"),
    "state": (lambda s: s.update(state=torch.zeros(1, 2, 9)), r"state must be a tensor of shape \(1, 2, 8\)"),
    "groups": (lambda s: s.update(bases=[0.1, 0.2]), "2 parameter groups"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_wrong_state_is_refused_by_name_and_nothing_is_loaded(what: str) -> None:
    run, lr = start("learned", "momentum")
    train(run, lr, range(3))
    saved = lr.state_dict()
    damage, message = BROKEN[what]
    damage(saved)
    fresh = start("learned", "momentum")[1]
    before = fresh.state_dict()
    with pytest.raises(ValueError, match=message):
        fresh.load_state_dict(saved)
    assert fresh.steps == 0
    assert torch.equal(fresh.schedule.output.bias, before["weights"]["output.bias"])


def test_a_closed_form_may_go_on_under_another_horizon() -> None:
    optimizer, other = null(1.0), null(1.0)
    lr = ms.LearnedLR(optimizer, ms.Cosine(10))
    for _ in range(5):
        optimizer.step()
    longer = ms.LearnedLR(other, ms.Cosine(20))
    longer.load_state_dict(lr.state_dict())
    other.step()
    assert other.used[0][0] == ms.Cosine(20).factor_at(5)


def test_a_state_in_double_precision_is_loaded_into_single() -> None:
    optimizer, other = null(), null()
    lr = ms.LearnedLR(optimizer, net(), num_classes=10)
    rates(lr, optimizer, [2.3, 2.0])
    single = ms.LearnedLR(other, net().float(), num_classes=10)
    single.load_state_dict(lr.state_dict())
    assert single.state.dtype == torch.float32
    assert rates(single, other, [1.0]) == pytest.approx(rates(lr, optimizer, [1.0]), rel=1e-5)


def test_a_late_group_is_there_again_after_loading() -> None:
    def late(optimizer) -> None:
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.05})

    optimizer, other = null(0.1), null(0.1)
    lr = ms.LearnedLR(optimizer, net(), num_classes=10)
    rates(lr, optimizer, [2.3])
    late(optimizer)
    rates(lr, optimizer, [2.0])
    late(other)
    resumed = ms.LearnedLR(other, net(), num_classes=10)
    resumed.load_state_dict(lr.state_dict())
    rates(resumed, other, [1.0])
    rates(lr, optimizer, [1.0])
    assert other.used[-1] == optimizer.used[-1]
    assert other.used[-1][1] / other.used[-1][0] == 0.5
