"""A task is one new file and one line: shown by adding one to a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEW_FILE = '''"""Points on two half circles."""

from functools import partial

import torch

from metastep.lab.tasks.data import ExampleData, classified
from metastep.lab.tasks.networks.feedforward import mlp
from metastep.lab.tasks.splits import balanced_order, split_order
from metastep.lab.tasks.task import Recipe


def read_moons(options):
    generator = torch.Generator().manual_seed(0)
    angle = torch.rand(1000, generator=generator) * torch.pi
    labels = torch.arange(1000) % 2
    points = torch.stack((angle.cos() + labels, (0.5 - angle.sin()) * (2 * labels - 1)), 1)
    points = (points - points.mean(0)) / points.std(0)
    rows = split_order(balanced_order(labels), options, test=200)
    splits = classified(points, labels, rows, options=options, num_classes=2)
    return ExampleData(splits_by_name=splits, num_classes=2, notes="two half circles")


TASKS = (
    Recipe(
        name="moons/mlp",
        summary="perceptron on two half circles",
        network=partial(mlp, inputs=2, hidden=(16,)),
        read=read_moons,
        batch_size=20,
        total_steps=60,
        optimizer="sgd",
        optimizer_options={"momentum": 0.9},
        learning_rate=0.1,
        inner_valid=100,
        outer_valid=100,
    ),
)
'''
NEW_LINE = '    "moons",\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python with a copy of the package in which the task was added, in a folder of its own."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "src" / "metastep", folder / "metastep", ignore=shutil.ignore_patterns("__pycache__"))
    tasks = folder / "metastep" / "lab" / "tasks"
    (tasks / "datasets" / "moons.py").write_text(NEW_FILE)
    table = (tasks / "table.py").read_text()
    assert table.count('    "sentences",\n') == 1
    (tasks / "table.py").write_text(table.replace('    "sentences",\n', '    "sentences",\n' + NEW_LINE))

    def python(*arguments, cwd=folder):
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=cwd,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    python.folder = folder
    return python


def test_the_command_line_lists_it_and_trains_it(run):
    listed = json.loads(run("-m", "metastep", "list", "tasks", "--json"))
    assert listed["tasks"]["moons/mlp"] == "perceptron on two half circles"
    record = json.loads(
        run("-m", "metastep", "train", "moons/mlp", "--schedule", "cosine", "--out", "trained", "--json")
    )
    assert record["task"] == "moons/mlp"
    assert (run.folder / "trained" / "run.json").is_file()


def test_the_benchmark_compares_schedules_on_it(run):
    options = ("--schedules", "constant,cosine", "--seeds", "1", "--steps", "5", "--out", "compared", "--json")
    run("-m", "metastep", "compare", "moons/mlp", *options)
    records = [json.loads(line) for line in (run.folder / "compared" / "records.jsonl").read_text().splitlines()]
    assert [record["task"] for record in records] == ["moons/mlp"] * 2


def test_the_table_of_the_documentation_has_its_row(run):
    page = run("-c", "from metastep.lab.tasks.table import tasks_as_markdown; print(tasks_as_markdown())")
    row = "| `moons/mlp` | perceptron on two half circles | accuracy | 100, 100 | 60 x 20 | sgd, 0.1 |"
    assert row in page.splitlines()


def test_the_contract_tests_pass_on_it(run, tmp_path):
    contract = ROOT / "tests" / "lab" / "tasks"
    for file in ("conftest.py", "test_contract.py"):
        shutil.copy(contract / file, tmp_path / file)
    passed = run("-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path, "-k", "moons", cwd=tmp_path)
    assert "8 passed" in passed
