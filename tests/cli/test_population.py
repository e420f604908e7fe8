"""``metastep meta-train --population``, as typed."""

import json
from pathlib import Path

import pytest

from metastep.cli import population
from metastep.cli.population import PopulationOptions, execute_population, population_config, sparkline
from metastep.meta.population.defaults import default_config


def test_options_reach_the_settings() -> None:
    options = PopulationOptions(population="adamw", survey_tasks=3, populations=2, pairs=5)
    config = population_config(options, seed=7, meta_lr=0.1, hidden=6, device="cpu")
    assert (config.base, config.survey_tasks, config.tasks, config.pairs) == ("adamw", 3, 2, 5)
    assert (config.seed, config.meta_lr, config.policy.hidden) == (7, 0.1, 6)
    assert config.meta_steps == default_config("adamw").meta_steps


def test_it_trains_and_says_where_the_schedule_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = {"families": ("mlp",), "shortest": 12, "longest": 24, "long_share": 0.0}
    config = default_config("sgd", hidden=4, survey_tasks=0, meta_steps=1, pairs=1, **short)
    execute_population(config, tmp_path / "run", "local", None, json=False)
    said = capsys.readouterr().out
    assert "1 steps in" in said
    assert str(tmp_path / "run" / "schedule.safetensors") in said.replace("\n", "")
    execute_population(None, tmp_path / "run", "local", None, json=True)
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    assert population.is_population(tmp_path / "run")


def test_a_sparkline_spans_two_decades_below_the_peak() -> None:
    assert sparkline([1e-9, 0.01, 0.1, 1.0]) == "▁▁▅█"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population", "lion"], "population must be one of sgd, adamw, got 'lion'"),
        (["digits/mlp", "--population", "sgd"], "TASK must be left out with --population, got digits/mlp"),
        (["--population", "sgd", "--pairs", "0"], "pairs must be > 0, got 0"),
        (["--population", "sgd", "--address", "auto"], "address must be left out for the engine local"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    from metastep.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["metastep", "meta-train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
