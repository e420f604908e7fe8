"""A signal is one entry of the registry; files and states that were written without it are still read."""

import pytest
import torch

import metastep as ms
from metastep.core import signals
from metastep.core.signals import Signal


@pytest.fixture
def before() -> dict[str, object]:
    """The state of a run, and the file of its schedule, from before the signal was there."""
    torch.manual_seed(0)
    lr, schedule = run(ms.SignalSchedule(hidden=2))
    return {"config": schedule.config(), "weights": schedule.state_dict(), "lr": lr.state_dict()}


def run(schedule: ms.SignalSchedule, state: dict | None = None) -> tuple[ms.LearnedLR, ms.SignalSchedule]:
    parameter = torch.nn.Parameter(torch.ones(3))
    lr = ms.LearnedLR(torch.optim.SGD([parameter], lr=0.1), schedule, total_steps=10)
    if state is not None:
        lr.load_state_dict(state)
    for _ in range(3):
        loss = parameter.square().sum()
        parameter.grad = torch.autograd.grad(loss, parameter)[0]
        lr.observe(loss)
        lr.optimizer.step()
    return lr, schedule


@pytest.fixture
def added(before: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package with one more entry, as it would be imported."""
    entry = Signal(
        feature=lambda x: x.state.gradient_peak.clamp(max=1),
        of_layers=True,
        formula=r"\max \lvert g\rvert",
        says="the peak",
    )
    monkeypatch.setitem(signals.REGISTRY, "peak", entry)
    for name in ("SIGNALS", "LAYER_SIGNALS"):
        monkeypatch.setattr(signals, name, (*getattr(signals, name), "peak"))


def test_a_schedule_reads_it_of_the_network_and_of_layers(added: None) -> None:
    del added
    for scope, own in (("network", ()), ("layer", ("layer peak",))):
        schedule = ms.SignalSchedule(("loss", "peak"), hidden=2, scope=scope)
        assert schedule.feature_names == ("loss", "peak", "loss_known", *own)
        lr, _ = run(schedule)
        assert lr.get_last_lr()[0] > 0


def test_it_is_a_row_of_the_documents_and_an_unknown_name_lists_it(added: None) -> None:
    del added
    assert "| `peak` | $\\max \\lvert g\\rvert$ | the peak |" in signals.table()
    with pytest.raises(ValueError, match="multiplier, peak, got 'peek'; did you mean peak"):
        signals.check_signals(["peek"])


def test_what_was_written_without_it_is_read_and_goes_on(added: None, before: dict, tmp_path) -> None:
    del added
    old = ms.SignalSchedule.from_config(before["config"])
    old.load_state_dict(before["weights"])
    assert "peak" not in old.signals
    ms.save_schedule(old, tmp_path / "old")
    loaded = ms.load_schedule(tmp_path / "old")
    assert run(loaded, before["lr"])[0].get_last_lr() == run(old, before["lr"])[0].get_last_lr()


def test_a_state_without_it_is_refused_in_words_by_a_schedule_that_reads_it(added: None, before: dict) -> None:
    del added
    newer = ms.SignalSchedule((*before["config"]["signals"], "peak"), hidden=2)
    with pytest.raises(ValueError, match="construct it with the schedule that was saved"):
        run(newer, before["lr"])
