"""Checkpoints and copies: one suite over all optimizers, torch's being the control."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint.state_dict as dcp
from tests.optim.models import flat, network, train
from tests.optim.optimizers import MINE, every, make, mine, saved
from tests.optim.samples.make_states import CASES, parameters
from tests.optim.samples.make_states import train as go_on

import metastep.optim as ours


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
    other, copied = way((model, optimizer))
    train(model, optimizer, 2, start=3)
    before = flat(model.parameters())
    train(other, copied, 2, start=3)
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
    for key in set(optimizer.state_dict()["state"][1]) - {"safeguard"}:  # which states of earlier versions lack
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
    ("cls", "base"),
    [
        (ours.HyperSGD, torch.optim.SGD),
        (ours.HyperAdam, torch.optim.Adam),
        (ours.HyperAdamW, torch.optim.AdamW),
        (ours.HyperRMSprop, torch.optim.RMSprop),
        (ours.HyperAdagrad, torch.optim.Adagrad),
    ],
)
def test_a_checkpoint_of_the_base_starts_the_rates_anew(cls, base):
    model = network()
    extra = {"momentum": 0.9} if base is torch.optim.SGD else {}
    plain = base(model.parameters(), lr=0.01, **extra)
    train(model, plain, 3)
    optimizer = cls(model.parameters(), lr=0.5, safeguard=False, **extra)
    optimizer.load_state_dict(plain.state_dict())
    assert optimizer.param_groups[0]["lr"] == 0.01
    reference = copy.deepcopy(model)
    continued = base(reference.parameters(), lr=0.01, **extra)
    continued.load_state_dict(plain.state_dict())
    train(model, optimizer, 1, start=3)
    train(reference, continued, 1, start=3)
    torch.testing.assert_close(flat(model.parameters()), flat(reference.parameters()), rtol=0, atol=1e-14)
    train(model, optimizer, 2, start=4)
    assert float(optimizer.rates()[0]["global"]) != 0.01


@pytest.mark.parametrize("name", CASES)
def test_a_state_of_the_older_version_loads_and_goes_on_as_it_did_there(name):
    """Made with the package at 304db44, before its files were put together, by samples/make_states.py."""
    older = torch.load(Path(__file__).with_name("samples") / "hyper_states.pt", weights_only=True)[name]
    named = parameters()
    optimizer = CASES[name](named)
    with torch.no_grad():
        for (_, p), value in zip(named, older["parameters"], strict=True):
            p.copy_(value)
    optimizer.load_state_dict(older["state"])
    go_on(optimizer, named, range(4, 8))
    for (_, p), expected in zip(named, older["continued"], strict=True):
        torch.testing.assert_close(p.detach(), expected, rtol=1e-6, atol=1e-7)


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
