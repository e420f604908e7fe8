"""What every schedule is: a map from the loss and an explicit state to a rate and the next state."""

import inspect
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Self, SupportsIndex, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from metastep.schedules.scale import ScaleRule

#: A schedule's state is a value: an int, a tensor, or a (nested) tuple of them. ``None`` stands for "no state".
State: TypeAlias = Any
Loss: TypeAlias = float | Tensor
Rate: TypeAlias = float | Tensor
T = TypeVar("T")

#: The largest whole number that an argument may be: beyond it floats no longer tell neighbours apart.
_LARGEST_WHOLE = 2**53


class Schedule(nn.Module, ABC):
    """Maps the training loss to a learning rate, step by step, with an explicit state.

    ``alpha, next_state = schedule(loss, state)`` changes nothing inside the schedule: the state is a value that
    the caller keeps (:class:`metastep.LearnedLR` does), so a look-ahead is a call whose state is thrown away.
    A subclass needs :meth:`init_state` and :meth:`forward`, and keeps its arguments as attributes of the same names.

    Class attributes:
        relative: True if alpha multiplies each parameter group's own initial rate; False if alpha in (0, 1) is
            multiplied by a scale that is measured from the loss (only for a :class:`LearnedSchedule`).
        calibrates: True if alpha multiplies the optimizer's unit rate (:mod:`metastep.schedules.calibration`).
        needs_loss: True if a step without an observed loss is an error.
        name: what the command line and the benchmark call it, for a run as :meth:`for_run` makes it; empty: nothing.
        summary: one line that says what it does under that name.
        source: where it is from.
    """

    relative: ClassVar[bool] = True
    calibrates: ClassVar[bool] = False
    needs_loss: ClassVar[bool] = False
    name: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    source: ClassVar[str] = ""

    @abstractmethod
    def init_state(self) -> State:
        """The state before the first step."""

    @abstractmethod
    def forward(self, loss: Any, state: State) -> tuple[Rate, State]:
        """Return the rate of this step and the state of the next.

        Args:
            loss: this step's training loss, a float or a 0-d tensor; closed forms ignore it.
            state: what :meth:`init_state` or the previous call returned.
        """

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that construct this schedule again (without learned weights)."""
        arguments = {
            name: getattr(self, name) for name in inspect.signature(type(self)).parameters if hasattr(self, name)
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """The schedule of this :meth:`config`, with fresh weights."""
        return cls(**config)

    @classmethod
    def for_run(cls, total_steps: int) -> Self:
        """The schedule that :attr:`name` stands for, in a run of so many steps."""
        del total_steps
        return cls()

    @torch.no_grad()
    def query(self, loss: float, state: State) -> tuple[float, State]:
        """:meth:`forward` for Python floats, without a graph; subclasses may be faster, never different."""
        alpha, state = self(loss, state)
        return float(alpha), state

    def with_total_steps(self, total_steps: int) -> Self:
        """This schedule over a horizon of ``total_steps``; itself if it has no horizon, or has one already."""
        return self

    def extended(self, total_steps: int) -> Self:
        """This schedule over another horizon, with the same weights; itself if it has no horizon."""
        return self

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return ", ".join(f"{name}={value!r}" for name, value in self.config().items())


class LearnedSchedule(Schedule):
    """A schedule with weights that are learned, or one that stands in the place of such a schedule.

    Class attributes:
        sizes: the arguments that are sizes of the weights, each with what a file must have as many of at least,
            "elements" or "tensors".

    Attributes:
        scale: how the scale of the rate is set; only where the schedule is not relative.
        trained_for: the base of the optimizer for which the weights were learned ("sgd", "sgd-momentum", "adamw", ...),
            or several, "sgd, sgd-momentum"; None: unknown, or for nothing yet. :class:`metastep.LearnedLR` warns of
            another.
    """

    sizes: ClassVar[Mapping[str, Literal["elements", "tensors"]]] = MappingProxyType({})
    scale: ScaleRule
    trained_for: str | None = None

    def learned_for(self, base: str) -> None:
        """Note that the weights are learned over an optimizer of this base, maybe besides others."""
        known = self.trained_for.split(", ") if self.trained_for else []
        if base not in known:
            self.trained_for = ", ".join([*known, base])

    def remeasures(self, step: int) -> bool:
        """True if the scale of the rate is to be measured again before step ``step`` (0-based)."""
        return False

    def weights_changed(self) -> None:
        """Told after a meta-update: drop whatever was derived from the weights."""


def weight_dtype() -> torch.dtype:
    """The dtype of fresh weights: torch's default, but float32 at least, in which large losses stay finite."""
    return torch.promote_types(torch.get_default_dtype(), torch.float32)


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


# ---- checks of arguments: an error names the argument, what is allowed, what was given, what to do


def require(holds: bool, name: str, allowed: str, given: object, remedy: str) -> None:
    """Raise ``ValueError("NAME must be ALLOWED, got GIVEN; REMEDY.")`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {given!r}; {remedy}.")


def whole(name: str, value: SupportsIndex, least: int, remedy: str = "count in optimizer steps") -> int:
    """``value`` as an int, if it is a whole number >= ``least`` (and at most 2**53)."""
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    require(number >= least, name, f"a whole number >= {least}", value, remedy)
    require(number <= _LARGEST_WHOLE, name, f"a whole number <= 2**53 = {_LARGEST_WHOLE}", value, remedy)
    return number


def between(name: str, value: float, low: float, high: float, remedy: str, *, open_below: bool = False) -> float:
    """``value`` as a float, if it is finite and low <= value <= high, or low < value with ``open_below``."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    inside = math.isfinite(number) and (low < number if open_below else low <= number) and number <= high
    left, right = "(" if open_below else "[", "]" if math.isfinite(high) else ")"
    require(inside, name, f"in {left}{low:g}, {high:g}{right}", value, remedy)
    return number


def one_of(name: str, value: T, choices: Sequence[T]) -> T:
    """``value``, if it is one of ``choices``."""
    require(value in choices, name, " or ".join(map(repr, choices)), value, "the strings are case-sensitive")
    return value


def checked_base(trained_for: str | None) -> str | None:
    """``trained_for``, if it is one or more names of bases, or None."""
    fits = trained_for is None or (isinstance(trained_for, str) and bool(trained_for))
    require(fits, "trained_for", "the name of a base or None", trained_for, 'write "sgd", "sgd-momentum" or "adamw"')
    return trained_for
