"""A task is one new file and one line: shown by adding one to a copy of the package."""

import json

import pytest
from tests.one_line.copies import Copy

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


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package with the task."""
    new = ("lab/tasks/datasets/moons.py", NEW_FILE)
    return Copy(tmp_path_factory.mktemp("package"), new, ("lab/tasks/table.py", '    "own",\n', '    "moons",'))


def test_the_command_line_lists_it_and_trains_it(copy, tmp_path):
    listed = json.loads(copy.run("-m", "metastep", "list", "tasks", "--json"))
    assert listed["tasks"]["moons/mlp"] == "perceptron on two half circles"
    out = str(tmp_path / "trained")
    record = json.loads(
        copy.run("-m", "metastep", "train", "moons/mlp", "--schedule", "cosine", "--out", out, "--json")
    )
    assert record["task"] == "moons/mlp"
    assert (tmp_path / "trained" / "run.json").is_file()


def test_the_benchmark_compares_schedules_on_it(copy, tmp_path):
    options = (
        "--schedules",
        "constant,cosine",
        "--seeds",
        "1",
        "--steps",
        "5",
        "--out",
        str(tmp_path / "out"),
        "--json",
    )
    copy.run("-m", "metastep", "compare", "moons/mlp", *options)
    records = [json.loads(line) for line in (tmp_path / "out" / "records.jsonl").read_text().splitlines()]
    assert [record["task"] for record in records] == ["moons/mlp"] * 2


def test_the_table_of_the_documentation_has_its_row(copy):
    page = copy.run("-c", "from metastep.lab.tasks.table import tasks_as_markdown; print(tasks_as_markdown())")
    row = "| `moons/mlp` | perceptron on two half circles | accuracy | 100, 100 | 60 x 20 | sgd, 0.1 |"
    assert row in page.splitlines()


def test_the_contract_tests_pass_on_it(copy):
    contract = "tests/lab/tasks/test_contract.py"
    assert "8 passed" in copy.run("-m", "pytest", "-q", "-p", "no:cacheprovider", contract, "-k", "moons")
