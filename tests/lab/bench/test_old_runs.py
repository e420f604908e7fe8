"""Run folders as they were written before checkpoints became plain files of torch: read, resumed, and what comes out.

``tests/lab/samples/old-*`` were made by such a version: runs of 40 steps, stopped after 17, and the record of the same
run when nothing stops it.
"""

import shutil
from pathlib import Path

import pytest
import torch

from metastep.lab.bench.config import read_config
from metastep.lab.bench.run import Run
from metastep.lab.records import read_record

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.mark.parametrize("name", ["old-run", "old-learning-run"])
def test_an_old_run_is_resumed_and_ends_as_it_would_have(name: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = shutil.copytree(SAMPLES / name, tmp_path / "run")
    notes: list[str] = []
    run = Run(read_config(folder), folder, on_note=notes.append, tensorboard=False)
    record, expected = run.execute(), read_record(folder / "whole-record.json")
    assert notes == []
    assert (record.status, record.train["step"]) == ("finished", expected.train["step"])
    for mine, before in ((record.train, expected.train), (record.valid, expected.valid), (record.meta, expected.meta)):
        for column in mine.keys() - {"seconds"}:
            assert mine[column] == pytest.approx(before[column], rel=1e-3, abs=1e-6), column
    assert record.final == pytest.approx(expected.final, rel=1e-3)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert state["trainer"]["steps"] == 40


def test_an_old_log_that_is_missing_or_garbled_is_said(tmp_path: Path) -> None:
    for number, damage in enumerate((Path.unlink, lambda path: path.write_text("{\n" + path.read_text()))):
        folder = shutil.copytree(SAMPLES / "old-run", tmp_path / str(number))
        damage(folder / "metrics.jsonl")
        notes: list[str] = []
        Run(read_config(folder), folder, on_note=notes.append, should_stop=lambda: True, tensorboard=False).execute()
        (note,) = notes
        assert note.startswith("metrics.jsonl is not what was written until step 17")
