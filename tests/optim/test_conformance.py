"""What torch.optim's own optimizers do, ours do: one suite over all of them, torch's being the control."""

import copy
import gc
import json
import weakref

import pytest
import torch
from tests.optim.models import flat, loss_of, network, train
from tests.optim.optimizers import MINE, OPTIMIZERS, every, make
from torch.optim.optimizer import register_optimizer_step_post_hook


@every
def test_hooks_run_once_each_and_see_a_complete_state(name):
    model = network()
    optimizer, calls = make(name, model.parameters()), []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_pre_hook(lambda *_: calls.append("saving"))
    optimizer.register_state_dict_post_hook(lambda *_: calls.append("saved"))
    optimizer.register_load_state_dict_pre_hook(lambda *_: calls.append("loading"))
    optimizer.register_load_state_dict_post_hook(lambda *_: calls.append("loaded"))
    handle = register_optimizer_step_post_hook(lambda *_: calls.append("any"))
    train(model, optimizer, 1)
    handle.remove()
    assert sorted(calls) == ["after", "any", "before"]
    calls.clear()
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["saving", "saved", "loading", "loaded"]


@every
def test_a_closure_is_called_once_with_gradients_on(name):
    model = network()
    optimizer, calls = make(name, model.parameters()), []

    def closure():
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert calls == [True]
    assert float(loss.detach()) > 0
    assert optimizer.step() is None


@pytest.mark.parametrize("name", [n for n in OPTIMIZERS if n not in ("HyperSGD-frozen",)])
def test_a_tensor_rate_is_the_same_as_a_number(name):
    models = network(), network()
    for model, lr in zip(models, (0.02, torch.tensor(0.02, dtype=torch.float64)), strict=True):
        optimizer = make(name, model.parameters(), lr=lr)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        for step in range(4):
            train(model, optimizer, 1, start=step)
            scheduler.step()
    torch.testing.assert_close(*(flat(m.parameters()) for m in models), rtol=0, atol=1e-12)


S = torch.optim.lr_scheduler
SCHEDULERS = {
    "LambdaLR": lambda o: S.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: S.MultiplicativeLR(o, lambda t: 0.9),
    "StepLR": lambda o: S.StepLR(o, 2),
    "MultiStepLR": lambda o: S.MultiStepLR(o, [1, 3]),
    "ConstantLR": lambda o: S.ConstantLR(o, 0.5, 2),
    "LinearLR": lambda o: S.LinearLR(o, 0.1, total_iters=3),
    "ExponentialLR": lambda o: S.ExponentialLR(o, 0.9),
    "SequentialLR": lambda o: S.SequentialLR(o, [S.ConstantLR(o, 0.1), S.ExponentialLR(o, 0.9)], [2]),
    "ChainedScheduler": lambda o: S.ChainedScheduler([S.ConstantLR(o, 0.1), S.ExponentialLR(o, 0.9)]),
    "PolynomialLR": lambda o: S.PolynomialLR(o, 8),
    "CosineAnnealingLR": lambda o: S.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: S.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: S.CyclicLR(o, 0.001, 0.1, 2, cycle_momentum=False),
    "OneCycleLR": lambda o: S.OneCycleLR(
        o, 0.1, total_steps=8, cycle_momentum="momentum" in o.defaults or "betas" in o.defaults
    ),
    "ReduceLROnPlateau": lambda o: S.ReduceLROnPlateau(o, patience=0),
}


@pytest.mark.parametrize("name", ["HyperSGD", "HyperAdam", "HyperAdam-additive", "HyperSGD-frozen"])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_the_rate_shown_is_schedule_times_adapted_under_every_scheduler(name, scheduler):
    model = network()
    optimizer = make(name, model.parameters())
    start = optimizer.param_groups[0]["initial_rate"]
    schedule = SCHEDULERS[scheduler](optimizer)
    for step in range(6):
        before = flat(model.parameters())
        optimizer.zero_grad()
        loss_of(model, step).backward()
        optimizer.step()
        factor = optimizer.param_groups[0]["lr"] / start
        shown = optimizer.rates()[0]
        if "layer" in shown and "layer_deviation" in next(iter(optimizer.state.values())):
            deviation = next(iter(optimizer.state.values()))["layer_deviation"]
            alpha = start + deviation if optimizer.defaults["rule"] == "additive" else start * deviation.exp()
            torch.testing.assert_close(shown["layer"]["0"], alpha * factor * shown["cut"], rtol=1e-12, atol=0)
        moved = before - flat(model.parameters())
        assert moved.isfinite().all()
        schedule.step(1.0) if scheduler == "ReduceLROnPlateau" else schedule.step()


