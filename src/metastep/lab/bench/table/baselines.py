"""Methods of other papers and packages, a row each: those that metastep implements, torch's, and other packages'.

Each has the arguments that its authors publish. A new one of ``lab/baselines`` has a row without more, of its rate
alone; a row of :data:`_ROWS` says what else is tuned.
"""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

from metastep.lab.baselines import BASELINES
from metastep.lab.bench.method import LR, WARMUP, Choice, LogUniform, Method, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.optim import Optimizer

#: Rates of Adam's kind, multipliers of a rate that a method finds by itself, and the rates of rates.
_ADAM, _MULTIPLIER, _HYPER = LogUniform(1e-5, 0.1), LogUniform(0.1, 10.0), LogUniform(1e-10, 1e-3)
_MOMENTUM, _NESTEROV = {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}
#: Hypergradient descent as first published: one rate, moved by the gradient itself.
_HD = {"levels": ["global"], "rule": "additive", "reduce": "sum", "safeguard": False}


def _hd(base: str, optimizer: str, options: dict[str, object], beta: float, betas: LogUniform) -> Method:
    return Method(
        name=f"hd-{base}",
        summary="hypergradient descent as published: one rate, additive",
        source="arXiv 1703.04782",
        optimizer=optimizer,
        options={**options, **_HD},
        space={LR: LogUniform(1e-5, 1.0), "hyper_lr": betas},
        defaults={LR: 1e-3, "hyper_lr": beta},
    )


def _validated(name: str, adam: bool, rule: str, source: str, options: dict[str, object]) -> Method:
    """A rate that follows its derivative of the validation loss."""
    base = {"base": "adam"} if adam else {"base": "sgd", "momentum": 0.9}
    return Method(
        name=f"{name}-adam" if adam else name,
        summary=f"{'Adam' if adam else 'momentum'} at a rate that follows {rule}",
        source=source,
        optimizer="forward-mode",
        options={**base, **options},
        space={LR: _ADAM if adam else LogUniform(1e-4, 3.0), "hyper_lr": _HYPER},
        defaults={LR: 1e-3 if adam else 0.1, "hyper_lr": 1e-8},
    )


def _rtho(adam: bool) -> Method:
    rule = "its derivative of the validation loss"
    return _validated("rtho", adam, rule, "arXiv 1703.01785", {"mu": 1.0})


def _marthe(adam: bool) -> Method:
    rule = "that derivative, discounted by a rule"
    return _validated("marthe", adam, rule, "arXiv 1910.08525", {"mu": "auto", "hyper_hyper_lr": 1e-6})


def _l4(direction: str) -> Method:
    return Method(
        name=f"l4-{direction}",
        summary=f"L4 over {direction}: a share of the gap to the lowest loss",
        source="arXiv 1802.05074",
        optimizer="l4",
        options={"direction": direction},
        weight_decay=False,
        space={LR: LogUniform(1e-2, 1.0)},
        defaults={LR: 0.15},
    )


def _rate_only(
    name: str, summary: str, source: str, rates: LogUniform, lr: float, *, weight_decay: bool = True
) -> Method:
    """A method whose optimizer has its name, and of which only the rate is tuned."""
    return Method(
        name=name,
        summary=summary,
        source=source,
        optimizer=name,
        weight_decay=weight_decay,
        space={LR: rates},
        defaults={LR: lr},
    )


def _distance(name: str, how: str) -> Method:
    return Method(
        name=name,
        summary=f"distance over gradients{how}, evaluated at its average",
        source="arXiv 2302.12022",
        optimizer=name,
        space={LR: _MULTIPLIER, "reps_rel": LogUniform(1e-8, 1e-3)},
        defaults={LR: 1.0, "reps_rel": 1e-6},
    )


