"""What a schedule did on a task that it was not learned on, beside its rivals on the same task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Runs of a schedule and of its rivals on one task.

    Args:
        title: the task, its length, whatever distinguishes it.
        records: what each is called, and the records of its runs (those that ``metastep compare`` writes), one a seed.
        ours: which of them is the schedule of the card.
        source: where the records are.
        note: what a reader has to know about the comparison.

    Raises:
        ValueError: if there are no runs of ``ours``, or a row without runs.

    Example:
        >>> from metastep.schedules.transfer import Transfer
        >>> runs = {"this schedule": [{"final": {"loss": 0.2}}], "cosine": [{"final": {"loss": 0.1}}]}
        >>> Transfer(title="MNIST", records=runs, ours="this schedule").verdict()
        'Place 2 of 2 by mean test loss. It loses to cosine.'
    """

    title: str
    records: Mapping[str, Sequence[Mapping[str, Any]]]
    ours: str
    source: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        if self.ours not in self.records:
            raise ValueError(f"ours must be one of {', '.join(self.records) or 'no rows'}, got {self.ours!r}.")
        empty = [name for name, runs in self.records.items() if not runs]
        if empty:
            raise ValueError(f"records must hold at least one run in each row, got none for {', '.join(empty)}.")

    def ranking(self) -> list[str]:
        """The names, the lowest mean test loss first; whoever diverged in any run comes last."""
        return sorted(
            self.records, key=lambda name: (len(self._losses(name)) < len(self.records[name]), self._mean(name))
        )

    def verdict(self) -> str:
        """The place of the schedule, to whom it loses, and whom it beats in every run."""
        order = self.ranking()
        place = order.index(self.ours)
        ours = self._losses(self.ours)
        beaten = [name for name in order[place + 1 :] if ours and max(ours) < min(self._losses(name) or [float("inf")])]
        text = f"Place {place + 1} of {len(order)} by mean test loss."
        text += f" It loses to {_join(order[:place])}." if place else ""
        return text + (f" Its worst run is better than the best of {_join(beaten)}." if beaten else "")

    def markdown(self) -> list[str]:
        """Heading, table, verdict, note and source, as paragraphs of Markdown."""
        other = next((name for name in self.records[self.ours][0]["final"] if name != "loss"), None)
        heading = [
            "",
            "test loss, mean (lowest ... highest)",
            *([other] if other else []),
            "rate, first to last",
            "runs",
        ]
        lines = [heading, ["---"] * len(heading)]
        for name in self.ranking():
            runs = self.records[name]
            shown = f"**{name}**" if name == self.ours else name
            quality = [_figure_of(runs, other)] if other else []
            lines.append([shown, _spread(self._losses(name), len(runs)), *quality, _rates(runs[0]), str(len(runs))])
        table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        source = f"Records: {self.source}." if self.source else ""
        return [f"### {self.title}", table, *(part for part in (self.verdict(), self.note, source) if part)]

    def _losses(self, name: str) -> list[float]:
        """The finite test losses; a run that diverged has none."""
        found = [run["final"]["loss"] for run in self.records[name]]
        return [float(loss) for loss in found if loss is not None]

    def _mean(self, name: str) -> float:
        losses = self._losses(name)
        return fmean(losses) if losses else float("inf")


def figure(value: float | None) -> str:
    """Three significant digits; what is not finite is a dash."""
    return "-" if value is None else f"{value:.3g}"


def _spread(losses: Sequence[float], runs: int) -> str:
    diverged = f", {runs - len(losses)} diverged" if len(losses) < runs else ""
    if not losses:
        return f"-{diverged}"
    return f"{fmean(losses):.3f} ({min(losses):.3f} ... {max(losses):.3f}){diverged}"


def _figure_of(runs: Sequence[Mapping[str, Any]], name: str) -> str:
    values = [run["final"].get(name) for run in runs]
    known = [value for value in values if value is not None]
    return figure(fmean(known)) if known else "-"


def _rates(run: Mapping[str, Any]) -> str:
    rates = [rate for rate in (run.get("train") or {}).get("lr", []) if rate is not None]
    return f"{rates[0]:.2g} to {rates[-1]:.2g}" if rates else "-"


def _join(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
