"""What was written at commit 304db44 is read: schedule files, and states of a LearnedLR that go on bit for bit."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import metastep as ms
from metastep.core.policy import ActionBounds

SAMPLES = Path(__file__).parent / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.safetensors"))
RATES = json.loads((SAMPLES / "rates.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_saved_by_the_older_version_goes_on_bit_for_bit(name: str) -> None:
    torch.manual_seed(5)
    model = torch.nn.Linear(3, 2).double()
    x, y = torch.randn(8, 3, dtype=torch.float64), torch.randint(2, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, ms.load_schedule(SAMPLES / f"{name}.safetensors"), num_classes=2, total_steps=10)
    saved = torch.load(SAMPLES / f"{name}.pt", weights_only=True)
    lr.load_state_dict(saved["lr"])
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    found = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        optimizer.step()
        found += lr.get_last_lr()
    assert found == RATES[name]


@pytest.mark.parametrize("name", NAMES)
def test_an_older_state_is_that_of_the_new_version_after_it_was_loaded_and_saved(name: str) -> None:
    schedule = ms.load_schedule(SAMPLES / f"{name}.safetensors")
    optimizer = torch.optim.SGD(torch.nn.Linear(3, 2).double().parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, schedule, num_classes=2, total_steps=10)
    lr.load_state_dict(torch.load(SAMPLES / f"{name}.pt", weights_only=True)["lr"])
    again = lr.state_dict()
    assert again["schema"] == 2
    lr.load_state_dict(again)
    assert str(lr.state_dict()) == str(again)


def test_the_reach_of_an_older_file_is_its_bounds() -> None:
    layers = ms.load_schedule(SAMPLES / "signal-layers.safetensors")
    assert layers.bounds == ActionBounds(max_increase=4.0)
    network = ms.load_schedule(SAMPLES / "signal.safetensors")
    assert network.bounds == ActionBounds(initial_update=0.7, anneals=True)
    assert network.trained_for == "sgd"


def test_an_older_network_is_trained_for_nothing_that_is_known() -> None:
    network = ms.load_schedule(SAMPLES / "mlrsnet.safetensors")
    assert network.trained_for is None
    with pytest.warns(UserWarning, match="rule for sgd, the optimizer is adamw"):
        ms.LearnedLR(torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()), network)


def test_a_state_without_a_signal_that_came_later_goes_on_with_it_unseen() -> None:
    schedule = ms.SignalSchedule(hidden=2, total_steps=10)
    saved = schedule.saved_state(schedule.init_state() + 1)
    at = saved["fields"].index("drop")
    older = {
        "fields": saved["fields"][:at] + saved["fields"][at + 1 :] + ["forgotten"],
        "rows": torch.cat(
            (saved["rows"][:, :at], saved["rows"][:, at + 1 : -1], torch.ones(1, 1), saved["rows"][:, -1:]), 1
        ),
    }
    found = schedule.loaded_state(older)
    expected = schedule.init_state() + 1
    expected[0, at] = 0
    assert torch.equal(found, expected)


@pytest.mark.parametrize("schema", [0, 3, "2", None])
def test_a_state_of_another_schema_is_refused_in_words(schema: object) -> None:
    lr = ms.LearnedLR(torch.optim.SGD(torch.nn.Linear(2, 2).parameters(), lr=0.1), ms.Cosine(10))
    with pytest.raises(ValueError, match="state_dict has schema"):
        lr.load_state_dict({**lr.state_dict(), "schema": schema})


def test_reading_an_older_file_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in NAMES:
            ms.load_schedule(SAMPLES / f"{name}.safetensors")
