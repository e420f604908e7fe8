"""The compiled CPU engine computes what the multi-tensor passes compute, and stands aside where it cannot."""

import itertools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.optim.models import ALL_LEVELS, VARIANTS, flat

import metastep as ms
from metastep.core.levels import LEVELS
from metastep.core.rates import COMBINATIONS, RULES
from metastep.optim import HyperAdam, HyperSGD, hyper
from metastep.optim.cpu import engine

KNOWN = ["sgd", "sgd-decay", "momentum", "dampening", "nesterov", "adam", "amsgrad", "adamw"]

needs_compiler = pytest.mark.skipif(engine.load() is None, reason="no C++ compiler for the CPU kernel")


class Net(torch.nn.Module):
    """A convolution with long rows, a long matrix (several pieces a row), vectors."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = torch.nn.Conv2d(6, 8, 3, bias=False)  # a bias before the norm would have noise for a gradient
        self.norm = torch.nn.BatchNorm2d(8)
        self.head = torch.nn.Linear(32, 4)
        self.table = torch.nn.Parameter(torch.randn(3, 20000) * 0.1)
        self.late = torch.nn.Linear(32, 4)

    def forward(self, x, late):
        h = self.norm(self.conv(x)).tanh().flatten(1)
        y = self.head(h) + (self.late(h) if late else 0)
        return y + (self.table @ torch.linspace(0, 0.01, 20000)).sum()


def run(cls, compiled, *, steps=5, channels_last=False, late=lambda step: True, **options):
    net = Net()
    if channels_last:
        net.to(memory_format=torch.channels_last)
    optimizer = cls(net.named_parameters(), lr=0.01, compiled=compiled, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    generator = torch.Generator().manual_seed(5)
    for step in range(steps):
        optimizer.zero_grad()
        x, y = torch.randn(8, 6, 4, 4, generator=generator), torch.randn(8, 4, generator=generator)
        loss = (net(x, late(step)) - y).square().mean()
        (-loss if options.get("maximize") else loss).backward()
        optimizer.step()
        scheduler.step()
    return net, optimizer


def assert_same(one, two):
    (net, first), (other, second) = one, two
    same = torch.isclose(flat(net.parameters()), flat(other.parameters()), rtol=5e-5, atol=5e-6)
    # One sign of a product that is zero up to rounding may differ where an element has a rate of its own.
    assert float(same.float().mean()) >= (0.9999 if "parameter" in first.param_groups[0]["levels"] else 1.0)
    a, b = first.rates()[0], second.rates()[0]
    for level in first.param_groups[0]["levels"]:
        pairs = [(a[level], b[level])] if level == "global" else zip(a[level].values(), b[level].values(), strict=True)
        for x, y in pairs:
            agree = (x - y).abs() <= 1e-5 * x.abs()
            assert float(agree.float().mean()) > (0.999 if level == "parameter" else 0.9999)
        assert abs(int(a["rejected"][level]) - int(b["rejected"][level])) == 0
    for level in a["weights"]:
        assert float(a["weights"][level]) == pytest.approx(float(b["weights"][level]), abs=1e-5)


@needs_compiler
@pytest.mark.parametrize("variant", KNOWN)
@pytest.mark.parametrize("levels", [("global", "layer"), ("global", "layer", "unit"), ALL_LEVELS, ("parameter",)])
def test_the_kernel_agrees_with_the_multi_tensor_passes(variant, levels, monkeypatch):
    cls, _, arguments = VARIANTS[variant]
    used = []
    real = engine.CpuPasses.move
    monkeypatch.setattr(engine.CpuPasses, "move", lambda self, step: used.append(1) or real(self, step))
    options = {"levels": levels, "hyper_lr": 0.05, **arguments}
    assert_same(run(cls, False, **options), run(cls, True, **options))
    assert len(used) == 5


@needs_compiler
@pytest.mark.parametrize(("rule", "hyper_lr"), [("cosine", 0.05), ("additive", 1e-4), ("log", 0.05)])
@pytest.mark.parametrize("variant", ["nesterov", "adamw"])
@pytest.mark.parametrize("maximize", [False, True])
def test_the_kernel_knows_every_rule(rule, hyper_lr, variant, maximize):
    cls, _, arguments = VARIANTS[variant]
    options = {"levels": ALL_LEVELS, "rule": rule, "hyper_lr": hyper_lr, "maximize": maximize, **arguments}
    assert_same(run(cls, False, **options), run(cls, True, **options))


def subsets_of_levels():
    return [chosen for size in range(1, 5) for chosen in itertools.combinations(LEVELS, size)]


@needs_compiler
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("combine", COMBINATIONS)
@pytest.mark.parametrize("levels", subsets_of_levels(), ids="-".join)
def test_every_rule_and_combination_of_the_registry_is_the_same_at_every_level(rule, combine, levels):
    """A name that is added in Python only makes the engine stand aside, and this test fail."""
    assert engine.code(rule) >= 0
    assert engine.code(combine) >= 0
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(6, 40, generator=generator), torch.randn(6, generator=generator)]
    gradients = [[torch.randn(p.shape, generator=generator) for p in start] for _ in range(5)]
    hyper_lr = {"exponentiated": 0.1, "cosine": 0.1, "additive": 1e-5, "log": 0.01}[rule]
    for cls in (HyperSGD, HyperAdam):
        results = []
        for compiled in (False, True):
            parameters = [torch.nn.Parameter(p.clone()) for p in start]
            optimizer = cls(
                parameters, lr=0.01, levels=levels, rule=rule, combine=combine, hyper_lr=hyper_lr, weight_lr=0.1,
                compiled=compiled, weight_decay=0.1,
            )  # fmt: skip
            for step in gradients:
                for p, g in zip(parameters, step, strict=True):
                    p.grad = g + p.detach()
                optimizer.step()
            shown = optimizer.rates()[0]
            weights = torch.stack(list(shown["weights"].values()))
            results.append((flat(parameters), flat(shown["combined"].values()), weights))
            used = any(isinstance(kept, engine.CpuPasses) for kept in optimizer.group_state(0).cache.values())
            assert used is compiled
        for mine, expected in zip(*results, strict=True):
            torch.testing.assert_close(mine, expected, rtol=2e-5, atol=2e-6)


def test_a_name_that_the_kernels_do_not_know_has_no_number():
    assert engine.code("no such rule") == -1


WITHOUT = """
import sys, importlib.util
assert importlib.util.find_spec("metastep.optim.cpu") is None
import torch, metastep as ms
weight = torch.nn.Parameter(torch.ones(20, 30))
optimizer = ms.HyperSGD([weight], lr=0.1, momentum=0.9, compiled=True, safeguard=False)
for _ in range(3):
    weight.grad = weight.detach().clone()
    optimizer.step()
