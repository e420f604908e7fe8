"""One rank under NCCL: DDP and FSDP2 on a GPU give the undistributed run, and floats of the host travel through it."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.loops import Loop
from tests.distributed.test_hyper import numbers
from tests.integrations.digits import Noting
from torch.distributed.tensor import DTensor

import metastep as ms
import metastep.optim as ours
from metastep.core import distributed as collectives
from metastep.schedules import learned_lr

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and dist.is_nccl_available()), reason="needs a CUDA device and NCCL"
    ),
    pytest.mark.filterwarnings("ignore"),  # torch's advice, which differs from version to version
]

STEPS = 10
LEVELS = ("global", "layer", "unit", "parameter")


@pytest.fixture(scope="module", autouse=True)
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A process group of this process alone."""
    torch.cuda.set_device(0)
    meet = tmp_path_factory.mktemp("nccl") / "meet"
    dist.init_process_group("nccl", init_method=f"file://{meet}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def hyper(kind: str) -> dict[str, Any]:
    """HyperAdamW at every level, its rates combined by learned weights."""
    make = lambda named: ours.HyperAdamW(named, lr=0.01, levels=LEVELS, weight_lr=0.2, weight_decay=0.1)  # noqa: E731
    loop = Loop(kind, make, device="cuda")
    for _ in range(STEPS):
        loop.backward()
        loop.optimizer.step()
    return {"numbers": numbers(loop.optimizer.rates()), "weights": loop.weights(), "loop": loop}


def learned(kind: str, make: Any) -> dict[str, Any]:
    """A schedule over AdamW, learned beside it if it has weights that read the loss alone."""
    loop = Loop(kind, lambda named: torch.optim.AdamW([p for _, p in named], lr=0.01), device="cuda")
    torch.manual_seed(2)
    made = make()
    lr = ms.LearnedLR(loop.optimizer, made, num_classes=3)
    learner = None if made.calibrates else ms.MetaLearner(lr, loop.loss, every=2, meta_lr=0.05)
    used = []
    for _ in range(STEPS):
        lr.observe(loop.backward())
        if learner is None:
            loop.optimizer.step()
        else:
            learner.step()
        used += lr.get_last_lr()
    assert learner is None or learner.meta_updates == STEPS // 2
    assert len(set(used)) == STEPS
    return {"numbers": {"used": torch.tensor(used)}, "weights": loop.weights(), "loop": loop}


RUNS = {
    "HyperAdamW": hyper,
    "LearnedLR": lambda kind: learned(kind, lambda: ms.MLRSNet(8)),
    "LearnedLR that calibrates": lambda kind: learned(kind, lambda: ms.Calibrated(STEPS)),
}


@pytest.mark.parametrize("kind", ["replicated", "sharded"])
@pytest.mark.parametrize("name", RUNS)
def test_one_rank_gives_the_undistributed_run(name: str, kind: str) -> None:
    found, expected = RUNS[name](kind), RUNS[name]("whole")
    assert isinstance(next(found["loop"].inner.parameters()), DTensor) is (kind == "sharded")
    assert all(parameter.is_cuda for parameter in found["loop"].inner.parameters())
    for what in ("numbers", "weights"):
        assert found[what].keys() == expected[what].keys()
        for key, value in expected[what].items():
            torch.testing.assert_close(found[what][key], value, rtol=1e-5, atol=1e-6)


def test_floats_of_the_host_are_sent_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were somebody else, since one rank alone sends nothing."""
    monkeypatch.setattr(collectives, "rank_count", lambda ranks=None: 2)
    here = torch.tensor([1.0, 2.0], dtype=torch.float64)
    everyones = collectives.sum_over_ranks(here)
    assert everyones.is_cuda
    assert everyones.tolist() == [1.0, 2.0]
    shared = [torch.ones(2), torch.ones(1, dtype=torch.float64), torch.ones(3, device="cuda")]
    collectives.broadcast_tensors(shared)
    assert [tensor.tolist() for tensor in shared] == [[1.0] * 2, [1.0], [1.0] * 3]
    assert [tensor.is_cuda for tensor in shared] == [False, False, True]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_losses_that_went_through_nccl_are_the_ones_observed(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    noting = Noting()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(3, device="cuda"))], lr=0.1)
    lr = ms.LearnedLR(optimizer, noting)
    for module in (collectives, learned_lr):
        monkeypatch.setattr(module, "rank_count", lambda ranks=None: 2)
    for window in ([1.0, 3.0], [float("nan"), 5.0]):
        for loss in window:
            lr.observe(torch.tensor(loss, device=device))
        optimizer.step()
    assert noting.losses == [2.0, 5.0]
    assert lr.non_finite_losses == 1
    assert lr.get_last_lr() == pytest.approx([0.1 / 6])
