"""The card of a learned schedule: what it is, how it was trained, what it did elsewhere, and where it loses.

A card is made from the schedule itself and from records of runs (the JSON objects that ``metastep train``,
``meta-train`` and ``compare`` write), so that no figure in it is typed by hand.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from metastep.schedules.base import Schedule
from metastep.schedules.transfer import Transfer, figure

_PARTS = ("quantity", "value")


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
    names = ["metastep", "learning-rate-schedule", *tags]
    return "\n".join(
        ["---", "library_name: metastep", f"license: {license}", "tags:", *(f"- {t}" for t in names), "---"]
    )


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
