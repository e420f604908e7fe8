"""An experiment at work: which records it makes, what it reads, what it never does twice."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.lab.bench.experiments import all_timeless, diverging, executed, failing, keys, plan, timeless
from tests.lab.bench.running import differences

from metastep.lab.bench.jobs import POINTS, RunJob, cached_task, thinned
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.plan import ExperimentPlan, RunKey
from metastep.lab.bench.run import Run
from metastep.lab.bench.runner import ExperimentRun
from metastep.lab.bench.tuning import TUNING_SEED
from metastep.lab.records import encode_record, read_record
from metastep.lab.report import read_results
from metastep.lab.runtime.executor import LocalExecutor
from metastep.lab.tasks.task import Task

__all__ = ["failing"]
A, B = "sgd/constant", "adamw/cosine"


@pytest.fixture
def runs(monkeypatch) -> list[tuple[str, int, str]]:
    """Every run that is begun: its method's optimizer, its seed; and every split that it reads, with its seed."""
    seen: list[tuple[str, int, str]] = []
    execute, evaluate = Run.execute, Task.evaluate

    def told(self: Run):
        seen.append((self.config.optimizer, self.config.seed, "begun"))
        return execute(self)

    def read(self, model, split, **options):
        seen.append((seen[-1][0], seen[-1][1], split))
        return evaluate(self, model, split, **options)

    monkeypatch.setattr(Run, "execute", told)
    monkeypatch.setattr(Task, "evaluate", read)
    return seen


def begun(runs) -> int:
    return sum(what == "begun" for _, _, what in runs)


def test_there_is_one_record_for_each_key_of_the_plan(tmp_path: Path) -> None:
    records = executed(tmp_path)
    assert keys(records) == [
        RunKey("digits/mlp", method, budget, seed, factor)
        for method in (A, B)
        for budget, factor in ((1, 1.0), (3, 1.0), (3, 10.0))
        for seed in (range(2) if factor == 1.0 else range(1))
    ]
    by_key = dict(zip(keys(records), records, strict=True))
    tuned = by_key[RunKey("digits/mlp", A, 3, 0, 1.0)]
    assert by_key[RunKey("digits/mlp", A, 3, 0, 10.0)].lr == 10 * tuned.lr
    assert by_key[RunKey("digits/mlp", A, 1, 0, 1.0)].found == METHODS[A].defaults
    assert tuned.tuned == {"lr": METHODS[A].space["lr"].describe()}
    assert len(read_results(tmp_path).runs) == 8
    with (tmp_path / "trials.csv").open() as file:
        trials = list(csv.DictReader(file))
    assert [(row["method"], row["trial"]) for row in trials] == [(m, str(n)) for m in (A, B) for n in (1, 2, 3)]
    best = min((row for row in trials if row["method"] == A), key=lambda row: float(row["outer_valid"]))
    assert json.loads(best["values"]) == tuned.found
    assert not (tmp_path / "running").exists()


def test_trials_read_the_validation_splits_and_the_final_runs_the_test_split_once(tmp_path: Path, runs) -> None:
    executed(tmp_path, replace(plan(), factors=()))
    assert {what for _, seed, what in runs if seed == TUNING_SEED} == {"begun", "inner_valid", "outer_valid"}
    others = [what for _, seed, what in runs if seed != TUNING_SEED]
    assert set(others) == {"begun", "outer_valid", "test"}
    assert others.count("test") == others.count("begun")


def test_nothing_that_is_done_is_run_again(tmp_path: Path, runs) -> None:
    records = executed(tmp_path)
    first = begun(runs)
    assert ExperimentRun.resume(tmp_path).execute(LocalExecutor()) == records
    assert begun(runs) == first
    lines = (tmp_path / "records.jsonl").read_text().splitlines()
    (tmp_path / "records.jsonl").write_text("\n".join(lines[1:]) + "\n")
    again = ExperimentRun.resume(tmp_path).execute(LocalExecutor())
    assert begun(runs) == first + 1
    assert [timeless(record) for record in again] == [timeless(record) for record in records]


