"""LearnedLRTrainer with a two-layer GPT-2 on Shakespeare: whose loss, whose rate, when, and after a restart."""

import math
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.integrations.digits import Noting, learned, note_rates

import metastep as ms
from metastep.integrations import AsScheduler
from metastep.optim import HyperAdamW, HyperSGD

pytest.importorskip("transformers", reason="Transformers is not installed: the extra [transformers]")
pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [transformers]")
import accelerate
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from metastep.integrations.transformers import LearnedLRTrainer

QUIET = {"report_to": "none", "use_cpu": True, "disable_tqdm": True, "dataloader_pin_memory": False}
LENGTH = 16
TEXT = "Before we proceed any further, hear me speak. Speak, speak. You are all resolved rather to die than to famish? "


def passages(count: int) -> list[dict[str, torch.Tensor]]:
    """Rows of Shakespeare, as bytes; the last quarter of every other one does not count in the loss."""
    root = Path(os.environ.get("METASTEP_DATA", Path(__file__).parents[3] / "shared" / "data"))
    file = root / "text" / "tinyshakespeare.txt"
    text = (file.read_bytes() if file.is_file() else TEXT.encode() * count)[: count * LENGTH]
    rows = torch.tensor(list(text)).view(count, LENGTH)
    labels = rows.clone()
    labels[::2, -LENGTH // 4 :] = -100
    return [{"input_ids": row, "labels": label} for row, label in zip(rows, labels, strict=True)]


def gpt2(dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 128, "n_positions": LENGTH}
    dropouts = {"resid_pdrop": dropout, "embd_pdrop": dropout, "attn_pdrop": dropout}
    return GPT2LMHeadModel(GPT2Config(**sizes, **dropouts, bos_token_id=0, eos_token_id=0))


adamw = partial(torch.optim.AdamW, lr=3e-3)


class Run:
    """A trainer, its model and optimizer, and the rates that it used."""

    def __init__(self, folder: Path, schedule, wrap=lambda lr: lr, data=None, dropout=0.1, **options) -> None:
        options = {
            "per_device_train_batch_size": 8, "num_train_epochs": 1, "logging_steps": 1, "save_strategy": "no",
            **QUIET, **options,
        }  # fmt: skip
        self.model = gpt2(dropout)
        self.optimizer = adamw(self.model.parameters())
        self.used = note_rates(self.optimizer)
        self.lr = ms.LearnedLR(self.optimizer, schedule, num_classes=128, total_steps=12)
        self.trainer = LearnedLRTrainer(
            model=self.model,
            args=TrainingArguments(str(folder), **options),
            train_dataset=passages(48) if data is None else data,
            eval_dataset=passages(8),
            optimizers=(self.optimizer, AsScheduler(wrap(self.lr))),
        )

    def train(self, **options) -> "Run":
        self.trainer.train(**options)
        return self

    def logged(self, name: str) -> list[float]:
        return [entry[name] for entry in self.trainer.state.log_history if name in entry]

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.model.parameters()])


@pytest.fixture(autouse=True)
def quiet():
    """Say nothing."""
    transformers.logging.set_verbosity_error()


# ---- the loss and the log


@pytest.mark.parametrize("precision", [{}, {"bf16": True}])
def test_the_schedule_reads_each_steps_own_loss_and_the_logged_rate_is_the_used_one(tmp_path: Path, precision) -> None:
    schedule = Noting()
    run = Run(tmp_path, schedule, **precision).train()
    assert len(run.used) == 6
    assert schedule.losses == pytest.approx([float(loss) for loss in run.logged("loss")], rel=1e-4)
    assert run.used == [1 / (1 + loss) * 3e-3 for loss in schedule.losses]
    assert run.logged("learning_rate") == run.used


@pytest.mark.parametrize("accepts", [True, False])
def test_accumulation_gives_the_same_rates_as_the_large_batch(tmp_path: Path, accepts: bool) -> None:
    data = passages(48) if accepts else [{**row, "labels": row["input_ids"]} for row in passages(48)]
    whole = Run(tmp_path, Noting(), data=data, dropout=0)
    micro = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = Run(tmp_path, Noting(), data=data, dropout=0, **micro)
    for run in (whole, parts):
        run.trainer.model_accepts_loss_kwargs = accepts  # mean over tokens, or mean of the micro-batches' means
        run.train()
    assert len(whole.used) == len(parts.used) == 6
    assert parts.used == pytest.approx(whole.used, rel=1e-5)


def half_a_batch_each(folder: Path) -> None:
    schedule = Noting()
    run = Run(folder, schedule, dropout=0, per_device_train_batch_size=4).train()
    assert run.trainer.accelerator.num_processes == 2
    torch.save((schedule.losses, run.used), folder / f"{run.trainer.accelerator.process_index}.pt")


def test_two_processes_use_the_rates_of_one_process_on_the_joined_batch(tmp_path: Path) -> None:
    accelerate.debug_launcher(half_a_batch_each, (tmp_path,), num_processes=2)
    first, second = (torch.load(tmp_path / f"{process}.pt") for process in (0, 1))
    schedule = Noting()
    run = Run(tmp_path, schedule, dropout=0).train()
    assert first == second
    assert first[0] == pytest.approx(schedule.losses, rel=1e-6)
    assert first[1] == pytest.approx(run.used, rel=1e-6)


