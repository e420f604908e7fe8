"""How a command begins one run, or goes on with it, and shows what came out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.cli import options as o
from metastep.cli.display import note, run_bar, say, show, stop_notice
from metastep.cli.tables import run_summary

if TYPE_CHECKING:
    from pathlib import Path

    from metastep.lab.bench.config import RunConfig


def execute_run(config: RunConfig | None, folder: Path, json: bool, command: str) -> None:
    """Run a new configuration in a folder, or go on with the run in it."""
    from metastep.lab.bench.config import read_config
    from metastep.lab.bench.run import Run
    from metastep.lab.bench.torchrun import is_rank_zero, process_group
    from metastep.lab.records import read_record
    from metastep.lab.runtime.stop_signals import StopSignal

    resume = o.resume_command(command, folder)
    record = None
    if config is None:
        config = read_config(folder)
        if (path := folder / "record.json").is_file():
            record = read_record(path)
    first = is_rank_zero()
    if record is None:
        with (
            process_group(config.device),
            run_bar(folder.name, quiet=json or not first) as watch,
            StopSignal(stop_notice if first else None) as stop,
        ):
            run = Run(config, folder, should_stop=stop, on_progress=watch, on_note=note if first else None)
            with o.says_how_to_resume(resume, folder):
                record = run.execute()
        if run.status == "stopped":
            raise o.Stopped(resume, stop.exit_code)
    if not first:
        return
    if json:
        o.print_json({**record.as_dict(), "folder": str(folder)})
        return
    show(run_summary(record))
    say(f"folder: {folder}")
    if config.meta is not None and record.status == "finished":
        path = folder / "schedule.safetensors"
        say(f"learned schedule: {path}  (look at it: metastep inspect {path})")
