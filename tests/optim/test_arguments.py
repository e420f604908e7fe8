"""Bad input is refused with an error that names the argument, what it was, what is allowed and what to do."""

import math

import pytest
import torch
from tests.optim.models import network
from tests.optim.optimizers import registered as every

import metastep.optim as ours


def make(name, named=False, **options):
    model = network()
    parameters = model.named_parameters() if named else model.parameters()
    return getattr(ours, f"Hyper{name}")(parameters, **options)


BAD = {
    "levels": [(), ("global", "world"), "global", 3, ("layer", "layer")],
    "rule": ["adam", None, "optimizer", "driven"],
    "reduce": ["max"],
    "combine": ["average"],
    "pull_form": ["exact"],
    "hyper_objective": ["test"],
    "scope": ["world"],
    "settle": [0.1, (0.1,), (-0.1, 10), (math.nan, 10), ("x", 10), (0.1, 0), (0.1, 2.5), (0.1, True)],
    "layers": ["block", "module"],
    "tie_bias": [True, 1],
    "unit_dims": [{"0.weight": 0}],
    "compiled": ["yes", 1],
    "scaled": [None, 1],
    "include_decay": [None],
    "hyper_lr": [-1.0, math.nan, math.inf, "x", {"global": 0.1}, {"global": 0.1, "layer": -1.0}, {"world": 1.0}],
    "weight_lr": [-0.1, math.nan, math.inf],
    "weights": [{"global": 1.0}, {"global": 0.0, "layer": 0.0}, {"global": -1.0, "layer": 2.0}, 0.5],
    "min_lr": [-1.0, math.nan, 0.5],
    "max_lr": [-1.0, math.nan, 1e-9],
    "pull": [{}, {("layer", "layer"): 0.1}, {("global", "layer"): 0.1}, {("layer", "global"): 1.0}, {"layer": 0.1}],
    "lr": [-1.0, math.nan, math.inf, "fast", torch.ones(2), True],
    "weight_decay": [-1.0, math.nan, math.inf],
    "maximize": [None, 1],
    "foreach": ["yes"],
}
OWN = {
    "SGD": {"momentum": [-0.1, math.nan], "dampening": [math.nan], "nesterov": [True, 1]},
    "Adam": {"betas": [(1.0, 0.9), (0.9, -0.1), (math.nan, 0.9), 0.9, (0.9,)], "eps": [-1.0, math.nan], "amsgrad": [1]},
    "AdamW": {"betas": [(1.0, 0.9)], "eps": [-1.0]},
    "RMSprop": {"alpha": [-0.1, 1.1, math.nan], "eps": [-1.0], "momentum": [-1.0], "centered": [1]},
    "Adagrad": {"lr_decay": [-1.0], "initial_accumulator_value": [-1.0, math.nan], "eps": [-1.0]},
}


@every
def test_a_bad_argument_is_named_with_value_and_remedy(name):
    for argument, values in {**BAD, **OWN.get(name, {})}.items():
        for value in values:
            with pytest.raises(ValueError, match=argument) as caught:
                make(name, **{argument: value})
            message = str(caught.value)
            assert "got" in message, message
            assert ";" in message, message


@every
def test_known_names_are_listed(name):
    for argument, known in (
        ("levels", ("global", "layer", "unit", "parameter")),
        ("rule", ("exponentiated", "cosine", "additive", "log")),
        ("combine", ("project", "softmax", "divide", "fixed")),
    ):
        with pytest.raises(ValueError, match="nonsense") as caught:
            make(name, **{argument: ("nonsense",) if argument == "levels" else "nonsense"})
        assert all(word in str(caught.value) for word in known)


@every
def test_bounds_must_be_the_right_way_round(name):
    with pytest.raises(ValueError, match=r"min_lr must be <= max_lr, got 0.1 and 0.01"):
        make(name, lr=0.05, min_lr=0.1, max_lr=0.01)


@every
def test_an_unknown_keyword_is_a_type_error_that_lists_the_known(name):
    with pytest.raises(TypeError, match=r"'hyper_rate'.*hyper_lr"):
        make(name, hyper_rate=0.1)


def test_the_cosine_rule_needs_hyper_rates_below_one():
    with pytest.raises(ValueError, match=r"hyper_lr must be .* in \[0, 1\), got 1.0"):
        make("SGD", rule="cosine", hyper_lr=1.0)
    make("SGD", rule="exponentiated", hyper_lr=1.0)


def test_decay_in_the_hypergradient_is_for_decoupled_decay():
    with pytest.raises(ValueError, match="include_decay must be False for coupled"):
        make("Adam", include_decay=True)
    make("Adam", include_decay=True, decoupled_weight_decay=True)


def test_weights_and_pull_exclude_each_other():
    with pytest.raises(ValueError, match="weights must be None together with pull"):
        make("SGD", pull={("layer", "global"): 0.2}, weights={"global": 0.5, "layer": 0.5})
    with pytest.raises(ValueError, match="below 1 together"):
        make("SGD", pull={("layer", "global"): 0.6, ("layer", "previous"): 0.5})


def test_a_differentiable_step_needs_frozen_rates():
    with pytest.raises(ValueError, match="differentiable must be False while rates adapt"):
        make("SGD", differentiable=True)
    make("SGD", differentiable=True, hyper_lr=0.0)


def test_the_scope_is_one_for_all_groups():
    model = network()
    with pytest.raises(ValueError, match="scope must be the same"):
        ours.HyperSGD([{"params": [p], "scope": s} for p, s in zip(model.parameters(), ("all", "group"), strict=False)])


def test_a_unit_dim_must_exist():
    model = network()
    optimizer = ours.HyperSGD(model.named_parameters(), lr=0.1, levels=("unit",), unit_dims={"5.weight": 2})
    model(torch.zeros(2, 2, 3, 3, dtype=torch.float64)).sum().backward()
    with pytest.raises(ValueError, match=r"unit_dims must give '5.weight' one of its 2 dimensions"):
        optimizer.step()


@every
def test_the_defaults_are_documented_ones(name):
    group = make(name).param_groups[0]
    assert group["levels"] == ("global", "layer")
    assert group["rule"] == "exponentiated"
    assert group["combine"] == "project"
    assert group["scaled"] is True
    assert group["lr"] == getattr(torch.optim, name)(network().parameters()).param_groups[0]["lr"]
