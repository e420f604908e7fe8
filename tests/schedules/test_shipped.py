"""The schedules that come with the package: whole, small, with a card, and called by name from anywhere."""

import os
import pickle
from importlib.resources import files
from pathlib import Path

import pytest
import torch

import metastep as ms
from metastep.schedules import files as schedule_files
from metastep.schedules.files import pretrained_card, pretrained_file

FOLDER = files("metastep.schedules") / "pretrained"
NAMES = sorted(
    entry.name.removesuffix(".safetensors") for entry in FOLDER.iterdir() if entry.name[-12:] == ".safetensors"
)
LARGEST = 500_000  # bytes


def test_every_file_has_its_card_and_every_card_its_file() -> None:
    cards = sorted(entry.name.removesuffix(".md") for entry in FOLDER.iterdir() if entry.name.endswith(".md"))
    assert cards == NAMES == sorted(ms.shipped_schedules())
    assert NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_schedule_is_small_and_sets_finite_rates(name: str) -> None:
    file = pretrained_file(name)
    assert file is not None
    assert len(file.read_bytes()) < LARGEST
    schedule = ms.load_schedule(name).with_total_steps(30)
    assert all(weight.isfinite().all() for weight in schedule.state_dict().values())
    weight = torch.nn.Parameter(torch.ones(3))
    base = torch.optim.AdamW if "adamw" in name else torch.optim.SGD
    lr = ms.LearnedLR(base([weight], lr=0.1), schedule, num_classes=10, initial_loss=2.3)
    for step in range(30):
        lr.observe(2.3 - step / 15)
        weight.grad = torch.ones(3)
        lr.optimizer.step()
        assert 0 < lr.get_last_lr()[0] < 100  # down a slope without end a rate may grow
    assert weight.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_schedule_has_one_line_that_says_what_it_is(name: str) -> None:
    summary = ms.shipped_schedules()[name]
    assert 10 < len(summary) < 100
    assert summary in pretrained_card(name)


def test_a_name_means_the_same_in_every_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = NAMES[0]
    ms.save_schedule(ms.Cosine(7), tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert not isinstance(ms.load_schedule(name), ms.Cosine)
    assert isinstance(ms.load_schedule(f"./{name}"), ms.Cosine)
    assert isinstance(ms.load_schedule(Path(name)), ms.Cosine)


def test_the_frozen_schedule_has_the_weights_that_its_record_was_made_with() -> None:
    learned = ms.load_schedule(Path(__file__).parents[2] / "results" / "transfer" / "meta" / "schedule.safetensors")
    frozen = ms.load_schedule("mlrsnet-cifar10")
    assert all(torch.equal(a, b) for a, b in zip(learned.parameters(), frozen.parameters(), strict=True))
    assert frozen.scale == ms.ScaleRule(mode="freeze")


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("mlrsnet-cifar", "did you mean mlrsnet-cifar10"),
        ("mlrsnet_cifar10.safetensors", "did you mean mlrsnet-cifar10"),
        ("zzz", "or a name: .*mlrsnet-cifar10"),
        ("../pretrained/mlrsnet-cifar10", "no schedule file"),
        ("", "no schedule file"),
        (".", "no schedule file"),
        ("C:mlrsnet-cifar10", "no schedule file"),
    ],
)
def test_an_unknown_name_gets_the_nearest_and_a_path_never_leads_into_the_package(asked: str, says: str) -> None:
    with pytest.raises(FileNotFoundError, match=says):
        ms.load_schedule(asked)


def test_a_schedule_that_is_not_shipped_has_no_file_and_no_card() -> None:
    assert pretrained_file("cosine") is None
    with pytest.raises(FileNotFoundError):
        pretrained_card("cosine")


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_the_place_of_a_shipped_file_is_refused_and_not_run(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mlrsnet-cifar10.safetensors").write_bytes(pickle.dumps({"layer3.weight": Trap(tmp_path / "was_run")}))
    monkeypatch.setattr(schedule_files, "_folder", lambda: tmp_path)
    with pytest.raises(ms.ScheduleFileError, match="mlrsnet-cifar10"):
        ms.load_schedule("mlrsnet-cifar10")
    assert not (tmp_path / "was_run").exists()
