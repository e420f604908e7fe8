"""A hypergradient optimizer is one new file and one line: shown by adding one to a copy of the package."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEW_FILE = '''"""Gradient descent, as short as it gets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from metastep.optim.directions import LAST_GRADIENT, Direction
from metastep.optim.hyper import HyperOptimizer


@dataclass(frozen=True, kw_only=True)
class GradientDirection(Direction):
    """u = g."""

    @property
    def buffers(self):
        return (LAST_GRADIENT,)

    def advance(self, gradients, buffers, counts):
        torch._foreach_copy_(buffers[LAST_GRADIENT], gradients)

    def recover(self, buffers, counts):
        return buffers[LAST_GRADIENT]


class HyperDescent(HyperOptimizer):
    """Gradient descent whose learning rates adapt themselves."""

    base = torch.optim.SGD

    def __init__(self, params, lr=1e-3, *, weight_decay=0.0, maximize=False, **hyper):
        fixed = {"momentum": 0, "dampening": 0, "nesterov": False, "foreach": None, "fused": None}
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize, **fixed}, hyper)

    def check_arguments(self, group):
        pass

    def direction(self, group):
        return GradientDirection(maximize=group["maximize"], weight_decay=float(group["weight_decay"]))

    def base_keys(self, group):
        return ()
'''
NEW_LINE = '    "HyperDescent": "metastep.optim.descent",\n'


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run Python with a copy of the package in which the optimizer was added."""
    folder = tmp_path_factory.mktemp("package")
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src" / "metastep", folder / "src" / "metastep", ignore=ignored)
    for name in ("docs_site", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    optim = folder / "src" / "metastep" / "optim"
    (optim / "descent.py").write_text(NEW_FILE)
    registry = optim / "__init__.py"
    last = '    "HyperAdagrad": "metastep.optim.optimizers",\n'
    text = registry.read_text()
    assert text.count(last) == 1
    registry.write_text(text.replace(last, last + NEW_LINE))
    environment = {**os.environ, "PYTHONPATH": f"{folder / 'src'}{os.pathsep}{folder}"}

    def run(*arguments):
        command = [sys.executable, *arguments]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout

    return run


PUBLIC = """
import torch, metastep as ms
weight = torch.nn.Parameter(torch.ones(3, 2))
optimizer = ms.HyperDescent([weight], lr=0.1, safeguard=False)
for _ in range(4):
    weight.grad = weight.detach().clone()
    optimizer.step()
print(float(optimizer.rates()[0]["global"]) > 0.1, "HyperDescent" in ms.__all__, "HyperDescent" in dir(ms))
"""
BENCHMARK = """
import torch
from metastep.lab.bench.optimizers import OPTIMIZERS, make_optimizer
made = make_optimizer("hyper-descent", torch.nn.Linear(2, 2), 0.1, {"levels": ("layer",)})
print(type(made).__name__, made.param_groups[0]["lr"], made.param_groups[0]["param_names"])
"""
REFERENCE = """
from docs_site.stage import entries
print("::: metastep.HyperDescent" in entries("metastep.optim").splitlines())
"""


def test_it_is_public(run) -> None:
    assert run("-c", PUBLIC).split() == ["True"] * 3


def test_the_benchmark_and_the_command_line_know_it_by_name(run) -> None:
    assert run("-c", BENCHMARK).split() == ["HyperDescent", "0.1", "['weight',", "'bias']"]


def test_the_reference_has_an_entry(run) -> None:
    assert run("-c", REFERENCE).strip() == "True"


def test_the_contract_tests_run_over_it(run) -> None:
    files = [f"tests/optim/test_{name}.py" for name in ("conformance", "checkpoints", "groups")]
    shown = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "HyperDescent and not resumes", *files)
    assert "failed" not in shown
    assert int(shown.split(" passed")[0].split()[-1]) > 20
