"""What a run did: its losses and rates, thinned to a bounded number of points, and what happened beside them."""

import math
from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

import msgspec
import torch
from torch import Tensor

from metastep.files import write_atomically

#: Points that are kept at most; with one more, every second is dropped.
_CAPACITY = 2000
#: Events that are kept at most; the oldest are dropped.
_MOST_EVENTS = 200
_PICTURES = (".png", ".svg", ".html")


class _Saved(TypedDict):
    stride: Annotated[int, msgspec.Meta(ge=1)]
    steps: list[int]
    losses: list[float]
    rates: list[float]
    events: list[tuple[int, str]]
    non_finite: tuple[int, int] | None
    validation: NotRequired[list[tuple[int, float]]]
    best: NotRequired[tuple[int, float] | None]


class History:
    """Losses and rates of a run at evenly spaced steps, and its events, in bounded memory.

    Every step is kept until there are 2,000 points. Then every second one is dropped, and from there on every second
    step is kept; and so on. Numbers on an accelerator are kept as tensors and are read when a list is asked for, so
    that keeping one does not wait for the device.

    Attributes:
        stride: every so many steps one is kept.
        validation: steps that were done, and the validation loss there; of many, every other is let go of.
        best: the step and the validation loss that was the least of all; None if none was finite.

    Example:
        >>> history = History()
        >>> for step in range(3000):
        ...     history.add(step, 1.0, 0.1)
        >>> len(history.steps), history.steps[:3], history.stride
        (1500, [0, 2, 4], 2)
    """

    def __init__(self) -> None:
        self.stride = 1
        self.validation: list[tuple[int, float]] = []
        self.best: tuple[int, float] | None = None
        self._length = 0
        self._steps, self._losses, self._rates = array("q"), array("d"), array("d")
        self._unread_losses: dict[int, Tensor] = {}  # by place, 0-d, on an accelerator
        self._unread_rates: dict[int, Tensor] = {}
        self._events: list[tuple[int, str]] = []
        self._non_finite: tuple[int, int] | None = None  # the step at which they were noticed, how many

    # ---- what LearnedLR tells

    def add(self, step: int, loss: float | Tensor, rate: float | Tensor) -> None:
        """Keep a step, if it is one of those that are kept.

        Args:
            step: counted from 0.
            loss: the mean of its window; NaN if none was observed.
            rate: of the first group.
        """
        if step % self.stride:
            return
        if self._length == _CAPACITY:
            self._thin()
            if step % self.stride:
                return
        elif not self._steps:  # all the memory at once: a long run does not grow
            empty = bytes(8 * _CAPACITY)
            self._steps, self._losses, self._rates = array("q", empty), array("d", empty), array("d", empty)
        place = self._length
        self._steps[place] = step
        self._length += 1
        if isinstance(loss, Tensor):
            self._unread_losses[place] = loss
        else:
            self._losses[place] = loss
        if isinstance(rate, Tensor):
            self._unread_rates[place] = rate
        else:
            self._rates[place] = rate

    def add_validation(self, steps: int, loss: float) -> bool:
        """Keep a validation loss after so many steps, and say whether it is less than all before."""
        self.validation.append((steps, loss))
        if len(self.validation) > _CAPACITY:
            del self.validation[1::2]
        is_best = math.isfinite(loss) and (self.best is None or loss < self.best[1])
        if is_best:
            self.best = steps, loss
        return is_best

    def _thin(self) -> None:
        self.stride *= 2
        kept = [place for place in range(self._length) if self._steps[place] % self.stride == 0]
        for place, before in enumerate(kept):
            self._steps[place] = self._steps[before]
            self._losses[place] = self._losses[before]
            self._rates[place] = self._rates[before]
        places = {before: place for place, before in enumerate(kept)}
        self._unread_losses = {places[p]: loss for p, loss in self._unread_losses.items() if p in places}
        self._unread_rates = {places[p]: rate for p, rate in self._unread_rates.items() if p in places}
        self._length = len(kept)

    def note(self, step: int, text: str) -> None:
        """Add an event that happened before step ``step``."""
        self._events.append((step, text))
        del self._events[:-_MOST_EVENTS]

    def note_non_finite(self, step: int, count: int) -> None:
        """Say how many losses were not finite so far; the step counts when it is said for the first time."""
        self._non_finite = (step if self._non_finite is None else self._non_finite[0], count)

    # ---- what can be read

    @property
    def steps(self) -> list[int]:
        """The steps that are kept, counted from 0."""
        return self._steps[: self._length].tolist()

    @property
    def losses(self) -> list[float]:
        """The mean loss of each of :attr:`steps`; NaN where none was observed."""
        self._unread_losses = _read(self._unread_losses, self._losses)
        return self._losses[: self._length].tolist()

    @property
    def rates(self) -> list[float]:
        """The first group's rate in each of :attr:`steps`."""
        self._unread_rates = _read(self._unread_rates, self._rates)
        return self._rates[: self._length].tolist()

    @property
    def events(self) -> list[tuple[int, str]]:
        """What happened, each with the step before which it did."""
        if self._non_finite is None:
            return list(self._events)
        step, count = self._non_finite
        ignored = f"non-finite losses from here on, which are ignored: {count} so far"
        return sorted([*self._events, (step, ignored)], key=lambda event: event[0])

    def __len__(self) -> int:
        return self._length

    def __repr__(self) -> str:
        losses = self.losses
        seen = "no loss was observed" if losses and all(map(math.isnan, losses)) else f"{len(self.events)} events"
        return f"History({self._length} points, every {self.stride}, {seen})"

    def to_csv(self, path: str | Path) -> None:
        """Write ``step,loss,rate``, one line a point; an unknown loss is left empty.

        Raises:
            OSError: if it cannot be written.
        """
        lines = [
            f"{step},{'' if math.isnan(loss) else repr(loss)},{rate!r}"
            for step, loss, rate in zip(self.steps, self.losses, self.rates, strict=True)
        ]
        write_atomically(Path(path), "\n".join(["step,loss,rate", *lines]) + "\n")

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the loss above the rate, with a line at each event.

        Args:
            path: where to write the picture: ``.png``, ``.svg``, or ``.html``, which loads nothing from elsewhere.

        Returns:
            The Altair chart, which a notebook shows.

        Raises:
            ModuleNotFoundError: if Altair is missing.
            ValueError: for a path that ends otherwise.
        """
        if path is not None and Path(path).suffix not in _PICTURES:
            raise ValueError(f"path must end in {', '.join(_PICTURES)}, got {str(path)!r}; name the picture that way.")
        try:
            import altair

            if path is not None:
                import vl_convert  # noqa: F401  # Altair draws with it
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                'a plot of a run needs Altair: pip install "metastep[report]".', name=error.name
            ) from error
        alt: Any = altair
        points = zip(self.steps, self.losses, self.rates, strict=True)
        rows = [{"step": s, "loss": x if math.isfinite(x) else None, "rate": rate} for s, x, rate in points]
        data = alt.Data(values=rows)
        happened = alt.Data(values=[{"step": step, "event": text} for step, text in self.events])
        rules = alt.Chart(happened).mark_rule(strokeDash=[4, 3], color="#8b949e")
        rules = rules.encode(x="step:Q", tooltip=[alt.Tooltip("step:Q"), alt.Tooltip("event:N")])
        panels = []
        for name, from_zero, colour in (("loss", False, "#0a6fb3"), ("rate", True, "#d1480b")):
            y = alt.Y(f"{name}:Q", title=name, scale=alt.Scale(zero=from_zero))
            line = alt.Chart(data).mark_line(color=colour).encode(x=alt.X("step:Q", title="step"), y=y)
            layers = [line, rules]
            if name == "loss" and self.validation:
                measured = alt.Data(
                    values=[{"step": s, "validation": x} for s, x in self.validation if math.isfinite(x)]
                )
                points = alt.Chart(measured).mark_line(color="#2b7a3d", point=True)
                tooltip = [alt.Tooltip("step:Q"), alt.Tooltip("validation:Q", title="validation loss")]
                layers.append(points.encode(x="step:Q", y="validation:Q", tooltip=tooltip))
            panels.append(alt.layer(*layers).properties(width=560, height=180))
        chart = alt.vconcat(*panels)
        if path is not None:
            page = {"inline": True} if Path(path).suffix == ".html" else {}
            chart.save(str(path), **page)
        return chart

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers and strings; reads the device, if numbers are there."""
        return {
            "stride": self.stride,
            "steps": self.steps,
            "losses": self.losses,
            "rates": self.rates,
            "events": [list(event) for event in self._events],
            "non_finite": None if self._non_finite is None else list(self._non_finite),
            "validation": [list(point) for point in self.validation],
            "best": None if self.best is None else list(self.best),
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go on from :meth:`state_dict`; from None: begin anew."""
        self.__init__()  # type: ignore[misc]
        if state is None:
            return
        saved = msgspec.convert(state, _Saved)
        self.stride = saved["stride"]
        for step, loss, rate in zip(saved["steps"], saved["losses"], saved["rates"], strict=True):
            self.add(step, loss, rate)
        self._events, self._non_finite = saved["events"], saved["non_finite"]
        self.validation, self.best = saved.get("validation", []), saved.get("best")


def _read(unread: dict[int, Tensor], numbers: "array[float]") -> dict[int, Tensor]:
    """Read tensors, one transfer for each device and dtype, into their places; none is unread then."""
    kinds: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for place, tensor in unread.items():
        kinds.setdefault((tensor.device, tensor.dtype), []).append(place)
    for places in kinds.values():
        together = torch.stack([unread[place].detach().reshape(()) for place in places])
        for place, number in zip(places, together.tolist(), strict=True):
            numbers[place] = number
    return {}
