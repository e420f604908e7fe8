"""The rate a run writes down is the rate that moved the parameters: read off their displacement."""

import math
from dataclasses import replace

import pytest
import torch
from tests.lab.bench.contract import base_config
from torch import nn

from metastep.lab.bench.config import MetaConfig
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.optimizers import make_optimizer
from metastep.lab.bench.run import applied_rate
from metastep.lab.bench.schedules import SCHEDULES
from metastep.lab.bench.training import Trainer, make_trainer
from metastep.lab.tasks import load_task
from metastep.schedules import Constant, LearnedLR

#: Methods that move every tensor along its gradient alone, with values that make the steps large enough to measure.
ALONG_THE_GRADIENT = {
    **{f"sgd/{name}": {} for name in SCHEDULES if name != "mlr-snet-published"},
    "sgd/mlr-snet-transferred": {},
    "sgd/warmup-cosine": {"warmup": 0.2},
    "hyper-sgd/global": {},
    "hyper-sgd/layer": {},
    "hyper-sgd/global+layer": {},
    "hd-sgd": {},
    "sps": {},
    "armijo": {},
    "ldog": {"reps_rel": 1e-3},
    "dog": {"reps_rel": 1e-3},
    "alig": {},
}


@pytest.mark.parametrize("name", ALONG_THE_GRADIENT)
def test_the_rate_is_displacement_over_gradient(name):
    task = load_task("wine/mlp")
    config = METHODS[name].configure(base_config(optimizer_options={}), ALONG_THE_GRADIENT[name])
    options = {**config.optimizer_options, **({"momentum": 0.0} if name == "alig" else {})}
    meta = None if config.meta is None else MetaConfig(every=3)
    trainer = make_trainer(replace(config, optimizer_options=options, meta=meta), task)
    told, measured = [], []
    for _ in range(10):
        gradients, rate = _advance(trainer)
        told.append(rate)
        measured.append(_along(gradients))
    assert told == pytest.approx(measured, rel=2e-3)
    assert max(told) > 0


def _advance(trainer: Trainer):
    """Take a step; give gradient and displacement of every tensor, and the rate that is told."""
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    before = [p.detach().double() for p in parameters]
    gradients = []
    handle = trainer.optimizer.register_step_pre_hook(
        lambda *_: gradients.extend(p.grad.detach().double().clone() for p in parameters)
    )
    trainer.advance()
    handle.remove()
    moved = [b - p.detach().double() for b, p in zip(before, parameters, strict=True)]
    return list(zip(gradients, moved, strict=True)), applied_rate(trainer.optimizer, trainer.lr)


def _along(pairs) -> float:
    """The mean over the elements of each tensor's displacement along its gradient."""
    rates = [(float((g * d).sum() / g.square().sum()), g.numel()) for g, d in pairs]
    return sum(rate * count for rate, count in rates) / sum(count for _, count in rates)


# ---- those with moments, in float64 on a problem whose gradient is known


class Quadratic:
    """0.5 |w - 1|^2 in a few dimensions, stepped as a run steps it."""

    def __init__(self, name: str, lr: float, **options: object) -> None:
        torch.manual_seed(0)
        self.model = nn.Linear(5, 3, dtype=torch.float64)
        self.optimizer = make_optimizer(name, self.model, lr, options)
        lr_of = LearnedLR(self.optimizer, Constant())
        stream = _Nothing()
        self.trainer = Trainer(
            model=self.model, optimizer=self.optimizer, lr=lr_of, loss=lambda model, batch: self.loss(), batches=stream
        )

    def loss(self):
        return sum((p - 1).square().sum() for p in self.model.parameters()) / 2

    def advance(self):
        """Take a step; give the displacement of every tensor, its gradient before, and the rate that is told."""
        before = [p.detach().clone() for p in self.model.parameters()]
        self.trainer.advance()
        moved = [b - p.detach() for b, p in zip(before, self.model.parameters(), strict=True)]
        return moved, [b - 1 for b in before], applied_rate(self.optimizer, self.trainer.lr)