_ROWS: tuple[Method, ...] = (
    # hypergradient descent, and rates that follow the validation loss
    _hd("sgd", "hyper-sgd", {}, 1e-3, LogUniform(1e-6, 1e-1)),
    _hd("sgd-nesterov", "hyper-sgd", {**_NESTEROV}, 1e-3, LogUniform(1e-6, 1e-1)),
    _hd("adam", "hyper-adam", {}, 1e-7, LogUniform(1e-10, 1e-4)),
    _rtho(adam=False),
    _marthe(adam=False),
    _rtho(adam=True),
    _marthe(adam=True),
    Method(
        name="metaoptimize",
        summary="AdamW at a rate that follows its derivative of the losses to come, Hessian-free",
        source="arXiv 2402.02342",
        optimizer="metaoptimize",
        space={LR: _ADAM, "hyper_lr": LogUniform(1e-4, 0.1)},
        defaults={LR: 1e-3, "hyper_lr": 1e-3},
    ),
    # rates from the loss
    _l4("momentum"),
    _l4("adam"),
    Method(
        name="sps",
        summary="stochastic Polyak step size, smoothed",
        source="arXiv 2002.10542",
        optimizer="sps",
        weight_decay=False,
        space={LR: LogUniform(1e-2, 10.0), "c": Choice((0.2, 0.5, 1.0))},
        defaults={LR: 1.0, "c": 0.5},
    ),
    Method(
        name="armijo",
        summary="SGD with a stochastic Armijo line search",
        source="arXiv 1905.09997",
        optimizer="armijo",
        weight_decay=False,
        space={LR: LogUniform(1e-2, 10.0), "c": Choice((0.1, 0.5))},
        defaults={LR: 1.0, "c": 0.1},
    ),
    # learned optimizers, with the weights that come with metastep
    _rate_only(
        *("l2l", "a learned optimizer: an LSTM on each coordinate's gradient", "arXiv 1606.04474"),
        *(LogUniform(1e-3, 0.1), 1e-2),
        weight_decay=False,
    ),
    _rate_only(
        *("rnnprop", "a learned optimizer: an LSTM on Adam's and RMSprop's directions", "arXiv 1703.03633"),
        *(LogUniform(1e-2, 1.0), 0.1),
        weight_decay=False,
    ),
    # a statistical test
    Method(
        name="sasa",
        summary="SGD with momentum whose rate drops when a test finds it stationary",
        source="arXiv 1909.09785",
        optimizer="sasa",
        lengths={"min_samples": (1 / 40, 4), "warmup": (1 / 10, 1), "test_every": (1 / 100, 1)},
        space={LR: LogUniform(1e-3, 10.0), "drop": Choice((2.0, 5.0, 10.0))},
        defaults={LR: 1.0, "drop": 10.0},
    ),
    Method(
        name="salsa",
        summary="SASA from a rate that a smoothed line search finds",
        source="arXiv 2002.10597",
        optimizer="salsa",
        lengths={"min_samples": (1 / 40, 4), "test_every": (1 / 100, 1)},
        space={LR: LogUniform(1e-3, 10.0), "drop": Choice((2.0, 5.0, 10.0))},
        defaults={LR: 1.0, "drop": 10.0},
    ),
    # torch's adaptive optimizers, with torch's defaults, and Muon
    _rate_only("radam", "torch's radam, constant rate", "arXiv 1908.03265", _ADAM, 1e-3),
    _rate_only("adagrad", "torch's adagrad, constant rate", "Duchi et al. 2011", LogUniform(1e-4, 1.0), 1e-2),
    _rate_only("adadelta", "torch's adadelta, constant rate", "arXiv 1212.5701", LogUniform(1e-2, 100.0), 1.0),
    _rate_only("rmsprop", "torch's rmsprop, constant rate", "Hinton 2012", _ADAM, 1e-2),
    _rate_only("nadam", "torch's nadam, constant rate", "Dozat 2016", _ADAM, 2e-3),
    Method(
        name="amsgrad",
        summary="Adam over the largest second moment so far, constant rate",
        source="Reddi et al. 2018",
        optimizer="adam",
        options={"amsgrad": True},
        space={LR: _ADAM},
        defaults={LR: 1e-3},
    ),
    _rate_only(
        "muon",
        "Muon on weight matrices, AdamW on the rest, constant rate",
        "Jordan et al. 2024; arXiv 2502.16982",
        _ADAM,
        1e-3,
    ),
    # evaluated at averaged weights, or drawn back to them
    Method(
        name="schedule-free-sgd",
        summary="Schedule-Free SGD, evaluated at its average",
        source="arXiv 2405.15682",
        optimizer="schedule-free-sgd",
        options=_MOMENTUM,
        space={LR: LogUniform(1e-2, 50.0), WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 1.0, WARMUP: 0.05},
    ),
    Method(
        name="schedule-free-adamw",
        summary="Schedule-Free AdamW, evaluated at its average",
        source="arXiv 2405.15682",
        optimizer="schedule-free-adamw",
        space={LR: _ADAM, WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 2.5e-3, WARMUP: 0.05},
    ),
    _rate_only(
        *("schedule-free-radam", "Schedule-Free RAdam, evaluated at its average", "arXiv 2405.15682"),
        *(_ADAM, 2.5e-3),
    ),
    Method(
        name="lookahead-sgd",
        summary="Lookahead around SGD with momentum",
        source="arXiv 1907.08610",
        optimizer="lookahead-sgd",
        options={**_MOMENTUM, "k": 5},
        space={LR: LogUniform(1e-4, 3.0), "alpha": Uniform(0.2, 0.8)},
        defaults={LR: 0.1, "alpha": 0.5},
    ),
    Method(
        name="lookahead-adam",
        summary="Lookahead around Adam",
        source="arXiv 1907.08610",
        optimizer="lookahead-adam",
        options={"k": 5},
        space={LR: _ADAM, "alpha": Uniform(0.2, 0.8)},
        defaults={LR: 1e-3, "alpha": 0.5},
    ),
    Method(
        name="schedule-free-plus",
        summary="Schedule-Free AdamW at a Polyak rate of its own, evaluated at its average",
        source="arXiv 2605.19095",
        optimizer="schedule-free-plus",
        space={LR: _MULTIPLIER, WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 1.0, WARMUP: 0.05},
    ),
    # they find their rate; what is tuned multiplies it
    Method(
        name="mechanic",
        summary="AdamW under a cosine, by a multiple that is learned",
        source="arXiv 2306.00144",
        optimizer="mechanic",
        schedule="cosine",
        space={LR: _MULTIPLIER, "s_init": LogUniform(1e-8, 1e-3), WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 1.0, "s_init": 1e-6, WARMUP: 0.05},
    ),
    Method(
        name="gen",
        summary="AdamW at a rate that follows the minimum along its direction",
        source="arXiv 2407.02772",
        optimizer="gen",
        space={LR: _ADAM},
        defaults={LR: 1e-4},
    ),
    Method(
        name="prodigy",
        summary="Adam at a rate found from the distance to the solution",
        source="arXiv 2306.06101",
        optimizer="prodigy",
        space={LR: _MULTIPLIER, "d_coef": LogUniform(0.25, 4.0)},
        defaults={LR: 1.0, "d_coef": 1.0},
    ),
    Method(
        name="schedule-free-prodigy",
        summary="Schedule-Free over Prodigy, evaluated at its average",
        source="arXiv 2405.15682; arXiv 2306.06101",
        optimizer="schedule-free-prodigy",
        space={LR: _MULTIPLIER, "d_coef": LogUniform(0.25, 4.0), WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 1.0, "d_coef": 1.0, WARMUP: 0.075},
    ),
    _rate_only("d-adapt-sgd", "D-Adaptation of SGD", "arXiv 2301.07733", _MULTIPLIER, 1.0),
    _rate_only("d-adapt-adamw", "D-Adaptation of AdamW", "arXiv 2301.07733", _MULTIPLIER, 1.0),
    _distance("dog", ""),
    _distance("ldog", ", for each tensor by itself"),
    # the tuned rate bounds the rate that they find from the loss, or the other way round
    _rate_only(
        *("momo", "momentum under a bound from the running loss", "arXiv 2305.07583"),
        *(LogUniform(1e-3, 100.0), 1.0),
    ),
    _rate_only(
        *("momo-adam", "Adam under a bound from the running loss", "arXiv 2305.07583"),
        *(LogUniform(1e-5, 1.0), 1e-2),
    ),
    Method(
        name="alig",
        summary="Polyak's rate for interpolation, under a bound",
        source="arXiv 1906.05661",
        optimizer="alig",
        options=_MOMENTUM,
        weight_decay=False,
        space={LR: LogUniform(1e-3, 10.0)},
        defaults={LR: 0.1},
    ),
    Method(
        name="adabound",
        summary="Adam between bounds that close in on SGD's rate",
        source="arXiv 1902.09843",
        optimizer="adabound",
        space={LR: _ADAM, "final_lr": LogUniform(1e-3, 10.0)},
        defaults={LR: 1e-3, "final_lr": 0.1},
    ),
    Method(
        name="velo",
        summary="VeLO, a large learned optimizer",
        source="arXiv 2211.09760",
        optimizer="adamw",  # a row must name one; `configure` refuses
        space={},
        defaults={},
        missing="no package on the index has VeLO for torch (the one called pylo there drives microscopes), "
        "and its weights would have to be downloaded.",
    ),
)


def baselines() -> Iterator[Method]:
    """Yield the rows; of a baseline that is in none, one of which only the rate is tuned."""
    yield from _ROWS
    named = {row.optimizer for row in _ROWS}
    for name, baseline in BASELINES.items():
        if name not in named and baseline.package is None:
            yield _described(name, baseline.load())


def _described(name: str, optimizer: type[Optimizer]) -> Method:
    """A row from the class: its rate over four decades around the default, its first sentence, its source."""
    text = inspect.getdoc(optimizer) or ""
    sentence = text.partition("\n\n")[0].partition(":")[2].strip() or text.partition("\n\n")[0]
    source = re.search(r"Source: (arXiv [0-9.]+[0-9]|[^\n]+)", text)
    arguments = inspect.signature(optimizer).parameters
    lr = float(arguments["lr"].default)
    return _rate_only(
        name,
        sentence[:1].lower() + " ".join(sentence[1:].split()).removesuffix("."),
        source[1] if source else "",
        LogUniform(lr / 100, 100 * lr),
        lr,
        weight_decay="weight_decay" in arguments,
    )
