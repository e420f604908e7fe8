"""What torch.optim's own optimizers do, ours do: one suite over all of them, torch's being the control."""

import copy
import gc
import io
import json
import pickle
import weakref

import pytest
import torch
import torch.distributed.checkpoint.state_dict as dcp
from tests.optim.models import flat, loss_of, network, train
from torch.optim.optimizer import register_optimizer_step_post_hook

import metastep.optim as ours

ALL = ("global", "layer", "unit", "parameter")
OPTIMIZERS = {
    "HyperSGD": (ours.HyperSGD, {"momentum": 0.9, "levels": ("global", "layer", "unit")}),
    "HyperSGD-plain": (ours.HyperSGD, {"levels": ALL}),
    "HyperSGD-nesterov": (ours.HyperSGD, {"momentum": 0.9, "nesterov": True}),
    "HyperSGD-pull": (ours.HyperSGD, {"momentum": 0.9, "pull": {("layer", "global"): 0.2}}),
    "HyperSGD-frozen": (ours.HyperSGD, {"momentum": 0.9, "hyper_lr": 0.0, "weight_lr": 0.0}),
    "HyperAdam": (ours.HyperAdam, {"amsgrad": True, "levels": ALL}),
    "HyperAdam-additive": (ours.HyperAdam, {"rule": "additive", "scope": "all"}),
    "HyperAdamW": (ours.HyperAdamW, {"include_decay": True}),
    "HyperRMSprop": (ours.HyperRMSprop, {"centered": True, "levels": ("layer", "parameter")}),
    "HyperAdagrad": (ours.HyperAdagrad, {"rule": "log"}),
    "torch.SGD": (torch.optim.SGD, {"momentum": 0.9}),
    "torch.AdamW": (torch.optim.AdamW, {"amsgrad": True}),
}
MINE = [name for name in OPTIMIZERS if not name.startswith("torch")]
every = pytest.mark.parametrize("name", OPTIMIZERS)
mine = pytest.mark.parametrize("name", MINE)


def make(name, parameters, lr=0.02, **extra):
    cls, arguments = OPTIMIZERS[name]
    return cls(parameters, lr=lr, **arguments, **extra)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_stopping_and_resuming_changes_no_bit(name, dtype):
    whole, first = network(dtype), network(dtype)
    one = make(name, whole.parameters())
    train(whole, one, 6, dtype=dtype)
    two = make(name, first.parameters())
    train(first, two, 3, dtype=dtype)
    second = network(dtype, seed=1)
    second.load_state_dict(saved(first.state_dict()))
    three = make(name, second.parameters(), lr=0.5)  # the checkpoint brings its own rate
    three.load_state_dict(saved(two.state_dict()))
    train(second, three, 3, start=3, dtype=dtype)
    assert torch.equal(flat(whole.parameters()), flat(second.parameters()))
    for a, b in zip(one.state.values(), three.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for k in a)
        assert all(torch.as_tensor(a[k]).dtype == torch.as_tensor(b[k]).dtype for k in a)


@every
@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_their_own_way_but_the_same_one(name, way):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 3)
    other, twin = way((model, optimizer))
    train(model, optimizer, 2, start=3)
    before = flat(model.parameters())
    train(other, twin, 2, start=3)
    assert torch.equal(flat(other.parameters()), before)
    assert torch.equal(flat(model.parameters()), before)


@every
def test_a_checkpoint_is_neither_changed_by_loading_nor_shared_with_it(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 2)
    checkpoint = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(checkpoint)
    optimizer.load_state_dict(checkpoint)
    assert checkpoint.keys() == kept.keys()
    if name in MINE:
        train(model, optimizer, 1)
    for index, entries in kept["state"].items():
        assert all(
            torch.equal(torch.as_tensor(v), torch.as_tensor(checkpoint["state"][index][k])) for k, v in entries.items()
        )


@every
def test_the_state_of_another_precision_loads(name):
    model, low = network(torch.float32), network(torch.bfloat16)
    optimizer = make(name, model.parameters())
    train(model, optimizer, 3, dtype=torch.float32)
    other = make(name, low.parameters())
    other.load_state_dict(optimizer.state_dict())
    for p, q in zip(model.parameters(), low.parameters(), strict=True):
        for key, value in optimizer.state[p].items():
            if key.endswith(("_deviation", "combination_weights", "last_factor")):
                assert torch.equal(other.state[q][key], value), key
            elif key.startswith(("exp_avg", "momentum", "square")):
                assert other.state[q][key].dtype == torch.bfloat16
    train(low, other, 1, dtype=torch.bfloat16)
    assert flat(low.parameters()).isfinite().all()


@mine
def test_a_checkpoint_that_lacks_a_key_is_refused_by_name(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 2)
    for key in list(optimizer.state_dict()["state"][1]):
        checkpoint = copy.deepcopy(optimizer.state_dict())
        del checkpoint["state"][1][key]
        if checkpoint["state"][1]:
            with pytest.raises(ValueError, match=f"'{key}'.*parameter 1"):
                make(name, network().parameters()).load_state_dict(checkpoint)
    for key in ("lr", "levels", "maximize"):
        checkpoint = copy.deepcopy(optimizer.state_dict())
        del checkpoint["param_groups"][0][key]
        with pytest.raises(ValueError, match=f"'{key}'"):
            make(name, network().parameters()).load_state_dict(checkpoint)


