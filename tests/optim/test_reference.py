"""The optimizers follow their readable reference implementation, whose hypergradients are autograd's."""

import pytest
import torch
from tests.optim.models import ALL_LEVELS, VARIANTS, flat, loss_of, network, train
from tests.oracles.hyper_reference import Direction, Reference, group_ids

LR = {"sgd": 0.05, "adam": 0.01, "rmsprop": 0.01, "adagrad": 0.05}
GAMMA = {"global": 0.3, "layer": 0.3, "unit": 0.25, "parameter": 0.15}


def pair(variant, *, levels=ALL_LEVELS, **options):
    """The optimizer over a network, and its reference over the same numbers."""
    cls, _, arguments = VARIANTS[variant]
    base = cls.__name__.removeprefix("Hyper").lower().removesuffix("w")
    lr = LR[base]
    model = network()
    named = list(model.named_parameters())
    unit_dims = [None if p.dim() < 2 else 1 if name == "2.weight" else 0 for name, p in named]
    total = sum(GAMMA[j] for j in levels)
    gamma = {j: GAMMA[j] / total for j in levels}
    ids = group_ids([p.shape for _, p in named], unit_dims)
    hyper = {"rule": "exponentiated", "hyper_lr": 0.05, "weight_lr": 0.1, "safeguard": False} | options
    if not isinstance(hyper["hyper_lr"], dict):
        hyper["hyper_lr"] = dict.fromkeys(levels, hyper["hyper_lr"])
    regularized = "pull" in hyper
    optimizer = cls(
        named,
        lr=lr,
        levels=levels,
        unit_dims={"2.weight": 1},
        **({} if regularized else {"weights": gamma}),
        **arguments,
        **hyper,
    )
    decay = arguments.get("weight_decay", 0.0)
    decoupled = variant == "adamw"
    known = {k: v for k, v in hyper.items() if k not in ("hyper_objective",)}
    if "hyper_objective" in hyper:
        known["objective"] = hyper["hyper_objective"]
    reference = Reference(
        flat(model.parameters()),
        ids,
        Direction(base, flat(model.parameters()).numel(), **arguments),
        lr=lr,
        levels=levels,
        gamma=gamma,
        weight_decay=0.0 if decoupled else decay,
        decoupled=decay if decoupled else 0.0,
        **known,
    )
    return model, optimizer, reference


def follow(model, optimizer, reference, steps, schedule=lambda t: 1.0):
    group = optimizer.param_groups[0]
    for t in range(steps):
        optimizer.zero_grad()
        loss_of(model, t).backward()
        gradient = flat([p.grad for p in model.parameters()])
        reference.theta = flat(model.parameters())  # the same point, so that rounding does not grow with the steps
        reference.step(gradient, schedule(t))
        group["lr"] = reference.lr * schedule(t)
        optimizer.step()
        torch.testing.assert_close(flat(model.parameters()), reference.theta, rtol=1e-9, atol=1e-11)


def assert_same_rates(optimizer, reference, tolerance=1e-10):
    rates = optimizer.rates()[0]
    for level, alpha in reference.alpha.items():
        if level == "global":
            ours = rates[level].reshape(1)
        elif level == "unit":
            ours = flat(rates[level].values())
        else:
            ours = flat(rates[level].values())
        torch.testing.assert_close(ours, alpha, rtol=tolerance, atol=0)
        assert float((alpha - reference.lr).abs().max()) > 1e-6 * reference.lr, "the rates did not move"
    for level, gamma in reference.gamma.items():
        assert abs(float(rates["weights"][level]) - gamma) < tolerance


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("rule", ["exponentiated", "cosine", "additive", "log"])
def test_twelve_steps_of_every_level_follow_the_reference(variant, rule):
    hyper_lr = {"exponentiated": 0.05, "cosine": 0.05, "additive": 1e-4, "log": 0.05}[rule]
    model, optimizer, reference = pair(variant, rule=rule, hyper_lr=hyper_lr)
    follow(model, optimizer, reference, 12)
    assert_same_rates(optimizer, reference)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("levels", [("global", "layer"), ALL_LEVELS])
