"""Tens of thousands of queries and thousands of optimizer steps: nothing is kept.

What is in use is read in a process of its own, at half of the work and at its end; the first half pays for what is made
once. One float kept in ten steps is noticed, and so is one tensor of 4 kB in a hundred. ``benchmarks/soak.py`` does the
same at full size.
"""

from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from benchmarks.measuring.standing import COUNTED, NO_HEAP, QUERIES, STEPS, Standing, grown, heap, query, step
from tests.lab.bench.running import _server

#: How many of each.
ASKED = {"mlr-snet": 20_000, "calibrated": 20_000}  # the first half is longer than what settles in it
STEPPED = dict.fromkeys(STEPS, 2_000) | {"meta-learner": 1_000}
#: What may come in the second half.
_MOST = {"bytes": 16_000, "blocks": 100, "objects": 15}

pytestmark = pytest.mark.skipif(heap is None, reason=NO_HEAP)


def keeping(what: str, total: int) -> list[dict[str, int]]:
    """A leak: one float in ten, or one tensor in a hundred."""
    kept: list[object] = []
    every, make = {"float": (10, lambda number: number + 0.5), "tensor": (100, lambda _: torch.zeros(1000))}[what]
    standing = Standing(total)
    for number in range(total):
        if number % every == 0:
            kept.append(make(number))
        standing.tick()
    return standing.points()


def too_much(function, *arguments: object) -> dict[str, int]:
    """Do it in a process of its own: of what more came than may."""
    with ProcessPoolExecutor(1, mp_context=_server) as pool:
        first, last = pool.submit(function, *arguments).result()
    return {name: amount for name, amount in grown(first, last).items() if amount > _MOST.get(name, amount)}


@pytest.mark.parametrize("kind", QUERIES)
def test_thousands_of_queries_leave_nothing_behind(kind: str) -> None:
    assert too_much(query, kind, ASKED[kind]) == {}


@pytest.mark.parametrize("kind", STEPS)
def test_thousands_of_steps_leave_nothing_behind(kind: str) -> None:
    assert too_much(step, kind, STEPPED[kind]) == {}


def test_a_loop_that_keeps_a_little_is_noticed() -> None:
    assert "blocks" in too_much(keeping, "float", 4_000)
    assert "bytes" in too_much(keeping, "tensor", 2_000)


def test_every_point_of_the_work_is_read() -> None:
    standing = Standing(10, points=5)
    for _ in range(10):
        standing.tick()
    points = standing.points()
    assert [point["done"] for point in points] == [2, 4, 6, 8, 10]
    assert all(point[name] > 0 for point in points for name in COUNTED)
