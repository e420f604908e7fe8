"""Methods of the field's papers that metastep implements itself, as published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.lab.bench.method import LR, Method
from metastep.lab.bench.spaces import Choice, LogUniform
from metastep.lab.bench.table.scheduled import BASES

if TYPE_CHECKING:
    from collections.abc import Iterator


def neighbours() -> Iterator[Method]:
    """Yield the neighbours."""
    yield from _hypergradient()
    yield from _forward_mode()
    yield from _from_the_loss()
    yield from _learned()
    yield Method(
        name="sasa",
        summary="SGD with momentum whose rate drops when a test finds it stationary",
        source="arXiv 1909.09785",
        optimizer="sasa",
        lengths={"min_samples": (1 / 40, 4), "warmup": (1 / 10, 1), "test_every": (1 / 100, 1)},
        space={LR: LogUniform(1e-3, 10.0), "drop": Choice((2.0, 5.0, 10.0))},
        defaults={LR: 1.0, "drop": 10.0},
    )


def _hypergradient() -> Iterator[Method]:
    """Hypergradient descent as first published: one rate, moved by the gradient itself."""
    for first, beta, betas in (
        ("sgd", 1e-3, LogUniform(1e-6, 1e-1)),
        ("sgd-nesterov", 1e-3, LogUniform(1e-6, 1e-1)),
        ("adam", 1e-7, LogUniform(1e-10, 1e-4)),
    ):
        base = BASES[first]
        yield Method(
            name=f"hd-{first}",
            summary="hypergradient descent as published: one rate, additive",
            source="arXiv 1703.04782",
            optimizer=f"hyper-{base.optimizer}",
            options={**base.options, "levels": ["global"], "rule": "additive", "reduce": "sum"},
            space={LR: LogUniform(1e-5, 1.0), "hyper_lr": betas},
            defaults={LR: 1e-3, "hyper_lr": beta},
        )


def _forward_mode() -> Iterator[Method]:
    """One rate that follows its derivative of the validation loss."""
    for suffix, base, options, rate, rates in (
        ("", "momentum", {"base": "sgd", "momentum": 0.9}, 0.1, LogUniform(1e-4, 3.0)),
        ("-adam", "Adam", {"base": "adam"}, 1e-3, LogUniform(1e-5, 0.1)),
    ):
        yield Method(
            name=f"rtho{suffix}",
            summary=f"{base} at a rate that follows its derivative of the validation loss",
            source="arXiv 1703.01785",
            optimizer="forward-mode",
            options={**options, "mu": 1.0},
            space={LR: rates, "hyper_lr": LogUniform(1e-10, 1e-3)},
            defaults={LR: rate, "hyper_lr": 1e-8},
        )
        yield Method(
            name=f"marthe{suffix}",
            summary=f"{base} at a rate that follows that derivative, discounted by a rule",
            source="arXiv 1910.08525",
            optimizer="forward-mode",
            options={**options, "mu": "auto", "hyper_hyper_lr": 1e-6},
            space={LR: rates, "hyper_lr": LogUniform(1e-10, 1e-3)},
            defaults={LR: rate, "hyper_lr": 1e-8},
        )


def _learned() -> Iterator[Method]:
    """Optimizers whose direction is a network's, with the weights that come with metastep."""
    yield Method(
        name="l2l",
        summary="a learned optimizer: an LSTM on each coordinate's gradient",
        source="arXiv 1606.04474",
        optimizer="l2l",
        weight_decay=False,
        space={LR: LogUniform(1e-3, 0.1)},
        defaults={LR: 1e-2},
    )
    yield Method(
        name="rnnprop",
        summary="a learned optimizer: an LSTM on Adam's and RMSprop's directions",
        source="arXiv 1703.03633",
        optimizer="rnnprop",
        weight_decay=False,
        space={LR: LogUniform(1e-2, 1.0)},
        defaults={LR: 0.1},
    )


def _from_the_loss() -> Iterator[Method]:
    """Rates from the loss: L4, Polyak, line search."""
    for direction in ("momentum", "adam"):
        yield Method(
            name=f"l4-{direction}",
            summary=f"L4 over {direction}: a share of the gap to the lowest loss",
            source="arXiv 1802.05074",
            optimizer="l4",
            options={"direction": direction},
            weight_decay=False,
            space={LR: LogUniform(1e-2, 1.0)},
            defaults={LR: 0.15},
        )
    yield Method(
        name="sps",
        summary="stochastic Polyak step size, smoothed",
        source="arXiv 2002.10542",
        optimizer="sps",
        weight_decay=False,
        space={LR: LogUniform(1e-2, 10.0), "c": Choice((0.2, 0.5, 1.0))},
        defaults={LR: 1.0, "c": 0.5},
    )
    yield Method(
        name="armijo",
        summary="SGD with a stochastic Armijo line search",
        source="arXiv 1905.09997",
        optimizer="armijo",
        weight_decay=False,
        space={LR: LogUniform(1e-2, 10.0), "c": Choice((0.1, 0.5))},
        defaults={LR: 1.0, "c": 0.1},
    )
