"""Meta-training on several tasks: each rank trains one in a run folder of its own, and all learn one schedule."""

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import torch

from metastep.core.distributed import (
    all_gather_object,
    all_ranks,
    broadcast_object,
    current_rank,
    rank_count,
    separate_ranks,
)
from metastep.files import read_json, write_atomically
from metastep.lab.bench.config import MetaConfig, RunConfig, read_config
from metastep.lab.bench.run import Progress, Run
from metastep.lab.records import read_record, write_records
from metastep.lab.runtime.folder import CheckpointError, CheckpointFile, Folder
from metastep.lab.runtime.stop_signals import never
from metastep.meta import SharedSchedule
from metastep.schedules import load_schedule, save_schedule

SCHEMA = 2
_NAME = re.compile(r"\d\d+-[\w.-]{1,100}", re.ASCII)

ValueT = TypeVar("ValueT")


@dataclass(frozen=True, kw_only=True)
class TaskFolders:
    """``tasks.json``: the names of the run folders beside it, in the order of the ranks."""

    schema: int
    folders: tuple[str, ...]


def begin_tasks(configs: Sequence[RunConfig], folder: Path) -> None:
    """Write the folder of a new meta-training on several tasks: a run folder for each, and ``tasks.json``."""
    names = [f"{number:02d}-{config.task.replace('/', '-')}" for number, config in enumerate(configs)]
    for config, name in zip(configs, names, strict=True):
        every = config.checkpoint_every or max(1, config.total_steps // 20)  # in steps: alike on all ranks
        write_atomically(folder / name / "run.json", replace(config, checkpoint_every=every).to_json())
    write_atomically(
        folder / "tasks.json", json.dumps(asdict(TaskFolders(schema=SCHEMA, folders=tuple(names))), indent=2)
    )


def check_alike(configs: Sequence[RunConfig]) -> None:
    """Raise a ValueError unless all runs learn, and learn in the same steps."""
    for config in configs:
        first = configs[0]
        if config.meta is None:
            raise ValueError(f"meta must be given for every task, got None for {config.task}.")
        if config.total_steps != first.total_steps:
            raise ValueError(
                f"tasks must take equally many steps, got {first.total_steps} of {first.task} and "
                f"{config.total_steps} of {config.task}; give --steps."
            )
        if _outer_steps(config) != _outer_steps(first) or config.meta.snapshots != _meta(first).snapshots:
            raise ValueError(
                f"tasks must learn in the same steps, {first.task} and {config.task} do not; give --every."
            )


def read_tasks(folder: Path) -> list[tuple[str, RunConfig]]:
    """The names of the run folders in a folder, and their configurations, in the order of the ranks.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they cannot be read, or were written by a version that trained tasks in workers.
    """
    path = folder / "tasks.json"
    if not path.is_file():
        raise FileNotFoundError(f"no tasks in {folder}; --resume wants a folder that meta-train of tasks made.")
    found = read_json(path, dict[str, Any])
    if found.get("schema") == 1:
        raise ValueError(
            f"{path} is of an earlier version, which trained each task in a worker; resume it with that version, or "
            "begin anew in another folder."
        )
    folders = read_json(path, TaskFolders)
    if folders.schema != SCHEMA:
        raise ValueError(f"{path} has schema {folders.schema!r}, this version reads {SCHEMA}.")
    wrong = [name for name in folders.folders if _NAME.fullmatch(name) is None or not (folder / name).is_dir()]
    if wrong or not folders.folders:
        raise ValueError(f"{path} must name the run folders beside it, got {wrong[0] if wrong else 'none'!r}.")
    tasks = [(name, read_config(folder / name)) for name in folders.folders]
    check_alike([config for _, config in tasks])
    return tasks


def train_tasks(
    folder: Path,
    configs: Sequence[RunConfig] = (),
    *,
    should_stop: Callable[[], bool] = never,
    on_progress: Callable[[Progress], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> dict[str, Any] | None:
    """Train this rank's task and learn the schedule that all share; call it on every rank.

    The ranks exchange one message in an outer step, and none between. All checkpoint at the same steps, so a resume
    continues, bit for bit, from the newest checkpoints that belong to one outer step.

    Args:
        folder: where; made if needed, and seen by all ranks. If it holds such a training, that is resumed.
        configs: the runs of the tasks, in the order of the ranks, where it begins.
        should_stop: asked in every outer step, and before every step after the last of them; if it is True on one rank,
            all ranks stop there, with a checkpoint.
        on_progress: called with the progress of this rank's own task.
        on_note: called with what a person should know.

    Returns:
        What came out: ``schedule.safetensors`` and ``records.jsonl`` are then written; None if it was stopped.

    Raises:
        ValueError: if a task cannot be run, or has diverged before the last outer step.
        ConnectionError: if another rank is lost.
        OSError: if something cannot be read or written.
    """
    rank, stack = current_rank(), ExitStack()

    def begin() -> None:
        if rank == 0:
            stack.enter_context(Folder(folder))
            if configs and not (folder / "tasks.json").is_file():
                begin_tasks(configs, folder)

    with stack:
        on_all_ranks(lambda: check_alike(configs))
        _check_count(len(configs) or rank_count())
        on_all_ranks(begin)
        tasks = on_all_ranks(lambda: read_tasks(folder))
        _check_count(len(tasks))
        name, config = tasks[rank]
        _choose_device(config.device, rank)
        done = on_all_ranks(lambda: _is_done(folder / name, config))
        if not all(all_gather_object(done)):
            on_all_ranks(lambda: align_checkpoints(folder / name, config, on_note))
            status = _train(folder / name, config, should_stop, on_progress, on_note)
            on_all_ranks(lambda: _is_done(folder / name, config))  # which raises for a task that diverged
            if "stopped" in all_gather_object(status):
                return None
        result = on_all_ranks(lambda: _write_result(folder, tasks) if rank == 0 else {})
        return dict(broadcast_object(result))


def _check_count(tasks: int) -> None:
    if tasks != rank_count():
        raise FailedTogether(
            f"ranks must be as many as tasks, got {rank_count()} for {tasks}; run torchrun --nproc-per-node {tasks}, "
            "or no torchrun: the command then starts them itself."
        )


def _train(
    folder: Path,
    config: RunConfig,
    should_stop: Callable[[], bool],
    on_progress: Callable[[Progress], None] | None,
    on_note: Callable[[str], None] | None,
) -> str:
    """Train this rank's task; return how it ended."""
    last = max(_outer_steps(config), default=-1)

    def stops() -> bool:
        return shared.stopping or (run.trainer.steps > last and should_stop())

    def make_run() -> Run:
        with separate_ranks():
            return Run(config, folder, should_stop=stops, on_progress=on_progress, on_note=on_note)

    run = on_all_ranks(make_run)
    assert run.trainer.learner is not None
    shared = SharedSchedule(run.trainer.lr.schedule, all_ranks(), should_stop=should_stop)
    run.trainer.learner.shared = shared
    with separate_ranks():
        run.execute()
    if run.status == "diverged" and run.trainer.steps <= last:
        shared.mean(None, stop=True)  # the others wait in their next outer step, and stop there
    return run.status


def on_all_ranks(action: Callable[[], ValueT]) -> ValueT:
    """Do something on every rank; where it fails on one, all ranks raise what that one says.

    Raises:
        FailedTogether: on all ranks, if any raises a ValueError, an OSError or an ImportError.
    """
    error: Exception | None = None
    try:
        value = action()
    except (ValueError, OSError, ImportError) as found:
        error = found
    errors = [text for text in all_gather_object(None if error is None else str(error)) if text is not None]
    if errors:
        raise FailedTogether(errors[0]) from error
    return value


class FailedTogether(ValueError):
    """What one rank could not do, raised on all of them."""


def align_checkpoints(folder: Path, config: RunConfig, on_note: Callable[[str], None] | None = None) -> None:
    """Make the newest checkpoint of this rank's run one that belongs to the same outer step as those of all ranks.

    A kill may come when some ranks have written a checkpoint and others have not; each keeps the one before, too.
    Where the ranks have no outer step in common, all begin again.

    Args:
        folder: of this rank's run.
        config: of the run.
        on_note: called with what a person should know.

    Raises:
        CheckpointError: if there are checkpoints, and none can be read.
    """
    file, tell = CheckpointFile(folder / "checkpoint.pt"), on_note or (lambda text: None)
    outer, offered = _outer_steps(config), dict[int, dict[str, Any]]()
    note = None
    if file.exists():
        newest, note = file.load()
        states = [newest]
        if file.previous.exists() and "went back" not in (note or ""):
            with suppress(CheckpointError):
                states.append(CheckpointFile(file.previous).load()[0])
        for state in states:
            offered.setdefault(sum(step < _steps_of(state, folder) for step in outer), state)
    ranks = all_gather_object(sorted({0, *offered}))
    common = max(set[int].intersection(*map(set, ranks)))
    if not offered or common == next(iter(offered)):
        return  # the run itself tells the note
    if note is not None:
        tell(note)
    (folder / "record.json").unlink(missing_ok=True)  # its last steps are taken again
    if common in offered:
        file.save(offered[common])
        return
    tell(f"{folder.name} begins again: the checkpoints of the tasks have no outer step in common.")
    for path in folder.glob("checkpoint*"):
        path.unlink()


def _steps_of(state: dict[str, Any], folder: Path) -> int:
    trainer = state.get("trainer")
    steps = trainer.get("steps") if isinstance(trainer, dict) else None
    if not isinstance(steps, int):
        raise CheckpointError(f"the checkpoint in {folder} is damaged, or of another run: it has no number of steps.")
    return steps


def _is_done(folder: Path, config: RunConfig) -> bool:
    """Whether the run in a folder has come to its end.

    Raises:
        ValueError: if it has diverged before the last outer step, so that the others cannot continue with it.
    """
    path = folder / "record.json"
    record = read_record(path) if path.is_file() else None
    if record is not None and record.status == "diverged":
        step = int(record.train["step"][-1] or 0)
        if step <= max(_outer_steps(config), default=-1):
            raise ValueError(
                f"{folder.name} diverged at step {step}, and the tasks learn one schedule together; "
                "begin anew without it, or with a lower rate."
            )
    return record is not None


def _write_result(folder: Path, tasks: Sequence[tuple[str, RunConfig]]) -> dict[str, Any]:
    """Write ``schedule.safetensors`` and ``records.jsonl``; return what came out."""
    records = {name: read_record(folder / name / "record.json") for name, _ in tasks}
    learned = next((name for name, record in records.items() if record.status == "finished"), None)
    if learned is None:
        raise ValueError(f"no task in {folder} has finished; begin anew with lower rates.")
    learned_on = [config.task for _, config in tasks]
    schedule = load_schedule(folder / learned / "schedule.safetensors")
    save_schedule(schedule, folder / "schedule.safetensors", learned_on=learned_on)
    labelled = [msgspec.structs.replace(record, label=name) for name, record in records.items()]
    write_records(labelled, folder / "records.jsonl")
    return {
        "status": "finished",
        "outer_steps": len(_outer_steps(tasks[0][1])),
        "learned_on": learned_on,
        "tasks": [
            {
                "label": name,
                "task": config.task,
                "seed": config.seed,
                "status": records[name].status,
                "steps": config.total_steps,
                "final": records[name].final,
            }
            for name, config in tasks
        ],
    }


def _outer_steps(config: RunConfig) -> list[int]:
    """The steps (0-based) in which a run learns."""
    return list(filter(_meta(config).learns_at, range(config.total_steps)))


def _meta(config: RunConfig) -> MetaConfig:
    assert config.meta is not None
    return config.meta


def _choose_device(device: str, rank: int) -> None:
    if device == "cuda" and torch.cuda.is_available():  # several ranks may share one: their messages go by the CPU
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())
