"""Any torch optimizer inside `Hyper`: the direction is what its step did."""

import copy

import pytest
import torch
from tests.optim.models import ALL_LEVELS, VARIANTS, flat, loss_of, network, train

from metastep.optim import Hyper, HyperSGD

# Every optimizer of torch.optim that takes dense gradients one step at a time.
BASES = {
    "SGD": {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "Adam": {},
    "AdamW": {"weight_decay": 0.1},
    "NAdam": {},
    "RAdam": {},
    "Adamax": {},
    "Adadelta": {},
    "Adagrad": {},
    "RMSprop": {"momentum": 0.5},
    "ASGD": {},
    "Rprop": {},
}
every = pytest.mark.parametrize("name", BASES)


def make(name, model, **hyper):
    return Hyper(getattr(torch.optim, name)(model.named_parameters(), lr=0.01, **BASES[name]), **hyper)


class Sign(torch.optim.Optimizer):
    """A Lion-like optimizer from elsewhere, which knows nothing of us."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    if len(state) == 0:
                        state["average"] = torch.zeros_like(p)
                    p.sub_(group["lr"] * torch.sign(0.9 * state["average"] + 0.1 * p.grad))
                    state["average"].lerp_(p.grad, 0.01)


@every
def test_without_hyper_rates_it_is_the_wrapped_optimizer_bit_for_bit(name):
    plain, wrapped = network(), network()
    base = getattr(torch.optim, name)(plain.parameters(), lr=0.01, **BASES[name])
    train(plain, base, 4)
    train(wrapped, make(name, wrapped, hyper_lr=0.0), 4)
    assert torch.equal(flat(plain.parameters()), flat(wrapped.parameters()))


@every
def test_the_first_step_is_the_wrapped_optimizers_own(name):
    plain, wrapped = network(), network()
    base = getattr(torch.optim, name)(plain.parameters(), lr=0.01, **BASES[name])
    train(plain, base, 1)
    train(wrapped, make(name, wrapped, levels=("layer",), safeguard=False), 1)
    torch.testing.assert_close(flat(plain.parameters()), flat(wrapped.parameters()), rtol=0, atol=1e-16)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "adamw"])
@pytest.mark.parametrize("levels", [ALL_LEVELS, ("global", "layer")])
@pytest.mark.parametrize("rule", ["exponentiated", "additive"])
def test_wrapping_the_base_agrees_with_the_optimizer_that_knows_its_direction(variant, levels, rule):
    cls, base, arguments = VARIANTS[variant]
    hyper_lr = 0.05 if rule == "exponentiated" else 1e-4
    options = {"levels": levels, "rule": rule, "hyper_lr": hyper_lr, "hyper_objective": "data"}
    known, read = network(), network()
    one = cls(known.parameters(), lr=0.01, **arguments, **options)
    two = Hyper(base(read.parameters(), lr=0.01, **arguments), **options)
    train(known, one, 8)
    train(read, two, 8)
    torch.testing.assert_close(flat(known.parameters()), flat(read.parameters()), rtol=0, atol=1e-9)
    for a, b in zip(one.rates(), two.rates(), strict=True):
        torch.testing.assert_close(a["global"], b["global"], rtol=1e-7, atol=0)
        torch.testing.assert_close(flat(a["layer"].values()), flat(b["layer"].values()), rtol=1e-7, atol=0)
        assert float(a["global"]) != 0.01


def test_decay_of_adamw_is_part_of_what_its_step_did():
    cls, base, arguments = VARIANTS["adamw"]
    options = {"levels": ALL_LEVELS, "rule": "additive", "hyper_lr": 1e-5}
    known, read = network(), network()
    train(known, one := cls(known.parameters(), lr=0.01, include_decay=True, **arguments, **options), 8)
    train(read, two := Hyper(base(read.parameters(), lr=0.01, **arguments), **options), 8)
    torch.testing.assert_close(flat(known.parameters()), flat(read.parameters()), rtol=0, atol=1e-10)
    torch.testing.assert_close(one.rates()[0]["global"], two.rates()[0]["global"], rtol=1e-9, atol=0)


@pytest.mark.parametrize("base", ["Muon", "Sign"])
def test_optimizers_from_elsewhere_learn_rates_too(base):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8, bias=False), torch.nn.Tanh(), torch.nn.Linear(8, 2, bias=False))
    inner = Sign(model.parameters(), lr=1e-3) if base == "Sign" else torch.optim.Muon(model.parameters(), lr=1e-3)
    optimizer = Hyper(inner, levels=("global", "layer", "unit"), hyper_lr=0.05)
    x = torch.randn(64, 4)
    for _ in range(20):
        optimizer.zero_grad()
        (model(x) - x[:, :2]).square().mean().backward()
        optimizer.step()
    rates = optimizer.rates()[0]
    assert float(rates["global"]) > 1.05e-3  # 20 steps downhill on one batch: a longer stride would have been better


def test_a_late_parameter_lets_the_wrapped_optimizer_start_its_own_state():
    model = network()
    optimizer = Hyper(Sign(model.parameters(), lr=0.01), levels=ALL_LEVELS)
    for step in range(4):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step < 2:
            model[7].weight.grad = None
        optimizer.step()
    assert "average" in optimizer.optimizer.state[model[7].weight]
    assert float(optimizer.state[model[7].weight]["step"]) == 2


@every
def test_stopping_and_resuming_changes_no_bit(name):
    whole, part = network(), network()
    train(whole, make(name, whole), 6)
    first = make(name, part)
    train(part, first, 3)
    rest = network(seed=2)
    rest.load_state_dict(part.state_dict())
    second = make(name, rest)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    train(rest, second, 3, start=3)
    assert torch.equal(flat(whole.parameters()), flat(rest.parameters()))
    assert second.optimizer.param_groups is second.param_groups


def test_copies_keep_wrapper_and_wrapped_together():
    model = network()
    optimizer = make("Adam", model)
    train(model, optimizer, 3)
    other, copied = copy.deepcopy((model, optimizer))
    assert copied.optimizer.param_groups[0] is copied.param_groups[0]
    train(model, optimizer, 2, start=3)
    train(other, copied, 2, start=3)
    assert torch.equal(flat(model.parameters()), flat(other.parameters()))


@pytest.mark.parametrize("where", ["wrapper", "wrapped"])
def test_a_scheduler_works_on_either(where):
    model = network()
    optimizer = make("SGD", model, levels=("layer",), safeguard=False)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer if where == "wrapper" else optimizer.optimizer, 0.5)
    for step in range(3):
        train(model, optimizer, 1, start=step)
        scheduler.step()
    ratio = optimizer.state[model[0].weight]["layer_deviation"].exp()
    torch.testing.assert_close(optimizer.rates()[0]["layer"]["0.weight"], 0.01 * 0.125 * ratio, rtol=1e-12, atol=0)


def test_groups_can_be_added_and_a_bad_one_is_left_out():
    model = network()
    layers = list(model.children())
    optimizer = Hyper(torch.optim.Adam(layers[0].parameters(), lr=0.01))
    optimizer.add_param_group({"params": layers[2].parameters(), "lr": 0.1})
    assert [g["lr"] for g in optimizer.optimizer.param_groups] == [0.01, 0.1]
    with pytest.raises(ValueError, match="min_lr"):
        optimizer.add_param_group({"params": layers[5].parameters(), "min_lr": 1.0, "max_lr": 0.5})
    assert optimizer.optimizer.param_groups is optimizer.param_groups
    assert len(optimizer.param_groups) == 2
    train(model, optimizer, 3)


@pytest.mark.parametrize(
    ("make_base", "reason"),
    [
        (lambda p: torch.optim.LBFGS(p), "LBFGS"),
        (lambda p: torch.optim.SparseAdam(p), "SparseAdam"),
        (lambda p: HyperSGD(p), "HyperSGD"),
        (lambda p: torch.nn.Linear(1, 1), "Linear"),
        (lambda p: torch.optim.Adafactor([{"params": p, "lr": None}]), "lr"),
        (lambda p: torch.optim.SGD(p, differentiable=True), "differentiable"),
    ],
)
def test_optimizers_that_cannot_be_read_are_refused(make_base, reason):
    with pytest.raises(ValueError, match=f"optimizer must.*{reason}"):
        Hyper(make_base(list(network().parameters())))


def climbed(base, dtype, lr, **arguments):
    """The rate that a base's is adapted to from `lr`, and the losses at the start and at the end of 120 steps."""
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 4, bias=False))
    model.to(dtype)
    optimizer = Hyper(getattr(torch.optim, base)(model.parameters(), lr=lr, **arguments))
    generator, losses = torch.Generator().manual_seed(0), []
    x, weight = torch.randn(256, 8, generator=generator), torch.randn(8, 4, generator=generator)
    for _ in range(120):
        rows = torch.randint(256, (32,), generator=generator)
        optimizer.zero_grad()
        loss = (model(x[rows].to(dtype)).float() - x[rows] @ weight).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return float(optimizer.rates()[0]["global"]), losses[0], losses[-1]


