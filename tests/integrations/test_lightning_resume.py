"""Lightning's checkpoints hold the rate; and a schedule is learned inside Lightning."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.integrations.digits import digits, learned

import metastep as ms
from metastep.optim import HyperAdamW, HyperSGD

pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from tests.integrations.lightning_runs import ADVICE, Data, Digits, Manual, fit, sgd, weights

from metastep.integrations.lightning import LearnedLRCallback, MetaLearnerCallback

pytestmark = ADVICE


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


@pytest.mark.parametrize("callback_class", [LearnedLRCallback, MetaLearnerCallback])
def test_a_second_fit_with_more_epochs_goes_on_under_the_new_horizon(tmp_path: Path, callback_class: type) -> None:
    def make() -> LearnedLRCallback:
        if callback_class is LearnedLRCallback:
            return LearnedLRCallback(ms.Cosine())
        return MetaLearnerCallback(learned(), Digits.loss, every=4, num_classes=10)

    module, callback = Digits(), make()
    trainer = fit(module, callback, folder=tmp_path)
    first = list(module.used)
    trainer.fit_loop.max_epochs = 3
    trainer.fit(module, Data())
    assert callback.lr.steps == trainer.global_step == 18
    assert callback.lr.total_steps == 18
    if callback_class is LearnedLRCallback:
        assert [*first, *module.used] == pytest.approx(
            [
                *(0.1 * ms.Cosine(6).factor_at(k) for k in range(6)),
                *(0.1 * ms.Cosine(18).factor_at(k) for k in range(6, 18)),
            ]
        )
    else:
        assert callback.learner.meta_updates == 4


def test_a_checkpoint_without_the_callback_s_state_is_said(tmp_path: Path) -> None:
    trainer = fit(Digits(), folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "without.ckpt")
    callback = LearnedLRCallback(ms.Cosine())
    with pytest.warns(UserWarning, match="after 6 steps, and the checkpoint holds no state of LearnedLRCallback"):
        fit(Digits(), callback, folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / "without.ckpt")
    assert callback.lr.steps == callback.lr.total_steps == 6


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


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`")
def test_learning_without_validation_data_is_refused(tmp_path: Path) -> None:
    class NoValidation(Data):
        val_dataloader = pl.LightningDataModule.val_dataloader

    callback = MetaLearnerCallback(learned(), Digits.loss, every=1)
    with pytest.raises(ValueError, match=r"validation data must be there"):
        fit(Digits(), callback, folder=tmp_path, data=NoValidation(), limit_val_batches=0)
