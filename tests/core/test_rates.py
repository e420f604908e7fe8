"""Rate rules, combination weights and regularization against the formulas they quote."""

import math

import pytest
import torch

from metastep.core.rates import (
    RateBounds,
    bounded,
    cosine,
    deviation_of,
    increment,
    learn_weights,
    rate_of,
    regularized,
)

F64 = torch.float64


@pytest.mark.parametrize("rule", ["exponentiated", "cosine", "additive", "log"])
def test_deviations_and_rates_are_inverse_inside_the_bounds(rule):
    bounds = RateBounds(initial=0.1, low=1e-5, high=1e3)
    rates = torch.tensor([1e-5, 0.02, 0.1, 7.0, 1e3], dtype=F64)
    torch.testing.assert_close(rate_of(deviation_of(rates, bounds, rule), bounds, rule), rates, rtol=1e-12, atol=0)


def test_bounds_are_rounded_inwards_in_every_type():
    bounds = RateBounds(initial=0.3, low=0.1, high=0.7)
    for dtype in (torch.float32, torch.float64):
        low, high = bounds.inside(dtype)
        assert 0.1 <= low <= high <= 0.7
    assert float(torch.tensor(0.1)) > 0.1 or float(torch.tensor(0.7)) > 0.7, "else this test shows nothing"


def test_increments_are_the_documented_ones():
    dot, c, rate = (
        torch.tensor([2.0, -3.0], dtype=F64),
        torch.tensor([0.5, -0.25], dtype=F64),
        torch.tensor(0.1, dtype=F64),
    )
    steps = {
        r: increment(r, hyper_lr=0.2, dot=dot, alignment=c, rate=rate)
        for r in ("exponentiated", "cosine", "additive", "log")
    }
    assert steps["exponentiated"].tolist() == pytest.approx([0.1, -0.05])
    assert steps["cosine"].exp().tolist() == pytest.approx([1.1, 0.95])
    assert steps["additive"].tolist() == pytest.approx([0.4, -0.6])
    assert steps["log"].tolist() == pytest.approx([0.04, -0.06])


def test_steps_that_are_not_finite_are_rejected_and_steps_too_far_are_clipped():
    deviation = torch.tensor([0.0, 0.5, 0.0, 0.0])
    step = torch.tensor([math.nan, 0.1, 9.0, -math.inf])
    kept, clipped, rejected = bounded(deviation, step, -1.0, 1.0)
    assert kept.tolist() == pytest.approx([0.0, 0.6, 1.0, 0.0])
    assert clipped.tolist() == [False, False, True, False]
    assert rejected.tolist() == [True, False, False, True]


def test_the_cosine_is_one_for_parallel_zero_for_null_and_nan_for_overflow():
    dot = torch.tensor([6.0, 0.0, -1e-30, math.inf, math.nan], dtype=F64)
    gradient = torch.tensor([4.0, 0.0, 1e-30, math.inf, 1.0], dtype=F64)
    direction = torch.tensor([9.0, 1.0, 1e-30, 1.0, 1.0], dtype=F64)
    value = cosine(dot, gradient, direction, torch.ones(5, dtype=F64))
    assert value[:3].tolist() == [1.0, 0.0, 0.0]
    assert value[3:].isnan().all()


def softmax_slope(gamma, slopes, delta):
    z = gamma.log().requires_grad_()
    torch.softmax(z, 0).dot(slopes).backward()
    return torch.softmax(z.detach() - delta * z.grad, 0)


def test_softmax_weights_descend_the_exact_derivative():
    gamma, slopes = torch.tensor([0.5, 0.3, 0.2], dtype=F64), torch.tensor([0.1, -0.4, 0.25], dtype=F64)
    torch.testing.assert_close(learn_weights("softmax", gamma, slopes, 0.7), softmax_slope(gamma, slopes, 0.7))


@pytest.mark.parametrize("combine", ["project", "softmax"])
def test_equal_slopes_leave_the_exact_combinations_still(combine):
    gamma = torch.tensor([0.2, 0.8], dtype=F64)
    torch.testing.assert_close(learn_weights(combine, gamma, torch.full((2,), -0.01, dtype=F64), 1.0), gamma)


def test_dividing_moves_even_then():
    """The artefact of the paper's form: (0.2, 0.8) becomes (0.2059, 0.7941) for delta G = -0.01 at both levels."""
    gamma = torch.tensor([0.2, 0.8], dtype=F64)
    moved = learn_weights("divide", gamma, torch.full((2,), -0.01, dtype=F64), 1.0)
    assert moved.tolist() == pytest.approx([0.2059, 0.7941], abs=5e-5)


