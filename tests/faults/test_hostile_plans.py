"""Damaged descriptions of comparisons, of runs of tasks and of experiments: read, or a clear ValueError of one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.faults.test_hostile_files import fuzzed, values
from tests.lab.bench.experiments import plan
from tests.lab.bench.running import Child, learning_config, run_config

from metastep.lab.bench.plan import ExperimentPlan
from metastep.lab.bench.shared_run import begin_tasks, read_tasks


def tasks_beside_their_runs(folder: Path) -> Any:
    """Read ``tasks.json`` of a folder that holds the runs of which the good one tells."""
    content = (folder / "tasks.json").read_bytes()
    begin_tasks([learning_config(seed=seed) for seed in (0, 1)], folder)
    (folder / "tasks.json").write_bytes(content)
    return read_tasks(folder)


#: The file of each, how it is read, and what a good one holds.
FILES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "tasks.json": (tasks_beside_their_runs, '{"schema": 2, "folders": ["00-digits-convnet", "01-digits-convnet"]}'),
    "experiment.json": (ExperimentPlan.read, plan().to_json()),
    "comparison/experiment.json": (
        lambda folder: ExperimentPlan.read(folder / "comparison"),
        ExperimentPlan.comparison(run_config(), [("cosine", "cosine")], seeds=2, lrs=(0.1, 0.2)).to_json(),
    ),
}
NAMES = pytest.mark.parametrize("name", FILES)


def read(name: str, content: bytes, folder: Path) -> None:
    """Read a file of this content; only a ValueError of one line that names something may come of it."""
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    try:
        FILES[name][0](folder)
    except ValueError as error:
        assert str(error).strip()  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017


def parts(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to everything in nested values."""
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [way for key in keys for way in ((*path, key), *parts(value[key], (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """The same with something else at one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


@NAMES
def test_the_good_one_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(FILES[name][1])
    assert FILES[name][0](tmp_path)


@NAMES
@given(content=st.binary(max_size=80) | values.map(lambda value: json.dumps(value).encode()))
@fuzzed
def test_any_bytes_are_refused(name: str, content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp()
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=r".") as caught:
        FILES[name][0](folder)
    assert "\n" not in str(caught.value)


@NAMES
@given(data=st.data(), new=values)
@fuzzed
def test_one_wrong_entry_is_read_or_refused(
    name: str, data: st.DataObject, new: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = json.loads(FILES[name][1])
    path = data.draw(st.sampled_from(parts(good)))
    read(name, json.dumps(changed(good, path, new)).encode(), tmp_path_factory.getbasetemp())


@NAMES
@given(data=st.data())
@fuzzed
def test_a_cut_or_flipped_file_is_read_or_refused(
    name: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    good = bytearray(FILES[name][1].encode())
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        good = good[:place]
    else:
        good[place] ^= 1 << data.draw(st.integers(0, 7))
    read(name, bytes(good), tmp_path_factory.getbasetemp())


@pytest.mark.parametrize(
    ("name", "command", "content"),
    [
        ("experiment.json", "compare", '{"schema": 1, "candidates": [3], "seeds": "two", "lrs": null}'),
        ("experiment.json", "experiment", '{"schema": 1'),
        ("tasks.json", "meta-train", "[]"),
        ("tasks.json", "meta-train", '{"schema": 1, "tasks": [{"task": "digits/mlp", "lr": "high"}]}'),
        ("experiment.json", "compare", "\x00"),
        ("experiment.json", "compare", '{"schema": 1, "bases": {"a": 3}}'),
    ],
)
def test_a_command_says_so_in_one_line(
    name: str, command: str, content: str, start: Callable[..., Child], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text(content)
    child = start(command, "--resume", "out")
    assert child.end() == 2
    (line,) = child.err.strip().splitlines()
    assert line.startswith("error: ")
    assert name in line
    assert (tmp_path / "out" / name).read_text() == content
