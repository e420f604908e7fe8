"""Reads what older versions of the package wrote: states of a LearnedLR; and says what is no longer there.

Everything that knows an old form is here. A form that is not known is passed on as it is; its reader refuses it.
"""

from collections.abc import Mapping
from typing import Any, Final

#: The class of the signal schedules, and the names of the pretrained ones.
_SIGNALS: Final = ("SignalSchedule", "signal-adamw", "signal-adamw-layers", "signal-sgd", "signal-sgd-layers")


def gone(name: object) -> str:
    """What to use instead of a schedule that older versions had: a sentence; empty if this is none.

    Args:
        name: of a pretrained schedule, or of the class of one.
    """
    if name not in _SIGNALS:
        return ""
    return 'signal schedules have left the package; use metastep.Calibrated(), by name "calibrated".'


def upgraded_state(saved: Mapping[str, Any]) -> dict[str, Any]:
    """The state of a LearnedLR in the present form.

    Older ones knew no cooling and kept no history. Schema 1 knew no ``trained_for`` and no doubt about the scale.

    Raises:
        ValueError: for the state of a schedule that is no longer in the package.
    """
    if instead := gone(saved.get("schedule")):
        raise ValueError(f"state_dict is of a {saved['schedule']}: {instead}")
    state = {"cooling": None, "history": None, **saved} if "schema" in saved else dict(saved)
    if state.get("schema") != 1:
        return state
    config = state.get("config")
    trained_for = config.get("trained_for") if isinstance(config, Mapping) else None
    return state | {"schema": 2, "trained_for": trained_for, "doubtful_losses": 0}
