"""`settle`: the rates go over to a given one, which keeps a hypergradient from doing harm for good."""

import pytest
import torch
from tests.optim.optimizers import hyper, registered, saved

import metastep as ms


def quadratic(optimizer, x, curvature, steps):
    """Losses of a run on a quadratic function."""
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = 0.5 * (curvature * x * x).sum()
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    return losses


@pytest.mark.parametrize("compiled", [None, True])
def test_a_step_is_that_of_the_formula(compiled):
    rate, steps, kappa = 0.05, 4, 0.2
    curvature = torch.tensor([1.0, 3.0], dtype=torch.float64)
    x = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    options = {"levels": ("layer",), "hyper_lr": kappa, "safeguard": False, "settle": (rate, steps)}
    optimizer = ms.HyperSGD([x], lr=0.1, compiled=compiled, **options)
    expected, alpha, last = x.detach().clone(), 0.1, None
    for t in range(1, 13):
        gradient = curvature * expected
        if last is not None:
            alpha *= torch.exp(kappa * (gradient @ last) / gradient.norm() / last.norm()).item()
        share = min(1.0, steps / t) ** 2
        used = share * alpha + (1 - share) * rate
        expected, last = expected - used * gradient, gradient
        quadratic(optimizer, x, curvature, 1)
        torch.testing.assert_close(x.detach(), expected, rtol=1e-12, atol=0.0)
        assert optimizer.rates()[0]["combined"]["0"].item() == pytest.approx(used, rel=1e-12)
        assert optimizer.rates()[0]["layer"]["0"].item() == pytest.approx(alpha, rel=1e-12)


def test_where_the_hypergradient_does_not_converge_the_settled_rate_does():
    curvature, ends = torch.tensor([[1.0, 0.5], [0.3, 0.2]]), []
    for settle in (None, (1.5, 10)):  # of a curvature of 1 at most, so below 2
        x = torch.nn.Parameter(torch.ones(2, 2))
        optimizer = ms.HyperSGD([x], lr=0.5, levels=("global",), hyper_lr=3.0, safeguard=False, settle=settle)
        ends.append(quadratic(optimizer, x, curvature, 300)[-1])
    alone, settled = ends
    assert not alone < 1.0
    assert settled < 1e-12


@registered
def test_every_base_settles_and_resumes_to_the_bit(name):
    curvature = torch.linspace(0.1, 1.0, 12).reshape(3, 4)
    options = {"lr": 0.02, "settle": (0.003, 5), "levels": ("global", "unit")}
    x = torch.nn.Parameter(torch.ones(3, 4))
    optimizer = hyper(name)([x], **options)
    quadratic(optimizer, x, curvature, 40)
    state, then = saved(optimizer.state_dict()), x.detach().clone()
    quadratic(optimizer, x, curvature, 100)
    y = torch.nn.Parameter(then)
    resumed = hyper(name)([y], **options)
    resumed.load_state_dict(state)
    quadratic(resumed, y, curvature, 100)
    assert torch.equal(x, y)
    found = optimizer.rates()[0]
    weights = found["weights"]
    adapted = weights["global"] * found["global"] + weights["unit"] * found["unit"]["0"][:, None]
    share = (5 / 140) ** 2
    torch.testing.assert_close(found["combined"]["0"], share * adapted + (1 - share) * 0.003 * found["cut"])


@pytest.mark.parametrize("settle", [(0.05, 4), [torch.tensor(0.05), 4]], ids=["tuple", "list"])
def test_rates_without_a_hyper_rate_go_over_too(settle):
    x = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = ms.HyperSGD([x], lr=0.1, hyper_lr=0.0, safeguard=False, settle=settle)
    quadratic(optimizer, x, torch.tensor([1.0, 3.0]), 10)
    expected = 0.16 * 0.1 + 0.84 * 0.05
    assert optimizer.rates()[0]["combined"]["0"].item() == pytest.approx(expected, rel=1e-6)
    assert saved(optimizer.state_dict())["param_groups"][0]["settle"] == (pytest.approx(0.05), 4)


def test_a_state_from_before_the_option_loads_with_the_settle_of_the_optimizer():
    x = torch.nn.Parameter(torch.ones(2))
    optimizer = ms.HyperSGD([x], lr=0.1, settle=(0.05, 4))
    quadratic(optimizer, x, torch.ones(2), 3)
    state = saved(optimizer.state_dict())
    del state["param_groups"][0]["settle"]
    optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["settle"] == (0.05, 4)


def test_elements_have_no_settled_rate():
    x = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match="settle must be None with the level 'parameter'"):
        ms.HyperSGD([x], lr=0.1, levels=("global", "parameter"), settle=(0.1, 10))
