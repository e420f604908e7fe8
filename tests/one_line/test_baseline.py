"""A baseline is added by one file and one line; everything else follows from the line."""

import json
from pathlib import Path

import pytest
from tests.one_line.copies import Copy

FILE = '''"""Half steps: gradient descent at half of what it is told."""

import torch

from metastep.lab.baselines.adaptive_step import APPLIED, AdaptiveStepOptimizer, all_finite, recomputed
from metastep.core.inner import inner_product


class HalfSteps(AdaptiveStepOptimizer):
    """Gradient descent at half of its rate.

    Source: arXiv 0000.00000.
    """

    def __init__(self, params, lr=0.2):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = recomputed(closure)
        works = self.with_gradients()
        gradients = [g for _, _, part in works for g in part]
        if works and not all_finite(float(inner_product(gradients, gradients))):
            self.reject()
            return loss
        for group, parameters, own in works:
            group[APPLIED] = float(group["lr"]) / 2
            torch._foreach_add_(parameters, own, alpha=-group[APPLIED])
        return loss
'''


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    line = '    "half-steps": Baseline("half_steps.HalfSteps"),'
    registry = "lab/baselines/__init__.py", '    "sasa": Baseline("sasa.SASA"),', line
    return Copy(tmp_path_factory.mktemp("copy"), ("lab/baselines/half_steps.py", FILE), registry)


def test_it_is_imported_from_the_package_and_has_a_row_among_the_methods(copy: Copy) -> None:
    program = (
        "from metastep.lab.baselines import HalfSteps, __all__\n"
        "from metastep.lab.bench.methods import METHODS, methods_as_markdown\n"
        "assert 'HalfSteps' in __all__\n"
        "method = METHODS['half-steps']\n"
        "print(method.optimizer, method.defaults, method.source, method.weight_decay)\n"
        "print(next(line for line in methods_as_markdown().splitlines() if '`half-steps`' in line))"
    )
    method, row = copy.run("-c", program).splitlines()
    assert method == "half-steps {'lr': 0.2} arXiv 0000.00000 False"
    assert row.startswith("| `half-steps` | gradient descent at half of its rate | lr 2e-3 .. 20, log (0.2) | arXiv")


def test_the_command_line_trains_with_it_and_lists_it(copy: Copy, tmp_path: Path) -> None:
    assert "half-steps" in copy.run("-m", "metastep", "list", "methods")
    run = ("train", "digits/mlp", "--steps", "3", "--optimizer", "half-steps")
    record = json.loads(copy.run("-m", "metastep", *run, "--out", str(tmp_path / "run"), "--json"))
    assert record["optimizer"] == "half-steps"


def test_it_inherits_the_contract_tests(copy: Copy) -> None:
    said = copy.run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/lab/baselines/test_contract.py", "-k", "HalfSteps"
    )
    assert " passed" in said
    assert "failed" not in said
