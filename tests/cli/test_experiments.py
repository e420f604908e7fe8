"""``metastep experiment NAME``: what it runs and writes, what it refuses, and what a kill cannot take from it."""

from pathlib import Path

import pytest
from tests.cli.test_bad_input import refused
from tests.lab.bench.experiments import all_timeless
from tests.lab.bench.running import Child, differences

from metastep.lab.bench.experiments import EXPERIMENTS
from metastep.lab.bench.methods import METHODS
from metastep.lab.tasks import task_names
from metastep.lab.tasks.table import RECIPES

SMALL = (
    *("experiment", "field/small", "--tasks", "digits/mlp", "--methods", "sgd-momentum/cosine,sgd/mlr-snet"),
    *("--set", "steps=12", "--seeds", "1", "--budgets", "1,3"),
)


def test_an_experiment_writes_records_and_a_page(metastep, tmp_path: Path) -> None:
    result = metastep(*SMALL, "--out", "done", "--json")
    assert result.json.items() >= {"folder": "done", "report": "done/report.html", "runs": 6, "not_finished": 0}.items()
    assert "field/small, small" in (tmp_path / "done/report.html").read_text()
    assert metastep("report", "done", "--format", "csv").code == 0
    assert len((tmp_path / "done/report.csv").read_text().splitlines()) == 1 + 4
    again = metastep("experiment", "--resume", "done", "--json").json
    assert again["runs"] == 6


@pytest.fixture
def start(tmp_path: Path):
    """Start ``metastep ARGUMENTS`` in a process that does not outlive the test."""
    children: list[Child] = []

    def start_child(*arguments: str, **options: int) -> Child:
        children.append(Child(tmp_path, *arguments, **options))
        return children[-1]

    yield start_child
    for child in children:
        if child.process.is_alive():
            child.process.kill()
        child.process.join()


def test_an_experiment_that_is_killed_again_and_again_gives_the_records_of_an_undisturbed_one(
    start, metastep, tmp_path: Path
) -> None:
    assert metastep(*SMALL, "--out", "whole").code == 0
    code, kills = 77, 0
    while code == 77:  # dies as by kill -9, at another place of what it writes each time
        dies_at = 23 + 31 * kills
        arguments = ("--resume", "cut") if (tmp_path / "cut/experiment.json").exists() else (*SMALL[1:], "--out", "cut")
        child = start("experiment", *arguments, dies_at=dies_at)
        code = child.end()
        kills += code == 77
    assert code == 0, child.err
    assert kills >= 3
    assert differences(all_timeless(tmp_path / "cut"), all_timeless(tmp_path / "whole")) == []
    trials = [(tmp_path / name / "trials.csv").read_text().splitlines() for name in ("cut", "whole")]
    losses = [[line.split(",")[:6] for line in lines] for lines in trials]
    assert losses[0] == losses[1]


def test_every_experiment_names_methods_and_tasks_that_are_there() -> None:
    for name, experiment in EXPERIMENTS.items():
        assert experiment.name == name
        assert set(experiment.methods) <= METHODS.keys()
        for scale in (experiment.small, experiment.full):
            names = [workload.name for workload in scale.workloads] if scale else []
            assert len(set(names)) == len(names)
            assert {workload.task for workload in scale.workloads} <= set(task_names()) if scale else True


def test_the_small_field_is_a_field() -> None:
    field = EXPERIMENTS["field/small"]
    assert len(field.small.workloads) >= 10
    assert len(field.methods) >= 24
    assert (field.small.seeds, field.small.budgets, field.small.factors) == (3, (1, 8), (0.1, 10.0))


#: The tasks that the calibrated schedule was designed on.
DESIGN = {
    *("digits/mlp", "digits/convnet", "digits/mlp-noisy", "digits/resnet", "digits/vit", "digits/autoencoder"),
    *("diabetes/mlp", "breast-cancer/linear", "wine/mlp", "mnist/mlp", "mnist/lenet5", "cifar10/convnet"),
    *("cifar10/resnet8", "shakespeare/lstm-small", "shakespeare/transformer-small", "shakespeare/embedding"),
    "ptb/lstm-small",
}


