"""The examples of docs/tasks.md run, and its table is complete."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest

from metastep.tasks import task_names

TEXT = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text("utf-8")
TRAINING, OWN_TASK = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.mark.parametrize("name", task_names())
def test_every_task_has_its_row(name):
    assert f"`{name}`" in TEXT


def test_the_training_loop_learns(capsys):
    exec(TRAINING.replace("task.total_steps", "200"), {})  # the whole run takes seconds
    assert float(re.search(r"'accuracy': ([\d.]+)", capsys.readouterr().out)[1]) > 0.9


def test_a_task_of_ones_own_can_be_trained(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generator = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(610):
            image = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "photos" / name / f"{i}.png"), image)
    names = {}
    exec(OWN_TASK, names)
    task = names["task"]
    assert task.splits == {"train": 20, "inner_valid": 200, "outer_valid": 500, "test": 500}
    task.loss(task.make_model(), next(task.batches("train"))).backward()
