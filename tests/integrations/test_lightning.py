"""The Lightning callbacks on digits: whose loss, whose rate, when, and after a restart."""

import csv
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.integrations.digits import Noting, digits, learned, network, note_rates
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import metastep as ms

pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
import lightning.pytorch as pl
from lightning.pytorch.callbacks import LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision

from metastep.integrations.lightning import LearnedLRCallback, MetaLearnerCallback
from metastep.optim import HyperAdamW, HyperSGD

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*training_step. returned .None.:UserWarning"),
]

sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


class Digits(pl.LightningModule):
    """A perceptron; notes its losses, and the rates of its optimizer."""

    def __init__(self, make=sgd):
        super().__init__()
        self.net, self.make = network(), make
        self.losses, self.used = [], []

    def configure_optimizers(self):
        self.optimizer = self.make(self.parameters())
        self.used = note_rates(self.optimizer)
        return self.optimizer

    def loss(self, batch):
        return cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, index):
        loss = self.loss(batch)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch, index):
        self.log("valid", self.loss(batch))


class Data(pl.LightningDataModule):
    def __init__(self, batch_size=32):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(TensorDataset(*digits(192)), batch_size=self.batch_size)

    def val_dataloader(self):
        return DataLoader(TensorDataset(*digits(96, start=192)), batch_size=32)


