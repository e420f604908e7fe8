"""The schedules a run can name: the closed forms, MLR-SNet learned in the loop, and schedules in files."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from metastep.bench.names import unknown_name
from metastep.schedules import (
    Constant,
    Cosine,
    Exponential,
    MLRSNet,
    MultiStep,
    OneCycle,
    Phased,
    ScaleRule,
    Schedule,
    Staircase,
    WarmRestarts,
    WarmupStableDecay,
    load_schedule,
    shipped_schedules,
)


@dataclass(frozen=True, kw_only=True)
class NamedSchedule:
    """A named schedule.

    Args:
        summary: one line for ``metastep list``.
        make: makes it for a run of so many steps.
        learns: whether its weights are learned during the run.
        source: where it is from.
    """

    summary: str
    make: Callable[[int], Schedule]
    learns: bool = False
    source: str = ""


def _multistep(total_steps: int) -> Schedule:
    return MultiStep(milestones=[max(1, total_steps // 2), max(2, total_steps * 3 // 4)], gamma=0.1)


def _exponential(total_steps: int) -> Schedule:
    return Exponential(gamma=0.01 ** (1 / total_steps))


#: Every schedule by name. A new one is a line here, a file in ``schedules/``, and a test.
SCHEDULES: dict[str, NamedSchedule] = {
    "constant": NamedSchedule(summary="the base rate throughout", make=lambda steps: Constant()),
    "multistep": NamedSchedule(summary="a tenth after 1/2 and after 3/4 of the run", make=_multistep),
    "exponential": NamedSchedule(summary="geometric decay to 1/100", make=_exponential),
    "cosine": NamedSchedule(
        summary="half a cosine to zero", make=lambda steps: Cosine(total_steps=steps), source="arXiv 1608.03983"
    ),
    "sgdr": NamedSchedule(
        summary="cosine with warm restarts, at 1/7 and 3/7 of the run",
        make=lambda steps: WarmRestarts(T_0=max(1, steps // 7), T_mult=2),
        source="arXiv 1608.03983",
    ),
    "onecycle": NamedSchedule(
        summary="up for 30 % of the run, then down",
        make=lambda steps: OneCycle(total_steps=steps),
        source="arXiv 1708.07120",
    ),
    "wsd": NamedSchedule(
        summary="warm-up, stable, linear decay at the end",
        make=lambda steps: WarmupStableDecay(total_steps=steps),
        source="arXiv 2404.06395",
    ),
    "staircase": NamedSchedule(
        summary="three equal steps of 1, 1/10, 1/100",
        make=lambda steps: Staircase((1.0, 0.1, 0.01), total_steps=steps),
    ),
    "mlr-snet": NamedSchedule(
        summary="an LSTM on the loss, learned in the loop on inner_valid",
        make=lambda steps: MLRSNet(),
        learns=True,
        source="arXiv 2007.14546",
    ),
}


def make_schedule(schedule: str, total_steps: int, *, text: bool) -> tuple[Schedule, bool]:
    """Return the schedule and whether it is to be learned during the run.

    Args:
        schedule: a name of :data:`SCHEDULES`; a schedule file, or the name of one that is shipped; or files joined by
            ``+``, the snapshots for equal parts of the run. ``@staircase`` after files replaces each snapshot by the
            constant at which it settles.
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
    if not made.relative:
        _read_text(made, text)
    return made.with_total_steps(total_steps), learns


def _from_files(schedule: str) -> Schedule:
    files, _, control = schedule.partition("@")
    parts, shipped = files.split("+"), shipped_schedules()
    if not any(part in shipped or Path(part).suffix or "/" in part or Path(part).is_file() for part in parts):
        raise unknown_name("schedule", schedule, [*SCHEDULES, *shipped])
    if control not in ("", "staircase"):
        raise ValueError(f"schedule may end in @staircase, got @{control}.")
    members = [load_schedule(part) for part in parts]
    made = members[0] if len(members) == 1 else Phased(members)
    if control:
        made = (made if isinstance(made, Phased) else Phased([made])).staircase()
    return made


def _read_text(schedule: Schedule, text: bool) -> None:
    """Tell a learned schedule, members included, whether its losses are a language model's."""
    scale: ScaleRule = replace(schedule.scale, text=text)
    for part in schedule.modules():
        if isinstance(part, Schedule) and not part.relative:
            part.scale = scale
