"""Meta-training over a population, in a folder: checkpoints, a log, the schedule, a record."""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metastep.files import write_atomically
from metastep.lab.evolution import PopulationConfig, PopulationTrainer
from metastep.lab.evolution.curve import learned_curve
from metastep.lab.evolution.distribution import TRAINED_ON
from metastep.lab.evolution.jobs import Engine, here
from metastep.lab.runtime.folder import CheckpointFile, Folder
from metastep.lab.runtime.provenance import provenance
from metastep.lab.runtime.stop_signals import never
from metastep.schedules import SignalSchedule, save_schedule

_SETTINGS = "population.json"
_SECONDS = 60.0
#: What LearnedLR calls the optimizers of a base.
_NAMES = {"sgd": "sgd, sgd-momentum", "adamw": "adamw"}


@dataclass(frozen=True)
class PopulationProgress:
    """Where a meta-training stands.

    Attributes:
        done: steps taken, of the survey and of the meta-optimizer.
        total: of both.
        surveying: whether the survey is still on.
        meta_loss: mean over the last 20 steps: of the survey, the log loss of the best level.
        curve: the rate that the schedule sets on a reference task, over that of its first step, at equal intervals.
    """

    done: int
    total: int
    surveying: bool
    meta_loss: float
    curve: tuple[float, ...]


class PopulationRun:
    """Trains a signal schedule over a population; stops at any step and goes on bit for bit.

    The folder then holds ``population.json`` (settings), ``checkpoint.pt``, ``log.jsonl`` (one line a step),
    ``schedule.safetensors`` and, at the end, ``record.json``.

    Args:
        config: what to train; None goes on with what the folder holds.
        folder: where.
        engine: evaluates the populations of a meta-step.
        should_stop: asked after every step.
        on_progress: told after every step.
        on_note: told of a checkpoint that was damaged.

    Raises:
        ValueError: if the folder holds other settings, or, without a config, none.
    """

    def __init__(
        self,
        config: PopulationConfig | None,
        folder: Path,
        *,
        engine: Engine = here,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[PopulationProgress], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self.config, self.folder = _settings(config, folder), folder
        self._trainer = PopulationTrainer(self.config, engine)
        self._should_stop, self._on_progress, self._on_note = should_stop, on_progress, on_note
        self._checkpoint = CheckpointFile(folder / "checkpoint.pt")
        self._log: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._curve: tuple[float, ...] = ()

    def execute(self) -> dict[str, Any] | None:
        """Run to the end; return the record, or None if it was stopped.

        Raises:
            FolderInUse: if another process works there.
            CheckpointError: if no checkpoint in the folder can be read.
        """
        with Folder(self.folder):
            write_atomically(self.folder / _SETTINGS, json.dumps(self.config.as_dict(), indent=1))
            if self._checkpoint.exists():
                self._go_on()
            begun = time.monotonic() - self._seconds
            saved = time.monotonic()
            while not self._trainer.finished:
                outcome = self._trainer.advance()
                self._seconds = time.monotonic() - begun
                entry = {"step": self._trainer.done, "meta_loss": outcome.meta_loss, "diverged": outcome.diverged}
                self._log.append({**entry, "seconds": round(self._seconds, 1)})
                stop = self._should_stop()
                if stop or time.monotonic() - saved > _SECONDS:
                    self._save()
                    saved = time.monotonic()
                self._tell()
                if stop and not self._trainer.finished:
                    return None
            self._save()
            record = self._record()
            write_atomically(self.folder / "record.json", json.dumps(record, indent=1, allow_nan=False))
            return record

    def schedule(self) -> SignalSchedule:
        """The schedule as it is now."""
        policy = self.config.policy
        made = SignalSchedule(
            policy.signals,
            policy.hidden,
            policy.recurrent,
            policy.scope,
            reach=policy.reach,
            trained_for=_NAMES[self.config.base],
        )
        made.load_flat(self._trainer.average)
        return made

    def _go_on(self) -> None:
        state, trouble = self._checkpoint.load()
        if trouble and self._on_note is not None:
            self._on_note(trouble)
        self._trainer.load_state_dict(state["trainer"])
        self._seconds, self._log = state["seconds"], state["log"]

    def _save(self) -> None:
        self._checkpoint.save({"trainer": self._trainer.state_dict(), "seconds": self._seconds, "log": self._log})
        write_atomically(self.folder / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in self._log))
        learned_on = [*TRAINED_ON["data"], *TRAINED_ON["networks"]]
        save_schedule(self.schedule(), self.folder / "schedule.safetensors", learned_on=learned_on)
        self._curve = learned_curve(self.config.policy, self.config.base, self._trainer.average)

    def _tell(self) -> None:
        if self._on_progress is None:
            return
        last = [entry["meta_loss"] for entry in self._log[-20:]]
        total = self.config.survey_tasks + self.config.meta_steps
        mean = sum(last) / len(last)
        done, surveying = self._trainer.done, self._trainer.surveying
        self._on_progress(PopulationProgress(done, total, surveying, mean, self._curve))

    def _record(self) -> dict[str, Any]:
        last = [entry["meta_loss"] for entry in self._log[-20:]]
        return {
            "kind": "population",
            "status": "finished",
            "config": self.config.as_dict(),
            "trained_on": {name: list(items) for name, items in TRAINED_ON.items()},
            "steps": self._trainer.done,
            "skipped": self._trainer.skipped,
            "seconds": round(self._seconds, 1),
            "final_meta_loss": sum(last) / max(len(last), 1),
            "curve": list(self._curve),
            **provenance(self.config.device),
        }


def _settings(config: PopulationConfig | None, folder: Path) -> PopulationConfig:
    path = folder / _SETTINGS
    found = _read(path) if path.is_file() else None
    if config is None and found is None:
        raise ValueError(f"resume must be a folder with a population's {_SETTINGS}, {folder} holds none.")
    if config is not None and found is not None and found != config:
        raise ValueError(f"out must be a new folder, {folder} holds a population of other settings; --resume it.")
    settings = config or found
    assert settings is not None
    return settings


def _read(path: Path) -> PopulationConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, Mapping):
            raise TypeError
        return PopulationConfig.from_dict(dict(values))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} must hold a population's settings, got something else ({error!r}).") from error
