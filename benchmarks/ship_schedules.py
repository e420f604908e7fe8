"""Write the schedules that ship inside the package, and their cards, from ``results/shipped.toml`` and its records.

python benchmarks/ship_schedules.py            # all of them
python benchmarks/ship_schedules.py --only mlrsnet-cifar10 --out FOLDER
"""

import argparse
import json
import tomllib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from metastep.files import write_atomically
from metastep.schedules import LearnedSchedule, Schedule, load_schedule, save_schedule
from metastep.schedules.model_card import ScheduleCard, Transfer

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
PRETRAINED = ROOT / "src" / "metastep" / "schedules" / "pretrained"


def read_plan() -> dict[str, dict[str, Any]]:
    """What is to be shipped, by name."""
    return tomllib.loads((RESULTS / "shipped.toml").read_text(encoding="utf-8"))


def shipped_schedule(entry: dict[str, Any]) -> Schedule:
    """The learned schedule, with the changes that the plan asks for in its scale rule and its members'."""
    schedule = load_schedule(RESULTS / entry["schedule"])
    if "trained_for" in entry and isinstance(schedule, LearnedSchedule):
        schedule.learned_for(entry["trained_for"])
    for part in schedule.modules():
        if "scale" in entry and isinstance(part, LearnedSchedule):
            part.scale = replace(part.scale, **entry["scale"])
    return schedule


def card(name: str, entry: dict[str, Any]) -> ScheduleCard:
    """The card, from the plan and the records that it names."""
    return ScheduleCard(
        name=name,
        summary=entry["summary"],
        usage=f'schedule = ms.load_schedule("{name}")',
        training=[record for path in entry["training"] for record in read(path)],
        changed=entry.get("changed", ""),
        transfer=[transfer(part) for part in entry.get("transfer", [])],
        limits=entry["limits"],
        tags=entry.get("tags", []),
    )


def transfer(part: dict[str, Any]) -> Transfer:
    """One table; the first of its rows is the schedule's own.

    A row is the label of its records, or a table of what they have in common. Those of an experiment are of one task,
    too, and of the rate that was chosen.
    """
    common = {"rate_factor": 1.0, "task": part["task"]} if "task" in part else {}
    records = [record for path in part["records"] for record in read(path)]
    rows = {}
    for shown, row in part["rows"].items():
        wanted = {**common, **(row if isinstance(row, dict) else {"label": row})}
        rows[shown] = [one for one in records if all(one[key] == value for key, value in wanted.items())]
    source = ", ".join(f"`results/{path}`" for path in part["records"])
    return Transfer(title=part["title"], records=rows, ours=next(iter(rows)), source=source, note=part.get("note", ""))


def read(path: str) -> Iterator[dict[str, Any]]:
    """The records of a ``.json`` file or of the lines of a ``.jsonl`` file."""
    text = (RESULTS / path).read_text(encoding="utf-8")
    for line in text.splitlines() if path.endswith(".jsonl") else [text]:
        yield json.loads(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one name of the plan; default: all")
    parser.add_argument("--out", type=Path, default=PRETRAINED, help="folder to write to; default: the package's")
    options = parser.parse_args()
    plan = read_plan()
    for name in [options.only] if options.only else plan:
        schedule = shipped_schedule(plan[name])
        save_schedule(schedule, options.out / f"{name}.safetensors")
        write_atomically(options.out / f"{name}.md", card(name, plan[name]).markdown(schedule))
        print(f"{name}: {(options.out / f'{name}.safetensors').stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
