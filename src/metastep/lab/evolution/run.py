"""Evolution in a folder that can be resumed: a checkpoint, a log, the schedule, a record."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from metastep.files import read_json
from metastep.lab.evolution.base_optimizers import Base
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.task_distribution import TRAINED_ON, TaskSpec
from metastep.lab.evolution.trainer import EvolutionConfig, EvolutionTrainer
from metastep.lab.evolution.vectorised_trainer import VectorisedTrainer
from metastep.lab.runtime.executor import Executor
from metastep.lab.runtime.folder import Folder
from metastep.lab.runtime.provenance import provenance
from metastep.lab.runtime.stop_signals import never
from metastep.schedules import save_schedule
from metastep.schedules.signal_schedule import SignalSchedule

SETTINGS = "evolution.json"
#: The settings of a folder until 0.2, whose checkpoint holds another state.
OLD_SETTINGS = "population.json"
_SECONDS = 60.0
#: What LearnedLR calls the optimizers of a base.
_NAMES = {"sgd": "sgd, sgd-momentum", "adamw": "adamw"}
#: A perceptron on digits, whose rates show what a schedule does while it is trained.
_REFERENCE = TaskSpec(
    family="mlp", data="table:digits", seed=7, train_size=1100, label_noise=0.0, input_scale=1.0, widths=(32,),
    activation="relu", norm="none", gain=1.0, cell="gru", batch_size=32, steps=200, momentum=0.9, weight_decay=0.0,
)  # fmt: skip


@dataclass(frozen=True)
class EvolutionProgress:
    """Where an evolution stands.

    Attributes:
        done: steps taken, of the warm start and of the meta-optimizer.
        total: of both.
        warming_start: whether the warm start is still on.
        meta_loss: mean over the last 20 steps: of the warm start, the log loss of the best level.
        curve: the rates that the schedule sets on a reference task, at equal intervals.
    """

    done: int
    total: int
    warming_start: bool
    meta_loss: float
    curve: tuple[float, ...]


class EvolutionRun:
    """Trains a signal schedule by evolution; stops at any step and continues bit for bit.

    The folder then holds ``evolution.json`` (settings), ``checkpoint.pt``, ``log.jsonl`` (one line a step),
    ``schedule.safetensors`` and, at the end, ``record.json``.

    Args:
        config: what to train; None continues what the folder holds.
        folder: where.
        executor: where the populations of a step train; None: in this process.
        should_stop: asked after every step.
        on_progress: told after every step.
        on_note: told of a checkpoint that was damaged.

    Raises:
        ValueError: if the folder holds other settings, or, without a config, none.
    """

    def __init__(
        self,
        config: EvolutionConfig | None,
        folder: Path,
        *,
        executor: Executor | None = None,
        should_stop: Callable[[], bool] = never,
        on_progress: Callable[[EvolutionProgress], None] | None = None,
        on_note: Callable[[str], None] | None = None,
    ) -> None:
        self.config = _settings(config, folder)
        self._folder, self._trainer = Folder(folder), EvolutionTrainer(self.config, executor)
        self._should_stop, self._on_progress, self._on_note = should_stop, on_progress, on_note
        self._log: list[dict[str, Any]] = []
        self._seconds = 0.0
        self._curve: tuple[float, ...] = ()

    def execute(self) -> dict[str, Any] | None:
        """Run to the end; return the record, or None if it was stopped.

        Raises:
            FolderInUse: if another process works there.
            CheckpointError: if no checkpoint in the folder can be read.
        """
        with self._folder:
            self._folder.write(SETTINGS, json.dumps(self.config.as_dict(), indent=1))
            if self._folder.checkpoint.exists():
                self._resume()
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
                self._report()
                if stop and not self._trainer.finished:
                    return None
            self._save()
            record = self._record()
            self._folder.write("record.json", json.dumps(record, indent=1, allow_nan=False))
            return record

    def schedule(self) -> SignalSchedule:
        """The schedule as it is now."""
        signals, hidden, recurrent, bounds, scope = self.config.policy
        trained_for = _NAMES[self.config.base]
        made = SignalSchedule(signals, hidden, recurrent, scope, bounds=bounds, trained_for=trained_for)
        made.load_flat(self._trainer.average)
        return made

    def _resume(self) -> None:
        state, trouble = self._folder.checkpoint.load()
        if trouble and self._on_note is not None:
            self._on_note(trouble)
        self._trainer.load_state_dict(state["trainer"])
        self._seconds, self._log = state["seconds"], state["log"]

    def _save(self) -> None:
        self._folder.save({"trainer": self._trainer.state_dict(), "seconds": self._seconds, "log": self._log})
        self._folder.write("log.jsonl", "".join(json.dumps(entry) + "\n" for entry in self._log))
        learned_on = [*TRAINED_ON["data"], *TRAINED_ON["networks"]]
        save_schedule(self.schedule(), self._folder.path / "schedule.safetensors", learned_on=learned_on)
        self._curve = learned_curve(self.config.policy, self.config.base, self._trainer.average)

    def _report(self) -> None:
        if self._on_progress is not None:
            done, warming_start = self._trainer.done, self._trainer.warming_start
            self._on_progress(
                EvolutionProgress(done, self.config.steps, warming_start, self._recent_meta_loss(), self._curve)
            )

    def _recent_meta_loss(self) -> float:
        recent = [float(entry["meta_loss"]) for entry in self._log[-20:]]
        return sum(recent) / max(len(recent), 1)

    def _record(self) -> dict[str, Any]:
        return {
            "kind": "evolution",
            "status": "finished",
            "config": self.config.as_dict(),
            "trained_on": {name: list(items) for name, items in TRAINED_ON.items()},
            "steps": self._trainer.done,
            "skipped": self._trainer.skipped,
            "seconds": round(self._seconds, 1),
            "final_meta_loss": self._recent_meta_loss(),
            "curve": list(self._curve),
            **provenance(self.config.device),
        }


def learned_curve(policy: Policy, base: Base, weights: torch.Tensor, points: int = 20) -> tuple[float, ...]:
    """The rates on the reference task, at equal intervals from the second step on.

    With a rate for each layer, their geometric mean.

    Args:
        policy: what the schedule reads, and how it moves.
        base: of the optimizer.
        weights: of the schedule, (N,).
        points: how many rates.
    """
    trainer = VectorisedTrainer(_REFERENCE, base, policy, torch.tensor([0.1 if base == "sgd" else 1e-3]))
    trainer.advance(weights[None], 2)
    rates = []
    for _ in range(points):
        rates.append(float(trainer.rates * trainer.log_multiplier.mean().exp()))
        trainer.advance(weights[None], _REFERENCE.steps // points)
    return tuple(rates)


def _settings(config: EvolutionConfig | None, folder: Path) -> EvolutionConfig:
    if (folder / OLD_SETTINGS).is_file():
        raise ValueError(
            f"{folder} holds a training of an older version, whose checkpoint cannot be resumed; continue from its "
            f"weights in a new folder: metastep evolve BASE --start-from {folder / 'schedule.safetensors'}."
        )
    path = folder / SETTINGS
    found = None
    if path.is_file():
        try:
            found = EvolutionConfig.from_dict(read_json(path, dict[str, Any]))
        except ValueError as error:
            raise ValueError(f"{path} must hold the settings of an evolution: {error}") from error
    if config is None and found is None:
        raise ValueError(f"resume must be a folder with {SETTINGS}, the settings of an evolution; {folder} has none.")
    if config is not None and found is not None and found != config:
        raise ValueError(f"out must be a new folder, {folder} holds an evolution of other settings; --resume it.")
    settings = config or found
    assert settings is not None
    return settings