def test_the_held_out_tasks_are_many_of_several_kinds_and_none_that_the_schedule_was_designed_on() -> None:
    untuned, tuned = (EXPERIMENTS[f"untuned/{name}"].small for name in ("held-out", "tuned"))
    assert untuned.workloads == tuned.workloads
    assert (untuned.budgets, tuned.budgets, untuned.seeds, tuned.seeds) == ((1,), (1, 8), 3, 3)
    tasks = {workload.task for workload in untuned.workloads}
    assert len(tasks) >= 24
    assert not tasks & DESIGN
    assert sum(workload.settings["steps"] >= 5000 for workload in untuned.workloads) >= 4
    assert sum(RECIPES[task].pretrained for task in tasks) >= 4
    assert {RECIPES[task].kind for task in tasks} == {"classification", "language", "regression", "reconstruction"}
    for workload in untuned.workloads:
        assert workload.base({}).total_steps == workload.settings["steps"]


def test_experiments_are_listed(metastep) -> None:
    assert metastep("list", "experiments", "--json").json["experiments"].keys() == EXPERIMENTS.keys()


FIELD = ("experiment", "field/small")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("experiment", "field/smal"),
            ("experiment must be a known name, got 'field/smal'", "did you mean field/small"),
        ),
        ((*FIELD, "--methods", "sgd/constnt"), ("'sgd/constnt'", "did you mean sgd/constant")),
        ((*FIELD, "--tasks", "digits/mpl"), ("'digits/mpl'", "did you mean digits/mlp")),
        ((*FIELD, "--scale", "full"), ("scale must be small for field/small, got full",)),
        ((*FIELD, "--scale", "medium"), ("--scale", "medium")),
        ((*FIELD, "--budgets", "1,many"), ("budgets must be whole numbers", "'1,many'")),
        ((*FIELD, "--budgets", "0"), ("budgets must be different numbers of trials >= 1",)),
        ((*FIELD, "--seeds", "0"), ("seeds must be >= 1, got 0",)),
        ((*FIELD, "--workers", "0"), ("workers must be >= 1, got 0",)),
        ((*FIELD, "--schedules", "cosine"), ("--schedules",)),
        ((*FIELD, "--set", "optimizer=adam"), ("optimizer must be left to the methods", "--methods")),
        (("experiment",), ("NAME must be given",)),
        ((*FIELD, "--address", "x:1"), ("address must be given with --engine ray only",)),
        ((*FIELD, "--engine", "ray", "--gpus-per-run", "-1"), ("--gpus-per-run must be > 0, got -1.0",)),
        ((*FIELD, "--data", "nowhere"), ("METASTEP_DATA",)),
        ((*FIELD, "--storage", "postgresql://a:secret@127.0.0.1:9/x"), ("storage must be an Optuna storage",)),
        (("compare", "field/small"), ("type: metastep experiment field/small",)),
        (("compare", "digits/mlp", "--budgets", "1,8"), ("--budgets",)),
        (("experiment", "paper/transfer-data", "--data", "nowhere"), ("SVHN must be in",)),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, tuple) else None,
)
def test_it_is_refused_before_anything_is_written(metastep, tmp_path: Path, arguments, words) -> None:
    result = metastep(*arguments)
    refused(result, *words)
    assert "secret" not in result.err
    assert [path for path in tmp_path.rglob("*") if path.is_file() and ".cache" not in path.parts] == []


def test_a_method_whose_package_is_absent_says_which_extra_brings_it(metastep, monkeypatch) -> None:
    monkeypatch.setattr("metastep.lab.bench.methods.find_spec", lambda name: None)
    refused(metastep(*FIELD, "--methods", "schedule-free-sgd"), "schedule-free-sgd", "schedulefree", "metastep[bench]")


def test_a_folder_of_an_experiment_is_not_taken_for_a_new_one(metastep, tmp_path: Path) -> None:
    assert metastep(*SMALL, "--out", "done", "--budgets", "1", "--methods", "sgd/constant").code == 0
    refused(metastep(*SMALL, "--out", "done"), "holds a comparison or an experiment", "--resume done")
    refused(metastep("experiment", "--resume", "done", "--seeds", "5"), "resume must be given without seeds")
