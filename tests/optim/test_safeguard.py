"""No optimizer runs away: not where gradients are small and aligned, nor where decay grows with the rate."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.optim.models import flat, loss_of, network, train
from tests.optim.optimizers import saved

import metastep.optim as ours
from metastep.core.levels import LEVELS
from metastep.core.rates import LONGEST, MOST_DECAY

MAKERS = {
    "SGD": lambda p, **o: ours.HyperSGD(p, lr=0.1, **o),
    "SGD, momentum": lambda p, **o: ours.HyperSGD(p, lr=0.1, momentum=0.9, **o),
    "Adam": lambda p, **o: ours.HyperAdam(p, lr=0.01, **o),
    "AdamW": lambda p, **o: ours.HyperAdamW(p, lr=0.01, **o),
    "RMSprop": lambda p, **o: ours.HyperRMSprop(p, lr=0.01, **o),
    "Adagrad": lambda p, **o: ours.HyperAdagrad(p, lr=0.1, **o),
    "NAdam": lambda p, **o: ours.Hyper(torch.optim.NAdam(p, lr=0.01), **o),
}


def losses_of(make, steps, seed=0, dtype=torch.float32, rule=None):
    """A perceptron 6-16-3 on 64 examples that it can separate, always the whole set: without noise."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 6, generator=generator).to(dtype)
    y = (x @ torch.randn(6, 3, generator=generator).to(dtype)).argmax(1)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3)).to(dtype)
    optimizer = make(model.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    return torch.tensor(losses), optimizer


@pytest.mark.parametrize(("name", "seed"), [("SGD", 0), ("AdamW", 0), ("RMSprop", 2), ("Adagrad", 0)])
def test_what_ran_away_without_the_safeguard_does_not_with_it(name, seed):
    wild, _ = losses_of(lambda p: MAKERS[name](p, safeguard=False), 130, seed)
    kept, _ = losses_of(MAKERS[name], 130, seed)
    assert wild.max() > 5 * wild[0]
    assert kept.max() <= 1.5 * kept[0]
    assert kept[-1] < 0.05 * kept[0]


@settings(max_examples=14, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(list(MAKERS)),
    rule=st.sampled_from(["exponentiated", "cosine", "additive", "log"]),
    levels=st.sets(st.sampled_from(LEVELS), min_size=1),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 4),
)
def test_on_problems_without_noise_no_loss_rises_above_one_and_a_half_times_its_start(name, rule, levels, dtype, seed):
    losses, _ = losses_of(lambda p: MAKERS[name](p, rule=rule, levels=levels), 120, seed, dtype)
    assert losses.max() <= 1.5 * losses[0]
    assert losses[-1] < 0.5 * losses[0]


@settings(max_examples=10, deadline=None, derandomize=True)
@given(decay=st.sampled_from([1e-3, 0.1, 1.0, 30.0]), factor=st.sampled_from([1.0, 50.0]), fused=st.booleans())
def test_rate_times_decoupled_decay_stays_below_one_under_any_schedule(decay, factor, fused):
    weight = torch.nn.Parameter(torch.ones(20, 30))
    optimizer = ours.HyperAdamW(
        [weight], lr=0.01, weight_decay=decay, levels=LEVELS, hyper_lr=2.0, compiled=fused, safeguard=True
    )
    for _ in range(25):
        weight.grad = torch.ones_like(weight)  # always aligned, so that every rate climbs to its bound
        before = weight.detach().clone()
        optimizer.param_groups[0]["lr"] = 0.01 * factor
        optimizer.step()
        rate = optimizer.rates()[0]["combined"]["0"].double()
        assert (rate * decay <= max(MOST_DECAY, 0.01 * decay) * (1 + 1e-6)).all()
        # The step itself, Adam's direction being 1 here: theta (1 - rate decay) - rate.
        torch.testing.assert_close(weight.detach(), (before * (1 - rate * decay) - rate).float(), rtol=1e-4, atol=1e-4)
    assert float(rate.max()) > 0.01 * factor or factor > 1


