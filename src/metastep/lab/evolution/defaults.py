"""The settings with which the shipped schedules were trained."""

import math
from types import MappingProxyType
from typing import Any, Final

from metastep.core.policy import Reach
from metastep.lab.evolution.policy import Policy
from metastep.lab.evolution.rules import Base
from metastep.lab.evolution.trainer import PopulationConfig
from metastep.schedules.signal import Scope, SignalSchedule

#: What the schedules read: not their own multiplier, so that nothing depends on the initial rate.
SIGNALS: Final = (
    "progress", "remaining", "length", "loss", "loss_trend", "drop",
    "alignment", "alignment_slow", "gradient_trend", "update",
)  # fmt: skip
#: Where each base lands: somewhat below the level that is best on average, so that a run starts with a warm-up.
#: The multiplier moves slowly, e-fold in 7 % of a run: the signals' averages must be able to follow.
LANDINGS: Final = MappingProxyType[Base, float]({"sgd": 0.35, "adamw": 0.7})
HIDDEN: Final = 20


def default_config(
    base: str,
    *,
    hidden: int | None = None,
    scope: Scope = "network",
    start: SignalSchedule | None = None,
    **changed: Any,
) -> PopulationConfig:
    """The settings for a base, with some changed.

    Args:
        base: "sgd" or "adamw".
        hidden: units of the schedule's network.
        scope: one rate for the network, or one for each layer.
        start: a schedule from whose weights to start, in place of a survey; its signals, units and reach are taken.
        changed: fields of :class:`PopulationConfig`.

    Raises:
        ValueError: for another base, or a number out of range.
    """
    if base not in LANDINGS:
        raise ValueError(f"population must be one of {', '.join(LANDINGS)}, got {base!r}.")
    for name in ("pairs", "tasks", "longest", "sigma", "meta_lr"):
        if name in changed and not 0 < changed[name] < math.inf:
            raise ValueError(f"{name} must be > 0, got {changed[name]}.")
    for name in ("survey_tasks", "meta_steps"):
        if changed.get(name, 0) < 0:
            raise ValueError(f"{name} must be >= 0, got {changed[name]}.")
    landing = LANDINGS[base]  # type: ignore[index]
    reach = Reach(start=math.log(0.1), climb=15.0, fall=15.0, lower=-25.0, upper=25.0, landing=landing, anneals=True)
    policy = Policy(SIGNALS, HIDDEN if hidden is None else hidden, recurrent=False, reach=reach, scope=scope)
    if start is not None:
        policy = Policy(start.signals, start.hidden, start.recurrent, start.reach, scope)
        changed = {"survey_tasks": 0, **changed, "start": tuple(start.flat_weights().tolist())}
    return PopulationConfig(base=base, policy=policy, **changed)  # type: ignore[arg-type]
