"""Rates on an accelerator: nothing is read back, and a CUDA graph can be captured.

Without a device the first claim is proved on torch's meta device, whose tensors have no values: reading one is an
error. The last tests need a GPU.
"""

import math

import pytest
import torch
from tests.gpu import no_sync
from tests.schedules.loops import net, null, rates
from torch import nn

import metastep as ms
from metastep.schedules.param_groups import ParamGroups

gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Blind(torch.optim.Optimizer):
    """Moves nothing and looks at nothing."""

    def step(self, closure=None) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    "schedule",
    [
        lambda: ms.MLRSNet(4, num_layers=2, scale=ms.ScaleRule(text=True)),
        lambda: ms.Cosine(9),
        lambda: ms.FixedOutput(0.3),
    ],
)
@pytest.mark.parametrize("warmup_steps", [0, 2])
@pytest.mark.parametrize("form", ["tensor", "float"])
def test_observing_and_stepping_read_nothing_back(
    form: str, warmup_steps: int, schedule, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ParamGroups, "_initial_rate", lambda *_: 0.1)  # read once, when a group joins
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": torch.empty((), device="meta")} for _ in range(2)]
    optimizer = Blind(groups, {})
    lr = ms.LearnedLR(
        optimizer, schedule(), initial_loss=2.3, num_classes=10, warmup_steps=warmup_steps, min_lr=1e-5, max_lr=9.0
    )
    for _ in range(3):
        if form == "tensor":
            lr.observe(torch.empty((), device="meta", dtype=torch.bfloat16))
            lr.observe(torch.empty(1, device="meta"))
        else:
            lr.observe(1.0)
        optimizer.step()
    assert lr.steps == 3
    with pytest.raises(RuntimeError, match="meta tensor"):  # reading a rate would have been noticed
        float(optimizer.param_groups[0]["lr"])


class OnDevice:
    """An optimizer and its LearnedLR with rates on a device."""

    def __init__(self, device: str, **options) -> None:
        self.parameter = nn.Parameter(torch.zeros(3, device=device))
        self.parameter.grad = torch.ones(3, device=device)
        rate, capturable = torch.tensor(0.1, device=device), device == "cuda"
        self.optimizer = torch.optim.Adam([self.parameter], lr=rate, capturable=capturable)
        self.lr = ms.LearnedLR(
            self.optimizer, net(trained_for="adam").float(), **{"initial_loss": 2.3, "num_classes": 10, **options}
        )


def test_the_devices_arithmetic_gives_the_hosts_rates() -> None:
    here = OnDevice("cpu")
    here.lr._on_host = False  # the accelerator's branch, on the CPU
    state = here.lr.state
    other = null()
    expected = rates(ms.LearnedLR(other, net(), initial_loss=2.3, num_classes=10), other, [2.3, 1.0, 0.5])
    assert rates(here.lr, here.optimizer, [2.3, 1.0, 0.5]) == pytest.approx(expected, rel=1e-5)
    assert here.lr.state is state  # written in place, so that a captured graph goes on from it


@gpu
@needs_gpu
def test_on_a_gpu_no_step_synchronises() -> None:
    here = OnDevice("cuda")
    losses = [torch.tensor(loss, device="cuda") for loss in (math.nan, 2.3, math.inf, 1.0)]
    with no_sync():
        for loss in losses:
            here.lr.observe(loss)
            here.optimizer.step()
    other = null()
    lr = ms.LearnedLR(other, net(), initial_loss=2.3, num_classes=10)
    assert here.lr.get_last_lr()[0] == pytest.approx(rates(lr, other, [2.3, 2.3, 2.3, 1.0])[-1], rel=1e-5)
    assert here.lr.non_finite_losses == 2


@gpu
@needs_gpu
def test_a_captured_step_goes_on_from_the_state_of_the_last() -> None:
    here, other = OnDevice("cuda"), null()
    loss = torch.tensor(2.3, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(3):
            here.lr.observe(loss)
            here.optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):  # recorded, not run
        here.lr.observe(loss)
        here.optimizer.step()
    found = []
    for value in (2.0, 1.0, 0.5):
        loss.fill_(value)
        graph.replay()
        found.append(here.lr.get_last_lr()[0])
    lr = ms.LearnedLR(other, net(), initial_loss=2.3, num_classes=10)
    assert found == pytest.approx(rates(lr, other, [2.3] * 3 + [2.0, 1.0, 0.5])[3:], rel=1e-4)


@gpu
@needs_gpu
def test_a_replayed_query_is_the_query() -> None:
    found = []
    for recorded in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 16), nn.Tanh(), nn.Linear(16, 1)).cuda()
        x = torch.randn(64, 5, device="cuda")
        rate = torch.tensor(1e-3, device="cuda")
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, capturable=True)
        torch.manual_seed(1)
        schedule = ms.MLRSNet(4, num_layers=2, trained_for="adamw")
        lr = ms.LearnedLR(optimizer, schedule, num_classes=10, total_steps=40)
        if not recorded:
            lr._recorded_query = lambda schedule, loss, state: schedule(loss, state)
        rates = []
        for step in range(40):
            optimizer.zero_grad()
            loss = (model(x) - x.sum(1, keepdim=True).sin()).square().mean()
            loss.backward()
            lr.observe(loss * (math.nan if step == 20 else 1))
            optimizer.step()
            rates.append(lr.get_last_lr())
            if step == 25:
                lr.extend(60)
        found.append((rates, [p.detach().clone() for p in model.parameters()], lr))
    assert found[0][2]._recorded_query._recorded is not None
    assert found[0][0] == found[1][0]
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@gpu
@needs_gpu
def test_replaced_weights_are_asked_anew() -> None:
    here = OnDevice("cuda")
    loss = torch.tensor(2.3, device="cuda")
    for _ in range(6):
        here.lr.observe(loss)
        here.optimizer.step()
    with torch.no_grad():
        for weight in here.lr.schedule.parameters():
            weight.zero_()  # in place: the recorded query sees it
        expected = here.lr.schedule(loss, here.lr.state)[0] * here.lr.scale
    here.lr.observe(loss)
    here.optimizer.step()
    assert here.lr.get_last_lr()[0] == pytest.approx(float(expected), rel=1e-6)