def test_a_wrapped_base_with_decoupled_decay_is_limited_too():
    weight = torch.nn.Parameter(torch.ones(3, 4))
    for base, limit in ((torch.optim.AdamW, 0.02 / 0.5), (torch.optim.Adam, float("inf"))):
        optimizer = ours.Hyper(base([weight], lr=0.01, weight_decay=0.5), hyper_lr=2.0)
        for _ in range(8):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
        combined = float(optimizer.rates()[0]["combined"]["0"])
        assert combined == pytest.approx(limit) if limit < 1 else combined > 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_ran_into_a_steep_slope_cuts_all_rates_at_once(fused):
    weight = torch.nn.Parameter(torch.zeros(20, 30))
    optimizer = ours.HyperSGD([weight], lr=0.1, levels=LEVELS, hyper_lr=0.01, compiled=fused)
    for _ in range(15):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    before = optimizer.rates()[0]
    assert float(before["cut"]) == 1.0
    weight.grad = torch.full_like(weight, -9.0)  # q = 9
    optimizer.step()
    after = optimizer.rates()[0]
    assert float(after["cut"]) == pytest.approx(0.1, rel=1e-4)
    assert float(after["combined"]["0"].max()) < 0.11 * float(before["combined"]["0"].min())
    for _ in range(30):
        weight.grad = torch.full_like(weight, 0.1)
        optimizer.step()
    assert float(optimizer.rates()[0]["cut"]) == pytest.approx(0.1 * 1.01**30, rel=1e-3)


@pytest.mark.parametrize("fused", [False, True])
def test_a_long_gradient_cuts_whatever_its_direction_and_counts_as_a_shorter_one(fused):
    weight = torch.nn.Parameter(torch.zeros(32, 32))
    bits = torch.arange(1024)[:, None] >> torch.arange(10) & 1
    across = iter((1.0 - 2.0 * bits).T.reshape(10, 32, 32))  # each of no slope along the steps before
    optimizer = ours.HyperSGD([weight], lr=0.1, hyper_lr=0.01, compiled=fused)
    for _ in range(15):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    weight.grad = 50 * next(across)
    optimizer.step()
    assert float(optimizer.rates()[0]["cut"]) == pytest.approx(LONGEST / 50, rel=1e-4)
    weight.grad = LONGEST**1.05 * next(across)  # not long any more: the one before counted as LONGEST
    optimizer.step()
    assert float(optimizer.rates()[0]["cut"]) == pytest.approx(1.01 * LONGEST / 50, rel=1e-4)
    for pattern in across:
        weight.grad = 2500 * pattern
        optimizer.step()
    assert float(optimizer.rates()[0]["cut"]) == pytest.approx(0.01)  # however often


def test_groups_that_share_a_rate_share_the_cut_and_others_have_their_own():
    for scope in ("all", "group"):
        one, two, late = (torch.nn.Parameter(torch.zeros(4)) for _ in range(3))
        groups = [{"params": [one]}, {"params": [two], "lr": 0.02}]
        optimizer = ours.HyperSGD(groups, lr=0.1, scope=scope, hyper_lr=0.01)
        for step in range(16):
            if step == 13:
                optimizer.add_param_group({"params": [late], "lr": 0.05})
            one.grad, two.grad = torch.full((4,), -9.0 if step == 15 else 1.0), torch.ones(4)
            late.grad = torch.ones(4) if step >= 13 else None
            optimizer.step()
        cuts = [float(rates["cut"]) for rates in optimizer.rates()]
        assert cuts[0] < 0.3
        assert cuts == [cuts[0]] * 3 if scope == "all" else cuts[0] < cuts[2] < cuts[1]


def test_it_is_in_the_state_and_states_without_it_load():
    def make(model):
        return ours.HyperAdam(model.parameters(), lr=0.02)

    whole, part, rest = network(), network(), network(seed=3)
    one, two, three = make(whole), make(part), make(rest)
    train(whole, one, 9)
    train(part, two, 4)
    rest.load_state_dict(part.state_dict())
    three.load_state_dict(saved(two.state_dict()))
    train(rest, three, 5, start=4)
    assert torch.equal(flat(whole.parameters()), flat(rest.parameters()))
    assert all(torch.equal(one.state[p]["safeguard"], three.state[q]["safeguard"])
               for p, q in zip(whole.parameters(), rest.parameters(), strict=True))  # fmt: skip
    older = copy.deepcopy(two.state_dict())
    del older["param_groups"][0]["safeguard"]
    for entries in older["state"].values():
        del entries["safeguard"]
    three.load_state_dict(older)
    assert three.param_groups[0]["safeguard"] is True
    assert float(three.rates()[0]["cut"]) == 1.0  # a run that is under way does not warm up again


def test_off_it_changes_nothing_and_a_run_can_switch():
    model = network()
    optimizer = ours.HyperSGD(model.parameters(), lr=0.02, safeguard=False)
    train(model, optimizer, 3)
    assert float(optimizer.rates()[0]["cut"]) == 1.0
    optimizer.param_groups[0]["safeguard"] = True
    loss_of(model, 3).backward()
    optimizer.step()
    assert float(optimizer.rates()[0]["cut"]) == 1.0
    with pytest.raises(ValueError, match=r"safeguard must be True or False, got 1"):
        ours.HyperSGD(model.parameters(), lr=0.02, safeguard=1)
