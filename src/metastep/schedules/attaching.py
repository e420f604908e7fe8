"""What LearnedLR makes sure of before it takes hold of an optimizer, and what it changes there."""

import math
import warnings
from typing import Any

from torch.optim import SGD, Optimizer

from metastep.schedules.arguments import whole
from metastep.schedules.base import Schedule


def check_optimizer(optimizer: object, schedule: object, kind: type) -> Schedule:
    """Return the schedule; raise unless it is one, and the optimizer has hooks and no other object of this kind."""
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        found = type(optimizer).__name__
        raise TypeError(f"optimizer must be a torch.optim.Optimizer (of a wrapper, the one inside), got {found}.")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule must be a metastep Schedule, got {type(schedule).__name__}; "
            "make one (MLRSNet(), Cosine()) or load one: load_schedule(path)."
        )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), kind) for hook in hooks):
        raise ValueError("optimizer has a LearnedLR already; call its detach() first.")
    return schedule


def check_numbers(
    initial_loss: float | None,
    num_classes: int | None,
    total_steps: int | None,
    warmup_steps: int,
    min_lr: float,
    max_lr: float,
) -> None:
    """Raise a ValueError unless LearnedLR's arguments of these names are in their ranges."""
    if initial_loss is not None and not math.isfinite(initial_loss):
        raise ValueError(f"initial_loss must be finite, got {initial_loss}; leave it out to measure it.")
    if num_classes is not None:
        whole("num_classes", num_classes, 2, "leave it out to guess it")
    if total_steps is not None:
        whole("total_steps", total_steps, 1)
    whole("warmup_steps", warmup_steps, 0, "0 means no warm-up")
    if not 0 <= min_lr <= max_lr or max_lr == 0:
        raise ValueError(f"min_lr and max_lr must satisfy 0 <= min_lr <= max_lr > 0, got {min_lr}, {max_lr}.")


def base_name(optimizer: Optimizer) -> str:
    """The name of an optimizer as a schedule's card has it: "sgd", "sgd-momentum", "adamw", "rmsprop", ..."""
    if type(optimizer) is SGD:
        return "sgd-momentum" if any(group["momentum"] for group in optimizer.param_groups) else "sgd"
    return type(optimizer).__name__.lower()


def warn_of_another_base(schedule: Schedule, optimizer: Optimizer) -> None:
    """Warn if the schedule was trained for another base than this optimizer."""
    trained_for, base = getattr(schedule, "trained_for", None), base_name(optimizer)
    if trained_for is not None and base not in trained_for.split(", "):
        warnings.warn(
            f"the schedule was trained for {trained_for}, the optimizer is {base}: its rates may be far from good; use "
            f"a schedule trained for {base}, or {trained_for} as the optimizer.",
            stacklevel=3,
        )


def split_groups(optimizer: Optimizer) -> None:
    """Give every parameter a group of its own, in place, with the options of the group from which it came."""
    single: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        names = group.get("param_names")
        for place, parameter in enumerate(group["params"]):
            own = {**group, "params": [parameter]}
            if names is not None:
                own["param_names"] = [names[place]]
            if hasattr(group["lr"], "clone") and len(group["params"]) > 1:
                own["lr"] = group["lr"].clone()  # a tensor rate is written in place
            single.append(own)
    optimizer.param_groups[:] = single