def fit(module, *callbacks, folder, data=None, ckpt_path=None, **options):
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options}
    trainer = pl.Trainer(
        accelerator="cpu", callbacks=list(callbacks), default_root_dir=folder, num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(module, data or Data(), ckpt_path=ckpt_path)
    return trainer


def weights(module):
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


# ---- the loss


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
def test_the_schedule_reads_each_steps_own_loss(tmp_path: Path, precision: str) -> None:
    module, schedule = Digits(), Noting()
    fit(module, LearnedLRCallback(schedule), folder=tmp_path, precision=precision)
    assert schedule.losses == module.losses
    assert module.used == [1 / (1 + loss) * 0.1 for loss in module.losses]


def test_accumulation_gives_the_same_rates_as_the_large_batch(tmp_path: Path) -> None:
    whole, parts, schedule = Digits(), Digits(), Noting()
    fit(whole, LearnedLRCallback(Noting()), folder=tmp_path, gradient_clip_val=0.5)
    fit(parts, LearnedLRCallback(schedule), folder=tmp_path, gradient_clip_val=0.5, data=Data(8),
        accumulate_grad_batches=4)  # fmt: skip
    assert len(parts.losses) == 4 * len(whole.losses)
    assert len(parts.used) == len(whole.used) == 6
    assert parts.used == pytest.approx(whole.used, rel=1e-6)
    assert schedule.losses[0] == pytest.approx(sum(parts.losses[:4]) / 4, rel=1e-6)


def test_a_shorter_last_window_is_averaged_over_what_it_has(tmp_path: Path) -> None:
    module, schedule = Digits(), Noting()
    fit(module, LearnedLRCallback(schedule), folder=tmp_path, accumulate_grad_batches=4)
    assert schedule.losses[1] == pytest.approx(sum(module.losses[4:]) / 2, rel=1e-6)


def test_under_float16_the_loss_is_unscaled_and_a_skipped_step_ticks_nothing(tmp_path: Path) -> None:
    class Overflowing(Digits):
        def on_after_backward(self):
            if len(self.losses) == 3:
                self.net[0].weight.grad.fill_(math.inf)

    module, schedule = Overflowing(), Noting()
    callback = LearnedLRCallback(schedule)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
    fit(module, callback, folder=tmp_path, plugins=precision, gradient_clip_val=1.0)
    assert callback.lr.steps == len(module.used) == 5
    first = module.losses
    assert schedule.losses == pytest.approx([first[0], first[1], (first[2] + first[3]) / 2, first[4], first[5]])
    assert module.used == pytest.approx([0.1 / (1 + loss) for loss in schedule.losses])


def test_a_training_step_that_returns_none_is_a_step_without_a_finite_loss(tmp_path: Path) -> None:
    class Skipping(Digits):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            return None if index == 2 else loss

    module, schedule = Skipping(), Noting()
    callback = LearnedLRCallback(schedule)
    fit(module, callback, folder=tmp_path)
    assert schedule.losses == [*module.losses[:2], module.losses[1], *module.losses[3:]]
    assert callback.lr.non_finite_losses == 1


# ---- manual optimisation


class Manual(Digits):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        self.clip_gradients(optimizer, gradient_clip_val=0.5)
        optimizer.step()


def test_manual_optimisation_gives_the_rates_of_automatic_optimisation(tmp_path: Path) -> None:
    manual, automatic = Manual(), Digits()
    fit(manual, LearnedLRCallback(Noting()), folder=tmp_path)
    fit(automatic, LearnedLRCallback(Noting()), folder=tmp_path, gradient_clip_val=0.5)
    assert manual.used == automatic.used
    assert torch.equal(weights(manual), weights(automatic))


class TwoOptimizers(Manual):
    """Steps the two layers in turn, and tells each one's callback."""

    def __init__(self, *callbacks):
        super().__init__()
        self.rates = callbacks

    def configure_optimizers(self):
        both = [sgd(self.net[0].parameters()), sgd(self.net[2].parameters(), lr=0.3)]
        self.used = [note_rates(optimizer) for optimizer in both]
        return both

    def training_step(self, batch, index):
        for turn, optimizer in enumerate(self.optimizers()):
            loss = (1 + turn) * Digits.training_step(self, batch, index)
            optimizer.zero_grad()
            self.manual_backward(loss)
            self.rates[turn].observe(loss)
            optimizer.step()


def test_each_of_two_optimizers_follows_the_losses_that_it_was_told(tmp_path: Path) -> None:
    callbacks = [LearnedLRCallback(Noting(), optimizer=place, capture=False) for place in (0, 1)]
    module = TwoOptimizers(*callbacks)
    trainer = fit(module, *callbacks, folder=tmp_path)
    assert callbacks[0].schedule.losses == module.losses[0::2]
    assert callbacks[1].schedule.losses == pytest.approx([2 * loss for loss in module.losses[1::2]])
    assert module.used[1] == pytest.approx([0.3 / (1 + loss) for loss in callbacks[1].schedule.losses])
    trainer.save_checkpoint(tmp_path / "both.ckpt")
    saved = torch.load(tmp_path / "both.ckpt", weights_only=True)["callbacks"]
    assert len([key for key in saved if key.startswith("LearnedLRCallback")]) == 2


# ---- the log


def logged(folder: Path, column: str) -> list[tuple[int, float]]:
    """Step and value of what was logged."""
    with (folder / "metrics.csv").open() as file:
        return [(int(row["step"]), float(row[column])) for row in csv.DictReader(file) if row.get(column)]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_learning_rate_monitor_shows_the_rates_that_were_used(tmp_path: Path, accumulate: int) -> None:
    module, logger = Digits(), CSVLogger(tmp_path, name="", version="")
    fit(module, LearningRateMonitor("step"), LearnedLRCallback(learned(), num_classes=10), folder=tmp_path,
        logger=logger, log_every_n_steps=1, accumulate_grad_batches=accumulate)  # fmt: skip
    assert len(set(module.used)) == len(module.used) == 6 // accumulate
    assert logged(tmp_path, "lr-SGD") == [(step, pytest.approx(rate)) for step, rate in enumerate(module.used)]


# ---- checkpoints


def resumed(tmp_path: Path, make, make_optimizer=sgd) -> tuple[pl.LightningModule, pl.LightningModule]:
    """A run of two epochs, and another that begins with the checkpoint that Lightning saved after the first."""
    undisturbed, after = Digits(make_optimizer), Digits(make_optimizer)
    saving = ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, save_on_train_epoch_end=True)
    options = {"max_epochs": 2, "gradient_clip_val": 1.0}
    fit(undisturbed, *make(), saving, folder=tmp_path, enable_checkpointing=True, **options)
    fit(after, *make(), folder=tmp_path, ckpt_path=tmp_path / "step=6.ckpt", **options)
    return undisturbed, after


def callbacks():
    return {
        "learned": lambda: [LearnedLRCallback(learned(), warmup_steps=9)],
        "cosine": lambda: [LearnedLRCallback(ms.Cosine())],
        "meta": lambda: [MetaLearnerCallback(learned(), Digits.loss, every=4, meta_lr=0.1)],
    }


@pytest.mark.parametrize("kind", callbacks())
def test_a_run_resumed_from_lightnings_checkpoint_is_bit_exact(tmp_path: Path, kind: str) -> None:
    undisturbed, after = resumed(tmp_path, callbacks()[kind])
    assert len(undisturbed.used) == 12
    assert after.used == undisturbed.used[6:]
    assert len(set(after.used)) == 6
    assert torch.equal(weights(after), weights(undisturbed))


def test_fitting_again_starts_the_rate_anew_as_lightning_does_the_optimizer(tmp_path: Path) -> None:
    module, callback = Digits(), LearnedLRCallback(ms.Cosine())
    fit(module, callback, folder=tmp_path)
    first = module.used
    fit(module, callback, folder=tmp_path)
    assert module.used == first


