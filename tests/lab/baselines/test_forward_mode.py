"""ForwardMode against unrolled autograd, to 1e-10, and what its driver does with the derivative."""

import math

import pytest
import torch
from tests.lab.baselines.adaptive_step import squared_error, train
from tests.optim.models import batch, flat, network
from tests.oracles.unrolled import steps_with_graph
from torch import nn
from torch.func import functional_call

from metastep.lab.baselines import ForwardMode

STEPS = 6
BASES = {
    "sgd": {"base": "sgd", "weight_decay": 0.1},
    "momentum": {"base": "sgd", "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    "nesterov": {"base": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    "adam": {"base": "adam", "weight_decay": 0.1, "betas": (0.8, 0.9)},
    "adamw": {"base": "adamw", "weight_decay": 0.1},
}


def loss_of_vector(model):
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss_at(theta, step):
        x, y = batch(step)
        pieces = theta.split([shape.numel() for shape in shapes])
        parts = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return (functional_call(model, parts, (x,)) - y).square().mean()

    return loss_at


@pytest.mark.parametrize("mu", [1.0, 0.7, 0.0])
@pytest.mark.parametrize("name", BASES)
def test_the_derivative_is_that_of_unrolled_autograd(name, mu):
    model, lr = network(), 0.02
    loss_at, eta = loss_of_vector(model), torch.tensor(lr, dtype=torch.float64, requires_grad=True)
    thetas = steps_with_graph(flat(model.parameters()), loss_at, eta, STEPS, mu=mu, **BASES[name])
    optimizer = ForwardMode(model.parameters(), lr, hyper_lr=0.0, mu=mu, **BASES[name])
    for step in range(STEPS):
        optimizer.step(
            lambda step=step: squared_error(model, batch(step)),
            lambda step=step: squared_error(model, batch(100 + step)),
        )
        torch.testing.assert_close(flat(model.parameters()), thetas[step].detach(), rtol=1e-12, atol=1e-13)
        (expected,) = torch.autograd.grad(loss_at(thetas[step], 100 + step), eta, retain_graph=True)
        assert optimizer.hypergradient == pytest.approx(expected.item(), rel=1e-10, abs=1e-14)
    assert optimizer.applied_rate() == lr


@pytest.mark.parametrize("name", BASES)
def test_it_steps_as_torch_does(name):
    model, other, arguments = network(), network(), dict(BASES[name])
    namesake = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[arguments.pop("base")]
    optimizer = ForwardMode(model.parameters(), 0.02, hyper_lr=0.0, **BASES[name])
    reference = namesake(other.parameters(), lr=0.02, **arguments)
    train(optimizer, model, 8)
    for step in range(8):
        reference.zero_grad()
        squared_error(other, batch(step)).backward()
        reference.step()
    torch.testing.assert_close(flat(model.parameters()), flat(other.parameters()), rtol=1e-12, atol=1e-14)


def test_a_schedule_multiplies_the_shared_rate_and_the_derivative_stays_exact():
    model, factors = network(), [1.0, 0.5, 2.0, 0.25, 1.0, 3.0]
    loss_at, eta = loss_of_vector(model), torch.tensor(0.02, dtype=torch.float64, requires_grad=True)
    thetas = steps_with_graph(flat(model.parameters()), loss_at, eta, STEPS, "sgd", factors=factors, momentum=0.9)
    optimizer = ForwardMode(model.parameters(), 0.02, momentum=0.9, hyper_lr=0.0)
    for step, factor in enumerate(factors):
        optimizer.param_groups[0]["lr"] = 0.02 * factor
        optimizer.step(lambda step=step: squared_error(model, batch(step)), lambda: squared_error(model, batch(100)))
        assert optimizer.applied_rate() == pytest.approx(0.02 * factor)
    (expected,) = torch.autograd.grad(loss_at(thetas[-1], 100), eta)
    assert optimizer.hypergradient == pytest.approx(expected.item(), rel=1e-10)


def test_first_order_leaves_the_hessian_out():
    model, lr = network(), 0.02
    start = flat(model.parameters())
    optimizer = ForwardMode(model.parameters(), lr, hyper_lr=0.0, first_order=True)
    train(optimizer, model, 5)
    slope = flat(torch.autograd.grad(squared_error(model, batch(504)), list(model.parameters())))
    expected = float(slope @ (flat(model.parameters()) - start)) / lr
    assert optimizer.hypergradient == pytest.approx(expected, rel=1e-9)


def test_rate_hyper_rate_and_discount_follow_their_rules():
    model = network()
    optimizer = ForwardMode(model.parameters(), 0.02, hyper_lr=1e-3, hyper_hyper_lr=1e-4, mu="auto")
    eta, beta, mu, c = 0.02, 1e-3, 1.0, 0.0
    used = []
    for step in range(8):
        g = flat(torch.autograd.grad(squared_error(model, batch(step)), list(model.parameters())))
        train(optimizer, model, 1, start=step)
        used.append(optimizer.applied_rate())
        assert used[-1] == pytest.approx(eta, rel=1e-12)
        slope = flat(torch.autograd.grad(squared_error(model, batch(500 + step)), list(model.parameters())))
        eta = max(0.0, eta - beta * optimizer.hypergradient)
        beta = max(0.0, beta + 1e-4 * optimizer.hypergradient * eta)
        z = min(max(eta / float(slope @ g), 0.0), 1.0)
        c = c * (mu > 0) + mu
        mu = z ** (1 / (c + 1))
        first = optimizer.param_groups[0]
        assert (first["rate"], first["hyper_rate"], first["discount"]) == pytest.approx((eta, beta, mu), rel=1e-9)
    assert len(set(used)) == 8


def test_the_rate_never_falls_below_zero_and_rises_from_a_timid_start():
    model = network()
    timid = ForwardMode(model.parameters(), 1e-4, hyper_lr=1e-5)
    for _ in range(20):
        timid.step(*[lambda: squared_error(model, batch(0))] * 2)
    assert timid.applied_rate() > 2e-4
    model = network()
    hasty = ForwardMode(model.parameters(), 3.0, hyper_lr=1e6)
    for step in range(4):
        train(hasty, model, 1, start=step)
        assert 0 <= hasty.param_groups[0]["rate"] < math.inf


def test_a_derivative_that_is_not_finite_moves_no_rate_and_starts_the_tangents_anew():
    model = network()
    optimizer = ForwardMode(model.parameters(), 0.02, hyper_lr=1e-3, clamp=None)
    train(optimizer, model, 3)
    rate = optimizer.param_groups[0]["rate"]
    optimizer.step(lambda: squared_error(model, batch(3)), lambda: squared_error(model, batch(3)) * math.nan)
    assert optimizer.rejected == 1
    assert optimizer.param_groups[0]["rate"] == rate
    assert all(not state["tangent"].any() for state in optimizer.state.values())
    train(optimizer, model, 2, start=4)
    assert math.isfinite(optimizer.hypergradient)


@pytest.mark.parametrize("known", [False, True])
def test_the_validation_pass_leaves_batch_norm_and_the_random_stream_alone(known):
    def run(validated):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 1))
        x = torch.randn(16, 4)
        optimizer = ForwardMode(model.parameters(), hyper_lr=0.0, model=model if known else None)
        for _ in range(3):
            optimizer.step(
                lambda: model(x).square().mean(),
                lambda: model(x + 1).square().mean() if validated else model[0](x).sum(),
            )
        return torch.get_rng_state(), *model.buffers()

    assert all(map(torch.equal, run(True), run(False)))


