"""Checks of a schedule's arguments: an error names the argument, what is allowed, what was given."""

import math
import operator
from collections.abc import Sequence
from typing import SupportsIndex, TypeVar

T = TypeVar("T")


def require(holds: bool, name: str, allowed: str, given: object, remedy: str) -> None:
    """Raise ``ValueError("NAME must be ALLOWED, got GIVEN; REMEDY.")`` unless ``holds``."""
    if not holds:
        raise ValueError(f"{name} must be {allowed}, got {given!r}; {remedy}.")


def whole(name: str, value: SupportsIndex, least: int, remedy: str = "count in optimizer steps") -> int:
    """``value`` as an int, if it is a whole number >= ``least``."""
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    require(number >= least, name, f"a whole number >= {least}", value, remedy)
    return number


def between(name: str, value: float, low: float, high: float, remedy: str, *, open_below: bool = False) -> float:
    """``value`` as a float, if it is finite and low <= value <= high, or low < value with ``open_below``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    inside = math.isfinite(number) and (low < number if open_below else low <= number) and number <= high
    left, right = "(" if open_below else "[", "]" if math.isfinite(high) else ")"
    require(inside, name, f"in {left}{low:g}, {high:g}{right}", value, remedy)
    return number


def one_of(name: str, value: T, choices: Sequence[T]) -> T:
    """``value``, if it is one of ``choices``."""
    require(value in choices, name, " or ".join(map(repr, choices)), value, "the strings are case-sensitive")
    return value
