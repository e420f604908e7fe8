"""Checkpoints: what must be in one, and loading it without losing precision or sharing memory with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from metastep.core.distributed import is_sharded
from metastep.optim.group_rates import SHARED_KEYS, rate_keys
from metastep.optim.options import DRIVEN, OPTION_DEFAULTS, Group

if TYPE_CHECKING:
    from collections.abc import Callable

    from metastep.optim.base import HyperOptimizer

DRIVERS = "rate_optimizers"
#: torch.optim.Adam and AdamW did not write it in torch 2.6; of so old a checkpoint the optimizer's own value holds.
NEWER_IN_TORCH = ("decoupled_weight_decay",)

StateDict = dict[str, Any]


def load(optimizer: HyperOptimizer, state_dict: StateDict, torch_load: Callable[[StateDict], None]) -> None:
    """Load through torch's own loader, with checks before it and exact tensors after it.

    torch's loader casts every tensor to its parameter's type and shares memory with the given dict where it can; rates
    kept in float32 beside bfloat16 parameters must survive the one, and nobody expects the other.
    """
    seen: StateDict = {}

    def check(_: torch.optim.Optimizer, given: StateDict) -> StateDict:
        seen.update(given)
        seen["param_groups"] = completed_groups(optimizer, given)
        for saved, group in zip(seen["param_groups"], optimizer.param_groups, strict=False):
            check_states(optimizer, given["state"], saved, group)
            check_shards(optimizer.key_prefix, given["state"], saved, group)
        return seen

    def restore(_: torch.optim.Optimizer) -> None:
        for saved, group in zip(seen["param_groups"], optimizer.param_groups, strict=True):
            own = {optimizer.key_prefix + key for key in rate_keys(group["levels"])}
            for index, parameter in zip(saved["params"], group["params"], strict=True):
                entries = seen["state"].get(index, {})
                for key, value in entries.items():
                    if isinstance(value, Tensor):
                        kind = value.dtype if key in own or value.dim() == 0 else optimizer.state[parameter][key].dtype
                        device = value.device if key == "step" and "last_update" not in entries else parameter.device
                        optimizer.state[parameter][key] = value.detach().to(device, kind, copy=True)
        optimizer._driver_states = dict(seen.get(DRIVERS, {}))

    # Temporary hooks, so that the user's own see the dict first and find the state complete.
    before = optimizer.register_load_state_dict_pre_hook(check)
    after = optimizer.register_load_state_dict_post_hook(restore, prepend=True)
    try:
        torch_load(state_dict)
    finally:
        before.remove()
        after.remove()


def completed_groups(optimizer: HyperOptimizer, given: StateDict) -> list[Group]:
    """The saved groups; one of the torch.optim namesake gets this optimizer's options.

    Raises:
        ValueError: naming the key that a group lacks.
    """
    result = []
    options = {*OPTION_DEFAULTS, "initial_rate"}
    for position, (saved, group) in enumerate(zip(given["param_groups"], optimizer.param_groups, strict=False)):
        plain = options.isdisjoint(saved)
        if plain:
            saved = {**{key: group[key] for key in NEWER_IN_TORCH if key in group}, **saved}
        for key in group:
            if key not in saved and key not in ("param_names", "initial_lr") and not (plain and key in options):
                raise ValueError(
                    f"state_dict must have {key!r} in param_groups[{position}], got {sorted(saved)}; "
                    "it is of another optimizer or version: add the key, or start with fresh state."
                )
        fresh = {key: group[key] for key in options} if plain else {}
        if (fresh or saved)["rule"] == DRIVEN and optimizer._rate_optimizer is None:
            raise ValueError("rule must be the function that drove the saved rates, got none; pass the same again.")
        result.append({**fresh, **saved})
    result.extend(given["param_groups"][len(result) :])
    return result


def check_shards(prefix: str, states: StateDict, saved: Group, group: Group) -> None:
    """Refuse whole tensors for sharded parameters, and parts for whole ones."""
    coarse = {prefix + key for key in rate_keys([level for level in saved["levels"] if level != "parameter"])}
    for index, parameter in zip(saved["params"], group["params"], strict=False):
        for key, value in states.get(index, {}).items():
            like = isinstance(value, Tensor) and value.dim() > 0 and value.shape == parameter.shape
            if like and key not in coarse and is_sharded(value) is not is_sharded(parameter):
                kind, other = ("part", "whole tensors") if is_sharded(parameter) else ("whole", "a part of it")
                raise ValueError(
                    f"state_dict must have the {kind} of {key!r} that belongs to parameter {index}, got {other}; move "
                    "the state by torch.distributed.checkpoint.state_dict.get_optimizer_state_dict and "
                    "set_optimizer_state_dict, with StateDictOptions(full_state_dict=True) for whole tensors."
                )


def check_states(optimizer: HyperOptimizer, states: StateDict, saved: Group, group: Group) -> None:
    """Refuse a state that lacks a key, by name; a parameter without any state is one without gradients so far."""
    prefix = optimizer.key_prefix
    buffers = optimizer.direction({**group, **saved}).buffers
    for index in saved["params"]:
        state = states.get(index)
        if not state:
            continue
        adapting = any(prefix + key in state for key in (*SHARED_KEYS[1:], "layer_deviation", "global_deviation"))
        wanted = (*rate_keys(saved["levels"]), *buffers) if adapting else optimizer.plain_keys(saved)
        for key in (prefix + key for key in wanted):
            if key not in state:
                raise ValueError(
                    f"state_dict must have {key!r} in the state of parameter {index}, got {sorted(state)}; "
                    "it is of another optimizer or version: add the key, or start with fresh state."
                )
