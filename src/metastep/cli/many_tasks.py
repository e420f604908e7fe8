"""How ``metastep meta-train`` leads several tasks, and shows what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from metastep.cli import options as o
from metastep.cli.display import note, run_bar, say, show, stop_notice
from metastep.cli.tables import tasks_table
from metastep.lab.bench.torchrun import under_torchrun

if TYPE_CHECKING:
    from pathlib import Path

    from metastep.lab.bench.config import RunConfig
    from metastep.lab.bench.task_messages import Workers

#: Where the workers are.
ENGINES = ("local", "ray")


def begin_many(configs: list[RunConfig], folder: Path, engine: str, address: str | None, *, json: bool) -> None:
    """Learn one schedule on several tasks, in a new folder."""
    _lead(configs, folder, engine, address, json=json)


def resume_many(folder: Path, engine: str, address: str | None, *, json: bool) -> None:
    """Go on in a folder; the workers may be elsewhere than before."""
    from metastep.lab.bench.task_folder import read_tasks

    _lead(read_tasks(folder), folder, engine, address, json=json)


def _lead(configs: list[RunConfig], folder: Path, engine: str, address: str | None, *, json: bool) -> None:
    from metastep.lab.bench.many_tasks import ManyTasks
    from metastep.lab.runtime.stop_signals import StopSignal

    if under_torchrun():
        raise ValueError("tasks must be one under torchrun, got several; without it they have workers: --engine.")
    if address is not None and engine != "ray":
        raise ValueError(f"address must be left out for the engine {engine}, got {address}; it is for --engine ray.")
    resume = o.resume_command("meta-train", folder) + ("" if engine == "local" else f" --engine {engine}")

    def workers() -> Workers:
        if engine == "local":
            from metastep.lab.bench.task_processes import LocalWorkers

            return LocalWorkers()
        from metastep.lab.bench.task_ray import RayWorkers

        return RayWorkers(len(configs), address, cuda=any(config.device.startswith("cuda") for config in configs))

    with run_bar(folder.name, quiet=json) as watch, StopSignal(stop_notice) as stop:
        many = ManyTasks(configs, folder, workers=workers, should_stop=stop, on_progress=watch, on_note=note)
        with o.says_how_to_resume(resume, folder):
            result = many.execute()
    if result is None:
        raise o.Stopped(resume, stop.exit_code)
    _show(result, folder, json=json)


def _show(result: dict[str, Any], folder: Path, *, json: bool) -> None:
    if json:
        o.print_json({**result, "folder": str(folder)})
        return
    show(tasks_table(result))
    say(f"folder: {folder}")
    path = folder / "schedule.safetensors"
    say(f"learned schedule: {path}  (look at it: metastep inspect {path})")
