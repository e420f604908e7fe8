"""Damaged configurations and checkpoints are a clear ValueError; two runs do not share a folder."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.lab.bench.running import run_config

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.run import Run
from metastep.lab.runtime.folder import CheckpointError, CheckpointFile, Folder, FolderInUse

fuzzed = settings(
    max_examples=500, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
plain = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
values = plain | st.lists(plain, max_size=3) | st.dictionaries(st.text(max_size=5), plain, max_size=3)


@given(text=st.text(max_size=60) | values.map(json.dumps))
@fuzzed
def test_a_configuration_of_any_text_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"run configuration"):
        RunConfig.from_json(text)


@given(name=st.sampled_from(sorted(json.loads(run_config().to_json()))), value=values)
@fuzzed
def test_a_configuration_with_a_wrong_entry_is_read_or_a_value_error(name: str, value: object) -> None:
    changed = {**json.loads(run_config().to_json()), name: value}
    try:
        RunConfig.from_json(json.dumps(changed))
    except ValueError as error:
        assert str(error)  # noqa: PT017


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@given(content=st.binary(max_size=200), sealed=st.booleans())
@fuzzed
def test_a_checkpoint_of_any_bytes_is_refused(content: bytes, sealed: bool, tmp_path: Path) -> None:
    head = b"metastep checkpoint 1\n" + hashlib.sha256(content).digest() if sealed else b""
    (tmp_path / "checkpoint.pt").write_bytes(head + content)
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt is "):
        CheckpointFile(tmp_path / "checkpoint.pt").load()


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run = Run(run_config(), tmp_path, tensorboard=False)
    with Folder(tmp_path):
        before = sorted(path.name for path in tmp_path.iterdir())
        with pytest.raises(FolderInUse, match="in use by process"):
            run.execute()
        assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run.execute().status == "finished"