@every
def test_a_scaled_run_equals_an_unscaled_one_and_a_skipped_step_advances_nothing(name):
    models = network(torch.float32), network(torch.float32)
    optimizers = [make(name, m.parameters()) for m in models]
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(5):
        for p in [*models[0].parameters(), *models[1].parameters()]:
            p.grad = None
        loss_of(models[0], step, torch.float32).backward()
        optimizers[0].step()
        scaler.scale(loss_of(models[1], step, torch.float32)).backward()
        scaler.step(optimizers[1])
        scaler.update()
    torch.testing.assert_close(*(flat(m.parameters()) for m in models), rtol=0, atol=1e-6)
    state = copy.deepcopy(optimizers[1].state_dict())
    parameters = flat(models[1].parameters())
    for p in models[1].parameters():
        p.grad = None
    scaler.scale(loss_of(models[1], 9, torch.float32) * float("inf")).backward()
    scaler.step(optimizers[1])
    scaler.update()
    assert torch.equal(flat(models[1].parameters()), parameters)
    for index, entries in state["state"].items():
        now = optimizers[1].state_dict()["state"][index]
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(now[k])) for k, v in entries.items())


@every
def test_accumulated_gradients_are_one_step(name):
    models = network(), network()
    for model, pieces in zip(models, (1, 2), strict=True):
        optimizer = make(name, model.parameters())
        for step in range(3):
            optimizer.zero_grad()
            for _ in range(pieces):
                (loss_of(model, step) / pieces).backward()
            optimizer.step()
    torch.testing.assert_close(*(flat(m.parameters()) for m in models), rtol=0, atol=1e-12)


@every
def test_steps_can_be_taken_inside_backward(name):
    model = network()
    optimizers = {p: make(name, [p]) for p in model.parameters()}

    def step(p):
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    start = flat(model.parameters())
    for k in range(3):
        loss_of(model, k).backward()
    assert (flat(model.parameters()) != start).all()


@every
def test_a_compiled_step_is_the_same_step(name):
    models = network(), network()
    for model, compiled in zip(models, (False, True), strict=True):
        optimizer = make(name, model.parameters())
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for k in range(3):
            optimizer.zero_grad()
            loss_of(model, k).backward()
            step()
    torch.testing.assert_close(*(flat(m.parameters()) for m in models), rtol=0, atol=1e-13)


@every
def test_an_optimizer_goes_with_its_last_reference(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 2)
    if name in MINE:
        optimizer.rates()
        optimizer.describe()
    alive = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", ["HyperSGD", "HyperAdam", "torch.AdamW"])
def test_no_tensor_is_left_behind_by_a_step(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 4)
    gc.collect()
    tensors = sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects())
    train(model, optimizer, 20)
    gc.collect()
    assert sum(issubclass(type(x), torch.Tensor) for x in gc.get_objects()) == tensors


@every
def test_gradients_and_random_numbers_are_left_alone(name):
    model = network()
    optimizer = make(name, model.parameters(), **({"weight_decay": 0.1} if name in MINE else {}))
    for step in range(3):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        before, seen = [p.grad.clone() for p in model.parameters()], torch.get_rng_state()
        optimizer.step()
        assert torch.equal(torch.get_rng_state(), seen)
        assert all(torch.equal(a, p.grad) for a, p in zip(before, model.parameters(), strict=True))


@every
def test_buffers_that_are_reused_for_gradients_change_nothing(name):
    models = network(), network()
    for model, none in zip(models, (True, False), strict=True):
        optimizer = make(name, model.parameters())
        for step in range(4):
            optimizer.zero_grad(set_to_none=none)
            loss_of(model, step).backward()
            optimizer.step()
    assert torch.equal(*(flat(m.parameters()) for m in models))


@every
def test_defaults_are_json_and_repr_shows_each_of_them(name):
    optimizer = make(name, network().parameters())
    json.dumps(optimizer.defaults)
    shown = repr(optimizer)
    assert all(f"{key}: " in shown for key in optimizer.defaults)
    assert f"lr: {0.02}" in shown


@every
def test_a_step_without_any_gradient_changes_nothing(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 2)
    state, before = copy.deepcopy(optimizer.state_dict()), flat(model.parameters())
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(flat(model.parameters()), before)
    assert str(optimizer.state_dict()) == str(state)


@every
def test_maximize_climbs_what_minimize_descends(name):
    models = network(), network()
    for model, maximize in zip(models, (False, True), strict=True):
        optimizer = make(name, model.parameters(), maximize=maximize)
        for step in range(4):
            optimizer.zero_grad()
            (loss_of(model, step) * (-1 if maximize else 1)).backward()
            optimizer.step()
    torch.testing.assert_close(*(flat(m.parameters()) for m in models), rtol=0, atol=1e-14)


@every
def test_empty_and_non_leaf_parameters_are_refused(name):
    with pytest.raises(ValueError, match="empty"):
        make(name, [])
    with pytest.raises(ValueError, match="non-leaf"):
        make(name, [torch.ones(2, requires_grad=True) * 2])
    with pytest.raises(TypeError):
        make(name, torch.ones(2, requires_grad=True))
