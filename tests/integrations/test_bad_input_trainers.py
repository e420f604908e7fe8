"""What can be done wrong inside a trainer, and the one line that says what to do instead."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import digits, learned
from tests.integrations.mistakes import Mistake, check, rate, rows, sgd
from torch.optim.lr_scheduler import StepLR

import metastep as ms
from metastep.integrations import AsScheduler

# ---- Transformers


def trainer(folder: Path, **options: Any) -> Any:
    """A trainer of a small GPT-2."""
    from tests.integrations.test_transformers import QUIET, gpt2, passages
    from transformers import TrainingArguments

    from metastep.integrations.transformers import LearnedLRTrainer

    arguments = TrainingArguments(str(folder), max_steps=2, save_strategy="no", **QUIET)
    return LearnedLRTrainer(model=gpt2(), args=arguments, train_dataset=passages(16), **options)


def transformers_without(folder: Path) -> None:
    trainer(folder)


def transformers_both(folder: Path) -> None:
    optimizer = sgd()
    trainer(folder, optimizers=(optimizer, AsScheduler(rate(optimizer))), learned_lr=lambda opt, steps: rate(opt))


def transformers_other_scheduler(folder: Path) -> None:
    optimizer = sgd()
    trainer(folder, optimizers=(optimizer, StepLR(optimizer, 1)))


def transformers_rate_itself(folder: Path) -> None:
    optimizer = sgd()
    trainer(folder, optimizers=(optimizer, rate(optimizer)))


def transformers_rate_of_another_optimizer(folder: Path) -> None:
    trainer(folder, optimizers=(sgd(), AsScheduler(rate())))


def transformers_rate_without_its_optimizer(folder: Path) -> None:
    trainer(folder, optimizers=(None, AsScheduler(rate())))


def transformers_learned_lr_of_another_optimizer(folder: Path) -> None:
    trainer(folder, learned_lr=lambda optimizer, steps: rate()).train()


def transformers_learned_lr_makes_a_schedule(folder: Path) -> None:
    trainer(folder, learned_lr=lambda optimizer, steps: learned()).train()


def transformers_scheduler_of_a_callback(folder: Path) -> None:
    from transformers import TrainerCallback

    class Meddling(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            optimizer = kwargs["optimizer"]
            StepLR(getattr(optimizer, "optimizer", optimizer), 1)

    made = trainer(folder, learned_lr=lambda optimizer, steps: rate(optimizer))
    made.add_callback(Meddling())
    made.train()


NO_OPTIMIZER = r"optimizers must be \(optimizer, AsScheduler\(lr\)\) with the optimizer of that LearnedLR, got {}; "
TRANSFORMERS = {
    transformers_without: (ValueError, r"learned_lr must be given, or optimizers=\(optimizer, AsScheduler\(lr\)\)"),
    transformers_both: (ValueError, r"learned_lr must be left out when optimizers has a scheduler"),
    transformers_other_scheduler: (ValueError, r"got the scheduler StepLR; `lr` has one owner"),
    transformers_rate_itself: (
        ValueError,
        r"optimizers must be \(optimizer, AsScheduler\(lr\)\).* scheduler LearnedLR",
    ),
    transformers_rate_of_another_optimizer: (ValueError, NO_OPTIMIZER.format("another")),
    transformers_rate_without_its_optimizer: (ValueError, NO_OPTIMIZER.format("no optimizer")),
    transformers_learned_lr_of_another_optimizer: (ValueError, NO_OPTIMIZER.format("another")),
    transformers_learned_lr_makes_a_schedule: (TypeError, r"source must be a LearnedLR or a MetaLearner, got MLRSNet"),
    transformers_scheduler_of_a_callback: (ValueError, r"optimizer must have no other scheduler"),
}

# ---- Lightning


def fitted(folder: Path, *callbacks: Any, module: Any = None, **options: Any) -> None:
    """Fit digits."""
    from tests.integrations.lightning_runs import Digits, fit

    fit(module or Digits(), *callbacks, folder=folder, **options)


def callback(schedule: ms.Schedule | None = None, **options: Any) -> Any:
    """A LearnedLRCallback."""
    from metastep.integrations.lightning import LearnedLRCallback

    return LearnedLRCallback(schedule or learned(), **options)


def lightning_rate_before_fit(folder: Path) -> None:
    _ = callback().lr


def lightning_learner_before_fit(folder: Path) -> None:
    from metastep.integrations.lightning import MetaLearnerCallback

    _ = MetaLearnerCallback(learned(), lambda module, batch: module.loss(batch)).learner


def lightning_twice(folder: Path) -> None:
    fitted(folder, callback(), callback())


def lightning_rate_and_learner(folder: Path) -> None:
    from metastep.integrations.lightning import MetaLearnerCallback

    fitted(folder, callback(), MetaLearnerCallback(learned(), lambda module, batch: module.loss(batch)))


def lightning_scheduler_in_the_module(folder: Path) -> None:
    from tests.integrations.lightning_runs import Digits

    class Scheduled(Digits):
        def configure_optimizers(self) -> Any:
            optimizer = super().configure_optimizers()
            return [optimizer], [StepLR(optimizer, 1)]

    fitted(folder, callback(), module=Scheduled())


def lightning_scheduler_of_a_callback(folder: Path) -> None:
    import lightning.pytorch as pl

    class Meddling(pl.Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            StepLR(trainer.optimizers[0], 1)

    fitted(folder, callback(), Meddling())


def lightning_optimizer_that_is_not_there(folder: Path) -> None:
    fitted(folder, callback(optimizer=1))


def lightning_manual_without_observing(folder: Path) -> None:
    from tests.integrations.lightning_runs import Manual

    fitted(folder, callback(capture=False), module=Manual())


def lightning_learning_without_validation_data(folder: Path) -> None:
    from tests.integrations.lightning_runs import Digits, fit
    from torch.utils.data import DataLoader, TensorDataset

    from metastep.integrations.lightning import MetaLearnerCallback

    learning = MetaLearnerCallback(learned(), lambda module, batch: module.loss(batch), every=1)
    fit(Digits(), learning, folder=folder, data=DataLoader(TensorDataset(*digits(64)), batch_size=32))


LIGHTNING = {
    lightning_rate_before_fit: (RuntimeError, r"LearnedLRCallback has no LearnedLR before trainer.fit\(\) has made"),
    lightning_learner_before_fit: (RuntimeError, r"MetaLearnerCallback has no MetaLearner before trainer.fit\(\)"),
    lightning_twice: (RuntimeError, r"more than one stateful callback of type `LearnedLRCallback`"),  # Lightning's own
    lightning_rate_and_learner: (ValueError, r"optimizer has a LearnedLR already"),
    lightning_scheduler_in_the_module: (ValueError, r"optimizer must have no other scheduler"),
    lightning_scheduler_of_a_callback: (ValueError, r"optimizer must have no other scheduler"),
    lightning_optimizer_that_is_not_there: (ValueError, r"optimizer must be in 0 ... 0, got 1; it counts what"),
    lightning_manual_without_observing: (
        RuntimeError,
        r"without an observed loss; with capture=False call its observe",
    ),
    lightning_learning_without_validation_data: (ValueError, r"validation data must be there to learn a schedule"),
}


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(
    ("library", "wrong", "kind", "message"), rows({"transformers": TRANSFORMERS, "lightning": LIGHTNING})
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    library: str, wrong: Mistake, kind: type[Exception], message: str, tmp_path: Path
) -> None:
    check(library, wrong, kind, message, tmp_path, ours=wrong is not lightning_twice)  # which Lightning notices


def test_training_twice_begins_again_from_the_initial_rate(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="Transformers is not installed: the extra [transformers]")

    def make(optimizer: torch.optim.Optimizer, steps: int) -> ms.LearnedLR:
        return ms.LearnedLR(optimizer, ms.Cosine(), total_steps=steps)

    made = trainer(tmp_path, learned_lr=make)
    base = made.args.learning_rate
    first = second = None
    for _ in range(2):
        made.train()
        first, second = second, made.lr_scheduler
        assert made.lr_scheduler.lr.steps == 2
        assert made.lr_scheduler.lr.groups.bases == pytest.approx([base] * len(made.optimizer.param_groups))
        assert made.lr_scheduler.get_last_lr()[0] == pytest.approx(base / 2)
    assert first is not second
