"""ZeroRedundancyOptimizer deals the tensors out, and tells the optimizer inside nothing of it: found, and refused."""

import inspect
from typing import Any

from metastep.core.distributed import rank_count

#: Deeper than ZeroRedundancyOptimizer calls the optimizer that it makes.
_DEPTH = 12


def refuse_zero_redundancy(group: dict[str, Any]) -> None:
    """Refuse rates that depend on tensors of other ranks where the caller is a ZeroRedundancyOptimizer.

    It gives each rank whole tensors, a part of all. A single level of "layer" or finer needs no others; a global rate,
    and the weights that combine several levels, would come out different on every rank.

    Raises:
        ValueError: saying what to use instead.
    """
    levels = tuple(group["levels"])
    if rank_count() == 1 or (len(levels) == 1 and levels[0] != "global"):
        return
    frame = inspect.currentframe()
    for _ in range(_DEPTH):
        frame = None if frame is None else frame.f_back
        if frame is None:
            return
        if type(frame.f_locals.get("self")).__name__ == "ZeroRedundancyOptimizer":
            raise ValueError(
                f"levels must be one of 'layer', 'unit', 'parameter' alone under ZeroRedundancyOptimizer, got {levels}:"
                " a rank sees only some of the tensors there; or shard the model by torch.distributed.fsdp.fully_shard."
            )
