"""Optimizers of torch and of other packages, each with the arguments its authors publish."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.lab.bench.method import LR, WARMUP, Method
from metastep.lab.bench.spaces import LogUniform, Uniform

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Rates of Adam's kind, of SGD's, and multipliers of a rate that a method finds by itself.
_ADAM, _SGD, _MULTIPLIER = LogUniform(1e-5, 0.1), LogUniform(1e-3, 10.0), LogUniform(0.1, 10.0)


def packages() -> Iterator[Method]:
    """Yield the methods of torch and of other packages."""
    yield from _torch()
    yield from _averaging()
    yield from _rate_free()
    yield from _bounded()
    yield Method(
        name="velo",
        summary="VeLO, a large learned optimizer",
        source="arXiv 2211.09760",
        optimizer="adamw",  # an entry must name one; `configure` refuses
        space={},
        defaults={},
        missing="no package on the index has VeLO for torch (the one called pylo there drives microscopes), "
        "and its weights would have to be downloaded.",
    )


def _torch() -> Iterator[Method]:
    """Torch's adaptive optimizers, with torch's defaults."""
    for name, rate, source, rates in (
        ("radam", 1e-3, "arXiv 1908.03265", _ADAM),
        ("adagrad", 1e-2, "Duchi et al. 2011", LogUniform(1e-4, 1.0)),
        ("rmsprop", 1e-2, "Hinton 2012", _ADAM),
        ("nadam", 2e-3, "Dozat 2016", _ADAM),
    ):
        yield Method(
            name=name,
            summary=f"torch's {name}, constant rate",
            source=source,
            optimizer=name,
            space={LR: rates},
            defaults={LR: rate},
        )
    yield Method(
        name="muon",
        summary="Muon on weight matrices, AdamW on the rest, constant rate",
        source="Jordan et al. 2024; arXiv 2502.16982",
        optimizer="muon",
        space={LR: _ADAM},
        defaults={LR: 1e-3},
    )


def _averaging() -> Iterator[Method]:
    """Optimizers that are evaluated at averaged weights, or pull back to them."""
    yield Method(
        name="schedule-free-sgd",
        summary="Schedule-Free SGD, evaluated at its average",
        source="arXiv 2405.15682",
        optimizer="schedule-free-sgd",
        options={"momentum": 0.9},
        space={LR: LogUniform(1e-2, 50.0), WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 1.0, WARMUP: 0.05},
    )
    yield Method(
        name="schedule-free-adamw",
        summary="Schedule-Free AdamW, evaluated at its average",
        source="arXiv 2405.15682",
        optimizer="schedule-free-adamw",
        space={LR: LogUniform(1e-5, 0.1), WARMUP: Uniform(0.0, 0.2)},
        defaults={LR: 2.5e-3, WARMUP: 0.05},
    )
    yield Method(
        name="lookahead-sgd",
        summary="Lookahead around SGD with momentum",
        source="arXiv 1907.08610",
        optimizer="lookahead-sgd",
        options={"momentum": 0.9, "k": 5},
        space={LR: LogUniform(1e-4, 3.0), "alpha": Uniform(0.2, 0.8)},
        defaults={LR: 0.1, "alpha": 0.5},
    )
    yield Method(
        name="lookahead-adam",
        summary="Lookahead around Adam",
        source="arXiv 1907.08610",
        optimizer="lookahead-adam",
        options={"k": 5},
        space={LR: _ADAM, "alpha": Uniform(0.2, 0.8)},
        defaults={LR: 1e-3, "alpha": 0.5},
    )


def _rate_free() -> Iterator[Method]:
    """Optimizers that find their rate; what is tuned multiplies it."""
    yield Method(
        name="prodigy",
        summary="Adam at a rate found from the distance to the solution",
        source="arXiv 2306.06101",
        optimizer="prodigy",
        space={LR: _MULTIPLIER, "d_coef": LogUniform(0.25, 4.0)},
        defaults={LR: 1.0, "d_coef": 1.0},
    )
    for name, base in (("d-adapt-sgd", "SGD"), ("d-adapt-adamw", "AdamW")):
        yield Method(
            name=name,
            summary=f"D-Adaptation of {base}",
            source="arXiv 2301.07733",
            optimizer=name,
            space={LR: _MULTIPLIER},
            defaults={LR: 1.0},
        )
    for name, how in (("dog", ""), ("ldog", ", for each tensor by itself")):
        yield Method(
            name=name,
            summary=f"distance over gradients{how}, evaluated at its average",
            source="arXiv 2302.12022",
            optimizer=name,
            space={LR: _MULTIPLIER, "reps_rel": LogUniform(1e-8, 1e-3)},
            defaults={LR: 1.0, "reps_rel": 1e-6},
        )


def _bounded() -> Iterator[Method]:
    """Optimizers whose tuned rate bounds the rate that they find from the loss, or the other way round."""
    yield Method(
        name="momo",
        summary="momentum under a bound from the running loss",
        source="arXiv 2305.07583",
        optimizer="momo",
        space={LR: LogUniform(1e-3, 100.0)},
        defaults={LR: 1.0},
    )
    yield Method(
        name="momo-adam",
        summary="Adam under a bound from the running loss",
        source="arXiv 2305.07583",
        optimizer="momo-adam",
        space={LR: LogUniform(1e-5, 1.0)},
        defaults={LR: 1e-2},
    )
    yield Method(
        name="alig",
        summary="Polyak's rate for interpolation, under a bound",
        source="arXiv 1906.05661",
        optimizer="alig",
        options={"momentum": 0.9},
        weight_decay=False,
        space={LR: LogUniform(1e-3, 10.0)},
        defaults={LR: 0.1},
    )
    yield Method(
        name="adabound",
        summary="Adam between bounds that close in on SGD's rate",
        source="arXiv 1902.09843",
        optimizer="adabound",
        space={LR: _ADAM, "final_lr": LogUniform(1e-3, 10.0)},
        defaults={LR: 1e-3, "final_lr": 0.1},
    )