def test_grad_is_neither_read_nor_written():
    model = network()
    marks = [torch.full_like(p, 7.0) for p in model.parameters()]
    for p, mark in zip(model.parameters(), marks, strict=True):
        p.grad = mark
    train(ForwardMode(model.parameters()), model, 2)
    assert all(p.grad is mark and (mark == 7).all() for p, mark in zip(model.parameters(), marks, strict=True))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": "rmsprop"}, "base must be one of sgd, adam, adamw"),
        ({"mu": 1.5}, r"mu must be a finite number in \[0, 1\], got 1.5"),
        ({"mu": "automatic"}, r"mu must be a finite number in \[0, 1\]"),
        ({"nesterov": True}, "nesterov must be False without momentum"),
        ({"clamp": 0.0}, "clamp must be > 0"),
        ({"hyper_lr": -1.0}, "hyper_lr must be a finite number >= 0"),
        ({"momentum": 1.0}, r"momentum must be a finite number in \[0, 1\)"),
        ({"first_order": 1}, "first_order must be True or False"),
    ],
)
def test_bad_arguments_are_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        ForwardMode([nn.Parameter(torch.zeros(1))], **arguments)


def test_a_missing_validation_closure_and_one_without_a_graph_are_refused():
    w = nn.Parameter(torch.ones(1))
    optimizer = ForwardMode([w])
    with pytest.raises(ValueError, match=r"validation_closure one .*, got None; call optimizer.step"):
        optimizer.step(lambda: w.sum())
    with pytest.raises(ValueError, match="validation_closure must return a loss with a graph"):
        optimizer.step(lambda: w.sum(), lambda: w.detach().sum())
