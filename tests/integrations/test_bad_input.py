"""What can be done wrong with each adapter, and the one line that says what to do instead."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import digits, learned, network
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import StepLR

import metastep as ms
from metastep.integrations import AsScheduler


def sgd() -> torch.optim.Optimizer:
    """An optimizer of a small network."""
    return torch.optim.SGD(network().parameters(), lr=0.1)


def rate(optimizer: torch.optim.Optimizer | None = None) -> ms.LearnedLR:
    """A LearnedLR."""
    return ms.LearnedLR(optimizer or sgd(), learned(), num_classes=10)


def learner(lr: ms.LearnedLR | None = None, **options: Any) -> ms.MetaLearner:
    """A MetaLearner; its validation loss is never asked for here."""
    return ms.MetaLearner(lr or rate(), lambda: torch.zeros(()), **options)


# ---- plain PyTorch


def plain_step_without_a_loss(folder: Path) -> None:
    lr = rate()
    lr.optimizer.param_groups[0]["params"][0].grad = torch.ones(16, 64)
    lr.optimizer.step()


def plain_learner_without_a_loss(folder: Path) -> None:
    one = learner()
    one.lr.optimizer.param_groups[0]["params"][0].grad = torch.ones(16, 64)
    one.step(meta=True)


def plain_twice(folder: Path) -> None:
    rate(rate().optimizer)


def plain_wrapper(folder: Path) -> None:
    rate(network())  # type: ignore[arg-type]


def plain_state_of_another(folder: Path) -> None:
    rate().load_state_dict(StepLR(sgd(), 1).state_dict())


def plain_learner_state_of_another(folder: Path) -> None:
    learner().load_state_dict(rate().state_dict())


def scheduler_of_a_schedule(folder: Path) -> None:
    AsScheduler(learned())  # type: ignore[arg-type]


def scheduler_beside_torchs(folder: Path) -> None:
    optimizer = sgd()
    StepLR(optimizer, 1)
    AsScheduler(rate(optimizer))


def scheduler_of_a_window(folder: Path) -> None:
    AsScheduler(learner(every=4, horizon=2, first_order=True))


def scheduler_twice(folder: Path) -> None:
    one = learner()
    AsScheduler(one)
    AsScheduler(one)


def scheduler_state_of_another(folder: Path) -> None:
    AsScheduler(rate()).load_state_dict(StepLR(sgd(), 1).state_dict())


PLAIN = {
    plain_step_without_a_loss: (
        RuntimeError,
        r"optimizer.step\(\) came without an observed loss.* call observe\(loss\)",
    ),
    plain_learner_without_a_loss: (RuntimeError, r"came without an observed loss.* call observe\(loss\)"),
    plain_twice: (ValueError, r"optimizer has a LearnedLR already; call its detach\(\) first"),
    plain_wrapper: (TypeError, r"optimizer must be a torch.optim.Optimizer \(of a wrapper, the one inside\), got Sequ"),
    plain_state_of_another: (ValueError, r"state_dict lacks .*; it is no LearnedLR state, or an older one"),
    plain_learner_state_of_another: (ValueError, r"state_dict lacks .*; it is no MetaLearner state, or an older one"),
    scheduler_of_a_schedule: (TypeError, r"source must be a LearnedLR or a MetaLearner, got MLRSNet"),
    scheduler_beside_torchs: (ValueError, r"optimizer must have no other scheduler.* make the optimizer without it"),
    scheduler_of_a_window: (ValueError, r"learner must have horizon 1 inside a trainer, got 2; write the loop"),
    scheduler_twice: (ValueError, r"learner has an AsScheduler already; use that one, or call its release\(\) first"),
    scheduler_state_of_another: (ValueError, r"the checkpoint is of a run with another scheduler, start this one anew"),
}

# ---- Accelerate


def accelerated(schedule: ms.Schedule | None = None) -> tuple[Any, Any, Any]:
    """An accelerator, a prepared optimizer, and its rate."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    from metastep.integrations.accelerate import AcceleratedLR

    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True)
    optimizer = accelerator.prepare(sgd())
    return accelerator, optimizer, AcceleratedLR(accelerator, optimizer, schedule or learned(), num_classes=10)


