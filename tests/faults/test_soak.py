"""A million queries and a hundred thousand optimizer steps: memory stands still.

Resident memory (RssAnon: without the pages of files, which come and go) and the number of objects that the garbage
collector knows are read in a process of its own, after three fifths of the work and at its end; what a first look costs
is paid before. Whatever is done, memory leaps now and then by the 2 MB of a huge page, so two leaps are let pass: a
number kept for each query would be seen, and so would a tensor or a list kept in one step of a hundred.
"""

import gc
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import torch
from tests.bench.running import _server
from torch import Tensor, nn

import metastep as ms

STATUS = Path("/proc/self/status")
QUERIES = 1_000_000
#: Optimizer steps of each kind; together 100,000.
STEPS = {"schedule": 88_000, "hyper-sgd": 5_000, "hyper-adamw": 5_000, "meta-learner": 2_000}
_MOST_BYTES, _MOST_OBJECTS = 4_000_000, 15


class Standing:
    """Memory after three fifths of the work and at its end."""

    def __init__(self, total: int) -> None:
        self._total, self.done = total, 0
        self.found: list[tuple[int, int]] = []
        self._look()  # touches every page that is shared with the process this one was forked from
        self.found.clear()

    def tick(self) -> None:
        """One more."""
        self.done += 1
        if self.done in (self._total * 3 // 5, self._total):
            self._look()

    def _look(self) -> None:
        gc.collect()
        objects = len(gc.get_objects())
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("RssAnon")]
        self.found.append((int(line.split()[1]) * 1024, objects))

    def grown(self) -> tuple[int, int]:
        """Bytes and objects that came in between."""
        (first_bytes, first), (last_bytes, last) = self.found
        return last_bytes - first_bytes, last - first


def losses(count: int) -> Tensor:
    """Positive losses that come again and again."""
    return torch.rand(count, generator=torch.Generator().manual_seed(0)) + 0.1


def query(total: int) -> tuple[int, int]:
    """Ask a schedule so many times."""
    net, standing = ms.MLRSNet(hidden_size=4), Standing(total)
    state, values = net.init_state(), losses(1000).tolist()
    for step in range(total):
        rate, state = net.query(values[step % 1000], state)
        standing.tick()
    assert 0 < rate < 1
    return standing.grown()


def step(kind: str, total: int) -> tuple[int, int]:
    """Take so many steps."""
    torch.set_num_threads(1)
    weight, standing = nn.Parameter(torch.ones(4, 3)), Standing(total)
    gradients, values = torch.randn(50, 4, 3, generator=torch.Generator().manual_seed(1)), losses(50).tolist()
    lr = learner = None
    if kind.startswith("hyper"):
        make = {"hyper-sgd": ms.HyperSGD, "hyper-adamw": ms.HyperAdamW}[kind]
        optimizer: torch.optim.Optimizer = make([weight], lr=0.01, levels=("global", "layer"))
    else:
        optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
        lr = ms.LearnedLR(optimizer, ms.MLRSNet(hidden_size=4), num_classes=4, initial_loss=1.0)
    if kind == "meta-learner":
        assert lr is not None
        learner = ms.MetaLearner(lr, lambda: weight.square().mean(), every=2)
    for number in range(total):
        weight.grad = gradients[number % 50]
        if lr is not None:
            lr.observe(values[number % 50])
        if learner is not None:
            learner.step()
        else:
            optimizer.step()
        standing.tick()
    assert weight.isfinite().all()
    return standing.grown()


def elsewhere(function, *arguments: object) -> tuple[int, int]:
    """Do it in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=_server) as pool:
        return pool.submit(function, *arguments).result()


needs_status = pytest.mark.skipif(not STATUS.exists(), reason="no /proc: resident memory is not told")


@needs_status
def test_a_million_queries_leave_nothing_behind() -> None:
    grown_bytes, objects = elsewhere(query, QUERIES)
    assert grown_bytes < _MOST_BYTES
    assert objects < _MOST_OBJECTS


@needs_status
@pytest.mark.parametrize("kind", STEPS)
def test_a_hundred_thousand_steps_leave_nothing_behind(kind: str) -> None:
    assert sum(STEPS.values()) == 100_000
    grown_bytes, objects = elsewhere(step, kind, STEPS[kind])
    assert grown_bytes < _MOST_BYTES
    assert objects < _MOST_OBJECTS


@needs_status
def test_a_loop_that_keeps_a_float_a_query_is_noticed() -> None:
    grown_bytes, _ = elsewhere(keeping, 600_000)
    assert grown_bytes > _MOST_BYTES


def keeping(total: int) -> tuple[int, int]:
    """A leak."""
    kept, standing = [], Standing(total)
    for number in range(total):
        kept.append(number + 0.5)
        standing.tick()
    return standing.grown()
