"""Methods whose schedule was learned, or is learned on the way."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metastep.lab.bench.method import LR, META_LR, Method
from metastep.lab.bench.schedules import PUBLISHED_SNAPSHOTS
from metastep.lab.bench.spaces import LogUniform
from metastep.lab.bench.table.scheduled import BASES, Base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from metastep.lab.bench.spaces import Space

#: Second part of a method's name -> the schedule, what it is, whether it learns.
MLR_SNETS: dict[str, tuple[str, str, bool]] = {
    "mlr-snet": ("mlr-snet", "MLR-SNet, learned in the loop on inner_valid", True),
    "mlr-snet-transferred": ("mlrsnet-cifar10", "the MLR-SNet that comes with metastep, learned on CIFAR-10", False),
    "mlr-snet-published": (PUBLISHED_SNAPSHOTS, "the published snapshots of MLR-SNet, where they are", False),
}

#: Shipped schedules that read training signals -> their base.
SIGNALS: dict[str, str] = {
    "signal-sgd": "sgd-momentum",
    "signal-adamw": "adamw",
    "signal-sgd-layers": "sgd-momentum",
    "signal-adamw-layers": "adamw",
}

_META_RATES = LogUniform(1e-4, 1e-2)


def learned() -> Iterator[Method]:
    """Yield each MLR-SNet over each base optimizer, and the schedules on training signals.

    MLR-SNet measures the scale of its rate from the initial loss, by a rule that its authors fitted to SGD. Adam's
    steps have another unit: there the tuned rate is the scale.
    """
    for first, base in BASES.items():
        for second, (schedule, summary, learns) in MLR_SNETS.items():
            yield _mlr_snet(first, base, second, schedule, summary, learns)
    for name, under in SIGNALS.items():
        base = BASES[under]
        rates = "a rate for each tensor" if name.endswith("-layers") else "one rate"
        yield Method(
            name=name,
            summary=f"a shipped schedule that reads training signals, {rates}, over {under}",
            source=f"{base.source}; metastep",
            optimizer=base.optimizer,
            options=base.options,
            schedule=name,
            space={LR: base.rates},
            defaults={LR: base.lr},
        )


def _mlr_snet(first: str, base: Base, second: str, schedule: str, summary: str, learns: bool) -> Method:
    space: dict[str, Space] = {META_LR: _META_RATES} if learns else {}
    defaults: dict[str, Any] = {META_LR: 1e-3} if learns else {}
    measured = base.optimizer == "sgd"
    if not measured:
        space, defaults = {LR: base.rates, **space}, {LR: base.lr, **defaults}
    return Method(
        name=f"{first}/{second}",
        summary=summary,
        source=f"{base.source}; arXiv 2007.14546",
        optimizer=base.optimizer,
        options=base.options,
        schedule=schedule,
        scale="measured" if measured else "lr",
        space=space,
        defaults=defaults,
    )