def test_evaluation_is_not_observed(tmp_path: Path) -> None:
    run = Run(tmp_path, Noting(), dropout=0)
    evaluated = Run(tmp_path, Noting(), dropout=0, eval_strategy="steps", eval_steps=1)
    run.train()
    evaluated.train()
    assert len(evaluated.logged("eval_loss")) == 6
    assert evaluated.used == run.used


# ---- checkpoints


def learning(model: list) -> object:
    rows = passages(56)[48:]
    batch = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    return lambda lr: ms.MetaLearner(lr, lambda: model[0](**batch).loss, every=2, meta_lr=0.05)


@pytest.mark.parametrize("kind", ["learned", "cosine", "meta"])
def test_a_run_resumed_from_the_trainers_checkpoint_is_bit_exact(tmp_path: Path, kind: str) -> None:
    options = {"save_strategy": "steps", "save_steps": 2, "num_train_epochs": 2, "gradient_accumulation_steps": 2}
    make = ms.Cosine if kind == "cosine" else learned
    runs = []
    for _ in range(2):
        model: list[GPT2LMHeadModel] = []
        wrap = learning(model) if kind == "meta" else lambda lr: lr
        run = Run(tmp_path, make(), wrap=wrap, **options)
        model.append(run.model)
        runs.append(run)
    undisturbed = runs[0].train()
    after = runs[1].train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(undisturbed.used) == 6
    assert after.used == undisturbed.used[2:]
    assert torch.equal(after.weights(), undisturbed.weights())
    if kind == "meta":
        assert after.trainer.lr_scheduler.learner.meta_updates == 3


def test_a_checkpoint_of_another_scheduler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the checkpoint is of a run with another scheduler"):
        Run(tmp_path, learned()).trainer.lr_scheduler.load_state_dict({"last_epoch": 3, "base_lrs": [0.1]})


# ---- the Trainer's own optimizer; Hyper optimizers


def test_the_trainers_own_optimizer_is_attached_when_it_is_made(tmp_path: Path) -> None:
    made = []

    def make(optimizer, steps):
        made.append((optimizer, steps))
        return ms.LearnedLR(optimizer, ms.Cosine(), total_steps=steps)

    trainer = LearnedLRTrainer(
        model=gpt2(),
        args=TrainingArguments(
            str(tmp_path), max_steps=4, learning_rate=0.01, weight_decay=0.1, logging_steps=1, **QUIET
        ),
        train_dataset=passages(32),
        learned_lr=make,
    )
    trainer.train()
    ((optimizer, steps),) = made
    assert type(optimizer) is torch.optim.AdamW
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert steps == 4
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx([0.01 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)])


@pytest.mark.parametrize("scaled", [False, True])
def test_the_trainer_teaches_a_schedule_whose_rates_it_makes_itself(tmp_path: Path, scaled: bool) -> None:
    model, learners = gpt2(), []

    def make(optimizer, steps):
        lr = ms.LearnedLR(optimizer, learned(), num_classes=128)
        learners.append(learning([model])(lr))
        return learners[-1]

    trainer = LearnedLRTrainer(
        model=model,
        args=TrainingArguments(str(tmp_path), max_steps=4, max_grad_norm=0, save_strategy="no", **QUIET),
        train_dataset=passages(32),
        learned_lr=make,
    )
    if scaled:  # as under fp16, where Accelerate's wrapper of the optimizer calls the step that it found at first
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for _ in range(2):
        trainer.train()
    assert [learner.meta_updates for learner in learners] == [2, 2]
    assert [learner.lr.steps for learner in learners] == [4, 4]


@pytest.mark.parametrize("make", [partial(HyperSGD, lr=0.1), partial(HyperAdamW, lr=1e-3)])
def test_hypergradient_optimizers_run_and_resume_bit_exactly(tmp_path: Path, make) -> None:
    weights, rates = [], []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        model = gpt2()
        optimizer = make(model.parameters())
        arguments = TrainingArguments(str(tmp_path), max_steps=5, save_steps=2, lr_scheduler_type="constant", **QUIET)
        trainer = Trainer(model=model, args=arguments, train_dataset=passages(40), optimizers=(optimizer, None))
        trainer.train(resume_from_checkpoint=checkpoint)
        weights.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
        rates.append(optimizer.rates()[0]["layer"]["0"])
    assert torch.equal(*weights)
    assert rates[0] == rates[1] != make.keywords["lr"]


# ---- what is refused


def trainer_with(folder: Path, **options) -> LearnedLRTrainer:
    arguments = TrainingArguments(str(folder), **QUIET)
    return LearnedLRTrainer(model=gpt2(), args=arguments, train_dataset=passages(8), **options)


def test_a_trainer_without_a_learned_rate_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"learned_lr must be given, or optimizers="):
        trainer_with(tmp_path)


def test_another_librarys_scheduler_is_refused(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = adamw(model.parameters())
    other = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    with pytest.raises(ValueError, match=r"got the scheduler LambdaLR; `lr` has one owner"):
        trainer_with(tmp_path, optimizers=(optimizer, other))
    with pytest.raises(ValueError, match=r"optimizer must have no other scheduler"):
        AsScheduler(ms.LearnedLR(optimizer, ms.Cosine(), total_steps=3))


def test_two_ways_at_once_are_refused(tmp_path: Path) -> None:
    optimizer = adamw(gpt2().parameters())
    scheduler = AsScheduler(ms.LearnedLR(optimizer, ms.Cosine(), total_steps=3))
    with pytest.raises(ValueError, match=r"learned_lr must be left out"):
        trainer_with(tmp_path, optimizers=(optimizer, scheduler), learned_lr=ms.LearnedLR)
