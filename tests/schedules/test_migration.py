"""What was written at commit 304db44 is read: schedule files, and states of a LearnedLR that go on bit for bit."""

import json
import warnings
from pathlib import Path

import pytest
import torch

import metastep as ms
from metastep.schedules import compiled_query

SAMPLES = Path(__file__).parent / "samples"
NAMES = sorted(path.stem for path in SAMPLES.glob("*.safetensors") if not path.stem.startswith("signal"))
RATES = json.loads((SAMPLES / "rates.json").read_text())


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_saved_by_the_older_version_goes_on(name: str, compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit by the arithmetic of that version; compiled code rounds otherwise."""
    if not compiled:
        monkeypatch.setattr(compiled_query, "library", lambda *source: None)
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
    assert found == (pytest.approx(RATES[name], rel=1e-6) if compiled else RATES[name])


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


def test_an_older_network_is_trained_for_nothing_that_is_known() -> None:
    network = ms.load_schedule(SAMPLES / "mlrsnet.safetensors")
    assert network.trained_for is None
    with pytest.warns(UserWarning, match="rule for sgd, the optimizer is adamw"):
        ms.LearnedLR(torch.optim.AdamW(torch.nn.Linear(2, 2).parameters()), network)


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


# ---- what is no longer there

LEFT = r"signal schedules have left the package; use metastep\.Calibrated\(\), by name \"calibrated\"\.$"


@pytest.mark.parametrize("name", ["signal", "signal-layers"])
def test_a_signal_schedules_file_and_state_say_what_to_use(name: str) -> None:
    with pytest.raises(ms.ScheduleFileError, match=rf"{name}\.safetensors: it is a SignalSchedule: {LEFT}"):
        ms.load_schedule(SAMPLES / f"{name}.safetensors")
    saved = torch.load(SAMPLES / f"{name}.pt", weights_only=True)["lr"]
    for schedule in (None, ms.Cosine(10)):
        lr = ms.LearnedLR(torch.optim.SGD(torch.nn.Linear(3, 2).parameters(), lr=0.1), schedule)
        with pytest.raises(ValueError, match=f"state_dict is of a SignalSchedule: {LEFT}"):
            lr.load_state_dict(saved)


@pytest.mark.parametrize("name", ["signal-adamw", "signal-adamw-layers", "signal-sgd", "signal-sgd-layers"])
def test_the_name_of_a_signal_schedule_says_what_to_use(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"no schedule '{name}': {LEFT}"):
        ms.load_schedule(name)
    with pytest.raises(FileNotFoundError, match=LEFT):
        ms.LearnedLR(torch.optim.SGD(torch.nn.Linear(3, 2).parameters(), lr=0.1), name)


def test_a_file_of_that_name_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ms.save_schedule(ms.Cosine(7), tmp_path / "signal-adamw")
    monkeypatch.chdir(tmp_path)
    assert isinstance(ms.load_schedule("signal-adamw"), ms.Cosine)
