"""A method of the benchmark is one row: shown by adding one to a copy of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROW = """    Method(
        name="asgd",
        summary="torch's averaged SGD, constant rate",
        source="Polyak and Juditsky 1992",
        optimizer="sgd",
        options={"dampening": 0.5, "momentum": 0.9},
        space={LR: LogUniform(1e-3, 10.0), "momentum": Uniform(0.5, 0.99)},
        defaults={LR: 0.1, "momentum": 0.9},
    ),
"""
#: The row is added before this line of the table.
PLACE = "    # a statistical test\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python with a copy of the package in which the row was added."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(ROOT / "src" / "metastep", folder / "metastep", ignore=shutil.ignore_patterns("__pycache__"))
    table = folder / "metastep" / "lab" / "bench" / "table" / "baselines.py"
    text = table.read_text()
    assert text.count(PLACE) == 1
    table.write_text(text.replace(PLACE, ROW + PLACE))

    def python(*arguments: str, cwd: Path = folder) -> str:
        environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return python


def test_the_command_line_lists_it_and_an_experiment_runs_it(run, tmp_path: Path) -> None:
    methods = json.loads(run("-m", "metastep", "list", "methods", "--json"))["methods"]
    assert methods["asgd"] == (
        "torch's averaged SGD, constant rate; tunes lr 1e-3 .. 10, log (0.1); momentum 0.5 .. 0.99 (0.9)"
    )
    chosen = ("--tasks", "wine/mlp", "--methods", "asgd", "--set", "steps=12", "--seeds", "1", "--budgets", "1")
    command = ("-m", "metastep", "experiment", "field/small", *chosen, "--out", str(tmp_path / "out"), "--json")
    assert json.loads(run(*command))["methods"] == ["asgd"]


def test_the_table_of_the_documentation_has_its_row(run) -> None:
    page = run("-c", "from metastep.lab.bench.methods import methods_as_markdown; print(methods_as_markdown())")
    row = "| `asgd` | torch's averaged SGD, constant rate | lr 1e-3 .. 10, log (0.1); momentum 0.5 .. 0.99 (0.9) |"
    assert any(line.startswith(row) for line in page.splitlines())


def test_the_contract_tests_have_its_cases_and_pass(run) -> None:
    options = ("-q", "-p", "no:cacheprovider", "-k", "asgd and not nan and not inf")
    told = run("-m", "pytest", *options, "tests/lab/bench/test_methods.py", cwd=ROOT)
    assert "5 passed" in told
