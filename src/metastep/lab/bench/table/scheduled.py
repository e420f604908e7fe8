"""Methods that are a base optimizer under a schedule: every one of the first with every one of the second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from metastep.lab.bench.method import LR, WARMUP, Method
from metastep.lab.bench.schedules import SCHEDULES
from metastep.lab.bench.spaces import LogUniform, Space, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base optimizer: its name and options, the rates to look through, its usual rate, its source."""

    optimizer: str
    lr: float
    rates: LogUniform
    source: str
    options: Mapping[str, Any] = field(default_factory=dict)


#: By the first part of a method's name.
BASES: dict[str, Base] = {
    "sgd": Base(optimizer="sgd", lr=0.1, rates=LogUniform(1e-3, 10.0), source="Robbins and Monro 1951"),
    "sgd-momentum": Base(
        optimizer="sgd",
        options={"momentum": 0.9},
        lr=0.1,
        rates=LogUniform(1e-4, 3.0),
        source="Polyak 1964; Sutskever et al. 2013",
    ),
    "sgd-nesterov": Base(
        optimizer="sgd",
        options={"momentum": 0.9, "nesterov": True},
        lr=0.1,
        rates=LogUniform(1e-4, 3.0),
        source="Nesterov 1983; Sutskever et al. 2013",
    ),
    "adam": Base(optimizer="adam", lr=1e-3, rates=LogUniform(1e-5, 0.1), source="arXiv 1412.6980"),
    "adamw": Base(optimizer="adamw", lr=1e-3, rates=LogUniform(1e-5, 0.1), source="arXiv 1711.05101"),
}


def scheduled() -> Iterator[Method]:
    """Yield ``optimizer/schedule`` for each pair, and the cosine with linear warm-up."""
    for first, base in BASES.items():
        for name, schedule in SCHEDULES.items():
            if schedule.learned or schedule.base not in ("", first):
                continue  # learned ones measure the scale of their rate: see table/learned.py
            source = schedule.source
            yield _method(first, base, name, name, schedule.summary, source, {LR: base.rates}, {LR: base.lr})
        cosine = SCHEDULES["cosine"]
        yield _method(
            first,
            base,
            "warmup-cosine",
            "cosine",
            f"linear warm-up, then {cosine.summary}",
            f"{cosine.source}; arXiv 1706.02677",
            {LR: base.rates, WARMUP: Uniform(0.0, 0.2)},
            {LR: base.lr, WARMUP: 0.05},
        )


def _method(
    first: str,
    base: Base,
    second: str,
    schedule: str,
    summary: str,
    source: str,
    space: Mapping[str, Space],
    defaults: Mapping[str, Any],
) -> Method:
    return Method(
        name=f"{first}/{second}",
        summary=summary,
        source="; ".join(part for part in (base.source, source) if part),
        optimizer=base.optimizer,
        options=base.options,
        schedule=schedule,
        space=space,
        defaults=defaults,
    )