def test_the_safeguard_follows_the_reference(variant, levels):
    """Twenty steps, one of which ends on a steep slope: it warms up, and cuts."""
    model, optimizer, reference = pair(variant, levels=levels, safeguard=True)
    warmed, before = [], []
    for t in range(20):
        optimizer.zero_grad()
        loss_of(model, t % 3).backward()
        if t == 14:  # back along the last step, ten times as steep
            for p, old in zip(model.parameters(), before, strict=True):
                p.grad = 10 * p.grad.norm() * (p.detach() - old) / (p.detach() - old).norm()
        before = [p.detach().clone() for p in model.parameters()]
        reference.theta = flat(model.parameters())
        reference.step(flat([p.grad for p in model.parameters()]))
        optimizer.step()
        torch.testing.assert_close(flat(model.parameters()), reference.theta, rtol=1e-9, atol=1e-11)
        assert float(optimizer.rates()[0]["cut"]) == pytest.approx(reference.cut, rel=1e-9)
        warmed.append(reference.cut)
    assert warmed[0] == 0.1
    assert warmed[13] == 1.0
    assert min(warmed[14:]) < 0.5


@pytest.mark.parametrize("combine", ["project", "softmax", "divide", "fixed"])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("rule", ["exponentiated", "additive"])
def test_combinations_follow_the_reference(combine, scaled, rule):
    weight_lr = 0.0 if combine == "fixed" else 0.5
    hyper_lr = 0.05 if rule == "exponentiated" else 1e-3
    model, optimizer, reference = pair(
        "nesterov", rule=rule, hyper_lr=hyper_lr, combine=combine, scaled=scaled, weight_lr=weight_lr
    )
    follow(model, optimizer, reference, 12)
    assert_same_rates(optimizer, reference)


@pytest.mark.parametrize(
    "levels",
    [tuple(level for k, level in enumerate(ALL_LEVELS) if mask >> k & 1) for mask in range(1, 16)],
)
def test_every_subset_of_levels_follows_the_reference(levels):
    model, optimizer, reference = pair("adam", levels=levels)
    follow(model, optimizer, reference, 6)
    assert_same_rates(optimizer, reference)


@pytest.mark.parametrize("rule", ["additive", "log"])
def test_mean_reduction_and_separate_hyper_rates_follow_the_reference(rule):
    betas = {"global": 0.1, "layer": 0.05, "unit": 0.02, "parameter": 1e-3}
    model, optimizer, reference = pair("momentum", rule=rule, reduce="mean", hyper_lr=betas)
    follow(model, optimizer, reference, 8)
    assert_same_rates(optimizer, reference)


@pytest.mark.parametrize("variant", ["sgd-decay", "nesterov", "amsgrad", "centered"])
def test_the_data_objective_follows_the_reference(variant):
    model, optimizer, reference = pair(variant, rule="additive", hyper_lr=1e-3, hyper_objective="data")
    follow(model, optimizer, reference, 8)
    assert_same_rates(optimizer, reference)


@pytest.mark.parametrize("levels", [("global",), ("layer", "unit"), ALL_LEVELS])
def test_decay_inside_the_hypergradient_follows_the_reference_without_a_copy_of_the_parameters(levels):
    model, optimizer, reference = pair("adamw", levels=levels, rule="additive", hyper_lr=1e-5, include_decay=True)
    follow(model, optimizer, reference, 8)
    assert_same_rates(optimizer, reference, 1e-9)
    assert "previous_direction" not in next(iter(optimizer.state.values()))


