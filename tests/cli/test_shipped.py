"""Schedules that come with the package are called by name on the command line, as the closed forms are."""

from pathlib import Path

import pytest

import metastep as package


def test_the_shipped_schedules_are_listed(metastep) -> None:
    schedules = metastep("list", "schedules", "--json").json
    assert list(schedules) == ["schedules"]
    assert package.shipped_schedules().items() <= schedules["schedules"].items()
    assert "mlrsnet-cifar10" in metastep("list", "schedules").out
    assert "digits/mlp" not in metastep("list", "schedules").out


def test_an_unknown_kind_of_thing_is_refused(metastep) -> None:
    result = metastep("list", "schedule")
    assert (result.code, result.out) == (2, "")
    assert "did you mean schedules" in result.err


def test_a_shipped_schedule_is_inspected_by_name(metastep, tmp_path: Path) -> None:
    found = metastep("inspect", "mlrsnet-cifar10", "--steps", "9", "--json").json
    assert found["class"] == "Phased"
    assert found["bytes"] > 100_000
    assert len(found["settled"]) == 3


def test_a_shipped_schedule_drives_a_run_by_name(metastep, tmp_path: Path) -> None:
    small = ("--steps", "6", "--set", "train_size=200", "--set", "threads=1", "--out", str(tmp_path / "run"), "--json")
    record = metastep("train", "digits/mlp", "--schedule", "mlrsnet-cifar10", *small).json
    assert record["schedule"] == "mlrsnet-cifar10"
    assert record["scale"] > 0
    assert all(0 < rate < 5 for rate in record["train"]["lr"])
    wrong = metastep("train", "digits/mlp", "--schedule", "mlrsnet-cifar")
    assert "did you mean mlrsnet-cifar10" in wrong.err


def test_a_schedule_that_left_the_package_says_what_to_use(metastep) -> None:
    for command in (("train", "digits/mlp", "--schedule", "signal-adamw"), ("inspect", "signal-sgd")):
        result = metastep(*command)
        assert (result.code, result.out) == (2, "")
        assert 'signal schedules have left the package; use metastep.Calibrated(), by name "calibrated".' in result.err


@pytest.mark.parametrize("schedule", ["mlrsnet-cifar10", "mlr-snet"])
def test_a_schedule_for_another_base_is_refused_unless_it_is_allowed(metastep, schedule: str) -> None:
    small = (
        "digits/mlp",
        "--optimizer",
        "adamw",
        "--steps",
        "3",
        "--set",
        "train_size=200",
        "--set",
        "threads=1",
        "--json",
    )
    refused = metastep("train", *small, "--json", "--schedule", schedule)
    assert (refused.code, refused.out) == (2, "")
    assert "the optimizer is adamw" in refused.err
    assert "--allow-other-base" in refused.err
    assert "sgd" in refused.err
    with pytest.warns(UserWarning, match="the optimizer is adamw"):
        assert metastep("train", *small, "--json", "--schedule", schedule, "--allow-other-base").code == 0
