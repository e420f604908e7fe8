"""``metastep inspect``: what a schedule file holds, and what rates it would set."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from metastep.cli import options as o
from metastep.cli.display import say, show

if TYPE_CHECKING:
    from collections.abc import Sequence

    from metastep.schedules import Schedule

_BARS = "▁▂▃▄▅▆▇█"


def inspect(
    file: Annotated[str, typer.Argument(help="A schedule: a file of ours, a published .pth, or a name we ship.")],
    steps: Annotated[int, typer.Option(help="Steps to show.")] = 300,
    num_classes: Annotated[int, typer.Option(help="Classes of the task that the losses stand for.")] = 10,
    gate_layout: Annotated[
        str | None, typer.Option(help="For published .pth files: ifgo (default) or ifog_shifted.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="PNG to draw; default: FILE's name with -rates.png, here.")] = None,
    json: o.Json = False,
) -> None:
    """Show a schedule's configuration and the rate it would set for a falling, a rising and a flat loss."""
    from metastep.schedules import load_schedule
    from metastep.schedules.files import read_schedule_file

    if steps < 2:
        raise ValueError(f"steps must be >= 2, got {steps}.")
    if num_classes < 2:
        raise ValueError(f"num_classes must be >= 2, got {num_classes}.")
    schedule = load_schedule(file, gate_layout).with_total_steps(steps)  # type: ignore[arg-type]
    found = _answers(schedule, steps, num_classes)
    facts = {
        "class": type(schedule).__name__,
        "weights": sum(weight.numel() for weight in schedule.parameters()),
        "bytes": len(read_schedule_file(file)),
        "config": schedule.config(),
    }
    if json:
        o.print_json({**facts, **found})
        return
    show(_facts_table(file, facts))
    show(_rates_table(found["rates"]))
    _say_settled(found["settled"], num_classes)
    from metastep.lab.report import write_rate_picture

    target = plot or Path(f"{Path(file).stem}-rates.png")
    say(f"plot: {write_rate_picture(found['rates'], target, title=f'Learning rate of {Path(file).name}')}")


def _answers(schedule: Schedule, steps: int, num_classes: int) -> dict[str, Any]:
    """The rates for made-up losses, and where each snapshot settles."""
    start = math.log(num_classes)
    losses = {
        "falling": [start * (1 - 0.95 * step / (steps - 1)) for step in range(steps)],
        "rising": [start * (0.05 + 0.95 * step / (steps - 1)) for step in range(steps)],
        "flat": [start / 2] * steps,
    }
    rates = {name: _rates(schedule, values, num_classes, start) for name, values in losses.items()}
    return {"rates": rates, "settled": _settled(schedule, num_classes)}


def _rates(schedule: Schedule, losses: Sequence[float], num_classes: int, initial: float) -> list[float]:
    """The rates for a sequence of losses; those of a relative schedule are factors of the base rate."""
    from metastep.schedules.base import LearnedSchedule

    rule = schedule.scale if isinstance(schedule, LearnedSchedule) and not schedule.relative else None
    scale = rule.gamma(initial, num_classes) if rule else 1.0
    state, rates = schedule.init_state(), []
    for loss in losses:
        alpha, state = schedule.query(float(rule.normalize(loss, num_classes)) if rule else loss, state)
        rates.append(scale * alpha)
    return rates


def _settled(schedule: Schedule, num_classes: int, losses: int = 12) -> list[dict[str, float]]:
    """Between which outputs each snapshot of a learned schedule settles, over constant losses from 0 to ln C."""
    from metastep.schedules.base import LearnedSchedule
    from metastep.schedules.phased import Phased, settled_output

    if schedule.relative or not isinstance(schedule, LearnedSchedule):
        return []
    snapshots: list[Any] = list(schedule.schedules) if isinstance(schedule, Phased) else [schedule]
    grid = [math.log(num_classes) * place / (losses - 1) for place in range(losses)]
    found = []
    for number, snapshot in enumerate(snapshots, start=1):
        outputs = [settled_output(snapshot, float(schedule.scale.normalize(x, num_classes))) for x in grid]
        low, high = min(outputs), max(outputs)
        reaction = (high - low) / (sum(outputs) / losses)
        found.append({"snapshot": number, "lowest": low, "highest": high, "reaction": reaction})
    return found


def _say_settled(settled: Sequence[dict[str, float]], num_classes: int) -> None:
    highest = math.log(num_classes)
    for phase in settled:
        say(
            f"Fed any constant loss from 0 to {highest:.2f}, snapshot {phase['snapshot']} settles between "
            f"{phase['lowest']:.4f} and {phase['highest']:.4f}: it reacts by {phase['reaction']:.1%}."
        )


def _facts_table(file: str, facts: dict[str, Any]) -> Table:
    table = Table(title=escape(file), title_justify="left", show_header=False, box=None, pad_edge=False)
    table.add_row("class", facts["class"])
    table.add_row("weights", f"{facts['weights']:,} ({facts['bytes'] / 1024:.0f} KiB)")
    config = facts["config"]
    if "schedules" in config:
        table.add_row("phases", str(len(config["schedules"])))
        config = {"of each": config["schedules"][0]["class"], **config["schedules"][0]["config"]}
    for name, value in config.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        table.add_row(name, escape(shown))
    return table


def _rates_table(rates: dict[str, list[float]]) -> Table:
    table = Table(title="rates", title_justify="left", box=None, pad_edge=False)
    for heading in ("loss", "first", "middle", "last", "course"):
        table.add_column(heading, justify="left" if heading in ("loss", "course") else "right")
    high = max(max(values) for values in rates.values()) or 1.0
    for name, values in rates.items():
        points = [values[0], values[len(values) // 2], values[-1]]
        table.add_row(name, *(f"{value:.4g}" for value in points), _course(values, high))
    return table


def _course(values: Sequence[float], high: float, width: int = 40) -> str:
    picked = [values[round(place * (len(values) - 1) / (width - 1))] for place in range(width)]
    return "".join(_BARS[min(int(value / high * len(_BARS)), len(_BARS) - 1)] for value in picked)