@pytest.mark.parametrize("rule", ["exponentiated", "additive", "log"])
def test_an_external_schedule_enters_rate_and_hypergradient(rule):
    hyper_lr = {"exponentiated": 0.05, "additive": 1e-3, "log": 0.1}[rule]
    model, optimizer, reference = pair("nesterov", rule=rule, hyper_lr=hyper_lr)
    factors = [1.0, 0.1, 0.5, 2.0, 0.3, 1.0, 1.0]
    follow(model, optimizer, reference, 7, schedule=lambda t: factors[t])
    assert_same_rates(optimizer, reference)  # the last factor is 1


PULLS = {
    "layer": {("layer", "global"): 0.2},
    "all": {
        ("layer", "global"): 0.2,
        ("unit", "layer"): 0.3,
        ("parameter", "unit"): 0.1,
        ("parameter", "layer"): 0.2,
        ("parameter", "global"): 0.15,
    },
    "past": {("layer", "global"): 0.2, ("layer", "previous"): 0.3, ("parameter", "previous"): 0.25},
    "both": {("parameter", "layer"): 0.2, ("parameter", "previous"): 0.25, ("unit", "previous"): 0.1},
}


@pytest.mark.parametrize("pull", PULLS)
@pytest.mark.parametrize("form", ["implicit", "virtual", "explicit"])
@pytest.mark.parametrize("rule", ["exponentiated", "additive"])
def test_regularized_rates_follow_the_reference(pull, form, rule):
    hyper_lr = 0.05 if rule == "exponentiated" else 1e-3
    model, optimizer, reference = pair(
        "momentum", rule=rule, hyper_lr=hyper_lr, pull=PULLS[pull], pull_form=form, weight_lr=0.0
    )
    follow(model, optimizer, reference, 10)
    assert_same_rates(optimizer, reference)


def functional_loss(model, theta, step):
    values, start = {}, 0
    for name, p in model.named_parameters():
        values[name] = theta[start : start + p.numel()].view_as(p)
        start += p.numel()
    from tests.optim.models import batch

    x, y = batch(step)
    return (torch.func.functional_call(model, values, (x,)) - y).square().mean()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("objective", ["regularized", "data"])
def test_rates_and_weights_move_along_autograds_hypergradient(variant, objective):
    """One step by -beta df/dalpha and -delta df/dgamma, both by autograd through the step before."""
    include = variant == "adamw"
    beta, delta = 1e-3, 1e-2
    model, optimizer, reference = pair(
        variant, rule="additive", hyper_lr=beta, weight_lr=delta, combine="divide",
        hyper_objective=objective, include_decay=include,
    )  # fmt: skip
    decay = 0.0 if include or objective == "data" else VARIANTS[variant][2].get("weight_decay", 0.0)
    train(model, optimizer, 3)
    before = flat(model.parameters())
    train(model, optimizer, 1, start=3)
    rates = optimizer.rates()[0]
    alpha = {
        j: (rates[j].reshape(1) if j == "global" else flat(rates[j].values())).clone().requires_grad_()
        for j in ALL_LEVELS
    }
    gamma = torch.stack([rates["weights"][j] for j in ALL_LEVELS]).requires_grad_()

    def combined():
        return sum(gamma[k] * alpha[j][reference.ids[j]] for k, j in enumerate(ALL_LEVELS))

    u = (before - flat(model.parameters())) / combined().detach()
    theta = before - combined() * u
    loss = functional_loss(model, theta, 4) + decay / 2 * theta.square().sum()
    slopes = torch.autograd.grad(loss, [*alpha.values(), gamma])
    train(model, optimizer, 1, start=4)
    moved = optimizer.rates()[0]
    for j, h in zip(ALL_LEVELS, slopes[:-1], strict=True):
        after = moved[j].reshape(1) if j == "global" else flat(moved[j].values())
        torch.testing.assert_close((alpha[j].detach() - after) / beta, h, rtol=1e-8, atol=1e-10)
        assert float(h.abs().max()) > 1e-4
    y = gamma.detach() - delta * slopes[-1]
    torch.testing.assert_close(torch.stack([moved["weights"][j] for j in ALL_LEVELS]), y / y.sum(), rtol=0, atol=1e-10)
