"""A schedule that reads the gradients gives through every adapter the rates of a plain loop."""

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


def watching(scope: str = "network", total_steps: int = STEPS, spread: float = 0.2) -> ms.SignalSchedule:
    """A schedule of signals with random weights, whose rate moves."""
    torch.manual_seed(0)
    schedule = ms.SignalSchedule(scope=scope, total_steps=total_steps)
    with torch.no_grad():
        for weight in schedule.parameters():
            weight.normal_(0, spread)
    return schedule


def plain(scope: str, wrap=lambda lr: lr) -> list[float]:
    """The rates of a loop without any trainer."""
    model = network()
    optimizer = sgd(model.parameters())
    used = note_rates(optimizer)
    scheduler = wrap(ms.LearnedLR(optimizer, watching(scope)))
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
    assert len(set(used)) > STEPS // 2
    return used


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_as_a_scheduler(scope: str) -> None:
    assert plain(scope, AsScheduler) == plain(scope)


@pytest.mark.parametrize("scope", ["network", "layer"])
def test_under_accelerate(scope: str, tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="Accelerate is not installed: the extra [accelerate]")
    from tests.integrations.test_accelerate import Run, anew_state

    anew_state()
    run = Run(watching(scope))
    for step, batch in enumerate(run.loader):
        if step == 3:
            run.accelerator.save_state(str(tmp_path))
        run.step(batch)
    assert run.used == pytest.approx(plain(scope), rel=1e-5)
    anew_state()
    after = Run(watching(scope))
    after.accelerator.load_state(str(tmp_path))
    after.epoch(start=3)
    assert after.used == run.used[3:]
    assert torch.equal(after.weights(), run.weights())
    anew_state()


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("scope", ["network", "layer"])
def test_under_lightning(scope: str, tmp_path: Path) -> None:
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
    from tests.integrations.lightning_runs import Digits, Manual, fit, weights

    from metastep.integrations.lightning import LearnedLRCallback

    module, manual = Digits(), Manual()
    fit(module, LearnedLRCallback(watching(scope)), folder=tmp_path, gradient_clip_val=0.5)
    fit(manual, LearnedLRCallback(watching(scope)), folder=tmp_path)
    assert module.used == pytest.approx(plain(scope), rel=1e-5)
    assert manual.used == module.used
    assert torch.equal(weights(manual), weights(module))


@pytest.mark.filterwarnings("ignore")  # Lightning's advice
@pytest.mark.parametrize("scope", ["network", "layer"])
def test_resumed_under_lightning(scope: str, tmp_path: Path) -> None:
    """From the end of an epoch: in the middle of one, Lightning begins with the epoch's first batch again."""
    pytest.importorskip("lightning.pytorch", reason="Lightning is not installed: the extra [lightning]")
    from tests.integrations.lightning_runs import weights
    from tests.integrations.test_lightning_resume import resumed

    from metastep.integrations.lightning import LearnedLRCallback

    # more spread, and the rates of layers lie on their lower bound by then
    undisturbed, after = resumed(tmp_path, lambda: [LearnedLRCallback(watching(scope, 2 * STEPS, spread=0.05))])
    assert len(set(after.used)) == STEPS
    assert after.used == undisturbed.used[STEPS:]
    assert torch.equal(weights(after), weights(undisturbed))


@pytest.mark.filterwarnings("ignore")  # of Transformers
def test_under_transformers(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="Transformers is not installed: the extra [transformers]")
    from tests.integrations.test_transformers import Run

    options = {"save_strategy": "steps", "save_steps": 2}
    undisturbed = Run(tmp_path, watching(), **options).train()
    after = Run(tmp_path, watching(), **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert len(set(undisturbed.used)) > STEPS // 2
    assert after.used == undisturbed.used[2:]
    assert torch.equal(after.weights(), undisturbed.weights())
