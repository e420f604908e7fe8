"""Reads what older versions of the package wrote: configurations in schedule files, and states of a LearnedLR.

Everything that knows an old form is here. A form that is not known is passed on as it is; its reader refuses
it.
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

#: What the signals remembered, in this order, while states were saved without the names (schema 1).
_UNNAMED_FIELDS: Final = (
    "steps", "losses", "first_loss", "fast_loss", "slow_loss", "loss_deviation", "alignment_fast", "alignment_slow",
    "gradients", "gradient_fast", "gradient_slow", "gradient_deviation", "gradient_peak", "update", "drop", "landing",
    "braked", "cut", "rest", "brakes",
)  # fmt: skip


def upgraded_config(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a schedule in the present form.

    Args:
        name: the class of the schedule.
        config: what a file says.
    """
    del name
    return dict(config)


def upgraded_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a LearnedLR in the present form.

    Schema 1 knew no ``trained_for``, no rate of the last step that was not skipped, no doubt about the scale, and no
    names in the state of a signal schedule.
    """
    state = dict(saved)
    if state.get("schema") != 1:
        return state
    config = upgraded_config(str(state.get("schedule")), state["config"]) if "config" in state else {}
    state |= {"schema": 2, "trained_for": None, "real_rate": state.get("last_rate"), "doubtful_losses": 0}
    state["config"] = config
    if state.get("schedule") == "SignalSchedule":
        state["trained_for"] = config.get("trained_for")
        if isinstance(state.get("state"), Tensor):
            state["state"] = {"fields": list(_UNNAMED_FIELDS), "rows": state["state"]}
    return state
