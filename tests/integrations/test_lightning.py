"""The Lightning callbacks on digits: whose loss sets whose rate, and which rate is logged."""

import csv
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.integrations.digits import Noting, learned, note_rates

import metastep as ms

pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from tests.integrations.lightning_runs import ADVICE, Data, Digits, Manual, fit, sgd, weights

from metastep.integrations.lightning import LearnedLRCallback

pytestmark = ADVICE


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


def test_under_float16_the_loss_is_unscaled_and_a_skipped_step_does_not_advance_the_schedule(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("schedule", [Noting, lambda: ms.Cosine(6), learned], ids=["loss", "cosine", "mlrsnet"])
@pytest.mark.parametrize("make", [sgd, partial(torch.optim.Adam, lr=0.01), partial(torch.optim.LBFGS, lr=0.1)])
def test_a_training_step_that_returns_none_changes_nothing(tmp_path: Path, make: Any, schedule: Any) -> None:
    class Skipping(Digits):
        def training_step(self, batch, index):
            return None if index == 2 else super().training_step(batch, index)

        def on_train_batch_start(self, batch, index):
            self.before = weights(self).clone()

        def on_train_batch_end(self, outputs, batch, index):
            assert torch.equal(weights(self), self.before) is (index == 2)

    module = Skipping(make)
    callback = LearnedLRCallback(schedule(), num_classes=10)
    fit(module, callback, folder=tmp_path)
    assert callback.lr.steps == len(module.used) == 5
    assert callback.lr.non_finite_losses == 0


def test_two_processes_use_the_mean_of_their_losses(tmp_path: Path) -> None:
    class Saving(Digits):
        def on_fit_end(self):
            torch.save((self.losses, self.used, schedule.losses), tmp_path / f"{self.global_rank}.pt")

    schedule = Noting()
    fit(Saving(), LearnedLRCallback(schedule), folder=tmp_path, devices=2, strategy="ddp_fork", limit_val_batches=0)
    found = [torch.load(tmp_path / f"{process}.pt") for process in (0, 1)]
    means = [(a + b) / 2 for a, b in zip(found[0][0], found[1][0], strict=True)]
    for _, used, seen in found:
        assert seen == pytest.approx(means, rel=1e-6)
        assert used == [1 / (1 + loss) * 0.1 for loss in seen]


# ---- manual optimisation


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


def test_asking_before_fit_says_what_to_wait_for() -> None:
    with pytest.raises(RuntimeError, match=r"before trainer.fit\(\)"):
        _ = LearnedLRCallback(ms.Cosine()).lr


def test_a_trainer_of_the_other_package_is_refused() -> None:
    with pytest.raises(TypeError, match=r"import everything from lightning, nothing from pytorch_lightning"):
        LearnedLRCallback(ms.Cosine()).setup(object(), Digits(), "fit")


def test_a_learning_rate_finder_is_refused_by_name(tmp_path: Path) -> None:
    module = Digits()
    module.lr = 0.1
    with pytest.raises(ValueError, match="must have no LearningRateFinder beside LearnedLRCallback"):
        fit(module, LearnedLRCallback(ms.Cosine()), LearningRateFinder(num_training_steps=5), folder=tmp_path)


# ---- the estimate of the steps


def test_an_accumulation_that_changes_is_said_before_the_first_step(tmp_path: Path) -> None:
    module = Digits()
    callback = LearnedLRCallback(ms.Cosine())
    with pytest.warns(UserWarning, match=r"total_steps=24 by .* but the run takes about 12: .*give total_steps=12"):
        fit(module, callback, GradientAccumulationScheduler({0: 1, 1: 3}), folder=tmp_path, max_epochs=4)
    assert callback.lr.steps == len(module.used) == 12


def test_other_steps_than_estimated_are_said_after_the_first_epoch(tmp_path: Path) -> None:
    class Skipping(Digits):
        def training_step(self, batch, index):
            return None if index % 2 else super().training_step(batch, index)

    with pytest.warns(UserWarning, match=r"total_steps=12 by .* but the run takes about 6"):
        fit(Skipping(), LearnedLRCallback(ms.Cosine()), folder=tmp_path, max_epochs=2)


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 4}, {"max_steps": 5}, {"limit_train_batches": 3}])
def test_of_a_right_estimate_nothing_is_said(tmp_path: Path, options: dict[str, int]) -> None:
    callback = LearnedLRCallback(ms.Cosine())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*total_steps=.*")
        fit(Digits(), callback, folder=tmp_path, max_epochs=3, **options)
    assert callback.lr.total_steps == callback.lr.steps


def test_a_run_that_is_stopped_early_is_not_the_estimate_s_fault(tmp_path: Path) -> None:
    stop = EarlyStopping("valid", patience=0, min_delta=10.0)  # after two epochs
    callback = LearnedLRCallback(ms.Cosine())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*total_steps=.*")
        fit(Digits(), callback, stop, folder=tmp_path, max_epochs=5)
    assert (callback.lr.total_steps, callback.lr.steps) == (30, 12)


def test_a_run_with_the_callback_draws_the_random_numbers_of_one_without(tmp_path: Path) -> None:
    class Dropping(Digits):
        def __init__(self) -> None:
            super().__init__()
            self.net.append(torch.nn.Dropout(0.3))

    plain, attached = Dropping(), Dropping()
    for module, callbacks in ((plain, []), (attached, [LearnedLRCallback(ms.Constant())])):
        torch.manual_seed(5)
        fit(module, *callbacks, folder=tmp_path)
    assert torch.equal(weights(plain), weights(attached))
