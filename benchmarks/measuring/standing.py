"""What is in use of memory while a schedule is asked, or an optimizer steps, again and again.

Resident memory cannot tell: the C library's heap grows by a few MB while what is in use of it stands still. So what is
in use is counted: the bytes of the C library's heap (tensors, and Python's objects above 512 bytes), the blocks of
Python's own allocator (all other objects), and the objects that the garbage collector knows. Resident bytes are noted
beside them.
"""

import ctypes
import gc
import os
import sys
from array import array
from pathlib import Path

import torch
from torch import Tensor, nn

import metastep as ms

#: Schedules that are asked without an optimizer, and the kinds of optimizer steps.
QUERIES = ("mlr-snet", "calibrated")
STEPS = ("mlr-snet", "calibrated", "hyper-sgd", "hyper-adamw", "meta-learner")
#: What is counted; the last may grow, and is only noted.
COUNTED = ("bytes", "blocks", "objects", "resident")
#: Of losses and of gradients.
SEEDS = {"losses": 0, "gradients": 1}


class _Heap(ctypes.Structure):
    """The C library's ``struct mallinfo2``."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


heap = getattr(ctypes.CDLL(None), "mallinfo2", None) if sys.platform == "linux" else None
if heap is not None:
    heap.restype = _Heap
NO_HEAP = "no mallinfo2 (glibc 2.33 has it): bytes in use are not told"


class Standing:
    """What is in use after each of ``points`` equal parts of the work; the room for it is taken at the start."""

    def __init__(self, total: int, points: int = 2) -> None:
        self._marks = [total * (point + 1) // points for point in range(points)]
        self._numbers = array("q", bytes(8 * len(COUNTED) * points))
        self._next, self.done = 0, 0

    def tick(self) -> None:
        """One more."""
        self.done += 1
        if self.done == self._marks[self._next]:
            gc.collect()
            found, now = heap(), len(COUNTED) * self._next
            self._numbers[now] = found.uordblks + found.hblkhd
            self._numbers[now + 1] = sys.getallocatedblocks()
            self._numbers[now + 2] = len(gc.get_objects())
            self._numbers[now + 3] = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self._next = min(self._next + 1, len(self._marks) - 1)

    def points(self) -> list[dict[str, int]]:
        """How many were done, and what was in use then, at each point."""
        width = len(COUNTED)
        rows = [self._numbers[width * point : width * (point + 1)] for point in range(len(self._marks))]
        return [
            {"done": mark, **dict(zip(COUNTED, row, strict=True))} for mark, row in zip(self._marks, rows, strict=True)
        ]


def losses(count: int) -> Tensor:
    """Positive losses that come again and again."""
    return torch.rand(count, generator=torch.Generator().manual_seed(SEEDS["losses"])) + 0.1


def schedule(kind: str, total: int) -> ms.Schedule:
    """A fresh schedule, for so many steps."""
    return ms.Calibrated(total) if kind == "calibrated" else ms.MLRSNet(hidden_size=4)


def query(kind: str, total: int, points: int = 2) -> list[dict[str, int]]:
    """Ask a schedule so many times."""
    torch.set_num_threads(1)
    net, standing = schedule(kind, total), Standing(total, points)
    state, values = net.init_state(), losses(1000).tolist()
    for step in range(total):
        rate, state = net.query(values[step % 1000], state)
        standing.tick()
    assert 0 < rate < 1
    return standing.points()


def step(kind: str, total: int, points: int = 2) -> list[dict[str, int]]:
    """Take so many steps of an optimizer; a meta-learner learns in every second."""
    torch.set_num_threads(1)
    weight, standing = nn.Parameter(torch.ones(4, 3)), Standing(total, points)
    generator = torch.Generator().manual_seed(SEEDS["gradients"])
    gradients, values = torch.randn(50, 4, 3, generator=generator), losses(50).tolist()
    lr = learner = None
    if kind.startswith("hyper"):
        make = {"hyper-sgd": ms.HyperSGD, "hyper-adamw": ms.HyperAdamW}[kind]
        optimizer: torch.optim.Optimizer = make([weight], lr=0.01, levels=("global", "layer"))
    else:
        optimizer = torch.optim.SGD([weight], lr=0.01, momentum=0.9)
        lr = ms.LearnedLR(optimizer, schedule(kind, total), num_classes=4, initial_loss=1.0)
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
    return standing.points()


def grown(first: dict[str, int], last: dict[str, int]) -> dict[str, int]:
    """What came between two points."""
    return {name: last[name] - first[name] for name in COUNTED}
