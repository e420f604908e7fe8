"""The log of a run survives kills and full disks."""

import math
import os
from pathlib import Path

import pytest

from metastep.lab.bench.curves import CurveLog
from metastep.lab.runtime.folder import read_lines


def filled(folder: Path, *steps: int) -> Path:
    log = CurveLog(folder, tensorboard=False)
    for step in steps:
        log.write("train", step, {"loss": 1 / step})
    log.close()
    return log.path


def test_entries_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    path = filled(tmp_path, 1, 2, 3, 4)
    log = CurveLog(tmp_path, after=2, tensorboard=False)
    log.write("train", 3, {"loss": 0.5})
    log.close()
    assert [(entry["step"], entry["loss"]) for entry in read_lines(path)[0]] == [(1, 1.0), (2, 0.5), (3, 0.5)]


@pytest.mark.parametrize("cut", range(1, 34))
def test_a_line_that_a_kill_cut_short_is_left_out(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path, 1, 2, 3)
    path.write_bytes(path.read_bytes()[:-cut])
    whole = 3 if cut == 1 else 2
    assert [entry["step"] for entry in read_lines(path)[0]] == [1, 2, 3][:whole]
    CurveLog(tmp_path, after=3, tensorboard=False).close()
    assert path.read_bytes().count(b"\n") == whole


def test_a_kill_while_entries_are_cut_off_keeps_those_before(tmp_path: Path, monkeypatch) -> None:
    path = filled(tmp_path, 1, 2, 3)

    def full(handle: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        CurveLog(tmp_path, after=2, tensorboard=False)
    assert [entry["step"] for entry in read_lines(path)[0]] == [1, 2, 3]


def test_what_is_not_finite_is_null(tmp_path: Path) -> None:
    log = CurveLog(tmp_path, tensorboard=False)
    log.write("train", 1, {"loss": math.nan, "lr": math.inf, "seconds": 0.5})
    log.close()
    assert list(read_lines(log.path)[0]) == [{"split": "train", "step": 1, "loss": None, "lr": None, "seconds": 0.5}]
