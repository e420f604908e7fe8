"""A comparison: what it runs, what it chooses, what it keeps."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.lab.bench.running import die, differences, run_config, timeless

from metastep.lab.bench import workers as workers_module
from metastep.lab.bench.compare import TUNING_SEED, Comparison, ComparisonProgress
from metastep.lab.bench.config import MetaConfig
from metastep.lab.bench.entrants import CompareConfig, Entrant
from metastep.lab.bench.run import Run
from metastep.lab.records import read_records
from metastep.lab.tasks.task import Task
from metastep.schedules import MLRSNet, save_schedule


def compare_config(*schedules: str, lrs=(0.1,), seeds=2, **changes) -> CompareConfig:
    base = run_config(total_steps=20, meta=MetaConfig(every=5, hidden_size=4), **changes)
    return CompareConfig(base=base, entrants=tuple(map(Entrant.parse, schedules)), seeds=seeds, lrs=lrs)


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
    comparison = Comparison(compare_config("constant", "cosine", lrs=(1e-4, 0.05, 1e5)), tmp_path)
    records = comparison.execute()
    assert comparison.chosen_rates() == {"constant": 0.05, "cosine": 0.05}  # 1e-4 learns nothing, 1e5 diverges
    assert [(r["label"], r["seed"], r["lr"]) for r in records] == [
        (label, seed, 0.05) for label in ("constant", "cosine") for seed in (0, 1)
    ]
    assert sorted(look for look in looks if look[1] == "test") == [(0, "test"), (0, "test"), (1, "test"), (1, "test")]
    assert {split for seed, split in looks if seed == TUNING_SEED} == {"outer_valid"}


def test_schedules_that_set_their_own_scale_are_not_tuned(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), tmp_path / "s.safetensors")
    config = compare_config(f"learned={tmp_path / 's.safetensors'}", "mlr-snet", "constant", lrs=(0.05, 0.1), seeds=1)
    comparison = Comparison(config, tmp_path / "cmp")
    seen: list[ComparisonProgress] = []
    records = comparison.execute(on_progress=seen.append)
    assert set(comparison.chosen_rates()) == {"constant"}
    assert not list((tmp_path / "cmp" / "runs" / "learned").glob(f"*{TUNING_SEED}"))
    assert (seen[-1].runs_done, seen[-1].runs, seen[-1].steps_done, seen[-1].steps) == (5, 5, 100, 100)
    assert [record["learned"] for record in records] == [True, True, False]
    assert [record["settings"]["meta"] is None for record in records] == [True, False, True]


def test_the_rates_of_all_diverged_runs_give_the_smallest(tmp_path: Path) -> None:
    comparison = Comparison(compare_config("constant", lrs=(1e7, 1e6), seeds=1, optimizer_options={}), tmp_path)
    (record,) = comparison.execute()
    assert record["status"] == "diverged"
    assert comparison.chosen_rates() == {"constant": 1e6}


def test_finished_cells_are_not_run_again(tmp_path: Path, monkeypatch) -> None:
    config = compare_config("constant", "cosine")
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 60  # in the third run of four

    assert Comparison(config, tmp_path).execute(should_stop=stop) is None
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("record.json")}
    assert 0 < len(finished) < 4
    made = []
    init = Run.__init__
    monkeypatch.setattr(Run, "__init__", lambda self, *a, **k: made.append(a) or init(self, *a, **k))
    records = Comparison.resume(tmp_path).execute()
    assert len(made) == 4 - len(finished)
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert [one.as_dict() for _, one in read_records(tmp_path / "records.jsonl")] == records
    Comparison.resume(tmp_path).execute()
    assert len(made) == 4 - len(finished)


def test_two_workers_write_the_records_of_one(tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), tmp_path / "s.safetensors")
    config = compare_config("cosine", f"learned={tmp_path / 's.safetensors'}", lrs=(0.05, 0.1), threads=1)
    one = Comparison(config, tmp_path / "one").execute()
    seen: list[ComparisonProgress] = []
    two = Comparison(config, tmp_path / "two").execute(workers=2, on_progress=seen.append)
    assert differences([timeless(r) for r in one], [timeless(r) for r in two]) == []
    assert [r["label"] for r in two] == ["cosine", "cosine", "learned", "learned"]
    assert (seen[-1].runs_done, seen[-1].steps_done) == (6, 120)


def test_workers_stop_together_and_go_on(tmp_path: Path) -> None:
    config = compare_config("constant", "cosine", seeds=1, threads=1, log_every=50, eval_every=None)
    config = replace(config, base=replace(config.base, total_steps=6000, checkpoint_every=None))
    moved: list[int] = []

    def watch(progress: ComparisonProgress) -> None:
        moved.append(0 if progress.run is None else progress.run.step)

    stopped = Comparison(config, tmp_path / "cmp")
    assert stopped.execute(workers=2, should_stop=lambda: bool(moved), on_progress=watch) is None
    assert list(tmp_path.rglob("checkpoint.pt"))
    assert not list(tmp_path.rglob("record.json"))
    records = Comparison.resume(tmp_path / "cmp").execute(workers=2)
    whole = Comparison(config, tmp_path / "whole").execute()
    assert differences([timeless(r) for r in records], [timeless(r) for r in whole]) == []


def test_the_run_of_a_worker_that_dies_goes_on(tmp_path: Path) -> None:
    config = compare_config(
        "constant", "cosine", seeds=1, threads=1, eval_every=None, log_every=50, checkpoint_every=50
    )
    long = replace(config, base=replace(config.base, total_steps=1500))
    killed = []

    def kill_once(progress: ComparisonProgress) -> None:
        if not killed and progress.run is not None and progress.run.step < 1500:
            (lock,) = tmp_path.glob(f"runs/{progress.label}/*/.lock")
            killed.append(int(lock.read_text()))
            os.kill(killed[0], signal.SIGKILL)

    records = Comparison(long, tmp_path).execute(workers=2, on_progress=kill_once)
    assert killed
    assert killed[0] != os.getpid()
    assert [(r["label"], r["status"]) for r in records] == [("constant", "finished"), ("cosine", "finished")]
    assert [r["train"]["step"] for r in records] == [list(range(50, 1501, 50))] * 2


def test_workers_that_die_again_and_again_are_given_up(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(workers_module, "_work", die)
    with pytest.raises(ChildProcessError, match=r"worker processes died 3 times in a row.*4 runs are left"):
        Comparison(compare_config("constant", "cosine"), tmp_path).execute(workers=2)


def test_a_schedule_file_may_change_while_a_comparison_is_stopped(tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    torch.manual_seed(0)
    save_schedule(MLRSNet(hidden_size=4), file)
    config = compare_config(str(file))
    whole = Comparison(config, tmp_path / "whole").execute()
    asked = iter(range(1000))
    assert Comparison(config, tmp_path / "cmp").execute(should_stop=lambda: next(asked) > 10) is None
    save_schedule(MLRSNet(hidden_size=4), file)
    records = Comparison.resume(tmp_path / "cmp").execute()
    assert differences([timeless(r) for r in records], [timeless(r) for r in whole]) == []


@pytest.mark.parametrize(
    ("text", "label", "schedule"),
    [
        ("cosine", "cosine", "cosine"),
        ("mine=a/b.safetensors", "mine", "a/b.safetensors"),
        ("a/b.safetensors", "b", "a/b.safetensors"),
        ("a/b.pth+c.pth@staircase", "b+c@staircase", "a/b.pth+c.pth@staircase"),
    ],
)
def test_an_entrant_is_a_name_a_file_or_both(text: str, label: str, schedule: str) -> None:
    assert Entrant.parse(text) == Entrant(label=label, schedule=schedule)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": 0}, "seeds must be >= 1, got 0"),
        ({"lrs": (0.1, 0.1)}, "lrs must be different rates > 0"),
        ({"lrs": (-1.0,)}, "lrs must be different rates > 0"),
        ({"lrs": (float("nan"),)}, "lrs must be different rates > 0"),
        ({"lrs": (0.1, 0.2), "outer_valid": 0}, "lrs must be one rate without an outer_valid split"),
    ],
)
def test_a_comparison_that_makes_no_sense_is_refused(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare_config("cosine", **changes)


@pytest.mark.parametrize(
    ("schedules", "words"),
    [
        ((), "schedules must name at least one"),
        (("cosine", "cosine"), "schedules must have different labels"),
        (("../x=cosine",), "label must be fit for the name of a folder, got '../x'"),
        (("=cosine",), "label must be fit"),
    ],
)
def test_entrants_that_cannot_be_told_apart_are_refused(schedules: tuple[str, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        compare_config(*schedules)


def test_a_comparison_survives_json() -> None:
    config = compare_config("cosine", "a=b.pth", lrs=(0.1, 0.2), noise="flip", noise_rate=0.25)
    assert CompareConfig.from_json(config.to_json()) == config
    with pytest.raises(ValueError, match="no configuration of a comparison"):
        CompareConfig.from_json(json.dumps({"base": {}}))
