"""``metastep evolve``, as typed."""

import dataclasses
import json
from pathlib import Path

import pytest

from metastep.cli.display import sparkline
from metastep.cli.evolve import evolution_config, execute_evolution
from metastep.lab.evolution import default_config
from metastep.lab.runtime.executor import LocalExecutor
from metastep.schedules import SignalSchedule, load_schedule

SHORT = {"families": ("mlp",), "shortest": 12, "longest": 24, "long_share": 0.0, "pairs": 1}


def test_it_trains_and_says_where_the_schedule_is_and_what_resumes_it(metastep) -> None:
    quick = ("--warm-start-tasks", "0", "--meta-steps", "1", "--pairs", "1", "--longest", "200")
    result = metastep("evolve", "sgd", *quick, "--seed", "7", "--out", "mine")
    assert result.code == 0
    assert "1 steps in" in result.out
    assert str(Path("mine") / "schedule.safetensors") in result.out
    assert isinstance(load_schedule("mine/schedule.safetensors"), SignalSchedule)
    found = metastep("evolve", "--resume", "mine", "--json").json
    assert (found["kind"], found["steps"], found["folder"]) == ("evolution", 1, "mine")
    settings = json.loads(Path("mine/evolution.json").read_text())
    assert (settings["base"], settings["seed"], settings["longest"]) == ("sgd", 7, 200)
    assert settings["unroll"] == default_config("sgd").unroll


def test_it_starts_from_a_schedule_with_a_rate_for_each_layer_in_two_processes(tmp_path: Path) -> None:
    first = default_config("sgd", hidden=4, warm_start_tasks=1, meta_steps=0, fit_steps=5, **SHORT)
    execute_evolution(first, tmp_path / "first", json=True)
    start = tmp_path / "first" / "schedule.safetensors"
    config = evolution_config("sgd", "layer", str(start), meta_steps=1, seed=1)
    assert (config.warm_start_tasks, config.policy.scope, config.policy.hidden) == (0, "layer", 4)
    config = dataclasses.replace(config, populations=2, **SHORT)
    execute_evolution(config, tmp_path / "second", LocalExecutor(2), json=True)
    learned = load_schedule(tmp_path / "second" / "schedule.safetensors")
    assert isinstance(learned, SignalSchedule)
    assert learned.scope == "layer"


def test_a_sparkline_spans_two_decades_below_the_peak() -> None:
    assert sparkline([1e-9, 0.01, 0.1, 1.0]) == "▁▁▅█"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("evolve", "BASE must be given (or --resume FOLDER): sgd or adamw"),
        ("evolve lion", "base must be one of sgd, adamw, got 'lion'"),
        ("evolve sgd --pairs 0", "pairs must be > 0, got 0"),
        ("evolve sgd --populations 0", "populations must be > 0, got 0"),
        ("evolve sgd --meta-steps -1", "meta_steps must be >= 0, got -1"),
        ("evolve sgd --scope unit", "scope must be 'network' or 'layer', got 'unit'"),
        ("evolve sgd --start-from mlrsnet-cifar10", "start-from must be a signal schedule"),
        ("evolve sgd --start-from signal-sgd --warm-start-tasks 3", "warm_start_tasks must be 0"),
        ("evolve sgd --workers 0", "workers must be >= 1, got 0"),
        ("evolve sgd --executor mpi", "executor must be local or ray, got 'mpi'"),
        ("evolve sgd --address auto", "address must be left out for the executor local"),
        ("evolve --resume .", "resume must be a folder with evolution.json"),
        ("meta-train --population sgd --survey-tasks 100", "metastep evolve sgd; --survey-tasks is --warm-start-tasks"),
        ("meta-train --population=adamw", "metastep evolve adamw"),
    ],
)
def test_bad_input_is_refused_in_one_line(arguments: str, message: str, metastep) -> None:
    result = metastep(*arguments.split())
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert result.err.count("\n") == 1