LOW = {
    "SGD": (1e-4, {"momentum": 0.9}),
    "AdamW": (1e-5, {"weight_decay": 0.01}),
    "NAdam": (1e-5, {}),
    "RMSprop": (1e-5, {}),
    "Adagrad": (1e-4, {}),
    "Muon": (1e-5, {}),
}
HALF = ("SGD", "Adagrad", "Muon")  # the other bases underflow in float16 themselves


@pytest.mark.parametrize(
    ("base", "dtype"), [*((b, torch.bfloat16) for b in LOW), *((b, torch.float16) for b in HALF)], ids=str
)
def test_rates_climb_beside_low_precision_as_they_do_beside_float32(base, dtype):
    """From a rate at which a step is below the rounding of nearly every weight."""
    lr, arguments = LOW[base]
    rate, first, last = climbed(base, dtype, lr, **arguments)
    expected, _, reference = climbed(base, torch.float32, lr, **arguments)
    assert rate > 50 * lr
    assert rate == pytest.approx(expected, rel=0.25)
    assert last < 0.3 * first
    assert last == pytest.approx(reference, rel=0.3)


@pytest.mark.parametrize("base", ["SGD", "AdamW", "NAdam"])
def test_low_precision_parameters_take_the_bases_own_steps_up_to_a_rounding(base):
    plain, wrapped = network(torch.bfloat16), network(torch.bfloat16)
    inner = getattr(torch.optim, base)
    train(plain, inner(plain.parameters(), lr=0.02), 4, dtype=torch.bfloat16)
    options = {"hyper_lr": {"global": 1e-12, "layer": 0.0}, "weight_lr": 0.0, "safeguard": False}
    train(wrapped, Hyper(inner(wrapped.parameters(), lr=0.02), **options), 4, dtype=torch.bfloat16)
    torch.testing.assert_close(flat(plain.parameters()), flat(wrapped.parameters()), rtol=2**-6, atol=2**-9)


def take_steps(optimizer, weight):
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()


@pytest.mark.parametrize("base", ["Rprop", "ASGD", "Adafactor"])
def test_a_base_whose_step_is_not_its_rate_times_a_direction_keeps_its_rate_and_says_so(base):
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    optimizer = Hyper(getattr(torch.optim, base)([weight], lr=0.01))
    seen = []
    real = optimizer.optimizer.step
    optimizer.optimizer.step = lambda: seen.append(optimizer.param_groups[0]["lr"]) or real()
    with pytest.warns(UserWarning, match=f"steps of {base} are not proportional to its lr.*float32"):
        take_steps(optimizer, weight)
    assert seen == [0.01] * 3


def test_the_rate_of_a_group_is_what_it_was_when_the_base_fails():
    weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.bfloat16))
    optimizer = Hyper(torch.optim.SGD([weight], lr=0.01))

    def fail():
        raise KeyError("no step today")

    optimizer.optimizer.step = fail
    weight.grad = torch.ones_like(weight)
    with pytest.raises(KeyError):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.01
