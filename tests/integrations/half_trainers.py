"""Six steps in each trainer, in float16 or float32, with what the tests of both look at.

The trainers' own GradScalers get the scale that a test wants: one that fits, or one that overflows first.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tests.integrations.digits import digits, network, note_rates
from tests.integrations.half import DEVICE, SCALE, optimizer_of, rates, schedule_of
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms

STEPS, LEARNING = 6, {"every": 2, "meta_lr": 0.01}
#: From 2^40, where everything overflows, to 2^25 and to 2^10, where nothing does.
OVERFLOWING = {"init_scale": 2.0**40, "backoff_factor": 2.0**-15}


@dataclass
class Outcome:
    """What a run did; ``rates`` are those used, or where those of a hypergradient optimizer are."""

    model: nn.Module
    used: list[float]
    losses: list[float]
    rates: list[float]
    base: float
    schedule: ms.Schedule | None = None
    meta_updates: int = 0


def scaling(overflows: bool) -> dict[str, float]:
    """Arguments of a GradScaler."""
    return OVERFLOWING if overflows else {"init_scale": SCALE}


def arguments_of(schedule: ms.Schedule, classes: int) -> dict[str, int]:
    """What its LearnedLR is to be told."""
    return {} if schedule.relative else {"num_classes": classes}


def accelerated(
    kind: str,
    folder: Path,
    *,
    half: bool = True,
    overflows: bool = False,
    schedule: ms.Schedule | None = None,
    save_at: int | None = None,
    resume_at: int | None = None,
) -> Outcome:
    """A loop under Accelerate."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import GradScalerKwargs

    from metastep.integrations.accelerate import AcceleratedLR

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    options: dict[str, Any] = {"mixed_precision": "no"}
    if half:
        options = {"mixed_precision": "fp16", "kwargs_handlers": [GradScalerKwargs(**scaling(overflows))]}
    accelerator = Accelerator(**options)
    plain = network()
    inner = optimizer_of(kind, plain.parameters())
    used = note_rates(inner)
    model, optimizer = accelerator.prepare(plain, inner)
    schedule = schedule_of(kind, STEPS) if schedule is None else schedule
    lr = learner = None
    if schedule is not None:
        lr = AcceleratedLR(accelerator, optimizer, schedule, **arguments_of(schedule, 10))
    if kind == "meta":
        x_valid, y_valid = (part.to(accelerator.device) for part in digits(32, start=192))
        learner = ms.MetaLearner(lr, lambda: cross_entropy(model(x_valid), y_valid), **LEARNING)
    if resume_at is not None:
        accelerator.load_state(str(folder))
    losses = []
    for step in range(resume_at or 0, STEPS):
        if step == save_at:
            accelerator.save_state(str(folder))
        x, y = (part.to(accelerator.device) for part in digits(32, start=32 * step))
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        losses.append(loss.item())
        if lr is not None:
            lr.observe(loss)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        if learner is None:
            optimizer.step()
        else:
            learner.step(scaler=accelerator.scaler)
            if accelerator.scaler is not None:
                accelerator.scaler.update()
    updates = 0 if learner is None else learner.meta_updates
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    return Outcome(plain, used, losses, rates(inner, used), 0.1, schedule, updates)


