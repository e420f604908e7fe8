"""Hypergradient optimizers: each level alone, levels together, each rule."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from metastep.core.levels import LEVELS
from metastep.core.rates import COSINE_RULES, RULES
from metastep.lab.bench.method import LR, WARMUP, LogUniform, Method, Space, Uniform
from metastep.lab.bench.schedules import SCHEDULES
from metastep.lab.bench.table.scheduled import BASES
from metastep.optim import HyperAdam, HyperAdamW, HyperSGD
from metastep.optim.options import DEFAULT_HDM, DEFAULT_HYPER_LR, HDM

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastep.optim.hyper import HyperOptimizer

#: Levels by the second part of a method's name.
COMBINED: tuple[tuple[str, ...], ...] = (
    *((level,) for level in LEVELS),
    ("global", "layer"),
    ("global", "layer", "unit"),
    ("global", "layer", "parameter"),
    tuple(LEVELS),
)

#: The hyper-rate of a level as a share of the whole network's, for the rules that move by a cosine: between two
#: thousand numbers it is small and means something, of one number it is 1 or -1 whatever the noise.
SHARES = {"global": 1.0, "layer": 1.0, "unit": 0.3, "parameter": 0.03}

#: Over what the hyper-rate of a rule is tuned; below 1 where the rule multiplies by 1 + hyper_lr c.
HYPER_RATES: dict[str, LogUniform] = {
    "exponentiated": LogUniform(1e-3, 1.0),
    "cosine": LogUniform(1e-3, 0.9),
    "additive": LogUniform(1e-10, 1e-2),
    "log": LogUniform(1e-4, 1.0),
    HDM: LogUniform(1e-2, 3.0),
}

#: For the paper's additive rule, by optimizer: over what the hyper-rate is tuned, and its default. A group's derivative
#: is divided by its size, so that one hyper-rate fits the network, a layer and a single number. For a network of
#: 100,000 numbers these are the published 1e-3 (SGD) and 1e-8 (Adam) of the sum.
MEAN_HYPER_RATES = {"sgd": (LogUniform(0.1, 1e4), 100.0), "adam": (LogUniform(1e-6, 10.0), 1e-3)}

#: Starting weights of the paper's combinations.
_WEIGHTS = {
    ("global", "layer"): {"global": 0.5, "layer": 0.5},
    ("global", "layer", "parameter"): {"global": 0.4, "layer": 0.3, "parameter": 0.3},
}

_CLASSES: dict[str, type[HyperOptimizer]] = {"sgd": HyperSGD, "adam": HyperAdam, "adamw": HyperAdamW}


def hyper() -> Iterator[Method]:
    """Yield the rows of hypergradient optimizers.

    ``hyper-BASE/LEVELS`` with the default rule; ``hyper-BASE/global+layer/RULE`` with each other rule, ``.../fixed``
    with weights that are not learned, ``.../warmup-linear`` under a schedule. Over the two bases of the paper on
    hierarchies, with its additive rule: ``hyper-BASE/LEVEL/additive``; ``cam-BASE/LEVELS``, combined as published;
    ``cam-BASE/LEVELS/exact``, with the derivatives of the combination; ``pulled-BASE/LEVELS/FORM``, regularised.
    """
    for first in BASES:
        for levels in COMBINED:
            yield _method(first, levels, RULES[0])
        for rule in (*RULES[1:], HDM):
            yield _method(first, ("global", "layer"), rule)
        yield _method(first, ("global", "layer"), RULES[0], fixed=True)
        yield _decayed(_method(first, ("global", "layer"), RULES[0]))
    for first in ("sgd-nesterov", "adam"):
        for level in ("layer", "unit", "parameter"):
            yield _additive(f"hyper-{first}/{level}/additive", first, (level,), f"rates of the {level}s adapt")
        for levels, weights in _WEIGHTS.items():
            name, what = f"cam-{first}/{'+'.join(levels)}", f"rates of {' and '.join(levels)}, combined by weights"
            published = {"weights": weights, "combine": "divide", "scaled": False}
            yield _additive(name, first, levels, f"{what} as published", **published)
            yield _additive(f"{name}/exact", first, levels, f"{what} by exact derivatives", weights=weights)
        for form in ("virtual", "implicit"):
            pull = {"layer": {"global": _WEIGHTS["global", "layer"]["global"]}}
            what = f"rates of layers, regularised towards the network's ({form})"
            name = f"pulled-{first}/global+layer/{form}"
            yield _additive(name, first, ("global", "layer"), what, pull=pull, pull_form=form)


def _decayed(method: Method) -> Method:
    """The same under a schedule, which multiplies the rates that adapt."""
    schedule = SCHEDULES["linear"]
    return replace(
        method,
        name=f"{method.name}/warmup-linear",
        summary=f"{method.summary}, under linear warm-up and {schedule.summary}",
        source=f"{method.source}; {schedule.source}",
        schedule="linear",
        space={**method.space, WARMUP: Uniform(0.0, 0.2)},
        defaults={**method.defaults, WARMUP: 0.05},
    )


def _additive(name: str, first: str, levels: tuple[str, ...], summary: str, **options: Any) -> Method:
    """A row with the rule of the paper on hierarchies."""
    base = BASES[first]
    space, default = MEAN_HYPER_RATES[base.optimizer]
    paper = {"rule": "additive", "reduce": "mean", "safeguard": False}
    return Method(
        name=name,
        summary=f"{summary}; additive, by the mean of a group",
        source=f"{base.source}; arXiv 2008.07277",
        optimizer=f"hyper-{base.optimizer}",
        options={**base.options, "levels": list(levels), **paper, **options},
        space={LR: base.rates, "hyper_lr": space},
        defaults={LR: base.lr, "hyper_lr": default},
    )


def _method(first: str, levels: tuple[str, ...], rule: str, fixed: bool = False) -> Method:
    base, second = BASES[first], "+".join(levels)
    own = _CLASSES[base.optimizer].own_hyper_lr
    space: dict[str, Space] = {LR: base.rates, "hyper_lr": HYPER_RATES[rule]}
    known = DEFAULT_HYPER_LR | own | {HDM: DEFAULT_HDM}
    defaults: dict[str, Any] = {LR: base.lr, "hyper_lr": known[rule]}
    shares = {level: SHARES[level] for level in levels}
    further: dict[str, Any] = {"combine": "fixed"} if fixed else {}
    what = f"the {rule} rule, weights fixed" if fixed else f"the {rule} rule"
    if rule == "additive":  # as published
        further["safeguard"] = False
    return Method(
        name="/".join([f"hyper-{first}", second, *([] if rule == RULES[0] else [rule]), *(["fixed"] if fixed else [])]),
        summary=f"rates of {' and '.join(levels)} adapt themselves by {what}",
        source=f"{base.source}; arXiv {'2411.01803' if rule == HDM else '1703.04782'}; arXiv 2008.07277",
        optimizer=f"hyper-{base.optimizer}",
        options={**base.options, "levels": list(levels), "rule": rule, **further},
        space=space,
        defaults=defaults,
        shares=shares if rule in COSINE_RULES and set(shares.values()) != {1.0} else {},
    )
