"""What a run is told: one frozen record of plain values, checked when it is made, stored in the run's folder."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import msgspec

from metastep.files import decode_json
from metastep.lab.bench.names import unknown_name
from metastep.lab.bench.optimizers import OPTIMIZERS

SCHEMA = 1
_LARGEST = 2**63 - 1  # that torch can count to


@dataclass(frozen=True, kw_only=True)
class MetaConfig:
    """How a schedule is learned during a run.

    Args:
        every: a meta-update every so many steps, >= 1.
        in_epoch: steps of an epoch at which the counting starts anew, as published; None counts through the run.
        first: whether the counting meets step 0 (as published for text) rather than step ``every - 1``.
        meta_lr: rate of the meta-optimizer (Adam, weight decay 1e-4), > 0.
        batch_size: validation examples (streams of text) a meta-update; None: the run's batch size.
        hidden_size: units of the LSTM, from 1 to 2048.
        num_layers: its layers, from 1 to 64.
        snapshots: steps after which the schedule is kept; the last is the end of the run.
    """

    every: int = 300
    in_epoch: int | None = None
    first: bool = False
    meta_lr: float = 1e-3
    batch_size: int | None = None
    hidden_size: int = 50
    num_layers: int = 1
    snapshots: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _at_least(1, every=self.every, hidden_size=self.hidden_size, num_layers=self.num_layers)
        _at_most(2048, hidden_size=self.hidden_size)
        _at_most(64, num_layers=self.num_layers)
        _at_least(1, in_epoch=self.in_epoch, batch_size=self.batch_size)
        _positive(meta_lr=self.meta_lr)

    def learns_at(self, step: int) -> bool:
        """True if the schedule learns in this step (0-based)."""
        if self.in_epoch is not None:
            step %= self.in_epoch
        return (step if self.first else step + 1) % self.every == 0


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run: a task, a schedule, an optimizer, a seed, and how often to look.

    Args:
        task: name of a task, or a model of the user's own, ``package.module:function``.
        schedule: a name or files, see :func:`metastep.lab.bench.schedules.make_schedule`.
        seed: of the weights, the data order and dropout, >= 0.
        optimizer: name of the base optimizer.
        optimizer_options: its options besides the rate.
        lr: base rate, > 0; schedules that scale themselves do not read it unless ``scale`` says so.
        scale: of a schedule that scales itself: "measured" from the initial loss, as published; "momentum": that
            times 1 - momentum; or "lr".
        batch_size: examples a step, of all processes together, >= 1.
        total_steps: optimizer steps, >= 1.
        warmup_steps: of linear warm-up, >= 0 and less than ``total_steps``.
        clip_norm: bound on the gradient's norm, > 0; None does not clip.
        train_size: train on so many examples only; None: all.
        inner_valid: examples held out for meta-gradients; None: the task's default.
        outer_valid: examples held out for curves and selection; None: the task's default.
        noise: "uniform" or "flip" label noise; None: clean labels.
        noise_rate: share of wrong labels, in [0, 1]; without noise 0.
        data_dir: folder of the data; None: looked for. With a model of the user's own also ``package.module:function``.
        code: of each piece of the user's own code, the file and its digest when the run was begun.
        device: where to train.
        threads: CPU threads, at most 4096; None leaves torch's choice.
        log_every: steps between entries of the training curve, >= 1.
        eval_every: steps between evaluations on outer_valid, >= 1; None never.
        checkpoint_every: steps between checkpoints, >= 1; None: about every half minute.
        test: whether the test split is read at the end.
        inner: whether inner_valid is read at the end, as the objective of a search.
        meta: how the schedule is learned; None: it is not.
    """

    task: str
    schedule: str
    seed: int = 0
    optimizer: str
    optimizer_options: Mapping[str, Any] = field(default_factory=dict)
    lr: float
    scale: str = "measured"
    batch_size: int
    total_steps: int
    warmup_steps: int = 0
    clip_norm: float | None = None
    train_size: int | None = None
    inner_valid: int | None = None
    outer_valid: int | None = None
    noise: str | None = None
    noise_rate: float = 0.0
    data_dir: str | None = None
    code: Mapping[str, str] = field(default_factory=dict)
    device: str = "cpu"
    threads: int | None = None
    log_every: int = 10
    eval_every: int | None = 100
    checkpoint_every: int | None = None
    test: bool = True
    inner: bool = False
    meta: MetaConfig | None = None

    def __post_init__(self) -> None:
        _strings(task=self.task, schedule=self.schedule, optimizer=self.optimizer, device=self.device)
        _positive(lr=self.lr, clip_norm=self.clip_norm)
        _at_least(1, batch_size=self.batch_size, total_steps=self.total_steps, train_size=self.train_size)
        _at_least(1, log_every=self.log_every, eval_every=self.eval_every, checkpoint_every=self.checkpoint_every)
        _at_least(1, threads=self.threads)
        _at_most(4096, threads=self.threads)
        _at_least(
            0,
            seed=self.seed,
            warmup_steps=self.warmup_steps,
            inner_valid=self.inner_valid,
            outer_valid=self.outer_valid,
        )
        if self.warmup_steps >= self.total_steps:
            raise ValueError(
                f"warmup_steps must be less than the run's {self.total_steps} steps, got {self.warmup_steps}; "
                "it would only warm up."
            )
        if not 0 <= self.noise_rate <= 1:
            raise ValueError(f"noise_rate must be in [0, 1], got {self.noise_rate}; it is the share of wrong labels.")
        momentum = self.optimizer_options.get("momentum", 0.0)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}; 0.9 is usual.")
        if self.scale not in ("measured", "momentum", "lr"):
            raise ValueError(f"scale must be measured, momentum or lr, got {self.scale!r}.")
        if self.noise not in (None, "uniform", "flip"):
            raise ValueError(f"noise must be uniform or flip, got {self.noise!r}.")
        if self.noise is None and self.noise_rate > 0:
            raise ValueError(f"noise must be uniform or flip for a noise_rate of {self.noise_rate}, got none.")
        if self.optimizer not in OPTIMIZERS:
            raise unknown_name("optimizer", self.optimizer, OPTIMIZERS)

    def to_json(self) -> str:
        """The configuration as JSON text, with the schema's version."""
        return json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str | bytes, what: str = "run configuration") -> "RunConfig":
        """The configuration of :meth:`to_json`.

        Args:
            text: JSON.
            what: names it in an error.

        Raises:
            ValueError: if it is no configuration, or one of another version; one line.
        """
        schema = decode_json(text, _Version, what).schema
        if schema != SCHEMA:
            raise ValueError(f"{what} has schema {schema!r}, this version reads {SCHEMA}.")
        values = decode_json(text, dict[str, Any], what)
        unknown = values.keys() - {"schema", *(f.name for f in fields(cls))}
        if isinstance(meta := values.get("meta"), dict):
            unknown |= {f"meta.{name}" for name in meta.keys() - {f.name for f in fields(MetaConfig)}}
        if unknown:
            raise ValueError(f"{what} has unknown entries {', '.join(sorted(unknown))}; it is of another version.")
        return decode_json(text, cls, what)