def transformed(
    kind: str,
    folder: Path,
    *,
    half: bool = True,
    overflows: bool = False,
    schedule: ms.Schedule | None = None,
    save_at: int | None = None,
    resume_at: int | None = None,
) -> Outcome:
    """A small GPT-2 in the Trainer of Transformers."""
    from accelerate.state import AcceleratorState, GradientState
    from tests.integrations.test_transformers import QUIET, gpt2, passages
    from transformers import Trainer, TrainingArguments

    from metastep.integrations.transformers import LearnedLRTrainer

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    model = gpt2(dropout=0)
    optimizer = optimizer_of(kind, model.parameters())
    used = note_rates(optimizer)
    saving = {"save_strategy": "no"} if save_at is None else {"save_strategy": "steps", "save_steps": save_at}
    arguments = TrainingArguments(
        str(folder), fp16=half, max_steps=STEPS, per_device_train_batch_size=8, logging_steps=1,
        lr_scheduler_type="constant", **{**QUIET, "use_cpu": DEVICE == "cpu"}, **saving,
    )  # fmt: skip
    schedule = schedule_of(kind, STEPS) if schedule is None else schedule
    given: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": passages(48)}
    made: list[ms.MetaLearner] = []
    if schedule is None:
        trainer: Any = Trainer(**given, optimizers=(optimizer, None))
    else:
        held_out = [{name: value.to(DEVICE) for name, value in row.items()} for row in passages(56)[48:]]
        batch = {name: torch.stack([row[name] for row in held_out]) for name in held_out[0]}

        def make(optimizer: Any, steps: int) -> Any:
            lr = ms.LearnedLR(optimizer, schedule, total_steps=steps, **arguments_of(schedule, 128))
            if kind != "meta":
                return lr
            made.append(ms.MetaLearner(lr, lambda: model(**batch).loss, **LEARNING))
            return made[-1]

        trainer = LearnedLRTrainer(**given, optimizers=(optimizer, None), learned_lr=make)
    if half:
        trainer.accelerator.scaler = torch.amp.GradScaler(DEVICE, **scaling(overflows))
    trainer.train(resume_from_checkpoint=None if resume_at is None else str(folder / f"checkpoint-{resume_at}"))
    losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    updates = sum(learner.meta_updates for learner in made)
    return Outcome(model, used, losses, rates(optimizer, used), 0.1, schedule, updates)


def lit(
    kind: str,
    folder: Path,
    *,
    half: bool = True,
    overflows: bool = False,
    schedule: ms.Schedule | None = None,
    save_at: int | None = None,
    resume_at: int | None = None,
) -> Outcome:
    """Digits in Lightning: an epoch of six batches, or two of three where a checkpoint is saved between them."""
    import lightning.pytorch as pl
    from lightning.pytorch.callbacks import ModelCheckpoint
    from tests.integrations.lightning_runs import Data, Digits

    from metastep.integrations.lightning import LearnedLRCallback, MetaLearnerCallback

    class Rows(Data):
        def train_dataloader(self) -> DataLoader:
            return DataLoader(TensorDataset(*digits(32 * (saved_at or STEPS))), batch_size=32)

    saved_at = save_at or resume_at
    module = Digits(partial(optimizer_of, kind))
    schedule = schedule_of(kind, STEPS) if schedule is None else schedule
    callbacks: list[Any] = []
    if kind == "meta":
        callbacks = [MetaLearnerCallback(schedule, Digits.loss, num_classes=10, **LEARNING)]
    elif schedule is not None:
        callbacks = [LearnedLRCallback(schedule, **arguments_of(schedule, 10))]
    if save_at is not None:
        callbacks.append(ModelCheckpoint(folder, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True))
    trainer = pl.Trainer(
        accelerator="gpu" if DEVICE == "cuda" else DEVICE, devices=1, precision="16-mixed" if half else "32-true",
        max_epochs=1 if saved_at is None else STEPS // saved_at, callbacks=callbacks, default_root_dir=folder,
        logger=False, enable_checkpointing=save_at is not None, enable_progress_bar=False, enable_model_summary=False,
        num_sanity_val_steps=0, gradient_clip_val=1.0,
    )  # fmt: skip
    if half:
        trainer.precision_plugin.scaler = torch.amp.GradScaler(DEVICE, **scaling(overflows))
    trainer.fit(module, Rows(), ckpt_path=None if resume_at is None else folder / f"step={resume_at}.ckpt")
    updates = callbacks[0].learner.meta_updates if kind == "meta" else 0
    return Outcome(module, module.used, module.losses, rates(module.optimizer, module.used), 0.1, schedule, updates)
