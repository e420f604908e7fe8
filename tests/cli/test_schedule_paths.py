"""What exists as a file is a file, whatever characters its path has."""

from pathlib import Path

import pytest
import torch

from metastep.schedules import MLRSNet, load_schedule, save_schedule

PATHS = (
    "lr+warmup/s.safetensors",
    "me@firm/s.safetensors",
    "a,b/s.safetensors",
    "lr=0.1/s.safetensors",
    "s+t@u,v=w.pt",
)


@pytest.mark.parametrize("path", PATHS)
def test_train_reads_a_schedule_from_any_path(metastep, tmp_path: Path, path: str) -> None:
    torch.manual_seed(0)
    schedule = MLRSNet(hidden_size=4)
    save_schedule(schedule, tmp_path / path)
    result = metastep(
        "train", "digits/mlp", "--steps", "5", "--optimizer", "sgd", "--schedule", path, "--out", "run", "--json"
    )
    assert result.code == 0, result.err
    used = load_schedule(tmp_path / "run" / "schedule-used.safetensors")
    for mine, saved in zip(used.parameters(), schedule.parameters(), strict=True):
        assert torch.equal(mine, saved)
    (tmp_path / path).unlink()  # a resume has its own copy
    (tmp_path / "run" / "record.json").unlink()
    assert metastep("train", "--resume", "run").code == 0
