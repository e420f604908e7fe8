"""The settings of a run: a task's own, the published ones of meta-training, and what the user says instead."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from metastep.lab.bench.config import MetaConfig, RunConfig
from metastep.lab.bench.optimizers import base_of
from metastep.lab.tasks import LabelNoise, Task, load_task
from metastep.lab.tasks.own_model import code_digests, code_of
from metastep.lab.tasks.task import Recipe


@dataclass(frozen=True, kw_only=True)
class MetaTraining:
    """What a published meta-training fixes besides the task's recipe (arXiv 2007.14546).

    Args:
        epochs: passes over the training data.
        weight_decay: of SGD, which has no momentum.
        inner_valid: training examples held out as validation data; None: the task's own validation text.
        first: whether the meta-updates of an epoch are at steps 0, 300, 600 ... rather than 299, 599 ...
    """

    epochs: int
    weight_decay: float
    inner_valid: int | None
    first: bool


_IMAGES = MetaTraining(epochs=200, weight_decay=5e-4, inner_valid=1000, first=False)
_TEXT = MetaTraining(epochs=150, weight_decay=5e-6, inner_valid=None, first=True)

#: The published meta-trainings by task.
META_TRAININGS = {"cifar10/resnet18": _IMAGES, "cifar100/wrn-28-10": _IMAGES, "ptb/lstm2": _TEXT, "ptb/lstm3": _TEXT}


def training(
    recipe: Recipe,
    *,
    schedule: str,
    learns: bool = False,
    steps: int | None = None,
    epochs: float | None = None,
    momentum: float | None = None,
    weight_decay: float | None = None,
    **given: Any,
) -> RunConfig:
    """Return the run of a task with a schedule: the task's settings wherever nothing else is given.

    Args:
        recipe: the task's.
        schedule: name or files.
        learns: whether the schedule is learned on the way; then in about 100 meta-updates.
        steps: optimizer steps.
        epochs: passes over the training data, instead of steps; the data are read to count them.
        momentum: of the optimizer.
        weight_decay: of the optimizer.
        given: further fields of :class:`RunConfig`; None leaves them as they are.

    Raises:
        ValueError: for values out of range, or steps and epochs both.
    """
    if steps is not None and epochs is not None:
        raise ValueError(f"steps and epochs must not both be given, got {steps} and {epochs}; either says how long.")
    given = {name: value for name, value in given.items() if value is not None}
    optimizer = given.pop("optimizer", recipe.optimizer)
    options = dict(recipe.optimizer_options) if base_of(optimizer) == recipe.optimizer else {}
    options |= {} if momentum is None else {"momentum": momentum}
    options |= {} if weight_decay is None else {"weight_decay": weight_decay}
    values = {
        "lr": recipe.learning_rate,
        "batch_size": recipe.batch_size,
        "clip_norm": recipe.clip_norm,
        "total_steps": recipe.total_steps if steps is None else steps,
        **given,
    }
    values["code"] = code_digests(code_of(recipe.name, values.get("data_dir")))
    config = RunConfig(task=recipe.name, schedule=schedule, optimizer=optimizer, optimizer_options=options, **values)
    if epochs is not None:
        config = replace(config, total_steps=_steps_of(epochs, config))
    total = config.total_steps
    return replace(
        config,
        log_every=given.get("log_every", max(1, min(10, total // 100))),
        eval_every=given.get("eval_every", max(1, total // 20)),
        meta=MetaConfig(every=max(1, total // 100)) if learns else None,
    )


def meta_training(
    recipe: Recipe,
    *,
    steps: int | None = None,
    epochs: float | None = None,
    meta: Mapping[str, Any] | None = None,
    **given: Any,
) -> RunConfig:
    """Return the meta-training run of a task: the published protocol where there is one.

    Images (arXiv 2007.14546): 200 epochs of SGD without momentum, weight decay 5e-4, batch 128; 1000 class-balanced
    training images held out as validation data; a meta-update at the 300th step of each epoch; snapshots after epochs
    1, 100, 200. Text: 150 epochs of SGD, batch 32 of 35 words, gradient norm 0.25, weight decay 5e-6; meta-updates at
    steps 0, 300, 600 ... of each epoch; snapshots after epochs 1, 75, 150.

    Elsewhere: the task's length and batch, SGD without momentum, and about 100 meta-updates.

    Args:
        recipe: the task's.
        steps: optimizer steps.
        epochs: passes over the training data, instead of steps.
        meta: fields of :class:`MetaConfig`; None leaves them as they are.
        given: as for :func:`training`.
    """
    changes = {name: value for name, value in (meta or {}).items() if value is not None}
    given = {name: value for name, value in given.items() if value is not None}
    given.setdefault("optimizer", "sgd")
    if given["optimizer"] == "sgd":
        given.setdefault("momentum", 0.0)
    published = META_TRAININGS.get(recipe.name)
    if published is None:
        given.setdefault("weight_decay", recipe.optimizer_options.get("weight_decay", 0.0))
        config = training(recipe, schedule="mlr-snet", learns=True, steps=steps, epochs=epochs, **given)
        assert config.meta is not None
        meta_config = replace(config.meta, snapshots=thirds(config.total_steps))
    else:
        given.setdefault("weight_decay", published.weight_decay)
        given.setdefault("inner_valid", recipe.inner_valid if published.inner_valid is None else published.inner_valid)
        given.setdefault("outer_valid", 0)
        length = (
            {"epochs": published.epochs} if steps is None and epochs is None else {"steps": steps, "epochs": epochs}
        )
        config = training(recipe, schedule="mlr-snet", **length, **given)
        epoch, total = load_run_task(config).steps_per_epoch(config.batch_size), config.total_steps
        snapshots = thirds(total) if total <= epoch else (epoch, total // epoch // 2 * epoch or total, total)
        meta_config = MetaConfig(
            every=300, in_epoch=epoch, first=published.first, snapshots=tuple(sorted(set(snapshots)))
        )
    if "every" in changes:
        changes = {"in_epoch": None, "first": False, **changes}
    return replace(config, meta=replace(meta_config, **changes))


def thirds(steps: int) -> tuple[int, ...]:
    """Steps after which snapshots are kept when nothing is published: near the beginning, in the middle, at the end."""
    return tuple(sorted({max(1, steps // 20), max(1, steps // 2), steps}))


def load_run_task(config: RunConfig) -> Task:
    """Read the data of a run's task as its configuration says."""
    noise = None if config.noise is None else LabelNoise(config.noise, config.noise_rate)
    return load_task(
        config.task,
        data_dir=config.data_dir,
        label_noise=noise,
        inner_valid=config.inner_valid,
        outer_valid=config.outer_valid,
        train_size=config.train_size,
    )


def _steps_of(epochs: float, config: RunConfig) -> int:
    if not 0 < epochs < math.inf:
        raise ValueError(f"epochs must be > 0 and finite, got {epochs}.")
    return max(1, round(epochs * load_run_task(config).steps_per_epoch(config.batch_size)))
