"""The schedules a run can name: the closed forms, MLR-SNet learned in the loop, and schedules in files."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from metastep.lab.bench.names import unknown_name
from metastep.lab.bench.optimizers import base_of
from metastep.lab.tasks.sources import data_roots
from metastep.schedules import (
    LearnedSchedule,
    Phased,
    ScaleRule,
    Schedule,
    load_schedule,
    shipped_schedules,
)
from metastep.schedules.learned_lr import another_base
from metastep.schedules.migration import gone
from metastep.schedules.registry import REGISTRY


@dataclass(frozen=True, kw_only=True)
class NamedSchedule:
    """A named schedule.

    Args:
        summary: one line for ``metastep list``.
        make: makes it for a run of so many steps.
        learns: whether its weights are learned during the run.
        source: where it is from.
        learned: whether its weights are learned, now or before, and it measures the scale of its rate.
    """

    summary: str
    make: Callable[[int], Schedule]
    learns: bool = False
    source: str = ""
    learned: bool = False


def _published() -> Schedule:
    files = published_snapshots()
    if not files:
        raise FileNotFoundError(
            "the published snapshots of MLR-SNet (mlrsnet/mlr_snet_*.pth) are not there; "
            "set METASTEP_DATA to the folder that holds mlrsnet."
        )
    return _together([load_schedule(file) for file in files])


def _together(members: list[Schedule]) -> Schedule:
    """One schedule as it is; several as phases of equal length."""
    return members[0] if len(members) == 1 else phases_of(members)


def phases_of(members: Sequence[Schedule]) -> Phased:
    """One schedule that uses learned ones one after the other.

    Raises:
        ValueError: if one of them is not learned.
    """
    return Phased([member for member in members if _is_learned(member)])


def _is_learned(schedule: Schedule) -> TypeGuard[LearnedSchedule]:
    if not isinstance(schedule, LearnedSchedule):
        raise ValueError(f"only learned schedules can be phases of a run, got {type(schedule).__name__}.")
    return True


#: The snapshots that the authors of MLR-SNet publish, looked for beside the checkout and in METASTEP_DATA.
PUBLISHED_SNAPSHOTS = "mlr-snet-published"
_SNAPSHOT_FILES = "mlrsnet/mlr_snet_*.pth"

#: What may follow ``@`` after the files of a learned schedule: its control.
_CONTROLS = ("staircase",)


def _registered(*, learned: bool) -> dict[str, NamedSchedule]:
    """The schedules of the registry that a run can name; the learned ones are learned during the run."""
    return {
        kind.name: NamedSchedule(
            summary=kind.summary, make=kind.for_run, source=kind.source, learns=learned, learned=learned
        )
        for kind in REGISTRY.values()
        if kind.name and issubclass(kind, LearnedSchedule) is learned
    }


#: Every schedule by name: those of the registry (``metastep.schedules.registry``), and those of the benchmark alone.
SCHEDULES: dict[str, NamedSchedule] = {
    **_registered(learned=False),
    **_registered(learned=True),
    PUBLISHED_SNAPSHOTS: NamedSchedule(
        summary="the published snapshots of MLR-SNet, for equal parts of the run",
        make=lambda steps: _published(),
        learned=True,
        source="arXiv 2007.14546",
    ),
}


def published_snapshots() -> list[Path]:
    """Return the files of the published snapshots, in the order of the steps after which they were kept; or none."""
    for root in data_roots():
        for folder in (root, root / "reference", root.parent / "reference"):
            files = sorted(folder.glob(_SNAPSHOT_FILES), key=lambda file: int(file.stem.rpartition("_")[2]))
            if files:
                return files
    return []


def is_from_files(schedule: str) -> bool:
    """Whether a schedule is read from files, which a run keeps a copy of."""
    return schedule not in SCHEDULES or schedule == PUBLISHED_SNAPSHOTS


def schedule_is_there(schedule: str) -> bool:
    """Whether a schedule can be made here: it is in the table, ships with the package, or its files are there."""
    if schedule == PUBLISHED_SNAPSHOTS:
        return bool(published_snapshots())
    return schedule in SCHEDULES or _files_of(schedule) is not None


def split_schedules(text: str) -> list[tuple[str, str]]:
    """Split a list of schedules into labels and schedules.

    The items are separated by commas; each is a schedule as :func:`make_schedule` takes it, or ``label=schedule``. Only
    what is no schedule as it stands is split, so the name of a file may hold commas, ``=``, ``+`` and ``@``.

    Example:
        >>> split_schedules("cosine, short=constant")
        [('cosine', 'cosine'), ('short', 'constant')]
    """

    def is_item(item: str) -> bool:
        label, _, schedule = item.partition("=")
        return _known(item) or ("," not in label and _known(schedule))

    items = _split(text, ",", is_item)
    return [_labelled(item.strip()) for item in items or text.split(",") if item.strip()]


def _labelled(item: str) -> tuple[str, str]:
    label, found, schedule = item.partition("=")
    if found and not _known(item):
        return label.strip(), schedule.strip()
    files, control = _files_of(item) or _as_typed(item)
    stem = "+".join(Path(file).stem for file in files)
    return (f"{stem}@{control}" if control else stem), item


def _known(schedule: str) -> bool:
    schedule = schedule.strip()
    return schedule in SCHEDULES or _files_of(schedule) is not None


def _files_of(schedule: str) -> tuple[list[str], str] | None:
    """The files, or names of shipped schedules, that a text joins by ``+``, and what follows ``@``; None: it is none.

    What exists as a file is a file, whatever is in its name.
    """
    if files := _split(schedule, "+", _is_file):
        return files, ""
    joined, found, control = schedule.rpartition("@")
    if found and control in _CONTROLS and (files := _split(joined, "+", _is_file)):
        return files, control
    return None


def _as_typed(schedule: str) -> tuple[list[str], str]:
    """What :func:`_files_of` gives where files are missing: the text is taken apart at every sign."""
    joined, _, control = schedule.partition("@")
    return joined.split("+"), control


def _is_file(text: str) -> bool:
    try:
        return text in shipped_schedules() or Path(text).is_file()
    except (OSError, ValueError):  # too long a name, or one with a zero byte
        return False


def _split(text: str, separator: str, known: Callable[[str], bool]) -> list[str] | None:
    """Split a text at separators so that every part is known, the first as long as can be; None if that cannot be."""
    parts = text.split(separator)
    for end in range(len(parts), 0, -1):
        first = separator.join(parts[:end])
        if not known(first):
            continue
        if end == len(parts):
            return [first]
        if (rest := _split(separator.join(parts[end:]), separator, known)) is not None:
            return [first, *rest]
    return None


def make_schedule(schedule: str, total_steps: int, *, text: bool) -> tuple[Schedule, bool]:
    """Return the schedule and whether it is to be learned during the run.

    Args:
        schedule: a name of :data:`SCHEDULES`; a schedule file, or the name of one that is shipped; or files joined by
            ``+``, the snapshots for equal parts of the run. ``@staircase`` after files replaces each snapshot by the
            constant at which it settles. What exists as a file is a file, whatever is in its name.
        total_steps: optimizer steps of the run.
        text: whether the task is a language model: a learned schedule then reads loss / ln V.

    Raises:
        ValueError: for an unknown name (with the nearest), or files that do not go together.
        FileNotFoundError: for a file that is not there.
    """
    if schedule in SCHEDULES:
        made, learns = SCHEDULES[schedule].make(total_steps), SCHEDULES[schedule].learns
    else:
        made, learns = _from_files(schedule), False
    if isinstance(made, LearnedSchedule) and not made.relative:
        _read_text(made, text)
    return made.with_total_steps(total_steps), learns


def refuse_another_base(schedule: Schedule, optimizer: str, options: Mapping[str, Any]) -> None:
    """Raise a ValueError if a schedule's rates are made for another base than this optimizer with these options."""
    base = base_of(optimizer)
    doubt = another_base(schedule, "sgd-momentum" if base == "sgd" and options.get("momentum") else base)
    if doubt is not None:
        raise ValueError(f"{doubt.rstrip('.')}. To try it all the same, add --allow-other-base.")


