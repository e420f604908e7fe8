"""Where a tuned value may lie: spaces that Optuna draws from, that check a value and describe themselves."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

if TYPE_CHECKING:
    import optuna


class Space(ABC):
    """The values that a search may give to one argument."""

    @abstractmethod
    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Let a trial choose a value, under a name that is its own in the trial."""

    @abstractmethod
    def describe(self) -> str:
        """Say in a few characters which values there are."""

    @abstractmethod
    def __contains__(self, value: object) -> bool:
        """Whether a value lies in the space."""

    def checked(self, name: str, value: Any) -> Any:
        """Return the value.

        Raises:
            ValueError: if it does not lie in the space; it names the argument.
        """
        if value not in self:
            raise ValueError(f"{name} must lie in {self.describe()}, got {value!r}; choose a value there.")
        return value


def _number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Uniform(Space):
    """The numbers of an interval, each as likely as any other.

    Args:
        low: smallest value.
        high: largest value, > low.

    Raises:
        ValueError: for bounds that are no interval.

    Example:
        >>> Uniform(0.8, 0.99).describe(), 0.9 in Uniform(0.8, 0.99), 1.0 in Uniform(0.8, 0.99)
        ('0.8 .. 0.99', True, False)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (_number(self.low) and _number(self.high) and self.low < self.high):
            raise ValueError(f"low must be a number below high, got {self.low!r} and {self.high!r}; exchange them.")

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Let a trial choose a number."""
        return trial.suggest_float(name, self.low, self.high)

    def describe(self) -> str:
        """Say where the interval begins and ends."""
        return f"{short(self.low)} .. {short(self.high)}"

    def __contains__(self, value: object) -> bool:
        return _number(value) and self.low <= value <= self.high


@dataclass(frozen=True)
class LogUniform(Uniform):
    """The numbers of an interval above 0, each power of ten as likely as any other.

    Args:
        low: smallest value, > 0.
        high: largest value, > low.

    Raises:
        ValueError: for bounds that are no interval above 0.

    Example:
        >>> LogUniform(1e-4, 1.0).describe()
        '1e-4 .. 1, log'
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.low <= 0:
            raise ValueError(f"low must be > 0 on a logarithmic scale, got {self.low!r}; use Uniform to reach 0.")

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> float:
        """Let a trial choose a number."""
        return trial.suggest_float(name, self.low, self.high, log=True)

    def describe(self) -> str:
        """Say where the interval begins and ends."""
        return f"{super().describe()}, log"


@dataclass(frozen=True)
class Choice(Space):
    """A few values, each as likely as any other.

    Args:
        values: None, numbers, texts or truth values; at least two, all different.

    Raises:
        ValueError: for fewer than two, or one that is there twice.

    Example:
        >>> Choice((1, 4, 16)).describe(), 4 in Choice((1, 4, 16))
        ('1, 4 or 16', True)
    """

    values: tuple[bool | float | str | None, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len(set(self.values)) != len(self.values):
            raise ValueError(f"values must be two or more, all different, got {self.values!r}; name each once.")

    def suggest(self, trial: optuna.trial.BaseTrial, name: str) -> Any:
        """Let a trial choose one of the values."""
        return trial.suggest_categorical(name, self.values)

    def describe(self) -> str:
        """Name the values."""
        *others, last = (short(value) for value in self.values)
        return f"{', '.join(others)} or {last}"

    def __contains__(self, value: object) -> bool:
        return any(type(value) is type(one) and value == one for one in self.values) or (
            _number(value) and any(_number(one) and value == one for one in self.values)
        )


def short(value: object) -> str:
    """A value as people write it: 1e-4 rather than 0.0001 or 1e-04."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if value == 0 or 0.01 <= abs(value) < 1e5:
        return f"{value:g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{float(mantissa):g}e{int(exponent)}"