@pytest.mark.parametrize(
    ("cls", "namesake"),
    [
        (ours.HyperSGD, torch.optim.SGD),
        (ours.HyperAdam, torch.optim.Adam),
        (ours.HyperAdamW, torch.optim.AdamW),
        (ours.HyperRMSprop, torch.optim.RMSprop),
        (ours.HyperAdagrad, torch.optim.Adagrad),
    ],
)
def test_a_checkpoint_of_the_namesake_starts_the_rates_anew(cls, namesake):
    model = network()
    extra = {"momentum": 0.9} if namesake is torch.optim.SGD else {}
    plain = namesake(model.parameters(), lr=0.01, **extra)
    train(model, plain, 3)
    optimizer = cls(model.parameters(), lr=0.5, **extra)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.01
    reference = copy.deepcopy(model)
    continued = namesake(reference.parameters(), lr=0.01, **extra)
    continued.load_state_dict(plain.state_dict())
    train(model, optimizer, 1, start=3)
    train(reference, continued, 1, start=3)
    torch.testing.assert_close(flat(model.parameters()), flat(reference.parameters()), rtol=0, atol=1e-14)
    train(model, optimizer, 2, start=4)
    assert float(optimizer.rates()[0]["global"]) != 0.01


@mine
def test_a_rewrapped_rate_survives_a_scheduler_loaded_before_or_after(name):
    results = []
    for first in ("optimizer", "scheduler"):
        model = network()
        optimizer = make(name, model.parameters())
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        for step in range(3):
            train(model, optimizer, 1, start=step)
            scheduler.step()
        other = network(seed=3)
        other.load_state_dict(model.state_dict())
        again = make(name, other.parameters())
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(again, 10)
        loads = [lambda a=again, o=optimizer: a.load_state_dict(o.state_dict())]
        loads.append(lambda s=schedule, o=scheduler: s.load_state_dict(o.state_dict()))
        for load in loads if first == "optimizer" else reversed(loads):
            load()
        for step in range(3, 6):
            train(other, again, 1, start=step)
            schedule.step()
        results.append(flat(other.parameters()))
    assert torch.equal(*results)


@every
def test_groups_keep_their_own_rates_and_can_be_added(name):
    model = network()
    layers = list(model.children())
    optimizer = make(name, [{"params": layers[0].parameters()}, {"params": layers[2].parameters(), "lr": 0.002}])
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": list(layers[5].parameters()) + list(layers[7].parameters()), "lr": 0.2})
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, 2, start=2)
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 0.002, 0.2]
    other = network()
    parts = list(other.children())
    again = make(name, [{"params": parts[k].parameters()} for k in (0, 2)])
    again.add_param_group({"params": [*parts[5].parameters(), *parts[7].parameters()]})
    other.load_state_dict(model.state_dict())
    again.load_state_dict(saved(optimizer.state_dict()))
    train(model, optimizer, 2, start=4)
    train(other, again, 2, start=4)
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


@every
def test_a_bad_group_leaves_the_optimizer_as_it_was(name):
    model = network()
    layers = list(model.children())
    optimizer = make(name, layers[0].parameters())
    with pytest.raises(ValueError):
        optimizer.add_param_group({"params": layers[0].weight, "lr": 0.1})
    if name in MINE:
        with pytest.raises(ValueError, match="lr"):
            optimizer.add_param_group({"params": layers[5].parameters(), "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    train(model, optimizer, 1)


@every
def test_names_of_parameters_are_kept_and_travel(name):
    model = network()
    optimizer = make(name, model.named_parameters())
    train(model, optimizer, 2)
    names = [n for n, _ in model.named_parameters()]
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == names
    if name in MINE:
        assert list(optimizer.rates()[0]["combined"]) == names


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
def test_a_load_hook_may_rewrite_the_checkpoint(name):
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 2)

    def rewrite(_, state_dict):
        state_dict = copy.deepcopy(state_dict)
        state_dict["param_groups"][0]["lr"] = 0.125
        return state_dict

    optimizer.register_load_state_dict_pre_hook(rewrite)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.125


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
            torch.testing.assert_close(shown["layer"]["0"], alpha * factor, rtol=1e-12, atol=0)
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
@pytest.mark.parametrize("flatten", [False, True])
def test_distributed_checkpoints_carry_everything(name, flatten):
    options = dcp.StateDictOptions(flatten_optimizer_state_dict=flatten)
    model = network()
    optimizer = make(name, model.parameters())
    train(model, optimizer, 3)
    checkpoint = saved(dcp.get_optimizer_state_dict(model, optimizer, options=options))
    other = network(seed=5)
    other.load_state_dict(model.state_dict())
    again = make(name, other.parameters())
    dcp.set_optimizer_state_dict(other, again, checkpoint, options=options)
    train(model, optimizer, 2, start=3)
    train(other, again, 2, start=3)
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


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
