"""Reads what older versions of the package wrote: configurations in schedule files, and states of a LearnedLR.

Everything that knows an old form is here. A form that is not known is passed on as it is; its reader refuses it.
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

#: What the signals remembered, in this order and by today's names, while states were saved without names (schema 1).
_UNNAMED_FIELDS: Final = (
    "steps", "losses", "first_loss", "fast_loss", "slow_loss", "loss_deviation", "alignment_fast", "alignment_slow",
    "gradients", "gradient_fast", "gradient_slow", "gradient_deviation", "gradient_peak", "update", "drop",
    "first_update", "skipped", "backoff", "cooldown", "skips",
)  # fmt: skip

#: The bounds of the action by their former names; they were called the reach.
_BOUNDS: Final = {"climb": "max_increase", "fall": "max_decrease", "landing": "initial_update"}


def upgraded_bounds(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration whose bounds of the action have their present names."""
    upgraded = dict(config)
    reach = upgraded.pop("reach", None)
    if isinstance(reach, Mapping) and "bounds" not in upgraded:
        upgraded["bounds"] = {_BOUNDS.get(name, name): value for name, value in reach.items()}
    elif reach is not None:
        upgraded["reach"] = reach
    return upgraded


def upgraded_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a schedule in the present form.

    Args:
        name: the class of the schedule.
        config: what a file says.
    """
    return upgraded_bounds(config) if name == "SignalSchedule" else dict(config)


def upgraded_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a LearnedLR in the present form.

    Older ones knew no cooling. Schema 1 knew no ``trained_for``, no rate of the last step that was not skipped, no
    doubt about the scale, and no names in the state of a signal schedule.
    """
    state = {"cooling": None, **saved} if "schema" in saved else dict(saved)
    if state.get("schema") != 1:
        return state
    state |= {"schema": 2, "trained_for": None, "real_rate": state.get("last_rate"), "doubtful_losses": 0}
    if isinstance(state.get("config"), Mapping):
        state["config"] = upgraded_config(str(state.get("schedule")), state["config"])
        state["trained_for"] = state["config"].get("trained_for")
    if state.get("schedule") == "SignalSchedule" and isinstance(state.get("state"), Tensor):
        state["state"] = {"fields": list(_UNNAMED_FIELDS), "rows": state["state"]}
    return state