def accelerate_twice(folder: Path) -> None:
    accelerator, optimizer, lr = accelerated()
    type(lr)(accelerator, optimizer, learned(), num_classes=10)


def accelerate_beside_torchs(folder: Path) -> None:
    accelerator, optimizer, lr = accelerated()
    lr.detach()
    StepLR(optimizer.optimizer, 1)
    type(lr)(accelerator, optimizer, learned(), num_classes=10)


def accelerate_before_torchs(folder: Path) -> None:
    _, optimizer, lr = accelerated()
    StepLR(optimizer.optimizer, 1)
    lr.observe(1.0)


def accelerate_step_without_a_loss(folder: Path) -> None:
    _, optimizer, _ = accelerated()
    optimizer.optimizer.param_groups[0]["params"][0].grad = torch.ones(16, 64)
    optimizer.step()


def accelerate_loaded_before_there_is_a_rate(folder: Path) -> None:
    accelerator, _, _ = accelerated()
    accelerator.save_state(str(folder))
    accelerator._custom_objects.clear()
    accelerator.load_state(str(folder))


ACCELERATE = {
    accelerate_twice: (ValueError, r"optimizer has a LearnedLR already"),
    accelerate_beside_torchs: (ValueError, r"optimizer must have no other scheduler"),
    accelerate_before_torchs: (ValueError, r"optimizer must have no other scheduler"),
    accelerate_step_without_a_loss: (RuntimeError, r"came without an observed loss.* call observe\(loss\)"),
    accelerate_loaded_before_there_is_a_rate: (RuntimeError, r"(?i)number of custom checkpoints"),  # Accelerate's own
}

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

TABLE = {"torch": PLAIN, "accelerate": ACCELERATE, "transformers": TRANSFORMERS, "lightning": LIGHTNING}
OTHERS_OWN = (lightning_twice, accelerate_loaded_before_there_is_a_rate)
ROWS = [
    pytest.param(library, wrong, kind, message, id=wrong.__name__)
    for library, rows in TABLE.items()
    for wrong, (kind, message) in rows.items()
]


@pytest.mark.filterwarnings("ignore")  # of the libraries
@pytest.mark.parametrize(("library", "wrong", "kind", "message"), ROWS)
def test_a_mistake_is_one_line_that_says_what_to_do(
    library: str, wrong: Callable[[Path], None], kind: type[Exception], message: str, tmp_path: Path
) -> None:
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: the extra [{library}]")
    with pytest.raises(kind, match=message) as caught:
        wrong(tmp_path)
    if wrong not in OTHERS_OWN:
        text = str(caught.value)
        assert "\n" not in text
        assert text.endswith(".")


# ---- another number of processes


def saved_by(processes: int, state: dict[str, Any]) -> dict[str, Any]:
    """The state as a run on so many processes saves it: it is the same on all of them, but for how many there are."""
    assert state["processes"] == 1
    return {**state, "processes": processes}


@pytest.mark.parametrize("kind", ["as scheduler", "accelerate"])
def test_a_state_of_another_number_of_processes_goes_on_with_a_warning(kind: str) -> None:
    if kind == "accelerate":
        pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [accelerate]")
    first, second = (accelerated()[2] if kind == "accelerate" else AsScheduler(rate()) for _ in range(2))
    rates = []
    for one in (first, second):
        lr = one.lr if isinstance(one, AsScheduler) else one
        x, y = digits(8)
        for parameter, like in zip(lr.optimizer.param_groups[0]["params"], network().parameters(), strict=True):
            parameter.grad = torch.ones_like(like)
        lr.observe(cross_entropy(network()(x), y))
        lr.optimizer.step()
        if one is first:
            with pytest.warns(UserWarning, match=r"saved by a run on 2 processes, this one has 1: .* keep processes x"):
                second.load_state_dict(saved_by(2, first.state_dict()))
            assert (second.lr if isinstance(second, AsScheduler) else second).steps == 1
        rates.append(lr.steps)
    assert rates == [1, 2]


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
