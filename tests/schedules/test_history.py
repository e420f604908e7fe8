"""What a LearnedLR keeps of its run: enough for a picture, in bounded memory, and never at the price of a sync."""

import copy
import io
import math
import sys
from pathlib import Path

import pytest
import torch
from tests.schedules.loops import Regression, null, rates
from torch import nn

import metastep as ms
from metastep.schedules.history import History


def filled(steps: int) -> History:
    history = History()
    for step in range(steps):
        history.add(step, float(step), step / 10)
    return history


@pytest.mark.parametrize("steps", [0, 1, 2000, 2001, 4000, 4001, 123_456])
def test_points_are_evenly_spread_and_at_most_two_thousand(steps: int) -> None:
    history = filled(steps)
    assert history.steps == list(range(0, steps, history.stride))
    assert history.losses == [float(step) for step in history.steps]
    assert history.rates == [step / 10 for step in history.steps]
    assert len(history) <= 2000
    assert history.stride == 1 or len(history) >= 1000


def test_steps_losses_and_rates_are_those_of_the_run() -> None:
    optimizer = null(0.0, 0.2, 0.1)
    lr = ms.LearnedLR(optimizer, ms.Cosine(8))
    for step in range(6):
        if step != 2:
            lr.observe(5.0 - step)
            lr.observe(7.0 - step)
        optimizer.step()
    assert lr.history.steps == [0, 1, 2, 3, 4, 5]
    assert lr.history.rates == [used[0] for used in optimizer.used]
    assert lr.history.losses[:2] + lr.history.losses[3:] == [6.0, 5.0, 3.0, 2.0, 1.0]
    assert math.isnan(lr.history.losses[2])


def test_a_resumed_history_is_that_of_the_unbroken_run() -> None:
    def start() -> tuple[Regression, ms.LearnedLR]:
        run = Regression(lambda p: torch.optim.AdamW(p, lr=0.1))
        return run, ms.LearnedLR(run.optimizer, ms.Calibrated(), total_steps=24)

    def go(run: Regression, lr: ms.LearnedLR, steps: range) -> None:
        for step in steps:
            lr.observe(run.backward(step))
            run.optimizer.step()

    whole, whole_lr = start()
    go(whole, whole_lr, range(10))
    parts = [whole.model.state_dict(), whole.optimizer.state_dict(), whole_lr.state_dict(), torch.get_rng_state()]
    file = io.BytesIO()
    torch.save(parts, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    go(whole, whole_lr, range(10, 24))
    run, lr = start()
    run.model.load_state_dict(saved[0])
    run.optimizer.load_state_dict(saved[1])
    lr.load_state_dict(saved[2])
    torch.set_rng_state(saved[3])
    go(run, lr, range(10, 24))
    assert lr.history.state_dict() == whole_lr.history.state_dict()
    assert lr.history.steps == list(range(24))


def test_a_long_history_comes_back_from_its_state() -> None:
    history, other = filled(5000), History()
    other.load_state_dict(copy.deepcopy(history.state_dict()))
    for each in (history, other):
        for step in range(5000, 9000):
            each.add(step, 1.0, 2.0)
    assert other.state_dict() == history.state_dict()


def test_events_say_what_happened_and_when() -> None:
    run = Regression(lambda p: torch.optim.AdamW(p, lr=0.1))
    lr = ms.LearnedLR(run.optimizer, "calibrated")
    for parameter in run.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    run.optimizer.step()
    run.backward(0)
    run.optimizer.step()
    lr.extend(50)
    lr.observe(math.nan)
    run.backward(1)
    run.optimizer.step()
    run.optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1})
    run.optimizer.step()
    lr.observe(math.inf)
    lr.cool(5)
    events = lr.history.events
    assert [step for step, _ in events] == [0, 2, 3, 3, 4, 5]
    silent, calibrated, extended, ignored, joined, cooling = (text for _, text in events)
    assert "no gradient said anything" in silent
    assert f"unit rate {lr.scale:.4g}, share 1" in calibrated
    assert "no loss was observed" in calibrated
    assert "50 steps" in extended
    assert ignored.endswith("2 so far")
    assert "groups joined" in joined
    assert "5 steps" in cooling
    assert "no loss was observed" in repr(lr.history)


def test_events_do_not_grow_for_ever() -> None:
    history = History()
    for step in range(1000):
        history.note(step, "again")
    assert len(history.events) == 200
    assert history.events[-1] == (999, "again")


# ---- tensors on an accelerator


def test_numbers_on_a_device_are_read_when_they_are_asked_for() -> None:
    history = History()
    for step in range(2500):
        history.add(step, torch.tensor(float(step)), torch.tensor([step / 4], dtype=torch.float64))
    history.add(2500, 7.0, torch.tensor(1.0))
    assert history.losses == [*map(float, range(0, 2500, 2)), 7.0]
    assert history.rates == [*(step / 4 for step in range(0, 2500, 2)), 1.0]


@pytest.mark.parametrize("schedule", [ms.Cosine(9), ms.Constant(), ms.Calibrated(9)])
def test_a_loss_on_a_device_is_not_read_where_the_schedule_does_not_look_at_it(schedule: ms.Schedule) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    lr = ms.LearnedLR(optimizer, schedule)
    parameter.grad = torch.ones(3)
    lr.observe(1.0)  # the calibrated one looks at the first
    optimizer.step()
    for _ in range(3):
        lr.observe(torch.empty((), device="meta"))  # which has no value: reading it is an error
        optimizer.step()
    assert lr.steps == 4
    assert len(lr.get_last_lr()) == 1


