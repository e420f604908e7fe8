"""What every schedule is: a map from the loss and an explicit state to a rate and the next state."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeAlias

import torch
from torch import Tensor, nn

from metastep.schedules.scale import ScaleRule

#: A schedule's state is a value: an int, a tensor, or a (nested) tuple of them. ``None`` stands for "no state".
State: TypeAlias = Any
Loss: TypeAlias = float | Tensor
Rate: TypeAlias = float | Tensor


class Reading(NamedTuple):
    """What a schedule that watches the optimizer reads before a step; see :mod:`metastep.core.signals`.

    Attributes:
        loss: 0-d tensor, NaN if a loss was not finite; None if none was observed.
        network: <g, u>, |g|^2, |u|^2 and |theta|^2 of all parameters, (4,).
        layers: the same of each parameter, (L, 4), for a schedule with a rate for each.
    """

    loss: Tensor | None
    network: Tensor
    layers: Tensor | None = None


def state_like(template: State, state: State) -> State:
    """Return a saved state on the device and in the dtype of a fresh one.

    Raises:
        ValueError: if it is not of the same make.
    """
    if isinstance(template, Tensor):
        if not isinstance(state, Tensor) or state.shape != template.shape:
            found = tuple(state.shape) if isinstance(state, Tensor) else type(state).__name__
            raise ValueError(f"state must be a tensor of shape {tuple(template.shape)}, got {found}.")
        return state.to(template)
    if isinstance(template, tuple):
        if not isinstance(state, tuple | list) or len(state) != len(template):
            raise ValueError(f"state must have {len(template)} parts, got {state!r}.")
        return tuple(state_like(part, saved) for part, saved in zip(template, state, strict=True))
    return state


class Schedule(nn.Module, ABC):
    """Maps the training loss to a learning rate, step by step, with an explicit state.

    ``alpha, next_state = schedule(loss, state)`` changes nothing inside the schedule: the state is a value that
    the caller keeps (:class:`metastep.LearnedLR` does), so a look-ahead is a call whose state is thrown away.

    Class attributes:
        relative: True if alpha multiplies each parameter group's own initial rate (the closed forms);
            False if alpha in (0, 1) is multiplied by a scale measured from the loss (the learned ones).
        needs_loss: True if a step without an observed loss is an error.

    Attributes:
        watches: "network" or "layer" if, instead of the loss alone, a :class:`Reading` of the optimizer is read, of the
            network or also of its layers; None if not.
        scale: how that scale is measured; only on schedules that are not relative.
    """

    relative: ClassVar[bool]
    needs_loss: ClassVar[bool]
    watches: Literal["network", "layer"] | None = None
    scale: ScaleRule

    @abstractmethod
    def init_state(self) -> State:
        """The state before the first step."""

    @abstractmethod
    def forward(self, loss: Any, state: State) -> tuple[Rate, State]:
        """Return the rate of this step and the state of the next.

        Args:
            loss: this step's training loss, a float or a 0-d tensor, or a :class:`Reading`; closed forms ignore it.
            state: what :meth:`init_state` or the previous call returned.
        """

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this schedule again (without learned weights)."""

    @torch.no_grad()
    def query(self, loss: float, state: State) -> tuple[float, State]:
        """:meth:`forward` for Python floats, without a graph; subclasses may be faster, never different."""
        alpha, state = self(loss, state)
        return float(alpha), state

    def with_total_steps(self, total_steps: int) -> Self:
        """This schedule over a horizon of ``total_steps``; itself if it has no horizon, or has one already."""
        return self

    def with_layers(self, layers: int) -> Self:
        """This schedule for ``layers`` rates; itself if it sets one rate."""
        return self

    def extended(self, total_steps: int) -> Self:
        """This schedule over another horizon, with the same weights; itself if it has no horizon."""
        return self

    @property
    def reads_loss(self) -> bool:
        """True if the rate depends on the loss, so that ranks must agree on it."""
        return self.needs_loss or not self.relative or self.watches is not None

    def skips(self, state: State) -> Tensor | None:
        """Whether the step to which this state belongs is to be skipped, a 0-d bool tensor; None: never."""
        return None

    def brakes(self, state: State) -> int:
        """How many steps were to be skipped so far (reads the device, if the state is there)."""
        return 0

    def remeasures(self, step: int) -> bool:
        """True if the scale of the rate is to be measured again before step ``step`` (0-based)."""
        return False

    def weights_changed(self) -> None:
        """Told after a meta-update: drop whatever was derived from the weights."""
