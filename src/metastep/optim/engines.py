"""What runs the two passes: multi-tensor operations as they are, a hand-written CPU kernel, or `torch.compile`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.core.levels import row_views, spread
from metastep.core.pulls import PREVIOUS
from metastep.optim import phases
from metastep.optim.options import DRIVEN
from metastep.optim.phases import Rates

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.optim.work import Engine, Work


class Foreach:
    """The passes of `phases`, run as they are."""

    def begin(self, work: Work) -> None:
        """Advance the buffers where no tensor has a last direction yet."""
        _, decayed = phases.judged_gradients(work.direction, work.parameters, work.gradients)
        work.direction.advance(decayed, work.buffers, work.counts() + 1)

    def measure(self, work: Work) -> Tensor:
        """First pass, see `phases.measure`."""
        rates = applied(work, rows=work.plan.include_decay)
        return phases.measure(
            work.direction, work.plan, work.parameters, work.gradients, work.buffers, work.counts(), rates
        )

    def move(self, work: Work) -> None:
        """Second pass, see `phases.move`."""
        phases.move(work.direction, work.plan, work.parameters, work.buffers, work.counts(), applied(work))


def applied(work: Work, rows: bool = True) -> Rates:
    """The rates as they stand, cut to the active tensors; `rows=False` leaves the combined ones out."""
    rates, plan = work.rates, work.plan
    elementwise = plan.parameter is not None
    weight = rates.weights[-1]
    factors = work.of_active(rates.factors)

    def views(per_row: Tensor) -> list[Tensor]:
        return row_views(work.rows_of_active(per_row), plan.unit_dims, work.parameters)

    parents = {}
    for target, _ in plan.parameter.pulls if plan.parameter is not None else ():
        if target != PREVIOUS:
            parents[target] = views(spread(rates.targets(target), rates.layout, target))
    combined = rates.combined_rows() * rates.factors[rates.layout.tensor_of_row] if rows else None
    if combined is not None and work.direction.taken:
        combined = combined - rates.lr
    scaled = work.group["scaled"] and work.group["pull"] is None
    return Rates(
        rows=[] if combined is None else views(combined),
        deviations=[rates.elementwise[i] for i in work.active] if elementwise else [],
        shares=weight * factors,
        factors=factors,
        weight=weight if scaled else weight.new_ones(()),
        parents=parents,
    )


def choose_engine(work: Work) -> Engine:
    """The fastest engine that the group asks for and its tensors allow.

    On the CPU `compiled=None` takes the kernel for groups that are large enough to gain from it. On accelerators, where
    compiling takes most of a minute, the passes are compiled only if `compiled=True` or `fused=True` asks for it.
    """
    from metastep.optim import compiled, native  # they know directions and engines, whose files know this one

    asked = work.group["compiled"] if work.group["compiled"] is not None else work.group.get("fused")
    if asked is False:
        return FOREACH
    if work.parameters[0].device.type != "cpu":
        driven = work.plan.parameter is not None and work.plan.parameter.rule == DRIVEN
        return compiled.Compiled() if asked and not driven else FOREACH
    if asked is None and sum(p.numel() for p in work.parameters) < WORTH_A_KERNEL:
        return FOREACH
    work.prepared = native.prepare(work)
    return FOREACH if work.prepared is None else native.load() or FOREACH


FOREACH = Foreach()
WORTH_A_KERNEL = 100_000  # elements of a group from which the CPU kernel is chosen unasked