def test_weights_stay_on_the_simplex_and_bad_slopes_are_left_out():
    gamma = torch.tensor([0.5, 0.5], dtype=F64)
    for combine in ("project", "softmax", "divide"):
        moved = learn_weights(combine, gamma, torch.tensor([5.0, -5.0], dtype=F64), 1.0)
        assert float(moved.sum()) == pytest.approx(1.0)
        assert (moved > 0).all()
        assert torch.equal(learn_weights(combine, gamma, torch.tensor([math.nan, 1.0], dtype=F64), 1.0), gamma)


# The regularised rates: three levels, random numbers, beta and strengths as in the formulas.
BETA, L_LAYER, L_PL, L_PARA, L_TIME = 1e-2, 11.0, 13.0, 7.0, 5.0
HAT = {"g": 0.31, "l": 0.23, "p": 0.57}
OLD = {"g": 0.30, "l": 0.25, "p": 0.50}


def one(value):
    return torch.tensor([value], dtype=F64)


def at(form, child, weights, parents=None):
    rates = {"explicit": OLD}.get(form, parents or HAT)
    targets = {k: one(rates[k]) for k in weights if k != "previous"}
    return float(regularized(form, one(HAT[child]), one(OLD[child]), weights, targets))


def test_two_levels_explicit_virtual_and_implicit():
    x = 2 * BETA * L_LAYER
    virtual = at("virtual", "l", {"g": x})
    implicit = at("implicit", "l", {"g": x / (1 + x)})
    assert virtual == pytest.approx((1 - x) * HAT["l"] + x * HAT["g"], rel=1e-14)
    assert implicit == pytest.approx((HAT["l"] + x * HAT["g"]) / (1 + x), rel=1e-14)
    assert implicit == pytest.approx(HAT["l"] - x * (implicit - HAT["g"]), rel=1e-14)  # the proximal equation itself
    assert virtual - implicit == pytest.approx(-(x**2) * (implicit - HAT["g"]), rel=1e-12)
    assert at("explicit", "l", {"g": x}) == pytest.approx(HAT["l"] - x * (OLD["l"] - OLD["g"]), rel=1e-14)


def test_three_levels_are_a_combination_of_the_plain_steps():
    x, a, b = 2 * BETA * L_LAYER, 2 * BETA * L_PL, 2 * BETA * L_PARA
    virtual = at("virtual", "p", {"l": a, "g": b})
    gamma = {"p": 1 - a - b, "l": a, "g": b}
    assert virtual == pytest.approx(sum(gamma[k] * HAT[k] for k in gamma), rel=1e-14)
    layer = at("implicit", "l", {"g": x / (1 + x)})
    weights = {"l": a / (1 + a + b), "g": b / (1 + a + b)}
    implicit = at("implicit", "p", weights, {"l": layer, "g": HAT["g"]})
    gamma = {"p": 1.0, "l": a / (1 + x), "g": b + a * x / (1 + x)}
    assert implicit == pytest.approx(sum(gamma[k] * HAT[k] for k in gamma) / (1 + a + b), rel=1e-13)
    solved = HAT["p"] - a * (implicit - layer) - b * (implicit - HAT["g"])
    assert implicit == pytest.approx(solved, rel=1e-13)


def test_the_temporal_pull_is_a_smaller_hyper_rate():
    x = 2 * BETA * L_TIME
    step = OLD["p"] - HAT["p"]  # beta h
    assert at("virtual", "p", {"previous": x}) == pytest.approx(OLD["p"] - (1 - x) * step, rel=1e-14)
    assert at("implicit", "p", {"previous": x / (1 + x)}) == pytest.approx(OLD["p"] - step / (1 + x), rel=1e-14)
    assert at("explicit", "p", {"previous": x}) == HAT["p"]


def test_pulls_descend_the_gradient_of_the_regulariser():
    """Explicit form, all four terms: a child's step is -beta of its part of dR/da at last step's rates, by autograd."""
    rates = {k: one(v).requires_grad_() for k, v in OLD.items()}
    past = {k: v.detach() for k, v in rates.items()}
    penalty = L_LAYER * (rates["l"] - rates["g"].detach()) ** 2 + L_PL * (rates["p"] - rates["l"].detach()) ** 2
    penalty = penalty + L_PARA * (rates["p"] - rates["g"].detach()) ** 2
    penalty = penalty + L_TIME * sum((rates[k] - past[k]) ** 2 for k in rates)
    penalty.backward()
    assert at("explicit", "l", {"g": 2 * BETA * L_LAYER}) == pytest.approx(HAT["l"] - BETA * float(rates["l"].grad))
    both = {"l": 2 * BETA * L_PL, "g": 2 * BETA * L_PARA, "previous": 2 * BETA * L_TIME}
    assert at("explicit", "p", both) == pytest.approx(HAT["p"] - BETA * float(rates["p"].grad))
