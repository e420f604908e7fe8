"""The calibrated schedule gives through every adapter the rates of a plain loop, also after a restart."""

from functools import partial
from pathlib import Path

import pytest
import torch
from tests.integrations.digits import digits, network, note_rates
from torch.nn.functional import cross_entropy

import metastep as ms
from metastep.integrations import AsScheduler

STEPS = 6
sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)


def plain(wrap=lambda lr: lr) -> list[float]:
    """The rates of a loop without any trainer."""
    model = network()
    optimizer = sgd(model.parameters())
    used = note_rates(optimizer)
    scheduler = wrap(ms.LearnedLR(optimizer, ms.Calibrated(STEPS)))
    lr = scheduler.lr if isinstance(scheduler, AsScheduler) else scheduler
    x, y = digits(32 * STEPS)
    for rows in range(0, 32 * STEPS, 32):
        optimizer.zero_grad()
        loss = cross_entropy(model(x[rows : rows + 32]), y[rows : rows + 32])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        lr.observe(loss)
        optimizer.step()
        if isinstance(scheduler, AsScheduler):
            scheduler.step()
    assert len(set(used)) == STEPS
    return used


def test_as_a_scheduler() -> None:
    assert plain(AsScheduler) == plain()


def test_under_accelerate(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [accelerate]")
    from tests.integrations.test_accelerate import Run, anew_state

    anew_state()
    run = Run(ms.Calibrated(STEPS))
    for step, batch in enumerate(run.loader):
        if step == 3:
            run.accelerator.save_state(str(tmp_path))
        run.step(batch)
    assert run.used == pytest.approx(plain(), rel=1e-5)
    anew_state()
    after = Run(ms.Calibrated(STEPS))
    after.accelerator.load_state(str(tmp_path))
    after.epoch(start=3)
    assert after.used == run.used[3:]
    assert torch.equal(after.weights(), run.weights())
    anew_state()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_under_lightning(tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
    from tests.integrations.lightning_runs import Digits, Manual, fit, weights

    from metastep.integrations.lightning import LearnedLRCallback

    module, manual = Digits(), Manual()
    fit(module, LearnedLRCallback(ms.Calibrated(STEPS)), folder=tmp_path, gradient_clip_val=0.5)
    fit(manual, LearnedLRCallback(ms.Calibrated(STEPS)), folder=tmp_path)
    assert module.used == pytest.approx(plain(), rel=1e-5)
    assert manual.used == module.used
    assert torch.equal(weights(manual), weights(module))


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
def test_resumed_under_lightning(tmp_path: Path) -> None:
    """From the end of an epoch: in the middle of one, Lightning begins with the epoch's first batch again."""
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
    from tests.integrations.lightning_runs import weights
    from tests.integrations.test_lightning_resume import resumed

    from metastep.integrations.lightning import LearnedLRCallback

    undisturbed, after = resumed(tmp_path, lambda: [LearnedLRCallback(ms.Calibrated(2 * STEPS))])
    assert len(set(after.used)) == STEPS
    assert after.used == undisturbed.used[STEPS:]
    assert torch.equal(weights(after), weights(undisturbed))


@pytest.mark.filterwarnings("ignore")  # of Transformers
def test_under_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="Transformers is not installed: the extra [transformers]")
    from tests.integrations.test_transformers import Run

    options = {"save_strategy": "steps", "save_steps": 2}
    undisturbed = Run(tmp_path, ms.Calibrated(STEPS), **options).train()
    after = Run(tmp_path, ms.Calibrated(STEPS), **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(set(undisturbed.used)) == STEPS
    assert after.used == undisturbed.used[2:]
    assert torch.equal(after.weights(), undisturbed.weights())
