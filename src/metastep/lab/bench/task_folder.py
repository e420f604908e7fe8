"""The folder of a population: its runs, its log, its checkpoint, and what comes out."""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metastep.files import write_atomically
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.curves import CurveLog
from metastep.lab.bench.records import make_record, write_record, write_records
from metastep.lab.bench.task_messages import Ended, Entry, Facts, Ready
from metastep.lab.runtime.folder import CheckpointFile
from metastep.meta.averaging import Lesson
from metastep.schedules import Phased, Schedule, load_schedule, save_schedule

SCHEMA = 1


@dataclass(kw_only=True, eq=False)
class Member:
    """A task of a population, as whoever leads sees it.

    ``status`` is "running", "finished", "diverged", "dropped" or "cut short" (it had to begin again, and the
    others were done); ``phase`` is where its worker stands: "starting", "training", "arrived" at a
    meta-step, "learning" in it, "waiting" for the new weights, "stopped".
    """

    number: int
    label: str
    config: RunConfig
    status: str = "running"
    phase: str = "starting"
    losses: int = 0
    state: dict[str, Any] | None = None
    fresh_state: bool = False
    ready: Ready | None = None
    facts: Facts | None = None
    lesson: Lesson = None
    validation_loss: float | None = None
    step: int = 0
    loss: float = 0.0
    lr: float = 0.0
    log: CurveLog | None = None
    record: dict[str, Any] | None = None


