"""The optimizers that adapt their own step size: how each is made for the small network, and how each is stepped."""

import torch
from tests.optim.models import batch

import metastep.lab.baselines as ours
from metastep.lab.baselines.adaptive_step import AdaptiveStepOptimizer

# name: (class, arguments); those of the registry that are not here are made with their defaults
CHOSEN = {
    "L4": (ours.L4, {}),
    "L4-adam": (ours.L4, {"direction": "adam"}),
    "SPS": (ours.SPS, {"steps_per_epoch": 5}),
    "SPS-max": (ours.SPS, {"variant": "max", "lr": 0.1}),
    "SPS-plain": (ours.SPS, {"variant": "plain", "lr": 0.5}),
    "Armijo": (ours.Armijo, {"steps_per_epoch": 5}),
    "Armijo-goldstein": (ours.Armijo, {"condition": "goldstein", "lr": 0.01}),
    "GeN": (ours.GeN, {"lr": 3e-3, "every": 2}),
    "SALSA": (ours.SALSA, {"lr": 0.1, "keep": 1, "min_samples": 4, "test_every": 2, "steps_per_epoch": 5}),
    "MetaOptimize": (ours.MetaOptimize, {"lr": 3e-3, "hyper_lr": 0.01}),
    "SASA": (ours.SASA, {"lr": 0.1, "nu": 0.7, "keep": 1, "min_samples": 4, "warmup": 3, "test_every": 2}),
    "RTHO": (ours.ForwardMode, {"lr": 0.05, "hyper_lr": 1e-4, "momentum": 0.5}),
    "MARTHE": (ours.ForwardMode, {"base": "adamw", "mu": "auto", "hyper_lr": 1e-5}),
    "L2L": (ours.L2L, {}),
    "RNNProp": (ours.RNNProp, {"lr": 0.02}),
}
WRITTEN_HERE = [baseline.load() for baseline in ours.BASELINES.values() if baseline.package is None]
ADAPTIVE = {
    **CHOSEN,
    **{
        made.__name__: (made, {})
        for made in WRITTEN_HERE
        if issubclass(made, AdaptiveStepOptimizer) and made not in {chosen for chosen, _ in CHOSEN.values()}
    },
}


def make(name, parameters, **extra):
    cls, arguments = ADAPTIVE[name]
    return cls(parameters, **{**arguments, **extra})


def squared_error(model, data):
    x, y = data
    return (model(x) - y).square().mean()


def step_once(optimizer, model, data, validation=None, spoil=None):
    """One step in the optimizer's own style; ``spoil(loss)`` may return another loss. Returns what step returned."""
    style = optimizer.step_style

    def closure():
        loss = squared_error(model, data)
        return loss if spoil is None else spoil(loss)

    if style == "bilevel":
        return optimizer.step(closure, lambda: squared_error(model, validation or data))
    optimizer.zero_grad()
    loss = closure()
    loss.backward()
    return optimizer.step(*{"plain": (), "loss": (lambda: loss,), "closure": (closure,)}[style])


def train(optimizer, model, steps, start=0):
    dtype = next(model.parameters()).dtype
    for step in range(start, start + steps):
        step_once(optimizer, model, batch(step, dtype), batch(500 + step, dtype))


def snapshot(model):
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(model, tensors):
    for p, expected in zip(model.parameters(), tensors, strict=True):
        assert torch.equal(p, expected)
