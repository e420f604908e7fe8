"""Which way: what a hypergradient optimizer needs to know of its base optimizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

Buffers = dict[str, list["Tensor"]]  # per state key, one tensor per parameter, of its shape


@dataclass(frozen=True, kw_only=True)
class Direction(ABC):
    """The direction u of theta <- theta - alpha (.) u, as a function of buffers that never depend on alpha.

    Because u_t can be read off the buffers after step t, the next step recovers it before it advances them, and no copy
    of it is kept beside them.

    Args:
        maximize: Climb instead of descend: every gradient changes its sign first.
        weight_decay: Coupled decay, added to the gradient as weight_decay times theta.
        taken: Whether the parameters have already moved along u at the rate `group["lr"]` when the second pass begins.
        decoupled_decay: Decay that the rate multiplies beside the direction: theta <- theta - alpha (u + decay theta).
    """

    maximize: bool = False
    weight_decay: float = 0.0
    decoupled_decay: float = 0.0
    taken: bool = False

    @property
    @abstractmethod
    def buffers(self) -> tuple[str, ...]:
        """State keys of the buffers."""

    def start(self, key: str) -> float:
        """What a buffer holds before the first step."""
        del key
        return 0.0

    @abstractmethod
    def advance(self, gradients: list[Tensor], buffers: Buffers, counts: Tensor) -> None:
        """Take in this step's gradients, with sign and coupled decay applied; counts (T,) include this step."""

    @abstractmethod
    def recover(self, buffers: Buffers, counts: Tensor) -> Iterable[Tensor]:
        """Return u of the last advance; zero for a tensor that has seen none (count 0)."""
