"""LearnedLR on several ranks: one rate, from the mean of all their losses, for 24 bytes a step."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.loops import Loop
from tests.distributed.ranks import Traffic, on_ranks
from tests.integrations.digits import Noting
from tests.schedules.loops import null

import metastep as ms
from metastep.schedules.loss_window import LossWindow


def read(*windows: list[float], **options: Any) -> tuple[list[float], ms.LearnedLR]:
    """The losses that a schedule reads, one window of this rank's losses a step."""
    schedule, optimizer = Noting(), null(0.1)
    lr = ms.LearnedLR(optimizer, schedule, **options)
    for losses in windows:
        for loss in losses:
            lr.observe(torch.tensor(loss, dtype=torch.float64))
        optimizer.step()
    return schedule.losses, lr


def everything() -> dict[str, Any]:
    """What the tests below look at, in one process group."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    found: dict[str, Any] = {"means": read([1.0 + rank], [2.0 * rank, 4.0 * rank])[0]}
    found["uneven"] = read([float(rank)] * (rank + 1))[0]
    found["one observes"] = read([5.0] if rank == ranks - 1 else [])[0]

    losses, lr = read([1.0], [math.nan if rank == 0 else 3.0, 3.0], [math.inf])
    found["not finite"], found["ignored"] = losses, lr.non_finite_losses
    found["resumed"] = lr.state_dict()["window"]["ignored"]
    try:
        read([])
    except RuntimeError as error:
        found["nobody observes"] = str(error)

    found["alone"] = read([1.0 + rank], process_group=False)[0]
    pairs = [dist.new_group([first, first + 1]) for first in range(0, ranks, 2)]
    found["in pairs"] = read([1.0 + rank], process_group=pairs[rank // 2])[0]

    torch.manual_seed(rank)  # each rank with a schedule, an initial loss and measurements of its own
    optimizer = null(0.1)
    options = {"initial_loss": 2.0 + rank, "num_classes": 10 + rank, "measure_loss": lambda: 1.0 + rank}
    lr = ms.LearnedLR(optimizer, ms.Phased([ms.MLRSNet(4), ms.MLRSNet(4)], boundaries=[2]), **options)
    used = []
    with Traffic() as traffic:
        for _ in range(4):
            lr.observe(math.nan if not used else 1.0 + rank)
            optimizer.step()
            used.append(lr.get_last_lr()[0])
            traffic.messages.append(("step", 0))
    found["learned"], found["scale"], found["initial loss"] = used, lr.scale, lr.initial_loss
    found["messages"] = traffic.messages

    with Traffic() as traffic:
        lr = ms.LearnedLR(optimizer := null(0.1), ms.Cosine(4))
        optimizer.step()
    found["closed form"] = traffic.messages
    return found


@pytest.fixture(scope="module", params=[2, 4])
def found(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return on_ranks(request.param, everything)


def test_every_rank_reads_the_mean_of_all_losses(found: list[dict[str, Any]]) -> None:
    ranks = range(len(found))
    first, second = sum(1.0 + r for r in ranks) / len(ranks), sum(3.0 * r for r in ranks) / len(ranks)
    assert [rank["means"] for rank in found] == [[first, second]] * len(found)


def test_every_loss_of_uneven_windows_weighs_the_same(found: list[dict[str, Any]]) -> None:
    losses = [float(rank) for rank in range(len(found)) for _ in range(rank + 1)]
    assert [rank["uneven"] for rank in found] == [[sum(losses) / len(losses)]] * len(found)


def test_one_rank_may_observe_for_all(found: list[dict[str, Any]]) -> None:
    assert [rank["one observes"] for rank in found] == [[5.0]] * len(found)


def test_a_loss_that_is_not_finite_is_ignored_and_counted_on_all_ranks(found: list[dict[str, Any]]) -> None:
    assert [rank["not finite"] for rank in found] == [[1.0, 3.0, 3.0]] * len(found)
    assert {rank["ignored"] for rank in found} == {rank["resumed"] for rank in found} == {1 + len(found)}


def test_a_step_without_any_loss_is_refused_on_all_ranks(found: list[dict[str, Any]]) -> None:
    assert all("without an observed loss" in rank["nobody observes"] for rank in found)


def test_a_rank_can_be_left_alone(found: list[dict[str, Any]]) -> None:
    assert [rank["alone"] for rank in found] == [[1.0 + rank] for rank in range(len(found))]


def test_a_process_group_agrees_among_itself(found: list[dict[str, Any]]) -> None:
    assert [rank["in pairs"] for rank in found] == [[1.5 + rank // 2 * 2] for rank in range(len(found))]


def test_ranks_start_from_the_first_ones_schedule_and_scale(found: list[dict[str, Any]]) -> None:
    assert len({tuple(rank["learned"]) for rank in found}) == 1
    assert len({rank["scale"] for rank in found}) == 1
    assert [rank["initial loss"] for rank in found] == [2.0] * len(found)


def test_a_step_costs_one_message_of_24_bytes(found: list[dict[str, Any]]) -> None:
    for rank in found:
        steps = " ".join(f"{name}:{size}" for name, size in rank["messages"]).split("step:0")
        weights = 2 * 4 * sum(weight.numel() for weight in ms.MLRSNet(4).parameters())
        assert steps[0].split() == [f"broadcast:{weights}", "broadcast:40", "broadcast:8", "allreduce:24"]
        assert steps[1].split() == ["allreduce:24"]
        assert steps[2].split() == ["allreduce:24", "allreduce:8"]  # measure_loss, when a phase begins
        assert steps[3].split() == ["allreduce:24"]


def test_a_closed_form_sends_nothing(found: list[dict[str, Any]]) -> None:
    assert all(rank["closed form"] == [] for rank in found)


def test_sharing_a_window_on_an_accelerator_reads_nothing_back() -> None:
    window = LossWindow()
    for _ in range(2):
        window.add(torch.empty((), device="meta"))  # which has no value to be read
        window.add(1.0)
        window.share(lambda sums: 2 * sums)
        assert window.flush().device.type == "meta"


@pytest.mark.parametrize("group", ["gloo", True, 2])
def test_what_is_no_process_group_is_refused(group: object) -> None:
    with pytest.raises(ValueError, match=r"process_group must be a torch.distributed process group, None .* got"):
        ms.LearnedLR(null(), ms.Cosine(4), process_group=group)


# ---- a whole loop against one process on the joined batch


def learned_rates(kind: str) -> list[float]:
    """The rates of six steps of a loop under a learned schedule."""
    loop = Loop(kind, lambda named: torch.optim.SGD([p for _, p in named], lr=0.1, momentum=0.9))
    torch.manual_seed(2)
    lr, used = ms.LearnedLR(loop.optimizer, ms.MLRSNet(8), num_classes=3), []
    for _ in range(6):
        lr.observe(loop.backward())
        loop.optimizer.step()
        used += lr.get_last_lr()
    return used


def both() -> dict[str, list[float]]:
    """Of a replicated and a sharded loop."""
    return {kind: learned_rates(kind) for kind in ("replicated", "sharded")}


@pytest.mark.parametrize("ranks", [2, 4])
def test_the_rates_are_those_of_one_process_on_the_joined_batch(ranks: int) -> None:
    expected = pytest.approx(learned_rates("whole"), rel=1e-6)
    for found in on_ranks(ranks, both):
        assert found["replicated"] == expected
        assert found["sharded"] == expected
