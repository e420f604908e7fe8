"""Which schedule an optimizer gets when none is named: a shipped one that has earned it."""

from types import MappingProxyType
from typing import Final

from torch.optim import Optimizer

from metastep.schedules.attaching import base_name
from metastep.schedules.base import Schedule
from metastep.schedules.checkpoint import load_schedule

#: By the name of the base. To be here, a schedule must beat the cosine at its defaults on most tasks of the benchmark
#: reactive/transfer, and its own control.
DEFAULTS: Final = MappingProxyType({"adamw": "signal-adamw"})


def default_schedule(optimizer: Optimizer) -> Schedule:
    """The schedule of an optimizer for which none was named.

    Raises:
        ValueError: if no schedule has earned to be that of such an optimizer.
    """
    base = base_name(optimizer)
    if base not in DEFAULTS:
        raise ValueError(
            f"schedule must be named for {base}: only {', '.join(DEFAULTS)} has a default. Make one (Cosine(), "
            "MLRSNet()) or load one: load_schedule(name)."
        )
    return load_schedule(DEFAULTS[base])
