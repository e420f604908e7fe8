"""A thousand damages each of a run's checkpoint, its settings, its record and its curves: a line, or a right result.

Everything is read in this process by what the command line calls. An error must be one that the command line shows as
its one line: a ValueError or an OSError. Whatever is not refused must train on to a result, within a gigabyte.
"""

import hashlib
import io
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.faults.damage import damages, json_edit, json_value, memory_bound
from tests.lab.bench.running import learning_config, run_config

from metastep.lab.bench.config import MetaConfig, RunConfig, read_config
from metastep.lab.bench.run import Run
from metastep.lab.records import Record, decode_record, encode_record, read_record, read_records
from metastep.lab.runtime.folder import CheckpointError, CheckpointFile
from metastep.lab.tasks import Task

COUNT = 1000
WINE = {"task": "wine/mlp", "train_size": 60, "inner_valid": 20, "outer_valid": 20, "total_steps": 12}
CONFIGS = {
    "sgd": run_config(**WINE, log_every=2, eval_every=4, checkpoint_every=5),
    "learning": learning_config(
        **WINE, log_every=2, eval_every=4, checkpoint_every=5,
        meta=MetaConfig(every=3, snapshots=(3, 12), hidden_size=4),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _not_synced() -> Iterator[None]:
    """Nothing here is about power cuts, and thousands of syncs take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda handle: None)
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """A run that was stopped after 7 of its 12 steps, and the record of the same run when nothing stops it."""
    config = CONFIGS[request.param]
    folder = tmp_path_factory.mktemp("stopped")
    run = Run(config, folder / "run", should_stop=lambda: run.trainer.steps >= 7, tensorboard=False)
    run.execute()
    return folder / "run", Run(config, folder / "whole", tensorboard=False).execute()


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    """The data, which are read once."""
    return {name: Run(config, Path("nowhere")).task for name, config in CONFIGS.items()}


def resumed(folder: Path, notes: list[str], steps: int = 5, task: Task | None = None) -> Record:
    """What ``metastep train --resume`` does, for so many steps at most."""
    config = read_config(folder)
    if (folder / "record.json").is_file():
        return read_record(folder / "record.json")
    left = iter(range(steps))
    return Run(
        config, folder, task=task, on_note=notes.append, should_stop=lambda: next(left, None) is None, tensorboard=False
    ).execute()


def refusals(outcomes: Iterator[Callable[[], Any]]) -> Counter[str]:
    """Call each; count how they end. Any other error than those that are one line is raised."""
    counts: Counter[str] = Counter()
    with memory_bound(1000):
        for outcome in outcomes:
            try:
                outcome()
                counts["right"] += 1
            except (ValueError, OSError) as error:
                counts["refused" if str(error).strip() else "says nothing"] += 1
    assert counts["says nothing"] == 0
    return counts


def fresh(folder: Path, target: Path) -> Path:
    """A copy of a folder in place of the one before."""
    shutil.rmtree(target, ignore_errors=True)
    return shutil.copytree(folder, target)


def assert_same_curves(record: Record, whole: Record) -> None:
    """Equal but for the clocks."""
    for mine, other in ((record.train, whole.train), (record.valid, whole.valid), (record.meta, whole.meta)):
        for column in mine.keys() - {"seconds"}:
            assert mine[column] == other[column]
    assert record.final == whole.final


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_goes_back_to_the_one_before_and_costs_nothing_else(stopped, tasks, tmp_path) -> None:
    folder, whole = stopped
    good = (folder / "checkpoint.pt").read_bytes()
    task = tasks["learning" if whole.learned else "sgd"]
    work = tmp_path / "run"
    seen = 0
    for number, (data, what) in enumerate(damages(good, COUNT // 2, seed=1)):
        if data == good:
            continue
        if number % 10:  # reading alone tells whether it was noticed
            path = tmp_path / "one" / "checkpoint.pt"
            path.parent.mkdir(exist_ok=True)
            shutil.copy(folder / "checkpoint.pt.sha256", path.parent)
            path.write_bytes(data)
            with pytest.raises(CheckpointError, match=r"checkpoint\.pt is "):
                CheckpointFile(path).load()
            continue
        fresh(folder, work)
        (work / "checkpoint.pt").write_bytes(data)
        notes: list[str] = []
        assert_same_curves(resumed(work, notes, steps=99, task=task), whole)
        assert len(notes) == 1, what
        assert notes[0].endswith("went back to checkpoint.previous.pt.")
        seen += 1
    assert seen > COUNT // 25


def changed_state(state: Any, draw: random.Random) -> Any:
    """A state with one entry, anywhere in it, swapped for something strange, or left out."""
    strange = [
        None, True, -1, 5, 10**18, 1e308, float("nan"), "", "x", [], {}, [1, 2], {"a": None}, (1,), b"bytes",
        torch.zeros(0), torch.zeros(3, 3), torch.full((2,), float("nan")), torch.ones(1).expand(10**6),
        torch.zeros(2, dtype=torch.int64), torch.zeros((), dtype=torch.complex64), torch.zeros(5056, dtype=torch.uint8),
    ]  # fmt: skip
    places = list(_places(state))
    holder, key = draw.choice(places)
    if draw.random() < 0.1:
        del holder[key]
    elif draw.random() < 0.1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    else:
        holder[key] = draw.choice(strange)
    return state


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield value, key
        yield from _places(part)


@pytest.mark.filterwarnings("ignore")
def test_a_checkpoint_of_other_content_with_a_right_checksum_is_a_line_or_trains_on(stopped, tasks, tmp_path) -> None:
    folder, whole = stopped
    task, good = tasks["learning" if whole.learned else "sgd"], (folder / "checkpoint.pt").read_bytes()
    work = tmp_path / "run"

    def outcomes() -> Iterator[Callable[[], Any]]:
        for number in range(COUNT // 2):
            draw = random.Random(f"state/{number}")
            state = changed_state(torch.load(io.BytesIO(good), weights_only=True), draw)
            fresh(folder, work)
            torch.save(state, work / "checkpoint.pt")
            digest = hashlib.sha256((work / "checkpoint.pt").read_bytes()).hexdigest()
            (work / "checkpoint.pt.sha256").write_text(f"{digest}  checkpoint.pt\n")
            yield lambda: resumed(work, [], steps=3, task=task)

    counts = refusals(outcomes())
    assert counts["refused"] > COUNT // 8, counts


def test_damaged_settings_are_a_line_or_a_run(stopped, tasks, tmp_path) -> None:
    folder, _ = stopped
    good = (folder / "run.json").read_bytes()
    work = fresh(folder, tmp_path / "run")

    def outcomes() -> Iterator[Callable[[], Any]]:
        for data, _ in damages(good, COUNT // 2, seed=2, edit=json_edit):
            fresh(folder, work)
            (work / "run.json").write_bytes(data)
            yield lambda: resumed(work, [], steps=2)

    counts = refusals(outcomes())
    assert counts["refused"] > COUNT // 4, counts


def test_a_damaged_record_is_a_line_or_a_record(stopped, tmp_path) -> None:
    _, whole = stopped
    good, path = encode_record(whole), tmp_path / "records.jsonl"

    def outcomes() -> Iterator[Callable[[], Any]]:
        for data, what in damages(good, COUNT // 2, seed=3, edit=json_edit):
            path.write_bytes(data)
            yield lambda data=data, what=what: checked(decode_record(data, what))
            yield lambda: [checked(record) for _, record in read_records(path)]
        for text in ("5", "{}", "null", "[]", '{"schema": 1}', '{"schema": true}', '{"schema": 99}'):
            yield lambda text=text: decode_record(text, "record.json")

    with pytest.warns(UserWarning, match="is cut off and was skipped"):
        counts = refusals(outcomes())
    assert counts["refused"] > COUNT // 4, counts


def checked(record: Record) -> None:
    """What is read is consistent: lists of one length, steps that grow, numbers that are finite or null."""
    assert isinstance(record, Record)
    for curve in (record.train, record.valid):
        assert len({len(values) for values in curve.values()}) <= 1
        assert all(a < b for a, b in pairwise(curve.get("step", [])))
    assert record.metric in {*record.final, *record.valid}


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_curves_are_told_and_what_is_left_is_kept(stopped, tasks, tmp_path) -> None:
    folder, whole = stopped
    good = (folder / "metrics.jsonl").read_bytes()
    task, work = tasks["learning" if whole.learned else "sgd"], tmp_path / "run"

    def line_edit(data: bytes, draw: random.Random) -> bytes:
        lines = data.splitlines()
        number = draw.randrange(len(lines))
        lines[number] = json_value(lines[number].decode(), draw).encode()
        return b"\n".join(lines) + b"\n"

    told = 0
    for number, (data, what) in enumerate(damages(good, COUNT // 2, seed=4, edit=line_edit)):
        fresh(folder, work)
        (work / "metrics.jsonl").write_bytes(data)
        notes: list[str] = []
        record = resumed(work, notes, steps=99 if number % 25 == 0 else 0, task=task)
        checked(record)
        if data.startswith(good):
            assert notes == [], what
            continue
        told += 1
        assert len(notes) == 1, what
        assert "metrics.jsonl is not what was written until step 7" in notes[0]
    assert told > COUNT // 3


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_that_ask_for_any_memory_are_refused(name: str) -> None:
    text = json.loads(CONFIGS[name].to_json())
    meta, many = asdict(MetaConfig()), 10**6
    for large in ({"threads": many}, {"meta": {**meta, "hidden_size": many}}, {"meta": {**meta, "num_layers": many}}):
        with pytest.raises(ValueError, match=r"(threads|hidden_size|num_layers) must be at most"):
            RunConfig.from_json(json.dumps({**text, **large}))