def _from_files(schedule: str) -> Schedule:
    files, control = _files_of(schedule) or _as_typed(schedule)
    if not any(_is_file(file) or Path(file).suffix or "/" in file for file in files):
        if instead := gone(schedule):
            raise ValueError(f"schedule must be another, got {schedule}: {instead}")
        raise unknown_name("schedule", schedule, [*SCHEDULES, *shipped_schedules()])
    if control not in ("", *_CONTROLS):
        raise ValueError(f"schedule may end in @staircase, got @{control}.")
    made = _together([load_schedule(file) for file in files])
    if control:
        made = (made if isinstance(made, Phased) else phases_of([made])).staircase()
    return made


def _read_text(schedule: LearnedSchedule, text: bool) -> None:
    """Tell a learned schedule, members included, whether its losses are a language model's."""
    scale: ScaleRule = replace(schedule.scale, text=text)
    for part in schedule.modules():
        if isinstance(part, LearnedSchedule) and not part.relative:
            part.scale = scale


@dataclass(frozen=True, kw_only=True)
class _ScaleOfRun(ScaleRule):
    """A scale that knows a number of the run."""

    value: float

    def config(self) -> dict[str, Any]:
        """What a file keeps: the rule without the value, which is the run's and not the schedule's."""
        return {name: part for name, part in super().config().items() if name != "value"}


@dataclass(frozen=True, kw_only=True)
class FixedScale(_ScaleOfRun):
    """A scale that is given and not measured, whatever the loss.

    Args:
        value: the scale, > 0.
    """

    @property
    def is_measured(self) -> bool:
        """Never."""
        return False

    def gamma(self, loss: float, num_classes: int, first: float | None = None) -> float:
        """Return the value."""
        del loss, num_classes, first
        return self.value


@dataclass(frozen=True, kw_only=True)
class MomentumScale(_ScaleOfRun):
    """The published scale, which was made for SGD without momentum, over momentum; the correction is ours.

    Momentum makes a step 1 / (1 - momentum) times as long, so the scale is divided by that.

    Args:
        value: the momentum, in [0, 1).
    """

    def gamma(self, loss: float, num_classes: int, first: float | None = None) -> float:
        """Return the published scale times 1 - momentum."""
        share = 1 - self.value
        return share * super().gamma(loss, num_classes, None if first is None else first / share)


def scaled_by(schedule: Schedule, value: float, kind: type[_ScaleOfRun] = FixedScale) -> Schedule:
    """Give a schedule that scales itself, members included, another scale; return it.

    Args:
        schedule: any; one whose output multiplies the base rate stays as it is.
        value: what the scale is made from.
        kind: of scale.
    """
    for part in schedule.modules():
        if isinstance(part, LearnedSchedule) and not part.relative:
            part.scale = kind(**part.scale.config(), value=value)
    return schedule