@pytest.mark.parametrize("schedule", [ms.Calibrated(9), ms.MLRSNet()])
def test_a_loss_on_a_device_is_read_where_it_is_needed(schedule: ms.Schedule) -> None:
    parameter = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    lr = ms.LearnedLR(optimizer, schedule, num_classes=10)
    parameter.grad = torch.ones(3)
    lr.observe(torch.empty((), device="meta"))
    with pytest.raises(RuntimeError, match="meta tensor"):
        optimizer.step()


class Looks(ms.Cosine):
    """A closed form of somebody's own that looks at the loss."""

    def query(self, loss: float, state: int) -> tuple[float, int]:
        """The loss itself."""
        return loss, state + 1


def test_a_closed_form_that_looks_at_the_loss_is_given_it() -> None:
    optimizer = null(1.0)
    assert rates(ms.LearnedLR(optimizer, Looks(9)), optimizer, [0.5, 0.25]) == [0.5, 0.25]


# ---- files and pictures


def run() -> ms.LearnedLR:
    optimizer = null(0.1)
    lr = ms.LearnedLR(optimizer, ms.Cosine(4))
    for loss in (2.0, None, 1.0, math.nan):
        if loss is not None:
            lr.observe(loss)
        optimizer.step()
    return lr


def test_a_csv_file_has_a_line_for_each_point(tmp_path: Path) -> None:
    lr = run()
    lr.history.to_csv(tmp_path / "run.csv")
    lines = (tmp_path / "run.csv").read_text().splitlines()
    assert lines[:3] == ["step,loss,rate", "0,2.0,0.1", f"1,,{lr.history.rates[1]!r}"]
    assert len(lines) == 5


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("html", b"<!DOCTYPE html>")])
def test_a_plot_is_a_picture_by_the_suffix_of_its_path(suffix: str, begin: bytes, tmp_path: Path) -> None:
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    path = tmp_path / f"run.{suffix}"
    chart = run().plot(path)
    assert path.read_bytes().lstrip().startswith(begin)
    rows = chart.to_dict(validate=True)["vconcat"][0]["layer"][0]["data"]["values"]
    assert [row["loss"] for row in rows] == [2.0, None, 1.0, None]


def test_another_suffix_is_refused() -> None:
    with pytest.raises(ValueError, match=r"path must end in \.png, \.svg, \.html, got 'run\.pdf'"):
        run().plot("run.pdf")


def test_without_altair_a_plot_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "altair", None)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "metastep\[report\]"'):
        run().plot()


# ---- validation losses


def test_a_validation_loss_is_the_best_when_it_is_less_than_all_before() -> None:
    optimizer = null(0.1)
    lr = ms.LearnedLR(optimizer, ms.Constant())
    found = []
    for loss in (math.nan, 2.0, 2.0, 1.5, math.inf, 1.8):
        optimizer.step()
        found.append(lr.observe_validation(torch.tensor(loss)))
    assert found == [False, True, False, True, False, False]
    assert lr.history.best == (4, 1.5)
    assert lr.history.validation[1:4] == [(2, 2.0), (3, 2.0), (4, 1.5)]
    with pytest.raises(ValueError, match=r"loss must have one element, got shape \(2,\)"):
        lr.observe_validation(torch.ones(2))


@pytest.mark.filterwarnings("ignore:total_steps=20, but the run ended after 10")
def test_validation_losses_change_no_rate_and_survive_a_resume() -> None:
    optimizers, rates = [torch.optim.AdamW([torch.nn.Parameter(torch.ones(4))]) for _ in range(2)], [[], []]
    for optimizer, found in zip(optimizers, rates, strict=True):
        (parameter,) = optimizer.param_groups[0]["params"]
        lr = ms.LearnedLR(optimizer, total_steps=20)
        for step in range(20):
            if step == 10 and found is rates[1]:
                state = lr.state_dict()
                lr.detach()
                lr = ms.LearnedLR(optimizer, total_steps=20)
                lr.load_state_dict(state)
            loss = parameter.square().sum()
            parameter.grad = 2 * parameter.detach()
            lr.observe(loss)
            optimizer.step()
            found.append(lr.get_last_lr()[0])
            if found is rates[1]:
                lr.observe_validation(1.0 + abs(step - 5))
    assert rates[0] == rates[1]
    assert lr.history.best == (6, 1.0)
    assert len(lr.history.validation) == 20


def test_many_validation_losses_take_no_more_memory_and_the_best_is_kept() -> None:
    history = History()
    for step in range(10_000):
        history.add_validation(step, abs(step - 4321) + 1.0)
    assert len(history.validation) <= 2_000
    assert history.best == (4321, 1.0)
    assert history.validation[0][0] == 0


def test_a_plot_shows_the_validation_loss(tmp_path: Path) -> None:
    pytest.importorskip("altair")
    lr = run()
    lr.observe_validation(3.0)
    layers = lr.plot().to_dict(validate=True)["vconcat"][0]["layer"]
    assert layers[2]["data"]["values"] == [{"step": 4, "validation": 3.0}]


def test_a_state_from_before_validation_losses_loads() -> None:
    lr = run()
    state = lr.state_dict()
    del state["history"]["validation"], state["history"]["best"]
    lr.load_state_dict(state)
    assert lr.history.best is None
