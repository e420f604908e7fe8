"""Saved by two processes and loaded by one, and the other way round: each trainer's run goes on as if nothing had been.

The joined batch stays the same, as the warning asks.
"""

import os
import socket
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import digits, network, note_rates
from tests.integrations.half import flat, optimizer_of, rates, schedule_of
from torch.nn.functional import cross_entropy

import metastep as ms

KINDS = ("learned", "calibrated", "hyper-sgd", "hyper-adamw")
SAVED, STEPS, ROWS = 3, 6, 32


def keep(folder: Path, process: int, model: torch.nn.Module, optimizer: Any, used: list[float]) -> None:
    """What a process came to."""
    torch.save((rates(optimizer, used)[-SAVED:], flat(model)), folder / f"{process}.pt")


def accelerated(kind: str, folder: Path, resume: Path | None) -> None:
    """A loop under Accelerate, in one of its processes."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from metastep.integrations.accelerate import AcceleratedLR

    accelerator = Accelerator(cpu=True)
    plain, schedule = network(), schedule_of(kind, STEPS)
    inner = optimizer_of(kind, plain.parameters())
    used = note_rates(inner)
    model, optimizer = accelerator.prepare(plain, inner)
    lr = None
    if schedule is not None:
        lr = AcceleratedLR(accelerator, optimizer, schedule, **({} if schedule.relative else {"num_classes": 10}))
    if resume is not None:
        accelerator.load_state(str(resume / "state"))
    for step in range(0 if resume is None else SAVED, STEPS):
        if step == SAVED and resume is None:
            accelerator.save_state(str(folder / "state"))
        x, y = (part.chunk(accelerator.num_processes)[accelerator.process_index] for part in digits(ROWS, ROWS * step))
        optimizer.zero_grad()
        loss = cross_entropy(model(x), y)
        if lr is not None:
            lr.observe(loss)
        accelerator.backward(loss)
        optimizer.step()
    keep(folder, accelerator.process_index, plain, inner, used)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def transformed(kind: str, folder: Path, resume: Path | None) -> None:
    """A small GPT-2 in the Trainer of Transformers, in one of its processes."""
    from accelerate.state import AcceleratorState, GradientState
    from tests.integrations.test_transformers import QUIET, gpt2, passages
    from transformers import Trainer, TrainingArguments

    from metastep.integrations.transformers import LearnedLRTrainer

    model, schedule = gpt2(dropout=0), schedule_of(kind, STEPS)
    optimizer = optimizer_of(kind, model.parameters())
    used = note_rates(optimizer)
    arguments = TrainingArguments(
        str(folder), max_steps=STEPS, save_steps=SAVED, lr_scheduler_type="constant", save_strategy="steps", **QUIET
    )
    arguments.per_device_train_batch_size = 8 // arguments.world_size
    given: dict[str, Any] = {"model": model, "args": arguments, "train_dataset": passages(48)}
    given["optimizers"] = (optimizer, None)
    if schedule is None:
        trainer: Any = Trainer(**given)
    else:
        options: dict[str, Any] = {} if schedule.relative else {"num_classes": 128}
        trainer = LearnedLRTrainer(**given, learned_lr=lambda opt, steps: ms.LearnedLR(opt, schedule, **options))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume / f"checkpoint-{SAVED}"))
    keep(folder, trainer.accelerator.process_index, model, optimizer, used)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def lit(kind: str, folder: Path, resume: Path | None) -> None:
    """Two epochs of three steps in Lightning, in one of its processes."""
    from lightning.pytorch.callbacks import ModelCheckpoint
    from tests.integrations.lightning_runs import Data, Digits, fit
    from torch.utils.data import DataLoader, TensorDataset

    from metastep.integrations.lightning import LearnedLRCallback

    class Keeping(Digits):
        def on_fit_end(self) -> None:
            keep(folder, self.global_rank, self, self.optimizer, self.used)

    class Rows(Data):
        def train_dataloader(self) -> DataLoader:
            x, y = (part.view(SAVED, processes, -1, *part.shape[1:])[:, rank] for part in digits(SAVED * ROWS))
            return DataLoader(TensorDataset(x.flatten(0, 1), y.flatten()), batch_size=ROWS // processes)

    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    schedule = schedule_of(kind, STEPS)
    callbacks: list[Any] = []
    if schedule is not None:
        callbacks = [LearnedLRCallback(schedule, **({} if schedule.relative else {"num_classes": 10}))]
    saving = ModelCheckpoint(folder, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True)
    strategy = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    file = None if resume is None else resume / f"step={SAVED}.ckpt"
    fit(Keeping(partial(optimizer_of, kind)), *callbacks, saving, folder=folder, data=Rows(), ckpt_path=file,
        max_epochs=2, enable_checkpointing=True, limit_val_batches=0, use_distributed_sampler=False,
        **strategy)  # fmt: skip


TRAINERS = {"accelerate": accelerated, "transformers": transformed, "lightning": lit}


# ---- several processes, as a launcher starts them


def train_all(library: str, folder: Path, resume: Path | None, **environment: str) -> None:
    """Every kind of run, one after the other, with what a launcher sets, some of which Lightning clears."""
    for kind in KINDS:
        os.environ.update(environment)
        (folder / kind).mkdir(parents=True, exist_ok=True)
        TRAINERS[library](kind, folder / kind, None if resume is None else resume / kind)


def one_of_several(rank: int, count: int, port: int, library: str, folder: Path, resume: Path | None) -> None:
    """One process of a launcher."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0", "ACCELERATE_USE_CPU": "yes"}
    train_all(library, folder, resume, RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(count), **address)


