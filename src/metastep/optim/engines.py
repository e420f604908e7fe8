"""Which engine runs the two passes: multi-tensor operations, the CPU kernel, or `torch.compile`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metastep.optim import compiled, native
from metastep.optim.foreach import Foreach
from metastep.optim.options import DRIVEN

if TYPE_CHECKING:
    from metastep.optim.work import Engine, Work


def choose_engine(work: Work) -> Engine:
    """The fastest engine that the group asks for and its tensors allow.

    On the CPU `compiled=None` takes the kernel for groups that are large enough to gain from it. On accelerators, where
    compiling takes most of a minute, the passes are compiled only if `compiled=True` or `fused=True` asks for it. The
    passes over shards run as they are.
    """
    asked = work.group["compiled"] if work.group["compiled"] is not None else work.group.get("fused")
    if asked is False or work.rates.shards is not None:
        return FOREACH
    if work.parameters[0].device.type != "cpu":
        driven = work.plan.parameter is not None and work.plan.parameter.rule == DRIVEN
        return compiled.Compiled() if asked and not driven else FOREACH
    if asked is None and sum(p.numel() for p in work.parameters) < WORTH_A_KERNEL:
        return FOREACH
    work.prepared = native.prepare(work)
    return FOREACH if work.prepared is None else native.load() or FOREACH


FOREACH = Foreach()
WORTH_A_KERNEL = 100_000  # elements of a group from which the CPU kernel is chosen unasked