assert float(optimizer.rates()[0]["global"]) > 0.1
"""


def test_the_folder_of_the_engine_can_be_deleted(tmp_path):
    package = Path(ms.__file__).parent
    skipped = shutil.ignore_patterns("__pycache__", "cpu", "lab", "cli", "pretrained", "shipped")
    shutil.copytree(package, tmp_path / "metastep", ignore=skipped)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", WITHOUT], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    mentions = [
        path.name for path in package.rglob("*.py") if "optim.cpu" in path.read_text() and "cpu" not in path.parts
    ]
    assert mentions == ["hyper.py"]  # which asks whether it is there


@needs_compiler
@pytest.mark.parametrize("options", [{"hyper_objective": "data"}, {"scaled": False}, {"max_lr": 0.0101}])
def test_the_kernel_knows_the_other_options(options):
    options = {"levels": ALL_LEVELS, "momentum": 0.9, "weight_decay": 0.1, "hyper_lr": 0.05, **options}
    one, two = run(HyperSGD, False, **options), run(HyperSGD, True, **options)
    assert_same(one, two)
    if "max_lr" in options:
        assert int(two[1].rates()[0]["clipped"]["parameter"]) > 0


@needs_compiler
def test_the_kernel_takes_channels_last_tensors_and_absent_gradients():
    options = {"levels": ("layer", "unit"), "hyper_lr": 0.05, "late": lambda step: step in (1, 3, 4)}
    plain = run(HyperAdam, False, **options)
    assert_same(plain, run(HyperAdam, True, **options))
    strange = run(HyperAdam, True, channels_last=True, **options)
    assert_same(plain, strange)


@needs_compiler
def test_the_result_does_not_depend_on_the_number_of_threads():
    threads, results = torch.get_num_threads(), []
    try:
        for n in (1, 2):
            torch.set_num_threads(1)
            torch.manual_seed(0)
            weight = torch.nn.Parameter(torch.randn(300, 1000))
            gradients = torch.randn(4, 300, 1000)
            optimizer = HyperAdam([weight], lr=0.01, levels=ALL_LEVELS, compiled=True)
            torch.set_num_threads(n)
            for gradient in gradients:
                weight.grad = gradient
                optimizer.step()
            results.append(weight.detach().clone())
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


@needs_compiler
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_the_kernel_rejects_what_is_not_finite(poison):
    weight = torch.nn.Parameter(torch.ones(200, 600))
    optimizer = HyperSGD([weight], lr=0.01, levels=ALL_LEVELS, compiled=True)
    for step in range(4):
        weight.grad = torch.ones(200, 600)
        if step == 2:
            weight.grad[3, 4] = poison
        optimizer.step()
    rates = optimizer.rates()[0]
    assert int(rates["rejected"]["unit"]) >= 1
    assert int(rates["rejected"]["parameter"]) >= 1
    for level in ALL_LEVELS[1:]:
        assert rates[level]["0"].isfinite().all()


@needs_compiler
def test_moved_parameters_are_found_again():
    weight = torch.nn.Parameter(torch.ones(200, 600))
    optimizer = HyperSGD([weight], lr=0.01, momentum=0.9, compiled=True, safeguard=False)
    for step in range(4):
        weight.grad = torch.ones(200, 600)
        if step == 2:
            weight.data = weight.data.clone()
        optimizer.step()
    assert float(weight.detach().std()) < 1e-6
    assert float(weight.detach().mean()) < 0.95


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_take_the_multi_tensor_passes(dtype):
    weight = torch.nn.Parameter(torch.ones(30, 60, dtype=dtype))
    optimizer = HyperSGD([weight], lr=0.01, momentum=0.9, compiled=True)
    for _ in range(3):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert float(weight.detach().float().mean()) < 1


def test_without_the_library_the_multi_tensor_passes_run(monkeypatch):
    monkeypatch.setattr(engine, "load", lambda: None)
    engine.code.cache_clear()
    try:
        run(HyperSGD, True, momentum=0.9)
    finally:
        monkeypatch.undo()
        engine.code.cache_clear()


@needs_compiler
def test_a_small_group_is_not_worth_a_kernel_unless_asked(monkeypatch):
    chosen = []
    real = hyper.passes_for
    monkeypatch.setattr(hyper, "passes_for", lambda *given, **more: chosen.append(real(*given, **more)) or chosen[-1])
    for compiled, size in ((None, 10), (None, 400), (False, 400), (True, 10)):
        weight = torch.nn.Parameter(torch.ones(size, 300))
        weight.grad = torch.ones(size, 300)
        HyperSGD([weight], lr=0.01, momentum=0.9, compiled=compiled).step()
    assert [isinstance(passes, engine.CpuPasses) for passes in chosen] == [False, True, False, True]
