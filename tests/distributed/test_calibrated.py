"""The calibrated schedule on several ranks: one rate, whoever holds which part of the parameters or observes a loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests.distributed.loops import Loop
from tests.distributed.ranks import Traffic, on_ranks

import metastep as ms

STEPS = 8
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda named: torch.optim.SGD([p for _, p in named], lr=0.5, momentum=0.9),
    "adamw": lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-5),
}
KINDS = ("replicated", "sharded")
#: Where it observes a loss, the promise of a step binds.
BOUND = 0.05


def run(kind: str, optimizer: str, observers: str = "all") -> dict[str, Any]:
    """The rates of a loop, the unit rate, what its first and its last step sent, and its weights."""
    loop = Loop(kind, OPTIMIZERS[optimizer])
    lr = ms.LearnedLR(loop.optimizer, ms.Calibrated(promise=BOUND), total_steps=STEPS)
    used, sent = [], []
    for _ in range(STEPS):
        loss = loop.backward()
        if observers == "all" or (observers == "last" and loop.rank == loop.ranks - 1):
            lr.observe(loss)
        with Traffic() as traffic:
            loop.optimizer.step()
        sent.append([size for name, size in traffic.messages if name.startswith("allreduce")])
        used += lr.get_last_lr()
    return {"rates": used, "unit": lr.scale, "sent": (sent[0], sent[-1]), "weights": loop.weights()}


def everything() -> dict[str, Any]:
    found = {f"{kind} {optimizer}": run(kind, optimizer) for kind in KINDS for optimizer in OPTIMIZERS}
    return {**found, **{observers: run("replicated", "adamw", observers) for observers in ("last", "none")}}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return on_ranks(2, everything)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_rates_and_weights_are_those_of_one_process_on_the_joined_batch(kind: str, optimizer: str, found) -> None:
    expected = run("whole", optimizer)
    assert len(set(expected["rates"])) == STEPS
    for rank in found:
        here = rank[f"{kind} {optimizer}"]
        assert here["unit"] == pytest.approx(expected["unit"], rel=1e-5)
        assert here["rates"] == pytest.approx(expected["rates"], rel=1e-4)
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(here["weights"][name], weight, rtol=1e-4, atol=1e-5)
    first, second = (rank[f"{kind} {optimizer}"]["rates"] for rank in found)
    assert first == second


def test_one_rank_may_observe_for_all(found) -> None:
    first, second = (rank["last"]["rates"] for rank in found)
    assert first == second
    assert first[0] < 0.5 * found[0]["none"]["rates"][0]  # the loss counts, on the rank without one, too
    assert found[0]["none"]["rates"] == found[1]["none"]["rates"]


def test_replicas_send_their_first_loss_alone_and_shards_the_sums_that_are_needed(found) -> None:
    for rank in found:
        assert rank["replicated adamw"]["sent"] == rank["replicated sgd"]["sent"] == ([24], [])
        first, last = rank["sharded adamw"]["sent"]
        assert first[0] == 24
        assert last == []
        assert rank["sharded sgd"]["sent"][1] == [8]  # the length of the gradient
