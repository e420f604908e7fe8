"""One parameter group on its way through a step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from metastep.optim.direction import Buffers, Direction
    from metastep.optim.group_rates import GroupRates
    from metastep.optim.options import Group
    from metastep.optim.phases import Plan


class Engine(Protocol):
    """What runs the two passes."""

    def begin(self, work: Work) -> None:
        """Advance the buffers where no tensor has a last direction yet."""

    def measure(self, work: Work) -> Tensor:
        """First pass; (K, rows of the active tensors), see `phases.measure`."""

    def adapt(self, work: Work) -> bool:
        """Move the group's coarser rates and weights; False where that is left to `adapt.adapt`."""

    def move(self, work: Work) -> None:
        """Second pass, see `phases.move`."""


@dataclass
class Work:
    """The A active tensors (those with a gradient) of a group's T members, with what a pass needs to know.

    Args:
        position: Index of the group.
        group: The parameter group with its options.
        rates: Its packed rates.
        direction: Its direction.
        plan: What the passes are specialised to.
        active: Indices of the active tensors among the members.
        parameters: The active tensors, complex ones as pairs of real numbers; so are the next two.
        gradients: Their gradients.
        buffers: Their buffers.
        active_mask: (T,) bool, None where every member is active.
        fresh: (R,) bool, rows of tensors that are active and were updated in the step before; None where all are.
        rows: (K, R) sums of the first pass, the schedule factor not yet in them; None before any tensor has a last
            direction.
        engine: What runs the passes.
        prepared: What the engine keeps from step to step.
    """

    position: int
    group: Group
    rates: GroupRates
    direction: Direction
    plan: Plan
    active: list[int]
    parameters: list[Tensor]
    gradients: list[Tensor]
    buffers: Buffers
    active_mask: Tensor | None
    fresh: Tensor | None
    rows: Tensor | None = None
    engine: Engine = field(init=False)
    prepared: object = None

    def counts(self) -> Tensor:
        """(A,) updates of the active tensors so far."""
        return self.of_active(self.rates.counts)

    def of_active(self, per_member: Tensor) -> Tensor:
        """The active entries of a (T,) vector."""
        return per_member if self.active_mask is None else per_member[self.active_mask]

    def rows_of_active(self, per_row: Tensor) -> Tensor:
        """The rows of active tensors, those that are here, out of an (R,) vector."""
        chosen = self._chosen_rows()
        return per_row if chosen is None else per_row[chosen]

    def all_rows(self, of_active: Tensor) -> Tensor:
        """(K, R) out of the rows of active tensors that are here; others are zero."""
        chosen = self._chosen_rows()
        if chosen is None:
            return of_active
        whole = of_active.new_zeros(of_active.shape[0], self.rates.layout.tensor_of_row.shape[0])
        whole[:, chosen] = of_active
        return whole

    def _chosen_rows(self) -> Tensor | None:
        if self.rates.shards is not None:
            return self.rates.shards.places(self.active)
        return None if self.active_mask is None else self.active_mask[self.rates.layout.tensor_of_row]
