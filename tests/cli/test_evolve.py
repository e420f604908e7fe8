"""``metastep meta-train --population``, as typed."""

import dataclasses
import json
from pathlib import Path

import pytest

from metastep.cli import population
from metastep.cli.population import PopulationOptions, execute_population, population_config, sparkline
from metastep.lab.evolution.defaults import default_config
from metastep.schedules import SignalSchedule, load_schedule


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


def test_it_goes_on_from_a_schedule_with_a_rate_for_each_layer_in_two_processes(tmp_path: Path) -> None:
    short = {"families": ("mlp",), "shortest": 12, "longest": 24, "long_share": 0.0, "pairs": 1}
    first = default_config("sgd", hidden=4, survey_tasks=1, meta_steps=0, fit_steps=5, **short)
    execute_population(first, tmp_path / "first", "local", None, json=True)
    start = tmp_path / "first" / "schedule.safetensors"
    options = PopulationOptions(population="sgd", scope="layer", start_from=str(start), meta_steps=1)
    config = population_config(options, seed=1, meta_lr=None, hidden=None, device="cpu")
    assert (config.survey_tasks, config.policy.scope, config.policy.hidden) == (0, "layer", 4)
    config = dataclasses.replace(config, tasks=2, **short)
    execute_population(config, tmp_path / "second", "local", None, workers=2, json=True)
    learned = load_schedule(tmp_path / "second" / "schedule.safetensors")
    assert isinstance(learned, SignalSchedule)
    assert learned.scope == "layer"


def test_a_sparkline_spans_two_decades_below_the_peak() -> None:
    assert sparkline([1e-9, 0.01, 0.1, 1.0]) == "▁▁▅█"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--population", "lion"], "population must be one of sgd, adamw, got 'lion'"),
        (["digits/mlp", "--population", "sgd"], "TASK must be left out with --population, got digits/mlp"),
        (["--population", "sgd", "--pairs", "0"], "pairs must be > 0, got 0"),
        (["--population", "sgd", "--scope", "unit"], "scope must be 'network' or 'layer', got 'unit'"),
        (["--population", "sgd", "--start-from", "mlrsnet-cifar10"], "start-from must be a signal schedule"),
        (["--population", "sgd", "--start-from", "signal-sgd", "--survey-tasks", "3"], "survey_tasks must be 0"),
        (["--population", "sgd", "--workers", "0"], "workers must be >= 1, got 0"),
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
