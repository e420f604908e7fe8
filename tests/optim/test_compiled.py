"""The passes through torch.compile: what runs on an accelerator, tried here on the CPU."""

import pytest
import torch
from tests.gpu import no_sync
from tests.optim.models import ALL_LEVELS, VARIANTS, flat, network, train

from metastep.optim import HyperSGD, hyper, two_pass


@pytest.fixture
def always_compiled(monkeypatch):
    monkeypatch.setattr(hyper, "passes_for", lambda *given, **more: two_pass.CompiledPasses())
    yield
    torch.compiler.reset()


@pytest.mark.parametrize("variant", ["nesterov", "adamw"])
def test_the_traced_passes_are_the_eager_ones(variant, always_compiled, monkeypatch):
    monkeypatch.setattr(two_pass, "BACKEND", "aot_eager")
    cls, _, arguments = VARIANTS[variant]
    models = network(), network()
    for model in models:
        if model is models[0]:
            monkeypatch.setattr(hyper, "passes_for", lambda *given, **more: two_pass.EagerPasses())
        else:
            monkeypatch.setattr(hyper, "passes_for", lambda *given, **more: two_pass.CompiledPasses())
        options = {"include_decay": True} if variant == "adamw" else {}
        train(model, cls(model.parameters(), lr=0.02, levels=ALL_LEVELS, **arguments, **options), 3)
    torch.testing.assert_close(flat(models[0].parameters()), flat(models[1].parameters()), rtol=0, atol=1e-13)


def test_nothing_is_compiled_again_while_rates_and_schedule_move(always_compiled, monkeypatch):
    monkeypatch.setattr(two_pass, "BACKEND", "aot_eager")
    model = network()
    optimizer = HyperSGD(model.parameters(), lr=0.02, momentum=0.9, levels=ALL_LEVELS)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    train(model, optimizer, 3)
    scheduler.step()
    with torch.compiler.set_stance("fail_on_recompile"):
        for step in range(3, 7):
            train(model, optimizer, 1, start=step)
            scheduler.step()


def test_too_many_variants_run_uncompiled(always_compiled, monkeypatch):
    monkeypatch.setattr(two_pass, "BACKEND", "aot_eager")
    monkeypatch.setattr(two_pass, "MOST_VARIANTS", 1)
    made = []
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *a, **k: made.append(a) or real(*a, **k))
    model = network()
    optimizer = HyperSGD(model.parameters(), lr=0.02, momentum=0.9)
    for step in range(4):
        optimizer.param_groups[0]["momentum"] = 0.9 - 0.1 * step
        train(model, optimizer, 1, start=step)
    assert len(made) == 2  # one of each pass


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_builds_both_passes(always_compiled):
    model, plain = torch.nn.Linear(3, 2).double(), torch.nn.Linear(3, 2).double()
    plain.load_state_dict(model.state_dict())
    results = []
    for net in (model, plain):
        optimizer = HyperSGD(net.parameters(), lr=0.02, momentum=0.9, levels=("global", "layer", "unit"))
        if net is plain:
            two_pass.BACKEND, kept = "eager", two_pass.BACKEND
        for step in range(4):
            optimizer.zero_grad()
            x = torch.full((4, 3), 0.1 * step, dtype=torch.float64)
            (net(x) - 1).square().mean().backward()
            optimizer.step()
        results.append(flat(net.parameters()))
    two_pass.BACKEND = kept
    torch.testing.assert_close(*results, rtol=0, atol=1e-14)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # inductor's own
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("compile_it", [False, True])
def test_cuda_agrees_with_the_cpu_without_a_sync(variant, compile_it):
    cls, _, arguments = VARIANTS[variant]
    models = network(), network().cuda()
    for model in models:
        on_cuda = model is models[1]
        optimizer = cls(model.parameters(), lr=0.02, levels=ALL_LEVELS, compiled=compile_it and on_cuda, **arguments)
        for step in range(5):
            for p in model.parameters():
                p.grad = torch.full_like(p, 0.1 * (step + 1))
            with no_sync(on=on_cuda and step > 2):
                optimizer.step()
    torch.testing.assert_close(flat(models[0].parameters()), flat(models[1].parameters()).cpu(), rtol=0, atol=1e-12)
