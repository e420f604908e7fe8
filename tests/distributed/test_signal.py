"""A schedule that watches the optimizer, on several ranks: one rate, whoever holds which part of the parameters."""

import math
from typing import Any

import pytest
import torch
from tests.distributed.loops import Loop
from tests.distributed.ranks import Traffic, on_ranks
from tests.schedules.signal_runs import schedule

import metastep as ms

STEPS = 8


def run(kind: str, scope: str, broken: int | None = None) -> dict[str, Any]:
    """The rates and brakes of a loop, what its steps sent, and its weights; in one step a rank's loss is NaN."""
    loop = Loop(kind, lambda named: torch.optim.SGD([p for _, p in named], lr=0.01, momentum=0.9))
    made = schedule(scope=scope)
    if loop.rank:
        made.load_flat(made.flat_weights() * 0)  # the first rank's counts
    lr, used = ms.LearnedLR(loop.optimizer, made, total_steps=STEPS), []
    hooks: list[Traffic] = []
    for step in range(STEPS):
        loss = loop.backward()
        lr.observe(math.nan if step == broken and loop.rank == loop.ranks - 1 else loss)
        with Traffic() as traffic:
            loop.optimizer.step()
        hooks.append(traffic)
        used.append(lr.get_last_lr())
    sent = [size for name, size in hooks[-1].messages if name.startswith("allreduce")]
    return {"rates": used, "brakes": lr.brakes, "sent": sent, "weights": loop.weights()}


KINDS, SCOPES = ("replicated", "sharded"), ("network", "layer")


def everything() -> dict[str, Any]:
    found = {f"{kind} {scope}": run(kind, scope) for kind in KINDS for scope in SCOPES}
    return {**found, "broken": run("replicated", "network", broken=5)}


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    return on_ranks(2, everything)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_rates_and_weights_are_those_of_one_process_on_the_joined_batch(kind: str, scope: str, found) -> None:
    expected = run("whole", scope)
    for rank in found:
        here = rank[f"{kind} {scope}"]
        torch.testing.assert_close(torch.tensor(here["rates"]), torch.tensor(expected["rates"]), rtol=1e-3, atol=0)
        for name, weight in expected["weights"].items():
            torch.testing.assert_close(here["weights"][name], weight, rtol=1e-4, atol=1e-5)
    assert found[0][f"{kind} {scope}"]["rates"] == found[1][f"{kind} {scope}"]["rates"]


def test_replicas_send_their_loss_and_shards_four_sums_more(found) -> None:
    for rank in found:
        assert rank["replicated network"]["sent"] == rank["replicated layer"]["sent"] == [24]
        assert rank["sharded network"]["sent"] == [24, 32]
        assert rank["sharded layer"]["sent"] == [24, 32 * 6]


def test_a_loss_that_is_not_finite_on_one_rank_brakes_all(found) -> None:
    assert [rank["broken"]["brakes"] for rank in found] == [1, 1]
    assert [rank["broken"]["rates"][5] for rank in found] == [[0.0], [0.0]]
    assert found[0]["broken"]["rates"] == found[1]["broken"]["rates"]
