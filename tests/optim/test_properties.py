"""Whatever the gradients are, every rate stays positive, finite and inside its bounds."""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.optim.optimizers import NAMES

import metastep.optim as ours

ALL = ("global", "layer", "unit", "parameter")
numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)
gradients = st.lists(st.lists(numbers, min_size=7, max_size=7), min_size=2, max_size=6)
names = st.sampled_from(NAMES)
rules = st.sampled_from(["exponentiated", "cosine", "additive", "log", "optimizer"])
level_sets = st.sets(st.sampled_from(ALL), min_size=1)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=names,
    rule=rules,
    levels=level_sets,
    gradients=gradients,
    hyper_lr=st.sampled_from([0.0, 1e-3, 0.5, 0.99]),
    combine=st.sampled_from(["project", "softmax", "divide", "fixed"]),
    bounds=st.sampled_from([(None, None), (0.05, 0.2), (0.0, 10.0), (0.0999, 0.1001)]),
    factor=st.sampled_from([1.0, 0.0, 3.0]),
    safeguard=st.booleans(),
)
def test_rates_are_bounded_and_weights_are_weights(
    name, rule, levels, gradients, hyper_lr, combine, bounds, factor, safeguard
):
    if rule == "optimizer":
        rule = lambda rates: torch.optim.SGD(rates, lr=1.0)  # noqa: E731
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(3))
    optimizer = getattr(ours, f"Hyper{name}")(
        [matrix, vector],
        lr=0.1,
        levels=levels,
        rule=rule,
        hyper_lr=hyper_lr,
        combine=combine,
        weight_lr=0.5,
        min_lr=bounds[0],
        max_lr=bounds[1],
        safeguard=safeguard,
    )
    low, high = (1e-5, 1e3) if bounds[0] is None else bounds
    slack = 1 - 1e-6 if safeguard else 1.0  # the cut multiplies in float32, outside the bounds
    for step, values in enumerate(gradients):
        matrix.grad = torch.tensor(values[:4]).view(2, 2)
        vector.grad = None if step % 3 == 2 else torch.tensor(values[4:])
        optimizer.param_groups[0]["lr"] = 0.1 * factor if step == 1 else 0.1
        optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.1
        rates = optimizer.rates()[0]
        for level in levels:
            for value in [rates[level]] if level == "global" else rates[level].values():
                exact = value.double() / rates["cut"].double()
                assert exact.isfinite().all()
                assert (exact >= low * slack).all()
                assert (exact <= high / slack).all()
            assert (rates["weights"][level] >= 0).all()
            assert math.isfinite(rates["weights"][level])
            assert int(rates["rejected"][level]) >= 0
        assert abs(float(sum(rates["weights"].values())) - 1) < 1e-5


@settings(max_examples=60, deadline=None, derandomize=True)
@given(gradients=st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=2, max_size=5), levels=level_sets)
def test_rates_of_any_wrapped_optimizer_are_bounded(gradients, levels):
    matrix = torch.nn.Parameter(torch.ones(2, 3))
    optimizer = ours.Hyper(torch.optim.NAdam([matrix], lr=0.1), levels=levels, hyper_lr=0.5, max_lr=0.3)
    for values in gradients:
        matrix.grad = torch.tensor(values).view(2, 3)
        optimizer.step()
    rates = optimizer.rates()[0]
    for level in levels:
        value = rates[level] if level == "global" else rates[level]["0"]
        assert value.isfinite().all()
        assert ((value >= 1e-5) & (value.double() <= 0.3)).all()
