"""Parameter groups: one suite over all optimizers, torch's being the control."""

import pytest
import torch
from tests.optim.models import flat, network, train
from tests.optim.optimizers import MINE, every, make, saved


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