class TasksFolder:
    """``tasks.json``, ``checkpoint.pt``, ``snapshots/``, ``tasks/LABEL/`` with each one's curves and record.

    Args:
        path: the folder.
        configs: the runs of the tasks.

    Raises:
        ValueError: for runs that learn nothing, or others than those in the folder.
    """

    def __init__(self, path: Path, configs: Sequence[RunConfig]) -> None:
        if not configs:
            raise ValueError("tasks must name at least one task, got none.")
        lazy = [config.task for config in configs if config.meta is None]
        if lazy:
            raise ValueError(f"meta must be given for every task, got None for {', '.join(lazy)}.")
        self.path = path
        self.members = [
            Member(number=k, label=f"{k:02d}-{config.task.replace('/', '-')}", config=config)
            for k, config in enumerate(configs)
        ]
        self._checkpoint = CheckpointFile(path / "checkpoint.pt")
        longest = max(configs, key=_meta_steps)
        assert longest.meta is not None
        self.rounds = _meta_steps(longest)
        self._snapshots = sorted({_meta_steps(longest, step) for step in longest.meta.snapshots} | {self.rounds})
        if self._config.is_file() and read_tasks(path) != list(configs):
            raise ValueError(f"tasks must be those of the population in {path}, got others; use a new folder.")

    @property
    def _config(self) -> Path:
        return self.path / "tasks.json"

    @property
    def threads_each(self) -> int:
        """CPU threads of a worker of this machine, where its run does not say."""
        return max(1, (os.cpu_count() or 1) // len(self.members))

    def begin(self) -> None:
        """Write what is to be done."""
        if not self._config.is_file():
            runs = [json.loads(member.config.to_json()) for member in self.members]
            write_atomically(self._config, json.dumps({"schema": SCHEMA, "tasks": runs}, indent=2))

    # ---- logs and records

    def folder_of(self, member: Member) -> Path:
        """Where a task's curves and record lie."""
        return self.path / "tasks" / member.label

    def open_log(self, member: Member) -> None:
        """Go on with a task's curves from its state; later entries are cut off."""
        if member.log is not None:
            member.log.close()
        folder = self.folder_of(member)
        folder.mkdir(parents=True, exist_ok=True)
        step = 0 if member.state is None else member.state["trainer"]["steps"]
        member.log = CurveLog(folder, after=step, tensorboard=False)

    def log(self, member: Member, entries: list[Entry]) -> None:
        """Write entries of a task."""
        assert member.log is not None
        for split, step, values in entries:
            member.log.write(split, step, values)

    def keep(self, member: Member, ended: Ended) -> None:
        """Write the record of a task that has ended."""
        assert member.log is not None
        assert member.facts is not None
        member.log.sync()
        record = make_record(
            member.config,
            member.facts,
            status=ended.status,
            entries=member.log.path,
            final=ended.final,
            inner={},
            train_seconds=ended.train_seconds,
            eval_seconds=ended.eval_seconds,
            scale=ended.scale,
            learned=True,
        )
        member.record = {**record, "label": member.label}
        write_record(member.record, self.folder_of(member) / "record.json")

    def close(self) -> None:
        """Let go of the logs."""
        for member in self.members:
            if member.log is not None:
                member.log.close()

    # ---- checkpoints

    def save(self, rounds: int, shared: dict[str, Any] | None) -> None:
        """Write the checkpoint: the schedule, the meta-optimizer, and every task."""
        for member in self.members:
            if member.log is not None and member.status == "running":
                member.log.sync()
        kept = ("status", "losses", "state", "record")
        tasks = [{name: getattr(member, name) for name in kept} for member in self.members]
        self._checkpoint.save({"round": rounds, "shared": shared, "tasks": tasks})

    def load(self) -> tuple[dict[str, Any], str | None] | None:
        """The newest good checkpoint, and what a person should know; the members are then as it says."""
        if not self._checkpoint.exists():
            return None
        state, note = self._checkpoint.load()
        for member, kept in zip(self.members, state["tasks"], strict=True):
            for name, value in kept.items():
                setattr(member, name, value)
        return state, note

    def state_of(self, member: Member) -> dict[str, Any] | None:
        """A task's state in the last checkpoint."""
        if not self._checkpoint.exists():
            return None
        state: dict[str, Any] | None = self._checkpoint.load()[0]["tasks"][member.number]["state"]
        return state

    # ---- schedules

    @property
    def _first(self) -> Path:
        return self.path / "snapshots" / "first.safetensors"

    def keep_first_schedule(self, schedule: Schedule) -> None:
        """Write the schedule that it began with, unless that is there."""
        if not self._first.is_file():
            save_schedule(schedule, self._first)

    def take_snapshot(self, rounds: int, schedule: Schedule) -> None:
        """Write the schedule if one is kept after so many rounds."""
        if rounds in self._snapshots:
            kept = load_schedule(self._first)  # whose scale rule is the first task's
            kept.load_state_dict(schedule.state_dict())
            save_schedule(kept, self._snapshot(rounds))

    def _snapshot(self, rounds: int) -> Path:
        return self.path / "snapshots" / f"round-{rounds:05d}.safetensors"

    # ---- the end

    def result(self) -> dict[str, Any] | None:
        """What came out, if it is done.

        Raises:
            ValueError: if the file is damaged.
        """
        path = self.path / "population.json"
        if not path.is_file():
            return None
        try:
            found: dict[str, Any] = json.loads(path.read_text())
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); without it the last rounds are taken again.") from error
        return found

    def finish(self, rounds: int) -> dict[str, Any]:
        """Write ``schedule.safetensors``, ``records.jsonl`` and ``population.json``; return the last."""
        files = [file for file in map(self._snapshot, self._snapshots) if file.is_file()]
        snapshots = [load_schedule(file) for file in files]
        learned_on = [member.config.task for member in self.members if member.status != "dropped"]
        learned = Phased(snapshots) if len(snapshots) > 1 else snapshots[0]
        save_schedule(learned, self.path / "schedule.safetensors", learned_on=learned_on)
        write_records([m.record for m in self.members if m.record is not None], self.path / "records.jsonl")
        result = {
            "schema": SCHEMA,
            "status": "finished",
            "rounds": rounds,
            "lost_workers": sum(member.losses for member in self.members),
            "learned_on": learned_on,
            "tasks": [
                {
                    "label": member.label,
                    "task": member.config.task,
                    "seed": member.config.seed,
                    "status": member.status,
                    "lost_workers": member.losses,
                    "steps": member.config.total_steps,
                    "final": {} if member.record is None else member.record["final"],
                }
                for member in self.members
            ],
            "command": shlex.join(["metastep", *sys.argv[1:]]),
        }
        write_atomically(self.path / "population.json", json.dumps(result, allow_nan=False) + "\n")
        return result


def read_tasks(folder: Path) -> list[RunConfig]:
    """The runs of the population in a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if they cannot be read.
    """
    path = folder / "tasks.json"
    if not path.is_file():
        raise FileNotFoundError(f"no population in {folder}; --resume wants a folder that meta-train of tasks made.")
    try:
        values = json.loads(path.read_text())
        schema, tasks = values["schema"], list(values["tasks"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no description of tasks: {error}") from error
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}, this version reads {SCHEMA}.")
    try:
        return [RunConfig.from_json(json.dumps(task)) for task in tasks]
    except ValueError as error:
        raise ValueError(f"{path} is no description of tasks: {error}") from error


def _meta_steps(config: RunConfig, before: int | None = None) -> int:
    """Meta-steps of a run, or those among its first steps."""
    assert config.meta is not None
    steps = config.total_steps if before is None else before
    return sum(map(config.meta.learns_at, range(steps)))
