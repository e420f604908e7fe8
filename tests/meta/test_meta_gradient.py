"""The meta-gradient is the one that autograd finds when the whole step stands in one graph."""

import copy
from collections.abc import Callable

import pytest
import torch
from tests.meta.networks import images, loss_of, text
from tests.oracles.meta_gradient import unrolled
from torch import Tensor, nn

import metastep as ms

OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "sgd-decay": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.3, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, weight_decay=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
}
NETWORKS = {"images": images, "text": text}


def prepared(network: str, optimizer: str | Callable[..., torch.optim.Optimizer], **learner_options):
    """A model, after four real steps, with a learner whose meta-optimizer is plain descent at rate one."""
    model, batches = NETWORKS[network](0)
    make = OPTIMIZERS[optimizer] if isinstance(optimizer, str) else optimizer
    opt = make(list(model.parameters()))
    schedule = ms.MLRSNet(hidden_size=5).double()
    lr = ms.LearnedLR(opt, schedule, initial_loss=0.02, num_classes=3)
    for batch in batches[:4]:
        train_step(model, opt, lr, batch)
        opt.step()
    meta = torch.optim.SGD(schedule.parameters(), lr=1.0)
    validation = lambda: loss_of(model, batches[7])  # noqa: E731
    return model, opt, lr, ms.MetaLearner(lr, validation, meta_optimizer=meta, **learner_options), batches


def train_step(model, opt, lr, batch) -> Tensor:
    loss = loss_of(model, batch)
    opt.zero_grad()
    loss.backward()
    lr.observe(loss)
    return loss.detach()


def relative_error(found: list[Tensor], expected: list[Tensor]) -> float:
    a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (found, expected))
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_step_meta_gradient_equals_autograd_through_the_step(network: str, optimizer: str) -> None:
    model, opt, lr, learner, batches = prepared(network, optimizer, every=1)
    before = [w.detach().clone() for w in lr.schedule.parameters()]

    reference, reference_opt = copy.deepcopy((model, opt))
    rng = torch.random.get_rng_state()
    loss = loss_of(reference, batches[5]).item()
    torch.random.set_rng_state(rng)
    rate, _ = lr.query_with_graph(loss, lr.state)
    expected = unrolled(
        reference,
        reference_opt,
        [lambda m: loss_of(m, batches[5])],
        lambda m: loss_of(m, batches[7]),
        [rate],
        list(lr.schedule.parameters()),
    )

    torch.random.set_rng_state(rng)
    train_step(model, opt, lr, batches[5])
    learner.step()
    found = [b - w.detach() for b, w in zip(before, lr.schedule.parameters(), strict=True)]
    assert relative_error(found, expected) < 1e-10


def test_muon_too_is_read_off_from_its_step() -> None:
    make = lambda p: torch.optim.Muon([q for q in p if q.ndim == 2], lr=0.02)  # noqa: E731

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Tanh(), nn.Linear(6, 3, bias=False)).double()
    batches = [(torch.randn(5, 4).double(), torch.randint(3, (5,))) for _ in range(8)]
    opt = make(list(model.parameters()))
    lr = ms.LearnedLR(opt, ms.MLRSNet(hidden_size=5).double(), initial_loss=0.02, num_classes=3)
    for batch in batches[:4]:
        train_step(model, opt, lr, batch)
        opt.step()
    meta = torch.optim.SGD(lr.schedule.parameters(), lr=1.0)
    learner = ms.MetaLearner(lr, lambda: loss_of(model, batches[7]), every=1, meta_optimizer=meta)
    before = [w.detach().clone() for w in lr.schedule.parameters()]
    reference, reference_opt = copy.deepcopy((model, opt))
    rate, _ = lr.query_with_graph(loss_of(reference, batches[5]).item(), lr.state)
    # Newton-Schulz runs in bfloat16: its derivative is neither needed nor taken, so the graph is cut at the gradient
    expected = unrolled(
        reference,
        reference_opt,
        [lambda m: loss_of(m, batches[5])],
        lambda m: loss_of(m, batches[7]),
        [rate],
        list(lr.schedule.parameters()),
    )
    train_step(model, opt, lr, batches[5])
    learner.step()
    found = [b - w.detach() for b, w in zip(before, lr.schedule.parameters(), strict=True)]
    assert relative_error(found, expected) < 1e-10


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "radam"])
def test_exact_horizon_equals_unrolled_autograd(network: str, optimizer: str) -> None:
    horizon = 3
    model, opt, lr, learner, batches = prepared(network, optimizer, every=4, horizon=horizon)
    before = [w.detach().clone() for w in lr.schedule.parameters()]
    learner.step(lambda: loss_of(model, batches[0]))  # outside the window

    reference, reference_opt = copy.deepcopy((model, opt))
    rng = torch.random.get_rng_state()
    state, rates = lr.state, []
    reference_lr = copy.deepcopy(lr)
    walker, walker_opt = copy.deepcopy((model, opt))  # finds the losses of the K steps
    for k in range(horizon):
        loss = loss_of(walker, batches[1 + k])
        walker_opt.zero_grad()
        loss.backward()
        rate, state = reference_lr.query_with_graph(loss.item(), state)
        rates.append(rate)
        for group in walker_opt.param_groups:
            group["lr"] = rate.item()
        walker_opt.step()
    torch.random.set_rng_state(rng)
    expected = unrolled(
        reference,
        reference_opt,
        [lambda m, k=k: loss_of(m, batches[1 + k]) for k in range(horizon)],
        lambda m: loss_of(m, batches[7]),
        rates,
        list(reference_lr.schedule.parameters()),
    )

    torch.random.set_rng_state(rng)
    for k in range(horizon):
        learner.step(lambda k=k: loss_of(model, batches[1 + k]))
    found = [b - w.detach() for b, w in zip(before, lr.schedule.parameters(), strict=True)]
    assert relative_error(found, expected) < 1e-10
    for p, q in zip(model.parameters(), walker.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_first_order_horizon_is_the_slope_along_the_directions_taken() -> None:
    horizon = 3
    model, opt, lr, learner, batches = prepared("images", "momentum", every=3, horizon=horizon, first_order=True)
    before = [w.detach().clone() for w in lr.schedule.parameters()]
    weights = list(lr.schedule.parameters())
    state, rates, points = lr.state, [], [[p.detach().clone() for p in model.parameters()]]
    reference_lr = copy.deepcopy(lr)
    for k in range(horizon):
        loss = train_step(model, opt, lr, batches[1 + k])
        rate, state = reference_lr.query_with_graph(loss.item(), state)
        rates.append(rate)
        rng = torch.random.get_rng_state()
        learner.step()
        points.append([p.detach().clone() for p in model.parameters()])
    torch.random.set_rng_state(rng)
    gradient = torch.autograd.grad(loss_of(model, batches[7]), list(model.parameters()))
    slopes = [
        sum((g * (b - a)).sum() for g, a, b in zip(gradient, points[k], points[k + 1], strict=True)) / rates[k].detach()
        for k in range(horizon)
    ]
    expected = torch.autograd.grad(rates, list(reference_lr.schedule.parameters()), slopes)
    found = [b - w.detach() for b, w in zip(before, weights, strict=True)]
    assert relative_error(found, list(expected)) < 1e-10
