"""An evolution in a folder: what it leaves, how it stops, and what it refuses."""

import json
from pathlib import Path

import pytest
import torch

import metastep as ms
from metastep.lab.evolution import EvolutionConfig, default_config
from metastep.lab.evolution.run import EvolutionProgress, EvolutionRun

CONFIG = default_config(
    "sgd", hidden=4, warm_start_tasks=1, fit_steps=10, meta_steps=2, pairs=2, families=("mlp",), shortest=12,
    longest=24, long_share=0.0,
)  # fmt: skip


def test_it_leaves_a_schedule_that_works_a_log_and_a_record(tmp_path: Path) -> None:
    seen: list[EvolutionProgress] = []
    record = EvolutionRun(CONFIG, tmp_path, on_progress=seen.append).execute()
    assert record == json.loads((tmp_path / "record.json").read_text())
    assert [progress.done for progress in seen] == [1, 2, 3]
    assert [progress.warming_start for progress in seen] == [False, False, False]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == record["steps"] == 3
    assert EvolutionConfig.from_dict(record["config"]) == CONFIG
    assert len(record["curve"]) == 20
    assert all(rate > 0 for rate in record["curve"])
    schedule = ms.load_schedule(tmp_path / "schedule.safetensors")
    assert schedule.trained_for == "sgd, sgd-momentum"
    net = torch.nn.Linear(3, 1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    lr = ms.LearnedLR(optimizer, schedule, total_steps=5)
    for _ in range(5):
        loss = net(torch.ones(3)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        lr.observe(loss)
        optimizer.step()
    assert 0 < lr.get_last_lr()[0] < 1


def test_stopped_after_any_step_it_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    EvolutionRun(CONFIG, tmp_path / "whole").execute()
    answers = iter([True, False, True, False, False])
    for _ in range(2):
        stopped = EvolutionRun(None if (tmp_path / "parts").exists() else CONFIG, tmp_path / "parts",
                                should_stop=lambda: next(answers))  # fmt: skip
        stopped.execute()
    EvolutionRun(None, tmp_path / "parts").execute()
    whole, parts = (ms.load_schedule(tmp_path / name / "schedule.safetensors") for name in ("whole", "parts"))
    assert torch.equal(whole.weights, parts.weights)
    assert len((tmp_path / "parts" / "log.jsonl").read_text().splitlines()) == 3


def test_a_folder_of_other_settings_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resume must be a folder with evolution\.json"):
        EvolutionRun(None, tmp_path)
    (tmp_path / "evolution.json").write_text(json.dumps(CONFIG.as_dict()))
    with pytest.raises(ValueError, match=r"out must be a new folder"):
        EvolutionRun(default_config("adamw"), tmp_path)
    (tmp_path / "evolution.json").write_text('{"base": "sgd"}')
    with pytest.raises(ValueError, match=r"must hold the settings of an evolution"):
        EvolutionRun(None, tmp_path)


def test_a_folder_of_an_older_version_is_refused_and_told_how_to_use_its_weights(tmp_path: Path) -> None:
    (tmp_path / "population.json").write_text("{}")
    for config in (CONFIG, None):
        with pytest.raises(ValueError, match=r"older version.* evolve BASE --start-from .*schedule\.safetensors"):
            EvolutionRun(config, tmp_path)
