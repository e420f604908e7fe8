"""A comparison of schedules on one task: what it runs, what it chooses, what it keeps."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.lab.bench.experiments import timeless
from tests.lab.bench.running import differences, run_config

from metastep.lab.bench.config import MetaConfig
from metastep.lab.bench.plan import Candidate, ExperimentPlan
from metastep.lab.bench.run import Run
from metastep.lab.bench.runner import ExperimentProgress, ExperimentRun
from metastep.lab.bench.schedules import split_schedules
from metastep.lab.bench.tuning import TUNING_SEED
from metastep.lab.records import Record, read_records
from metastep.lab.runtime.executor import LocalExecutor
from metastep.lab.tasks.task import Task
from metastep.schedules import MLRSNet, save_schedule


def comparison(*schedules: str, lrs=(0.1,), seeds=2, **changes: Any) -> ExperimentPlan:
    base = run_config(**{"total_steps": 20, "meta": MetaConfig(every=5, hidden_size=4), **changes})
    return ExperimentPlan.comparison(base, split_schedules(",".join(schedules)), seeds=seeds, lrs=lrs)


def executed(plan: ExperimentPlan, folder: Path, workers: int = 1, **options: Any) -> list[Record]:
    with LocalExecutor(workers) as executor:
        records = ExperimentRun(plan, folder).execute(executor, **options)
    assert records is not None
    return records


def resumed(folder: Path, workers: int = 1) -> list[Record]:
    with LocalExecutor(workers) as executor:
        records = ExperimentRun.resume(folder).execute(executor)
    assert records is not None
    return records


def rates(records: list[Record]) -> dict[str, float]:
    return {record.label: record.lr for record in records}


@pytest.fixture
def looks(monkeypatch) -> list[tuple[int, str]]:
    """Every evaluation: the seed of the run, and the split that it read."""
    seen: list[tuple[int, str]] = []
    evaluate, execute = Task.evaluate, Run.execute
    seeds = []

    def told(self: Run):
        seeds.append(self.config.seed)
        return execute(self)

    def counted(self, model, split, **options):
        if seeds:
            seen.append((seeds[-1], split))
        return evaluate(self, model, split, **options)

    monkeypatch.setattr(Run, "execute", told)
    monkeypatch.setattr(Task, "evaluate", counted)
    return seen


def test_rates_are_chosen_on_a_seed_of_their_own_and_never_by_the_test_split(tmp_path: Path, looks) -> None:
    records = executed(comparison("constant", "cosine", lrs=(1e-4, 1e5, 0.05)), tmp_path)
    assert [(r.label, r.seed, r.lr) for r in records] == [  # 1e-4 learns nothing, 1e5 diverges
        (label, seed, 0.05) for label in ("constant", "cosine") for seed in (0, 1)
    ]
    assert sorted(look for look in looks if look[1] == "test") == [(0, "test"), (0, "test"), (1, "test"), (1, "test")]
    assert {split for seed, split in looks if seed == TUNING_SEED} == {"outer_valid"}


def test_schedules_that_set_their_own_scale_are_not_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), tmp_path / "s.safetensors")
    plan = comparison(f"learned={tmp_path / 's.safetensors'}", "mlr-snet", "constant", lrs=(0.05, 0.1), seeds=1)
    assert list(plan.searches()) == [("digits/mlp", "constant")]
    seen: list[ExperimentProgress] = []
    records = executed(plan, tmp_path / "cmp", on_progress=seen.append)
    assert (seen[-1].runs_done, seen[-1].runs, seen[-1].steps_done, seen[-1].steps) == (4, 4, 100, 100)
    assert [record.learned for record in records] == [True, True, False]
    assert [record.settings["meta"] is None for record in records] == [True, False, True]
    assert (tmp_path / "cmp/runs/mlr-snet/seed-0/schedule.safetensors").is_file()  # its runs are kept


def test_the_rates_of_all_diverged_runs_give_the_smallest(tmp_path: Path) -> None:
    (record,) = executed(comparison("constant", lrs=(1e7, 1e6), seeds=1, optimizer_options={}), tmp_path)
    assert (record.status, record.lr) == ("diverged", 1e6)


def test_a_comparison_and_an_experiment_have_one_folder_form_and_one_record_schema(tmp_path: Path) -> None:
    records = executed(comparison("cosine", seeds=1), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"experiment.json", "records.jsonl", "runs", ".lock"}
    assert [record for _, record in read_records(tmp_path / "records.jsonl")] == records
    (record,) = records
    assert (record.task, record.method, record.label, record.budget, record.found) == (
        *("digits/mlp", "cosine", "cosine"),
        *(1, {}),
    )
    assert len(record.train["step"]) == 5  # all points of its curves


def test_finished_runs_are_not_run_again(tmp_path: Path, monkeypatch) -> None:
    plan = comparison("constant", "cosine")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 60  # in the third run of four

    assert ExperimentRun(plan, tmp_path).execute(LocalExecutor(), should_stop=stop) is None
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert 0 < len(finished) < 4
    made = []
    init = Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda self, *a, **k: made.append(a) or init(self, *a, **k))
    (tmp_path / "records.jsonl").unlink()  # as after a kill between the two
    records = resumed(tmp_path)
    assert len(made) == 4 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert [record for _, record in read_records(tmp_path / "records.jsonl")] == records
    resumed(tmp_path)
    assert len(made) == 4 - len(finished)


def test_two_workers_write_the_records_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), tmp_path / "s.safetensors")
    plan = comparison("cosine", f"learned={tmp_path / 's.safetensors'}", lrs=(0.05, 0.1), threads=1)
    one = executed(plan, tmp_path / "one")
    seen: list[ExperimentProgress] = []
    two = executed(plan, tmp_path / "two", workers=2, on_progress=seen.append)
    assert differences([timeless(r) for r in one], [timeless(r) for r in two]) == []
    assert [r.label for r in two] == ["cosine", "cosine", "learned", "learned"]
    assert (seen[-1].runs_done, seen[-1].steps_done) == (5, 120)


def test_workers_stop_together_and_are_resumed(tmp_path: Path) -> None:
    plan = comparison(
        *("constant", "cosine"), seeds=1, threads=1, log_every=50, eval_every=None, total_steps=6000,
        checkpoint_every=None,
    )  # fmt: skip
    moved: list[int] = []

    def watch(progress: ExperimentProgress) -> None:
        moved.append(0 if progress.run is None else progress.run.step)

    with LocalExecutor(2) as executor:
        stopped = ExperimentRun(plan, tmp_path / "cmp")
        assert stopped.execute(executor, should_stop=lambda: bool(moved), on_progress=watch) is None
    assert list(tmp_path.rglob("checkpoint.pt"))
    assert not list(tmp_path.rglob("record.json"))
    records = resumed(tmp_path / "cmp", workers=2)
    whole = executed(plan, tmp_path / "whole")
    assert differences([timeless(r) for r in records], [timeless(r) for r in whole]) == []


def test_the_run_of_a_worker_that_dies_is_resumed(tmp_path: Path) -> None:
    plan = comparison(
        *("constant", "cosine"), seeds=1, threads=1, eval_every=None, log_every=50, checkpoint_every=50,
        total_steps=1500,
    )  # fmt: skip
    killed: list[int] = []

    def kill_once(progress: ExperimentProgress) -> None:
        if not killed and progress.run is not None and progress.run.step < 1500:
            (lock,) = tmp_path.glob(f"runs/{progress.label.split()[-1]}/*/.lock")
            killed.append(int(lock.read_text()))
            os.kill(killed[0], signal.SIGKILL)

    records = executed(plan, tmp_path, workers=2, on_progress=kill_once)
    assert killed
    assert killed[0] != os.getpid()
    assert [(r.label, r.status) for r in records] == [("constant", "finished"), ("cosine", "finished")]
    assert [r.train["step"] for r in records] == [list(range(50, 1501, 50))] * 2


def test_a_schedule_file_may_change_while_a_comparison_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), file)
    plan = comparison(str(file))
    whole = executed(plan, tmp_path / "whole")
    asked = iter(range(1000))
    stopped = ExperimentRun(plan, tmp_path / "cmp")
    assert stopped.execute(LocalExecutor(), should_stop=lambda: next(asked) > 10) is None
    save_schedule(MLRSNet(hidden_size=4), file)
    records = resumed(tmp_path / "cmp")
    assert differences([timeless(r) for r in records], [timeless(r) for r in whole]) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"lrs": (0.1, 0.1)}, "lrs must be different rates > 0"),
        ({"lrs": (-1.0,)}, "lrs must be different rates > 0"),
        ({"lrs": ()}, "lrs must be different rates > 0"),
        ({"lrs": (float("nan"),)}, "lrs must be different rates > 0"),
        ({"lrs": (0.1, 0.2), "outer_valid": 0}, "lrs must be one rate without an outer_valid split"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        comparison("cosine", **changes)


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ((), "schedules must name at least one"),
        (("cosine", "cosine"), "schedules must have different labels"),
        (("../x=cosine",), "label must be fit for the name of a folder, got '../x'"),
        (("=cosine",), "label must be fit"),
    ],
)
def test_candidates_that_cannot_be_told_apart_are_refused(schedules: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        comparison(*schedules)


def test_a_comparison_is_read_as_it_was_written(tmp_path: Path) -> None:
    plan = comparison("cosine", "a=constant", lrs=(0.1, 0.2), noise="flip", noise_rate=0.25)
    (tmp_path / "experiment.json").write_text(plan.to_json())
    assert ExperimentPlan.read(tmp_path) == plan
    assert plan.candidates[1] == Candidate(label="a", schedule="constant", reads_lr=True)
    broken = json.loads(plan.to_json()) | {"candidates": [3]}
    (tmp_path / "experiment.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match=r"experiment\.json is no plan of an experiment"):
        ExperimentPlan.read(tmp_path)
    with pytest.raises(ValueError, match="methods must be the labels of the candidates"):
        replace(plan, methods=("sgd/constant",))


def test_the_folder_of_an_earlier_comparison_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "compare.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match=r"earlier metastep, .*report .*compare again"):
        ExperimentRun.resume(tmp_path)
