"""Tens of thousands of queries and thousands of optimizer steps: nothing is kept.

Resident memory cannot tell: the C library's heap grows by a few MB while what is in use of it stands still. So what is
in use is counted: the bytes of the C library's heap (tensors, and Python's objects above 512 bytes), the blocks of
Python's own allocator (all other objects), and the objects that the garbage collector knows. They are read in a process
of its own, at half of the work and at its end; the first half pays for what is made once. One float kept in ten steps
is noticed, and so is one tensor of 4 kB in a hundred.
"""

import ctypes
import gc
import sys
from concurrent.futures import ProcessPoolExecutor

import pytest
import torch
from tests.bench.running import _server
from torch import Tensor, nn

import metastep as ms

QUERIES = 20_000
#: Optimizer steps of each kind.
STEPS = {"schedule": 2_000, "hyper-sgd": 2_000, "hyper-adamw": 2_000, "meta-learner": 1_000}
#: What may come in the second half.
_MOST = {"bytes": 16_000, "blocks": 100, "objects": 15}


class _Heap(ctypes.Structure):
    """The C library's ``struct mallinfo2``."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


_heap = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
if _heap is not None:
    _heap.restype = _Heap
pytestmark = pytest.mark.skipif(_heap is None, reason="no mallinfo2 (glibc 2.33 has it): bytes in use are not told")


class Standing:
    """What is in use at half of the work and at its end."""

    def __init__(self, total: int) -> None:
        self._total, self.done = total, 0
        self.found: list[dict[str, int]] = []

    def tick(self) -> None:
        """One more."""
        self.done += 1
        if self.done in (self._total // 2, self._total):
            gc.collect()
            heap = _heap()
            used = heap.uordblks + heap.hblkhd
            self.found.append({"bytes": used, "blocks": sys.getallocatedblocks(), "objects": len(gc.get_objects())})

    def grown(self) -> dict[str, int]:
        """What came in between."""
        first, last = self.found
        return {name: last[name] - first[name] for name in first}


def losses(count: int) -> Tensor:
    """Positive losses that come again and again."""
    return torch.rand(count, generator=torch.Generator().manual_seed(0)) + 0.1


def query(total: int) -> dict[str, int]:
    """Ask a schedule so many times."""
    torch.set_num_threads(1)
    net, standing = ms.MLRSNet(hidden_size=4), Standing(total)
    state, values = net.init_state(), losses(1000).tolist()
    for step in range(total):
        rate, state = net.query(values[step % 1000], state)
        standing.tick()
    assert 0 < rate < 1
    return standing.grown()


def step(kind: str, total: int) -> dict[str, int]:
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


def keeping(what: str, total: int) -> dict[str, int]:
    """A leak: one float in ten, or one tensor in a hundred."""
    kept: list[object] = []
    every, make = {"float": (10, lambda number: number + 0.5), "tensor": (100, lambda _: torch.zeros(1000))}[what]
    standing = Standing(total)
    for number in range(total):
        if number % every == 0:
            kept.append(make(number))
        standing.tick()
    return standing.grown()


def too_much(function, *arguments: object) -> dict[str, int]:
    """Do it in a process of its own: of what more came than may."""
    with ProcessPoolExecutor(1, mp_context=_server) as pool:
        grown = pool.submit(function, *arguments).result()
    return {name: amount for name, amount in grown.items() if amount > _MOST[name]}


def test_twenty_thousand_queries_leave_nothing_behind() -> None:
    assert too_much(query, QUERIES) == {}


@pytest.mark.parametrize("kind", STEPS)
def test_thousands_of_steps_leave_nothing_behind(kind: str) -> None:
    assert too_much(step, kind, STEPS[kind]) == {}


def test_a_loop_that_keeps_a_little_is_noticed() -> None:
    assert "blocks" in too_much(keeping, "float", 4_000)
    assert "bytes" in too_much(keeping, "tensor", 2_000)