def test_budgets_that_lead_to_the_same_values_share_a_run(tmp_path: Path, runs) -> None:
    nothing = replace(METHODS[A], name="nothing", space={}, defaults={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "nothing", nothing)
        records = executed(tmp_path, replace(plan(), methods=("nothing",), seeds=1))
    assert begun(runs) == 1
    assert [(r.budget, r.rate_factor) for r in records] == [(1, 1.0), (3, 1.0)]  # no rate to multiply
    assert timeless(records[0]) == {**timeless(records[1]), "budget": 1}


def test_a_stopped_experiment_goes_on_and_gives_the_records_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = executed(tmp_path / "whole")
    asked, stops = 0, 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked % 75 == 0

    while (records := ExperimentRun(plan(), tmp_path / "cut").execute(LocalExecutor(), should_stop=stop)) is None:
        stops += 1
    assert stops >= 2
    assert differences([timeless(r) for r in records], [timeless(r) for r in whole]) == []


def test_two_workers_make_the_records_of_one(tmp_path: Path) -> None:
    small = replace(plan(), methods=(A,), factors=())
    one = executed(tmp_path / "one", small)
    two = ExperimentRun(small, tmp_path / "two").execute(LocalExecutor(2))
    assert differences([timeless(r) for r in one], [timeless(r) for r in two]) == []


def test_a_method_that_fails_leaves_records_of_its_error_and_the_others_alone(tmp_path: Path, failing, runs) -> None:
    records = executed(tmp_path, replace(plan(), methods=(failing, A), factors=()))
    assert [r.status for r in records] == ["failed"] * 4 + ["finished"] * 4
    assert records[0].error == "RuntimeError: no such luck on two lines"
    assert records[3].found == METHODS[A].defaults  # where all trials fail the winner is the first
    assert read_results(tmp_path).runs[0].record.error == records[0].error
    first = begun(runs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, failing, replace(METHODS[A], name=failing))
        again = ExperimentRun.resume(tmp_path).execute(LocalExecutor())  # once its fault is mended
    assert {r.status for r in again} == {"finished"}
    assert len(again) == 8
    assert begun(runs) == first + 2  # its trials were made, and have told the same values for both budgets


def test_a_diverged_run_is_a_result(tmp_path: Path, runs) -> None:
    records = executed(tmp_path, diverging())
    assert [r.status for r in records] == ["finished"] * 4 + ["diverged"]
    assert records[-1].final == {"loss": None, "accuracy": None}
    first = begun(runs)
    assert executed(tmp_path, diverging()) == records
    assert begun(runs) == first


def test_methods_may_join_an_experiment_that_is_done(tmp_path: Path, runs) -> None:
    before = executed(tmp_path, replace(plan(), methods=(A,)))
    first = begun(runs)
    joined = ExperimentRun.resume(tmp_path, methods=(B, A)).execute(LocalExecutor())
    assert joined[: len(before)] == before
    assert {r.method for r in joined[len(before) :]} == {B}
    assert {optimizer for optimizer, _, what in runs[first:] if what == "begun"} >= {"adamw"}
    assert all_timeless(tmp_path) == [timeless(r) for r in joined]


def test_a_task_is_read_once_for_the_runs_of_a_process(tmp_path: Path) -> None:
    base = plan().bases["digits/mlp"]
    assert cached_task(base) is cached_task(replace(base, seed=7, lr=0.3, batch_size=8))
    assert cached_task(base) is not cached_task(replace(base, train_size=200))


def test_a_compact_record_keeps_the_last_loss_to_the_bit_and_few_points(tmp_path: Path) -> None:
    base = replace(plan().bases["digits/mlp"], total_steps=150, log_every=1)
    job = RunJob(key=RunKey("t", A, 1, 0, 1.0), method=METHODS[A], base=base, values={"lr": 0.1}, folder=tmp_path)
    small = job.run(lambda: False, lambda progress: None)
    record = read_record(tmp_path / "record.json")
    assert small.final == record.final
    assert len(record.train["step"]) == 150
    assert len(small.train["step"]) == POINTS
    assert (small.train["step"][0], small.train["step"][-1]) == (1, 150)
    assert len(encode_record(small)) < 4000
    assert thinned({"step": [1, 2], "loss": [0.123456789, None]}) == {"step": [1, 2], "loss": [0.12346, None]}


# ---- bad input


def test_records_and_plans_of_a_newer_version_are_refused_and_left_alone(tmp_path: Path) -> None:
    executed(tmp_path, replace(plan(), methods=(A,), seeds=1, budgets=(1,), factors=()))
    records = tmp_path / "records.jsonl"
    newer = json.dumps({**json.loads(records.read_text().splitlines()[0]), "schema": 2}) + "\n"
    records.write_text(newer)
    with pytest.raises(ValueError, match=r"records\.jsonl:1: schema must be at most 1, got 2; use a newer metastep"):
        ExperimentRun.resume(tmp_path).execute(LocalExecutor())
    assert records.read_text() == newer
    written = json.loads((tmp_path / "experiment.json").read_text())
    (tmp_path / "experiment.json").write_text(json.dumps({**written, "schema": 2}))
    with pytest.raises(ValueError, match="schema must be at most 1, got 2; use a newer metastep"):
        ExperimentRun.resume(tmp_path)
    (tmp_path / "experiment.json").write_text('{"schema": 1')
    with pytest.raises(ValueError, match=r"experiment\.json is no plan of an experiment"):
        ExperimentRun.resume(tmp_path)
    with pytest.raises(FileNotFoundError, match="no comparison or experiment in"):
        ExperimentRun.resume(tmp_path / "elsewhere")


def test_half_a_record_is_taken_away_and_its_run_repeated(tmp_path: Path, runs) -> None:
    records = executed(tmp_path)
    first = begun(runs)
    text = (tmp_path / "records.jsonl").read_text()
    (tmp_path / "records.jsonl").write_text(text[:-100])
    with pytest.warns(UserWarning, match=r"records\.jsonl:10 is cut off and was skipped; that run has to be repeated"):
        again = ExperimentRun.resume(tmp_path).execute(LocalExecutor())
    assert begun(runs) == first + 1
    assert [timeless(r) for r in again] == [timeless(r) for r in records]
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == len(records)


def test_rates_that_are_off_may_have_several_seeds_and_the_page_takes_their_mean(tmp_path: Path) -> None:
    records = executed(tmp_path, plan(methods=(A,), budgets=(1,), seeds=3, factors=(0.1, 10.0), factor_seeds=2))
    off = [(key.rate_factor, key.seed) for key in keys(records) if key.rate_factor != 1]
    assert off == [(0.1, 0), (0.1, 1), (10.0, 0), (10.0, 1)]

    def mean(factor: float) -> float:
        return sum(r.final["loss"] for r in records if r.rate_factor == factor and r.seed < 2) / 2

    (one,) = read_results(tmp_path).sensitivities
    assert list(one.factors) == [0.1, 1.0, 10.0]
    assert one.losses == pytest.approx([mean(factor) / mean(1.0) for factor in one.factors])
    assert len({r.final["loss"] for r in records if r.rate_factor == 0.1}) == 2


def test_another_storage_than_that_of_the_trials_is_refused(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path / 'trials.db'}"
    small = replace(plan(), methods=(A,), seeds=1, factors=())
    records = executed(tmp_path / "one", small, storage=storage)
    assert not list((tmp_path / "one").rglob("*.journal"))
    assert ExperimentRun.resume(tmp_path / "one").execute(LocalExecutor()) == records  # no password: it is known
    with pytest.raises(ValueError, match="storage must be that of the experiment"):
        ExperimentRun.resume(tmp_path / "one", storage="sqlite:///other.db")
    same = executed(tmp_path / "two", small)
    assert [timeless(r) for r in same] == [timeless(r) for r in records]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ()}, "methods must name at least one"),
        ({"bases": {}}, "tasks must name at least one"),
        ({"methods": ("sgd/constnt",)}, "did you mean sgd/constant"),
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"budgets": (0, 8)}, r"budgets must be different numbers of trials >= 1, growing, got \[0, 8\]"),
        ({"budgets": (8, 1)}, "budgets must be"),
        ({"factors": (1.0,)}, r"factors must be > 0 and not 1, got \[1.0\]"),
        ({"bases": {"x": replace(plan().bases["digits/mlp"], outer_valid=0)}}, "outer_valid must be > 0 to tune on x"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(changes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        plan(**changes)


def test_a_plan_is_read_as_it_was_written(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(plan().to_json())
    assert ExperimentPlan.read(tmp_path) == plan()
