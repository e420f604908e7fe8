"""The shipped schedules and their cards are what the plan and the records in results/ say, word for word."""

import sys
from pathlib import Path

import pytest
import torch
from benchmarks.ship_schedules import RESULTS, card, main, read_plan, shipped_schedule

import metastep as ms
from metastep.schedules.files import pretrained_card

PLAN = read_plan()


def test_what_is_shipped_is_what_is_planned() -> None:
    assert sorted(PLAN) == sorted(ms.shipped_schedules())


@pytest.mark.parametrize("name", PLAN)
def test_a_shipped_schedule_has_the_weights_and_the_rule_of_its_plan(name: str) -> None:
    planned, shipped = shipped_schedule(PLAN[name]), ms.load_schedule(name)
    assert planned.config() == shipped.config()
    for ours, theirs in zip(planned.state_dict().values(), shipped.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", PLAN)
def test_a_shipped_card_is_what_the_records_say(name: str) -> None:
    assert pretrained_card(name) == card(name, PLAN[name]).markdown(ms.load_schedule(name)), (
        "the card is not what its records say; run python benchmarks/ship_schedules.py"
    )


@pytest.mark.parametrize("name", PLAN)
def test_a_card_has_a_command_a_seed_a_measured_transfer_and_limits(name: str) -> None:
    made = card(name, PLAN[name])
    assert made.limits
    assert made.transfer
    assert all((RESULTS / path).is_file() for part in PLAN[name]["transfer"] for path in part["records"])
    assert made.training
    assert all(record["command"].startswith("metastep ") and "seed" in record for record in made.training)


def test_the_program_writes_both_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["ship", "--only", "mlrsnet-cifar10", "--out", str(tmp_path)])
    main()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mlrsnet-cifar10.md", "mlrsnet-cifar10.safetensors"]
    assert (tmp_path / "mlrsnet-cifar10.md").read_text() == pretrained_card("mlrsnet-cifar10")
