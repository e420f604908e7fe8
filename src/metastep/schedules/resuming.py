"""What a LearnedLR saves, whether it fits the one that is to go on from it, and how that one does."""

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from metastep.schedules.base import Schedule, state_like
from metastep.schedules.groups import plain_rate

if TYPE_CHECKING:
    from metastep.schedules.attach import LearnedLR


def saved_state(lr: "LearnedLR") -> dict[str, Any]:
    """Everything a bit-exact resume needs: numbers, strings, and tensors."""
    state = {
        "schema": 1,
        "schedule": type(lr.schedule).__name__,
        "config": lr.schedule.config(),
        "weights": dict(lr.schedule.state_dict()),
        "state": lr.state,
        "steps": lr.steps,
        **lr._scale.state_dict(),
        "last_rate": plain_rate(lr._last_rate),
        "bases": lr.groups.bases,
        "window": lr._window.state_dict(),
    }
    if lr.signals is not None:
        state["before"] = lr.signals.watch.state_dict()
    return copy.deepcopy(state)


def go_on_from(lr: "LearnedLR", saved: Mapping[str, Any]) -> None:
    """Put a saved state into a LearnedLR.

    Raises:
        ValueError: if a key is missing (named), the schema is unknown, or the state belongs to another schedule.
    """
    check_saved(saved, saved_state(lr), lr.schedule, len(lr.optimizer.param_groups))
    state = copy.deepcopy(dict(saved))
    recurrent = state_like(lr.schedule.init_state(), state["state"])
    lr.schedule.load_state_dict(state["weights"])
    lr.schedule.weights_changed()
    lr.state = recurrent
    lr.steps, lr._last_rate = state["steps"], state["last_rate"]
    lr._scale.load_state_dict(state)
    lr.groups.set_bases(state["bases"])
    lr._window.load_state_dict(state["window"])
    if lr.signals is not None:
        lr.signals.watch.load_state_dict(state["before"])
    lr.agreement.started = False


def check_saved(saved: Mapping[str, Any], expected: Mapping[str, Any], schedule: Schedule, groups: int) -> None:
    """Raise unless a LearnedLR can go on from a saved state.

    Args:
        saved: the state that is to be loaded.
        expected: the LearnedLR's own.
        schedule: its schedule. The state of a closed form is a step, which goes on under other arguments; weights fit
            one configuration, whatever the horizon.
        groups: parameter groups of its optimizer.

    Raises:
        ValueError: if a key is missing (named), the schema is unknown, or the state belongs to another schedule.
    """
    missing = expected.keys() - saved.keys()
    if missing:
        raise ValueError(f"state_dict lacks {', '.join(sorted(missing))}; it is no LearnedLR state, or an older one.")
    closed_form = next(schedule.parameters(), None) is None and schedule.relative
    for key in ("schema", "schedule") if closed_form else ("schema", "schedule", "config"):
        if _without_horizon(saved[key]) != _without_horizon(expected[key]):
            raise ValueError(
                f"state_dict has {key} {saved[key]!r}, this LearnedLR has {expected[key]!r}; "
                "construct it with the schedule that was saved."
            )
    if len(saved["bases"]) > groups:
        raise ValueError(
            f"state_dict is of {len(saved['bases'])} parameter groups, the optimizer has {groups}; "
            "add the groups before loading."
        )


def _without_horizon(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "total_steps"} if isinstance(value, dict) else value
