"""One schedule learned on several ranks is what one process learns from the mean of the tasks' meta-gradients."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from tests.distributed.ranks import Traffic, on_ranks
from torch import Tensor, nn

import metastep as ms
from metastep.meta import SharedSchedule

STEPS, EVERY, MOMENTUM = 12, 3, 0.5


class Task:
    """A small float64 regression of its own."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.x, self.y, self.xv, self.yv, start = (
            torch.randn(*size, generator=draw, dtype=torch.float64) for size in ((8, 3), (8,), (8, 3), (8,), (3,))
        )
        self.weight = nn.Parameter(start)
        self.initial_loss = 1.0 + seed

    def loss(self, weight: Tensor) -> Tensor:
        return (self.x @ weight - self.y).square().mean()

    def validation_loss(self, weight: Tensor) -> Tensor:
        return (self.xv @ weight - self.yv).square().mean()


def network(seed: int = 0) -> ms.MLRSNet:
    torch.manual_seed(seed)
    return ms.MLRSNet(hidden_size=4).double()


def learned_by_the_oracle(tasks: list[Task], broken: int | None = None) -> tuple[Tensor, list[list[float]]]:
    """One process, one autograd graph a task and outer step: the schedule's weights, and each task's rates.

    Args:
        tasks: of which all learn.
        broken: the number of an outer step in which the first task's validation loss is not finite.
    """
    net = network()
    meta_optimizer = torch.optim.Adam(net.parameters(), lr=0.01, weight_decay=1e-4)
    gammas = [net.scale.gamma(task.initial_loss, 2) for task in tasks]
    states: list[Any] = [net.init_state() for _ in tasks]
    momenta: list[Tensor | None] = [None for _ in tasks]
    rates: list[list[float]] = [[] for _ in tasks]
    for step in range(STEPS):
        losses = []
        for number, task in enumerate(tasks):
            loss = task.loss(task.weight)
            (gradient,) = torch.autograd.grad(loss, task.weight)
            before = momenta[number]
            momenta[number] = gradient if before is None else MOMENTUM * before + gradient
            losses.append(net.scale.normalize(loss.item(), 2))
        if (step + 1) % EVERY == 0:
            gradients = []
            for number, task in enumerate(tasks):
                if broken == step // EVERY and number == 0:
                    continue
                alpha, _ = net(losses[number], states[number])
                moved = task.weight.detach() - gammas[number] * alpha * momenta[number]
                gradients.append(torch.autograd.grad(task.validation_loss(moved), list(net.parameters())))
            for weight, *parts in zip(net.parameters(), *gradients, strict=True):
                weight.grad = torch.stack(parts).mean(0)
            meta_optimizer.step()
        for number, task in enumerate(tasks):
            with torch.no_grad():
                alpha, states[number] = net(losses[number], states[number])
                rates[number].append(float(gammas[number] * alpha))
                task.weight -= gammas[number] * alpha * momenta[number]
    return torch.cat([weight.detach().reshape(-1) for weight in net.parameters()]), rates


def learned(task: Task, net: ms.MLRSNet, shared: SharedSchedule | None, broken: int | None = None) -> dict[str, Any]:
    """A loop as a user writes it; what the outer steps sent, too."""
    optimizer = torch.optim.SGD([task.weight], lr=0.1, momentum=MOMENTUM)
    lr = ms.LearnedLR(optimizer, net, num_classes=2, initial_loss=task.initial_loss, process_group=False)
    outer = 0

    def validation_loss() -> Tensor:
        nonlocal outer
        outer += 1
        loss = task.validation_loss(task.weight)
        return loss * float("nan") if broken == outer - 1 else loss

    learner = ms.MetaLearner(lr, validation_loss, every=EVERY, meta_lr=0.01, shared=shared)
    rates, sent = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = task.loss(task.weight)
        loss.backward()
        lr.observe(loss)
        with Traffic() as traffic:
            learner.step()
        rates.append(lr.get_last_lr()[0])
        sent.append(traffic.messages)
    weights = torch.cat([weight.detach().reshape(-1) for weight in net.parameters()])
    counts = (learner.meta_updates, learner.skipped_updates)
    return {"weights": weights, "rates": rates, "sent": sent, "counts": counts}


def on_a_rank(broken: int | None = None) -> dict[str, Any]:
    """Each rank begins with other weights; rank 0's count."""
    rank = dist.get_rank()
    net = network(seed=rank)
    return learned(Task(rank), net, SharedSchedule(net), broken if rank == 0 else None)


def refusals() -> list[str]:
    """What is refused, on each rank."""
    messages = []
    with pytest.raises(ValueError, match="schedules of one shape") as caught:
        SharedSchedule(ms.MLRSNet(hidden_size=4 + dist.get_rank()))
    messages.append(str(caught.value))
    net = network()
    lr = ms.LearnedLR(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1), net)
    with pytest.raises(ValueError, match="process_group=False") as caught:
        ms.MetaLearner(lr, lambda: torch.ones(()), shared=SharedSchedule(net))
    return [*messages, str(caught.value)]


def everything() -> dict[Any, Any]:
    """What the tests look at, in one process group."""
    return {**{broken: on_a_rank(broken) for broken in (None, 1)}, "refused": refusals()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, Any]]:
    return on_ranks(2, everything)


@pytest.mark.parametrize("broken", [None, 1])
def test_the_ranks_learn_what_one_process_learns_from_the_mean(ranks: list[dict[Any, Any]], broken: int | None) -> None:
    weights, rates = learned_by_the_oracle([Task(0), Task(1)], broken)
    for rank, mine in zip(ranks, rates, strict=True):
        torch.testing.assert_close(rank[broken]["weights"], weights, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(torch.tensor(rank[broken]["rates"]), torch.tensor(mine), rtol=1e-10, atol=0)
    assert torch.equal(ranks[0][broken]["weights"], ranks[1][broken]["weights"])
    assert [rank[broken]["counts"] for rank in ranks] == [(4, 0 if broken is None else 1), (4, 0)]


def test_only_outer_steps_send_something_and_that_is_one_message(ranks: list[dict[Any, Any]]) -> None:
    size = 8 * (sum(weight.numel() for weight in network().parameters()) + 2)
    for rank in ranks:
        assert rank[None]["sent"] == [[("allreduce", size)] if (step + 1) % EVERY == 0 else [] for step in range(STEPS)]


def test_of_one_rank_it_is_what_it_learns_alone_to_the_last_bit() -> None:
    net, other = network(), network()
    assert torch.equal(learned(Task(0), net, SharedSchedule(net))["weights"], learned(Task(0), other, None)["weights"])


def test_a_task_that_has_nothing_to_give_takes_part_with_nothing() -> None:
    net = network()
    shared = SharedSchedule(net, should_stop=lambda: shared.outer_steps == 1)
    assert shared.mean(None) is None
    assert not shared.stopping
    ones = [torch.ones_like(weight) for weight in net.parameters()]
    assert all(torch.equal(mean, one) for mean, one in zip(shared.mean(ones), ones, strict=True))
    assert (shared.outer_steps, shared.stopping) == (2, True)


def test_schedules_of_two_shapes_and_losses_averaged_over_tasks_are_refused_on_all_ranks(
    ranks: list[dict[Any, Any]],
) -> None:
    first, second = (rank["refused"] for rank in ranks)
    assert first == second
    with pytest.raises(ValueError, match=r"ranks must be a torch\.distributed process group"):
        SharedSchedule(network(), True)
