"""What inspect shows of a schedule that reads its optimizer are the rates of real runs."""

from pathlib import Path

import pytest

import metastep as package


def test_a_signal_schedule_is_shown_where_it_lands_whatever_the_initial_rate(metastep) -> None:
    found = metastep("inspect", "signal-sgd", "--steps", "8", "--json").json
    assert found["ran"] == {"task": "digits/mlp", "optimizer": "sgd-momentum", "steps": 8, "seed": 0}
    far_below, usual, far_above = found["rates"].values()
    assert [run["initial"] for run in found["runs"].values()] == pytest.approx([0.001, 0.1, 1.0])
    assert all(len(rates) == 8 for rates in found["rates"].values())
    assert far_above[0] == pytest.approx(1000 * far_below[0], rel=0.05)  # before it knows a displacement
    assert far_below[1:] == pytest.approx(usual[1:], rel=0.2)
    assert far_above[1:] == pytest.approx(usual[1:], rel=0.2)
    assert all(run["outer_valid"] > 0 for run in found["runs"].values())


def test_a_rate_for_each_parameter_is_shown_by_its_mean_with_what_was_run(metastep, tmp_path: Path) -> None:
    schedule = package.SignalSchedule(hidden=1, scope="layer", trained_for="adamw")
    package.save_schedule(schedule, tmp_path / "mine.safetensors")
    result = metastep("inspect", "mine.safetensors", "--steps", "3")
    assert (result.code, result.err) == (0, "")
    assert "3 steps on digits/mlp with adamw" in result.out
    assert "geometric mean over parameters" in result.out
    assert "from 0.001" in result.out
    assert (tmp_path / "mine-rates.png").read_bytes().startswith(b"\x89PNG")