class _Nothing:
    def __next__(self):
        return None


@pytest.mark.parametrize(
    ("name", "lr", "options", "unit"),
    [
        ("adam", 1e-3, {}, 1.0),
        ("radam", 1e-3, {}, None),
        ("prodigy", 1.0, {"d0": 1e-3}, (1 - 0.9) / math.sqrt(1 - 0.999)),
        ("d-adapt-adamw", 1.0, {"d0": 1e-3}, (1 - 0.9) / math.sqrt(1 - 0.999)),
        ("momo-adam", 1e-2, {}, 1 - 0.9),
        ("schedule-free-adamw", 2.5e-3, {}, 1.0),
    ],
)
def test_the_first_step_of_adams_kind_has_the_length_of_the_rate(name, lr, options, unit):
    problem = Quadratic(name, lr, **options)
    moved, gradients, rate = problem.advance()
    if unit is None:  # RAdam begins with momentum alone
        assert all(torch.allclose(m, rate * g, rtol=1e-9) for m, g in zip(moved, gradients, strict=True))
    else:
        assert all(torch.allclose(m, rate * unit * g.sign(), rtol=1e-5) for m, g in zip(moved, gradients, strict=True))


@pytest.mark.parametrize(("beta", "decay"), [(0.9, 0.0), (0.9, 0.1), (0.0, 0.1)])
def test_momo_tells_its_capped_and_its_own_rate(beta, decay):
    """With tau from the paper's formula, computed here from running means of our own."""
    problem = Quadratic("momo", 0.7, beta=beta, weight_decay=decay)
    mean, loss_mean, dot_mean = None, None, None
    rates = []
    for _ in range(8):
        w = torch.cat([p.detach().flatten() for p in problem.model.parameters()])
        loss, gradient = float((w - 1).square().sum() / 2), w - 1
        dot = float(gradient @ w)
        if mean is None:
            mean, loss_mean, dot_mean = gradient, loss, dot
        else:
            mean = beta * mean + (1 - beta) * gradient
            loss_mean, dot_mean = beta * loss_mean + (1 - beta) * loss, beta * dot_mean + (1 - beta) * dot
        stretch = 1 + 0.7 * decay
        gap = stretch * loss_mean + float(mean @ w) - stretch * dot_mean
        expected = min(0.7, max(gap, 0.0) / float(mean @ mean))
        *_, rate = problem.advance()
        assert rate == pytest.approx(expected, rel=1e-6, abs=1e-12)
        rates.append(rate)
    assert len({round(rate, 6) for rate in rates}) > 1


@pytest.mark.parametrize("name", ["prodigy", "d-adapt-sgd", "d-adapt-adamw"])
def test_a_rate_from_an_estimate_is_that_of_the_estimate_before_the_step(name):
    problem = Quadratic(name, 0.5, d0=1e-3)
    estimates = []
    for _ in range(6):
        estimates.append(problem.optimizer.param_groups[0]["d"])
        moved, gradients, rate = problem.advance()
        first = problem.optimizer.param_groups[0].get("g0_norm", 1.0)
        assert rate == pytest.approx(0.5 * estimates[-1] / first)
        if name == "d-adapt-sgd":
            assert all(torch.allclose(m, rate * g, rtol=1e-6) for m, g in zip(moved, gradients, strict=True))
    assert estimates[-1] > estimates[0]


def test_schedule_free_moves_its_base_sequence_by_the_rate_warm_up_included():
    problem = Quadratic("schedule-free-sgd", 0.3, warmup_steps=4)
    for step in range(6):
        before = [problem.optimizer.state[p].get("z", p).clone() for p in problem.model.parameters()]
        _, gradients, rate = problem.advance()
        assert rate == pytest.approx(0.3 * min(1.0, (step + 1) / 4))
        after = [problem.optimizer.state[p]["z"] for p in problem.model.parameters()]
        assert all(torch.allclose(b - a, rate * g) for b, a, g in zip(before, after, gradients, strict=True))