# ---- learning the schedule


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("module_class", [Digits, Manual])
def test_the_meta_learner_learns_on_the_datamodules_validation_batches(tmp_path: Path, precision, module_class) -> None:
    module, schedule, seen = module_class(), learned(), []

    def validation_loss(module, batch):
        seen.append(batch[1].tolist())
        return module.loss(batch)

    callback = MetaLearnerCallback(schedule, validation_loss, every=1, meta_lr=0.01, num_classes=10)
    options = {"precision": precision}
    if precision == "16-mixed":
        options = {"plugins": MixedPrecision(precision, "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))}
    fit(module, callback, folder=tmp_path, **options)
    batches = [labels.tolist() for labels in digits(96, start=192)[1].split(32)]
    assert seen == batches + batches
    assert callback.learner.meta_updates == callback.lr.steps == len(module.used) == 6
    assert callback.learner.skipped_updates == 0
    assert not torch.equal(schedule.state_dict()["output.weight"], learned().state_dict()["output.weight"])


def test_the_meta_learner_in_lightning_is_the_meta_learner_in_a_loop(tmp_path: Path) -> None:
    module = Digits()
    options = {"every": 2, "meta_lr": 0.01}
    fit(module, MetaLearnerCallback(learned(), Digits.loss, num_classes=10, **options),
        folder=tmp_path)  # fmt: skip
    alone, data = Digits(), Data()
    optimizer = alone.configure_optimizers()
    lr, held_out = ms.LearnedLR(optimizer, learned(), num_classes=10), iter(data.val_dataloader())
    learner = ms.MetaLearner(lr, lambda: alone.loss(next(held_out)), **options)
    for batch in data.train_dataloader():
        optimizer.zero_grad()
        loss = alone.loss(batch)
        loss.backward()
        lr.observe(loss)
        learner.step()
    assert alone.used == module.used
    assert torch.equal(weights(alone), weights(module))


def test_a_skipped_step_teaches_nothing(tmp_path: Path) -> None:
    class Overflowing(Digits):
        def on_after_backward(self):
            if len(self.losses) == 3:
                self.net[0].weight.grad.fill_(math.inf)

    module = Overflowing(partial(torch.optim.Adam, lr=0.01, fused=True))
    callback = MetaLearnerCallback(learned(), Digits.loss, every=1, num_classes=10)
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**12))
    fit(module, callback, folder=tmp_path, plugins=precision)
    assert callback.learner.meta_updates == callback.lr.steps == 5


# ---- Hyper optimizers


@pytest.mark.parametrize("make", [partial(HyperSGD, lr=0.1), partial(HyperAdamW, lr=1e-3)])
def test_hypergradient_optimizers_run_and_resume_bit_exactly(tmp_path: Path, make) -> None:
    undisturbed, after = resumed(tmp_path, list, make)
    assert torch.equal(weights(after), weights(undisturbed))
    rates, expected = (module.optimizer.rates()[0]["layer"]["0"] for module in (after, undisturbed))
    assert rates == expected != make.keywords["lr"]


# ---- what is refused


def test_another_scheduler_is_refused(tmp_path: Path) -> None:
    class Scheduled(Digits):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]

    with pytest.raises(ValueError, match=r"optimizer must have no other scheduler"):
        fit(Scheduled(), LearnedLRCallback(ms.Cosine()), folder=tmp_path)


def test_an_optimizer_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"optimizer must be in 0 ... 0, got 1"):
        fit(Digits(), LearnedLRCallback(ms.Cosine(), optimizer=1), folder=tmp_path)


def test_losses_of_several_optimizers_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"capture must be False with several optimizers"):
        fit(TwoOptimizers(), LearnedLRCallback(ms.Cosine()), folder=tmp_path)


def test_two_callbacks_for_one_optimizer_are_refused(tmp_path: Path) -> None:
    class Second(LearnedLRCallback):
        pass

    with pytest.raises(ValueError, match=r"optimizer has a LearnedLR already"):
        fit(Digits(), LearnedLRCallback(ms.Cosine()), Second(ms.Cosine()), folder=tmp_path)


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_learning_without_validation_data_is_refused(tmp_path: Path) -> None:
    class NoValidation(Data):
        val_dataloader = pl.LightningDataModule.val_dataloader

    callback = MetaLearnerCallback(learned(), Digits.loss, every=1)
    with pytest.raises(ValueError, match=r"validation data must be there"):
        fit(Digits(), callback, folder=tmp_path, data=NoValidation(), limit_val_batches=0)


def test_asking_before_fit_says_what_to_wait_for() -> None:
    with pytest.raises(RuntimeError, match=r"before trainer.fit\(\)"):
        _ = LearnedLRCallback(ms.Cosine()).lr
