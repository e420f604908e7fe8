"""The model card of a learned schedule: what it is, how it was trained, what it did elsewhere, and where it loses.

A card is made from the schedule itself and from records of runs (the JSON objects that ``metastep train``,
``meta-train`` and ``compare`` write), so that no figure in it is typed by hand.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from metastep.schedules.base import Schedule

_PARTS = ("quantity", "value")


@dataclass(frozen=True, kw_only=True)
class Transfer:
    """Runs of a schedule and of the baselines on one task.

    Args:
        title: the task, its length, whatever distinguishes it.
        records: what each is called, and the records of its runs (those that ``metastep compare`` writes), one a seed.
        ours: which of them is the schedule of the card.
        source: where the records are.
        note: what a reader has to know about the comparison.

    Raises:
        ValueError: if there are no runs of ``ours``, or a row without runs.

    Example:
        >>> from metastep.schedules.model_card import Transfer
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


@dataclass(frozen=True, kw_only=True)
class ScheduleCard:
    """What a schedule's card says beyond the schedule's own configuration.

    Args:
        name: the title, and what it is called.
        summary: one line that says what it is.
        usage: Python code that loads it; default: from the file ``schedule.safetensors``.
        training: records of the runs in which it was learned, in their order.
        changed: what was changed after the training, in words; empty for nothing.
        transfer: what it did on tasks that it was not learned on.
        limits: what it cannot do, a sentence each.
        license: the licence's name as the hub knows it.
        tags: keywords, besides the usual ones.

    What is not given is said to be not given; a card never claims what no record shows.

    Raises:
        ValueError: for a licence or tags that are none.

    Example:
        >>> card = ScheduleCard(name="mine", summary="A cosine.", limits=["It reads no loss."])
        >>> "Training: no record was given." in card.markdown(Cosine(100))
        True
    """

    name: str
    summary: str
    usage: str = 'schedule = ms.load_schedule("schedule.safetensors")'
    training: Sequence[Mapping[str, Any]] = ()
    changed: str = ""
    transfer: Sequence[Transfer] = ()
    limits: Sequence[str] = ()
    license: str = "mit"
    tags: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        if not isinstance(self.license, str) or re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", self.license) is None:
            raise ValueError(
                f"license must be a licence's name as the hub knows it, got {self.license!r}; see its list: mit, "
                "apache-2.0, cc-by-4.0, other."
            )
        tags = [] if isinstance(self.tags, str) else self.tags
        wrong = [tag for tag in tags if not isinstance(tag, str) or not tag.strip() or not tag.isprintable()]
        if wrong or isinstance(self.tags, str):
            found = wrong[0] if wrong else self.tags
            raise ValueError(f"tags must be a list of words, each printable and not empty, got {found!r}.")

    def markdown(self, schedule: Schedule) -> str:
        """The card of this schedule: Markdown below a head that the Hugging Face Hub reads."""
        parts = [
            _head(self.license, self.tags),
            f"# {self.name}",
            self.summary,
            f"```python\nimport metastep as ms\n\n{self.usage}\n"
            "lr = ms.LearnedLR(optimizer, schedule, num_classes=10, total_steps=10_000)\n```",
            "The file is safetensors with its configuration and a checksum; nothing in it is run.",
            "## What it is",
            _table(_PARTS, _configuration(schedule)),
            "## How it was trained",
            *self._training(),
            "## What it did elsewhere",
            *[part for transfer in self.transfer for part in transfer.markdown()],
            *([] if self.transfer else ["Transfer: not measured."]),
            "## Limits",
            "\n".join(f"* {limit}" for limit in self.limits)
            or "None was stated, which does not mean that there is none.",
        ]
        return "\n\n".join(parts) + "\n"

    def _training(self) -> list[str]:
        parts = [_table(_PARTS, _training_rows(record)) for record in self.training]
        parts += [f"After the training: {self.changed}"] if self.changed else []
        return parts or ["Training: no record was given."]


def _head(license: str, tags: Sequence[str]) -> str:
    """The YAML that the hub reads.

    Raises:
        ModuleNotFoundError: without PyYAML, which comes with the extra ``hub``.
    """
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError('a card needs PyYAML: pip install "metastep[hub]".', name=error.name) from error
    names = ["metastep", "learning-rate-schedule", *tags]
    content = {"library_name": "metastep", "license": license, "tags": names}
    return f"---\n{yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=1000)}---"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _configuration(schedule: Schedule) -> list[tuple[str, str]]:
    config = schedule.config()
    weights = sum(weight.numel() for weight in schedule.parameters())
    rows = [("class", type(schedule).__name__), ("weights", f"{weights:,}")]
    members = config.pop("schedules", None)
    if isinstance(members, list):
        rows.append(("phases", f"{len(members)}, each a {members[0]['class']}"))
        config = {**members[0]["config"], **config}
    return rows + [(f"`{name}`", _words(value)) for name, value in config.items()]


def _training_rows(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What is worth reading in the record of a run; what it lacks is left out."""
    settings, versions = record.get("settings") or {}, record.get("versions") or {}
    meta = settings.get("meta") or {}
    found = {
        "task": record.get("task"),
        "data": settings.get("data"),
        "examples": settings.get("splits"),
        "steps": record.get("total_steps"),
        "batch size": record.get("batch_size"),
        "optimizer": record.get("optimizer"),
        "its options": settings.get("optimizer_options"),
        "seed": record.get("seed"),
        "meta-step every": meta.get("every"),
        "meta rate": meta.get("meta_lr"),
        "snapshots at steps": meta.get("snapshots"),
        "result on test data": {name: figure(value) for name, value in (record.get("final") or {}).items()},
        "seconds of training": round(record["train_seconds"]) if record.get("train_seconds") else None,
        "versions": versions,
        "revision": record.get("git_revision"),
    }
    rows = [(name, _words(value)) for name, value in found.items() if value not in (None, {}, [])]
    return [*rows, ("command", f"`{record['command']}`")] if record.get("command") else rows


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_words(part)}" for name, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


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
