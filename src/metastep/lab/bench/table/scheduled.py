"""Methods that are a base optimizer under a schedule: a closed form, one that was learned, or one that learns."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from metastep.lab.bench.method import LR, META_LR, WARMUP, LogUniform, Method, Space, Uniform
from metastep.lab.bench.schedules import PUBLISHED_SNAPSHOTS, SCHEDULES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base optimizer: its name and options, the rates to search, its usual rate, its source."""

    optimizer: str
    lr: float
    rates: LogUniform
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


_MOMENTUM_RATES, _ADAM_RATES = LogUniform(1e-4, 3.0), LogUniform(1e-5, 0.1)

#: By the first part of a method's name.
BASES: dict[str, Base] = {
    "sgd": Base(optimizer="sgd", lr=0.1, rates=LogUniform(1e-3, 10.0), source="Robbins and Monro 1951"),
    "sgd-momentum": Base(
        optimizer="sgd",
        options={"momentum": 0.9},
        lr=0.1,
        rates=_MOMENTUM_RATES,
        source="Polyak 1964; Sutskever et al. 2013",
    ),
    "sgd-nesterov": Base(
        optimizer="sgd",
        options={"momentum": 0.9, "nesterov": True},
        lr=0.1,
        rates=_MOMENTUM_RATES,
        source="Nesterov 1983; Sutskever et al. 2013",
    ),
    "adam": Base(optimizer="adam", lr=1e-3, rates=_ADAM_RATES, source="arXiv 1412.6980"),
    "adamw": Base(optimizer="adamw", lr=1e-3, rates=_ADAM_RATES, source="arXiv 1711.05101"),
}

#: Schedules that are in the table once more behind a linear warm-up, whose length is tuned.
WITH_WARMUP = ("cosine", "linear")

#: A base that is in the table under these schedules alone: the field's strong baseline of one configuration for all.
NADAMW = Base(
    optimizer="nadam",
    options={"decoupled_weight_decay": True},
    lr=1e-3,
    rates=_ADAM_RATES,
    source="Dozat 2016; arXiv 1711.05101; arXiv 2505.24005",
)

#: Second part of a method's name: the schedule, what it is, whether it learns during the run.
MLR_SNETS: dict[str, tuple[str, str, bool]] = {
    "mlr-snet": ("mlr-snet", "MLR-SNet, learned in the loop on inner_valid", True),
    "mlr-snet-transferred": ("mlrsnet-cifar10", "the MLR-SNet that comes with metastep, learned on CIFAR-10", False),
    "mlr-snet-published": (PUBLISHED_SNAPSHOTS, "the published snapshots of MLR-SNet, where they are", False),
}


def scheduled() -> Iterator[Method]:
    """Yield ``BASE/SCHEDULE`` for each pair, two with warm-up, what else is tuned so, NadamW, and each MLR-SNet."""
    for first, base in BASES.items():
        for name, schedule in SCHEDULES.items():
            if not schedule.learned:
                yield _under(base, f"{first}/{name}", name, schedule.summary, schedule.source)
        yield from _with_warmup(first, base)
    for first in ("sgd-momentum", "adamw"):
        method = next(_with_warmup(first, BASES[first]))
        summary = f"{method.summary}; a Gaussian process tunes it"
        yield replace(method, name=f"{method.name}/gp", summary=summary, search="gp")
    for name in WITH_WARMUP:
        yield _under(NADAMW, f"nadamw/{name}", name, SCHEDULES[name].summary, SCHEDULES[name].source)
    yield from _with_warmup("nadamw", NADAMW)
    for first, base in BASES.items():
        for second, (schedule_name, summary, learns) in MLR_SNETS.items():
            yield _mlr_snet(base, f"{first}/{second}", schedule_name, summary, learns)


def _with_warmup(first: str, base: Base) -> Iterator[Method]:
    for name in WITH_WARMUP:
        schedule = SCHEDULES[name]
        yield _under(
            base,
            f"{first}/warmup-{name}",
            name,
            f"linear warm-up, then {schedule.summary}",
            f"{schedule.source}; arXiv 1706.02677",
            space={LR: base.rates, WARMUP: Uniform(0.0, 0.2)},
            defaults={LR: base.lr, WARMUP: 0.05},
        )


def _mlr_snet(base: Base, name: str, schedule: str, summary: str, learns: bool) -> Method:
    """MLR-SNet measures the scale of its rate from the initial loss, by a rule that its authors fitted to plain SGD.

    Over momentum the scale is divided by as much as momentum lengthens a step, which is ours. Adam's steps have another
    unit: there the tuned rate is the scale.
    """
    space: dict[str, Space] = {META_LR: LogUniform(1e-4, 1e-2)} if learns else {}
    defaults: dict[str, Any] = {META_LR: 1e-3} if learns else {}
    measured = base.optimizer == "sgd"
    if not measured:
        space, defaults = {LR: base.rates, **space}, {LR: base.lr, **defaults}
    scale = "momentum" if "momentum" in base.options else "measured" if measured else "lr"
    if scale == "momentum":
        summary = f"{summary}; its scale times 1 - momentum, which is ours"
    return _under(base, name, schedule, summary, "arXiv 2007.14546", space=space, defaults=defaults, scale=scale)


def _under(
    base: Base,
    name: str,
    schedule: str,
    summary: str,
    source: str,
    *,
    space: Mapping[str, Space] | None = None,
    defaults: Mapping[str, Any] | None = None,
    scale: str = "measured",
) -> Method:
    """A base optimizer under a schedule; what is tuned is the base rate, unless something else is given."""
    return Method(
        name=name,
        summary=summary,
        source="; ".join(part for part in (base.source, source) if part),
        optimizer=base.optimizer,
        options=base.options,
        schedule=schedule,
        scale=scale,
        space={LR: base.rates} if space is None else space,
        defaults={LR: base.lr} if defaults is None else defaults,
    )
