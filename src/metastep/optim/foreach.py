"""The multi-tensor engine: the passes as they are, and the rates cut to what they take."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.core.levels import row_views, spread
from metastep.core.regularization import PREVIOUS
from metastep.optim import phases
from metastep.optim.phases import Rates

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.optim.work import Work


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

    def adapt(self, work: Work) -> bool:
        """Leave the rates between the passes to `adapt.adapt`."""
        del work
        return False

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