class _Version(msgspec.Struct):
    schema: int


def read_config(folder: Path) -> RunConfig:
    """Return the configuration of the run in a folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it cannot be read; it names the file.
    """
    path = folder / "run.json"
    if not path.is_file():
        compared = any((folder / name).is_file() for name in ("compare.json", "experiment.json"))
        other = f"it holds a comparison or an experiment: metastep compare --resume {folder}"
        raise FileNotFoundError(f"no run in {folder}; {other if compared else '--resume needs a folder of a run'}.")
    return RunConfig.from_json(path.read_bytes(), str(path))


def _strings(**values: object) -> None:
    for name, value in values.items():
        if not isinstance(value, str):
            raise ValueError(f"{name} must be a string, got {value!r}.")


def _positive(**values: float | None) -> None:
    for name, value in values.items():
        if value is not None and (isinstance(value, (bool, str)) or not 0 < value < math.inf):
            raise ValueError(f"{name} must be > 0 and finite, got {value!r}.")


def _at_least(least: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError(f"{name} must be a whole number, got {value!r}.")
        if value is not None and value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}.")
    _at_most(_LARGEST, **values)


def _at_most(most: int, **values: int | None) -> None:
    for name, value in values.items():
        if value is not None and value > most:
            raise ValueError(f"{name} must be at most {most}, got {value}.")
