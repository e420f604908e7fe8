"""Does a saved LearnedLR fit the one that is to go on from it?"""

from collections.abc import Mapping
from typing import Any


def check_saved(saved: Mapping[str, Any], expected: Mapping[str, Any], relative: bool, groups: int) -> None:
    """Raise unless a LearnedLR can go on from a saved state.

    Args:
        saved: the state that is to be loaded.
        expected: the LearnedLR's own.
        relative: whether its schedule is; the state of a closed form is a step, which goes on under another horizon,
            while weights fit one configuration.
        groups: parameter groups of its optimizer.

    Raises:
        ValueError: if a key is missing (named), the schema is unknown, or the state belongs to another schedule.
    """
    missing = expected.keys() - saved.keys()
    if missing:
        raise ValueError(f"state_dict lacks {', '.join(sorted(missing))}; it is no LearnedLR state, or an older one.")
    for key in ("schema", "schedule") if relative else ("schema", "schedule", "config"):
        if saved[key] != expected[key]:
            raise ValueError(
                f"state_dict has {key} {saved[key]!r}, this LearnedLR has {expected[key]!r}; "
                "construct it with the schedule that was saved."
            )
    if len(saved["bases"]) > groups:
        raise ValueError(
            f"state_dict is of {len(saved['bases'])} parameter groups, the optimizer has {groups}; "
            "add the groups before loading."
        )
