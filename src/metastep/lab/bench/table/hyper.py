"""Hypergradient optimizers: each level alone, levels together, each rule."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metastep.core.levels import LEVELS
from metastep.core.rates import RULES
from metastep.lab.bench.method import LR, LogUniform, Method, Space
from metastep.lab.bench.table.scheduled import BASES
from metastep.optim import HyperAdam, HyperAdamW, HyperSGD
from metastep.optim.options import DEFAULT_HYPER_LR

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastep.optim.hyper import HyperOptimizer

#: Levels by the second part of a method's name.
COMBINED: tuple[tuple[str, ...], ...] = (
    *((level,) for level in LEVELS),
    ("global", "layer"),
    ("global", "layer", "unit"),
    tuple(LEVELS),
)

#: Over what the hyper-rate of a rule is tuned; below 1 where the rule multiplies by 1 + hyper_lr c.
HYPER_RATES: dict[str, LogUniform] = {
    "exponentiated": LogUniform(1e-3, 1.0),
    "cosine": LogUniform(1e-3, 0.9),
    "additive": LogUniform(1e-10, 1e-2),
    "log": LogUniform(1e-4, 1.0),
}

_CLASSES: dict[str, type[HyperOptimizer]] = {"sgd": HyperSGD, "adam": HyperAdam, "adamw": HyperAdamW}


def hyper() -> Iterator[Method]:
    """Yield ``hyper-BASE/LEVELS`` with the default rule, and ``hyper-BASE/global+layer/RULE`` with each other rule."""
    for first in BASES:
        for levels in COMBINED:
            yield _method(first, levels, RULES[0])
        for rule in RULES[1:]:
            yield _method(first, ("global", "layer"), rule)


def _method(first: str, levels: tuple[str, ...], rule: str) -> Method:
    base, second = BASES[first], "+".join(levels)
    own = _CLASSES[base.optimizer].own_hyper_lr
    plain = rule == RULES[0]
    space: dict[str, Space] = {LR: base.rates, "hyper_lr": HYPER_RATES[rule]}
    defaults: dict[str, Any] = {LR: base.lr, "hyper_lr": own.get(rule, DEFAULT_HYPER_LR[rule])}
    return Method(
        name=f"hyper-{first}/{second}" if plain else f"hyper-{first}/{second}/{rule}",
        summary=f"rates of {' and '.join(levels)} adapt themselves by the {rule} rule",
        source=f"{base.source}; arXiv 1703.04782; arXiv 2008.07277",
        optimizer=f"hyper-{base.optimizer}",
        options={**base.options, "levels": list(levels), "rule": rule},
        space=space,
        defaults=defaults,
    )