def train_in(count: int, library: str, folder: Path, resume: Path | None = None) -> None:
    """Train in so many processes; several are new ones, which inherit no threads."""
    if count == 1:
        train_all(library, folder, resume)
        return
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (count, port, library, folder, resume)
    torch.multiprocessing.start_processes(one_of_several, arguments, nprocs=count, start_method="forkserver")


def found(folder: Path, kind: str, processes: int) -> tuple[list[float], torch.Tensor]:
    """What all processes came to, which is the same."""
    first, *others = (torch.load(folder / kind / f"{process}.pt") for process in range(processes))
    for other in others:
        assert other[0] == first[0]
        assert torch.equal(other[1], first[1])
    return first


@pytest.fixture(scope="module", params=TRAINERS)
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A folder with the runs of two processes and of one, and with what the other number made of them; the warnings."""
    library = request.param
    for needed in {library, "accelerate" if library == "transformers" else library}:
        pytest.importorskip(needed, reason=f"{needed} is not installed: the extra [{library}]")
    folder = tmp_path_factory.mktemp(library)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train_in(2, library, folder / "2")
        train_in(1, library, folder / "1")
        train_in(1, library, folder / "2-1", folder / "2")
        train_in(2, library, folder / "1-2", folder / "1")
    return folder, [str(warning.message) for warning in caught]


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_goes_on_with_another_number_of_processes(
    runs: tuple[Path, list[str]], kind: str, before: int, after: int
) -> None:
    folder, _ = runs
    expected, weights = found(folder / str(before), kind, before)
    used, goes_on = found(folder / f"{before}-{after}", kind, after)
    assert used == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(goes_on, weights, rtol=1e-4, atol=1e-6)
    if schedule_of(kind) is not None:
        assert len(set(used)) == SAVED  # which a rate that began again would not meet


def test_it_says_so_and_what_to_keep(runs: tuple[Path, list[str]]) -> None:
    said = [text for text in runs[1] if "the state was saved by a run on 2 processes, this one has 1" in text]
    assert len(said) == 2  # of the two schedules
    assert all("keep processes x batch size x accumulation as it was" in text for text in said)
