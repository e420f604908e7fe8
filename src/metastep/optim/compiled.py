"""The two passes through `torch.compile`: what an accelerator runs when `compiled=True` asks for it.

Rates, weights, counters and the schedule's rate enter as tensors, so nothing recompiles as they change. Settings are
compiled in: each of them that changes, and each new set of tensors with gradients, compiles once more, a few times.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metastep.optim import phases
from metastep.optim.foreach import Foreach, applied

if TYPE_CHECKING:
    from metastep.optim.direction import Buffers, Direction
    from metastep.optim.phases import Plan, Rates
    from metastep.optim.work import Work

BACKEND = "inductor"
#: Loops of small tensors gain nothing from another order, and looking for one ends in an assertion in torch 2.11.
OPTIONS: dict[str, Any] = {"loop_ordering_after_fusion": False}
MOST_VARIANTS = 4  # of one group; beyond these the passes run uncompiled

Pass = Callable[..., Any]


class Compiled(Foreach):
    """The passes of `phases`, compiled."""

    def measure(self, work: Work) -> Tensor:
        """First pass, see `phases.measure`."""
        rates = applied(work, rows=work.plan.include_decay)
        run = compiled_pass(work, "measure", measure_pass)
        if run is None:
            return super().measure(work)
        lists = (work.parameters, work.gradients, work.buffers, work.counts())
        result: Tensor = run(*lists, *unpacked(rates))
        return result

    def move(self, work: Work) -> None:
        """Second pass, see `phases.move`."""
        run = compiled_pass(work, "move", move_pass)
        if run is None:
            super().move(work)
        else:
            run(work.parameters, work.buffers, work.counts(), *unpacked(applied(work)))


def compiled_pass(work: Work, name: str, make: Callable[[Direction, Plan], Pass]) -> Pass | None:
    """The compiled pass for these tensors and settings; None when too many have been compiled already."""
    cache: dict[object, Pass] = work.rates.cache.setdefault(f"compiled {name}", {})
    key = (tuple(work.active), work.direction, work.plan)
    if key not in cache:
        if len(cache) >= MOST_VARIANTS:
            return None
        function = make(work.direction, work.plan)
        # A code object of its own, because torch counts recompilations by code object, over all optimizers.
        own = types.FunctionType(
            function.__code__.replace(), function.__globals__, name, function.__defaults__, function.__closure__
        )
        options = OPTIONS if BACKEND == "inductor" else None
        cache[key] = torch.compile(own, backend=BACKEND, fullgraph=True, dynamic=False, options=options)
    return cache[key]


def unpacked(rates: Rates) -> tuple[Any, ...]:
    """The fields of `Rates`, in order."""
    return (rates.rows, rates.deviations, rates.shares, rates.factors, rates.weight, rates.parents)


def measure_pass(direction: Direction, plan: Plan) -> Pass:
    """`phases.measure` with its settings fixed."""

    def run(parameters: list[Tensor], gradients: list[Tensor], buffers: Buffers, counts: Tensor, *rates: Any) -> Tensor:
        return phases.measure(direction, plan, parameters, gradients, buffers, counts, phases.Rates(*rates))

    return run


def move_pass(direction: Direction, plan: Plan) -> Pass:
    """`phases.move` with its settings fixed."""

    def run(parameters: list[Tensor], buffers: Buffers, counts: Tensor, *rates: Any) -> None:
        phases.move(direction, plan, parameters, buffers, counts, phases.Rates(*rates))

    return run
