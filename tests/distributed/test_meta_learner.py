"""MetaLearner on several ranks: learns what one process learns on the joined batches, and sends a loss and a slope."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.loops import Loop
from tests.distributed.ranks import Traffic, on_ranks
from torch import nn

import metastep as ms


def learned(kind: str, make: str = "SGD", **options: Any) -> dict[str, Any]:
    """Six steps, of which every second learns; and what the last step sent."""
    optimizers = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01),
    }
    loop = Loop(kind, lambda named: optimizers[make]([p for _, p in named]))
    torch.manual_seed(2)
    schedule = ms.MLRSNet(8)
    lr = ms.LearnedLR(loop.optimizer, schedule, num_classes=3)
    learner = ms.MetaLearner(lr, loop.loss, **{"every": 2, "meta_lr": 0.05, **options})
    rates, losses = [], []
    traffic = Traffic()
    for _ in range(6):
        lr.observe(loop.backward())
        traffic.messages.clear()
        with traffic:
            learner.step()
        rates += lr.get_last_lr()
        losses.append(learner.last_meta_loss or 0.0)
    weights = torch.cat([weight.detach().reshape(-1) for weight in schedule.parameters()])
    return {
        "rates": rates,
        "losses": losses,
        "weights": weights,
        "updates": learner.meta_updates,
        "sent": traffic.messages,
    }


class WithBuffers(nn.Module):
    """Batch norm, whose running statistics DDP sends before each pass."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x).square().mean()


def under_ddp(**options: Any) -> dict[str, Any]:
    """Learning in every step with a replicated model; what the second and the third step sent, and what is left."""
    model = nn.parallel.DistributedDataParallel(WithBuffers(), **options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, ms.MLRSNet(4), num_classes=2)
    learner = ms.MetaLearner(lr, lambda: model(torch.randn(6, 4)), every=1)
    steps = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(torch.randn(6, 4))
        with Traffic() as backward:
            loss.backward()
        lr.observe(loss)
        with Traffic() as traffic:
            learner.step()
        steps.append((backward.messages, traffic.messages))
    return {
        "steps": steps[2:],
        "weights": torch.cat([p.detach().reshape(-1) for p in model.parameters()]),
        "batches": int(model.module.net[1].num_batches_tracked),
    }


def refused(call) -> str:
    """What a call says against it."""
    with pytest.raises(ValueError) as caught:
        call()
    return str(caught.value)


def everything() -> dict[str, Any]:
    """What the tests below look at, in one process group."""
    first_order = {"every": 3, "horizon": 2, "first_order": True}
    found: dict[str, Any] = {
        (kind, make): learned(kind, make) for kind in ("replicated", "sharded") for make in ("SGD", "AdamW")
    }
    found |= {(kind, "first order"): learned(kind, **first_order) for kind in ("replicated", "sharded")}
    found |= {(kind, "SGD"): learned(kind) for kind in ("hybrid", "parallel")}
    torch.manual_seed(dist.get_rank())
    found["ddp"] = under_ddp()
    found["static"] = under_ddp(static_graph=True)
    found["unused"] = under_ddp(find_unused_parameters=True)

    loop = Loop("sharded", lambda named: torch.optim.SGD([p for _, p in named], lr=0.1))
    lr = ms.LearnedLR(loop.optimizer, ms.MLRSNet(4), num_classes=3)
    found["exact"] = refused(lambda: ms.MetaLearner(lr, loop.loss, every=3, horizon=2))
    lr.detach()
    lr = ms.LearnedLR(loop.optimizer, ms.MLRSNet(4), num_classes=3, process_group=False)
    learner = ms.MetaLearner(lr, loop.loss, every=1)
    lr.observe(loop.backward())
    found["alone"] = refused(learner.step)
    dist.barrier()

    torch.manual_seed(0)
    flat = torch.distributed.fsdp.FullyShardedDataParallel(
        nn.Linear(4, 3), use_orig_params=True, device_id=torch.device("cpu")
    )
    optimizer = torch.optim.SGD(flat.parameters(), lr=0.1)
    lr = ms.LearnedLR(optimizer, ms.MLRSNet(4), num_classes=3)
    learner = ms.MetaLearner(lr, lambda: flat(torch.ones(1, 4)).sum(), every=1)
    flat(torch.ones(1, 4)).sum().backward()
    lr.observe(1.0)
    found["flattened"] = refused(learner.step)
    return found


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return on_ranks(request.param, everything)


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        *((kind, how) for kind in ("replicated", "sharded") for how in ("SGD", "AdamW", "first order")),
        *((kind, "SGD") for kind in ("hybrid", "parallel")),
    ],
)
def test_every_rank_learns_what_one_process_learns(found: list[dict[str, Any]], kind: str, how: str) -> None:
    options = {"every": 3, "horizon": 2, "first_order": True} if how == "first order" else {"make": how}
    expected = learned("whole", **options)
    assert expected["updates"] == (2 if how == "first order" else 3)
    for rank in found:
        mine = rank[kind, how]
        assert mine["updates"] == expected["updates"]
        assert mine["rates"] == found[0][kind, how]["rates"]
        assert mine["rates"] == pytest.approx(expected["rates"], rel=1e-6)
        assert mine["losses"] == pytest.approx(expected["losses"], rel=1e-6)
        assert torch.equal(mine["weights"], found[0][kind, how]["weights"])
        torch.testing.assert_close(mine["weights"], expected["weights"], rtol=1e-5, atol=1e-6)


def test_a_meta_step_sends_a_loss_and_a_slope_and_no_gradient(found: list[dict[str, Any]]) -> None:
    for rank in found:
        assert rank["replicated", "SGD"]["sent"] == [("allreduce", 24), ("allreduce", 16)]
        assert rank["replicated", "first order"]["sent"] == [("allreduce", 24), ("allreduce", 24)]


def test_of_sharded_parameters_only_the_backward_pass_sends_more(found: list[dict[str, Any]]) -> None:
    for rank in found:
        sent = rank["sharded", "SGD"]["sent"]
        assert [message for message in sent if message[0] == "allreduce"] == [("allreduce", 24), ("allreduce", 16)]
        assert {name for name, _ in sent} == {"allreduce", "allgather_base", "reduce_scatter_base"}


@pytest.mark.parametrize("how", ["ddp", "static", "unused"])
def test_ddp_sends_nothing_in_the_look_ahead_and_trains_on_after_it(found: list[dict[str, Any]], how: str) -> None:
    gradient = 4 * sum(p.numel() for p in WithBuffers().parameters())
    for rank in found:
        for backward, step in rank[how]["steps"]:
            assert step == [("allreduce", 24), ("allreduce", 16)]
            assert max(size for _, size in backward) == gradient
        assert torch.equal(rank[how]["weights"], found[0][how]["weights"])
        assert rank[how]["batches"] == 4


def test_the_exact_horizon_is_refused_on_several_ranks(found: list[dict[str, Any]]) -> None:
    assert all("first_order must be True for horizon > 1" in rank["exact"] for rank in found)


def test_sharded_parameters_of_a_rank_that_is_left_alone_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("process_group must not be False with sharded parameters" in rank["alone"] for rank in found)


def test_flattened_parameters_are_refused(found: list[dict[str, Any]]) -> None:
    assert all("FSDP1 flattened; shard the model with" in rank["flattened"] for rank in found)
