"""The keywords that every hypergradient optimizer adds to its namesake's, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypedDict

import torch
from torch import Tensor

from metastep.core.combination import COMBINATIONS
from metastep.core.levels import LEVELS
from metastep.core.rates import REDUCTIONS, RULES, Bounds
from metastep.core.regularization import PREVIOUS, PULL_FORMS

Group = dict[str, Any]
RateOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

DRIVEN = "driven"
SCOPES = ("group", "all")
LAYERS = ("tensor", "module")
OBJECTIVES = ("regularized", "data")

DEFAULT_WEIGHTS = {"global": 0.4, "layer": 0.4, "unit": 0.2, "parameter": 0.2}
DEFAULT_HYPER_LR = {"exponentiated": 0.3, "cosine": 0.3, "additive": 1e-8, "log": 0.02}
BOUND_FACTOR = 1e4


class HyperOptions(TypedDict, total=False):
    """Keyword-only options of every hypergradient optimizer; `docs/optimizers.md` explains each."""

    levels: Iterable[str]
    hyper_lr: float | Mapping[str, float] | None
    rule: str | RateOptimizer
    reduce: str
    combine: str
    weights: Mapping[str, float] | None
    weight_lr: float
    scaled: bool
    pull: Mapping[tuple[str, str], float] | None
    pull_form: str
    hyper_objective: str
    include_decay: bool
    min_lr: float | None
    max_lr: float | None
    scope: str
    layers: str
    unit_dims: Mapping[str, int | None] | None
    tie_bias: bool
    compiled: bool | None


OPTION_DEFAULTS: dict[str, Any] = {
    "levels": ("global", "layer"),
    "hyper_lr": None,
    "rule": "exponentiated",
    "reduce": "sum",
    "combine": "project",
    "weights": None,
    "weight_lr": 0.02,
    "scaled": True,
    "pull": None,
    "pull_form": "implicit",
    "hyper_objective": "regularized",
    "include_decay": False,
    "min_lr": None,
    "max_lr": None,
    "scope": "group",
    "layers": "tensor",
    "unit_dims": None,
    "tie_bias": False,
    "compiled": None,
}


def with_defaults(options: HyperOptions) -> dict[str, Any]:
    """All options, given or default; an unknown one is a TypeError, as for any function."""
    unknown = sorted(set(options) - set(OPTION_DEFAULTS))
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; known options: {', '.join(OPTION_DEFAULTS)}.")
    return {**OPTION_DEFAULTS, **options}


def number(name: str, value: object, *, low: float = 0.0, high: float = math.inf, open_high: bool = False) -> float:
    """A finite number in [low, high] (or [low, high)), or a ValueError that names the argument."""
    usable = isinstance(value, (int, float, Tensor)) and not isinstance(value, bool)
    if isinstance(value, Tensor):
        usable = value.numel() == 1
    result = float(value) if usable else math.nan  # type: ignore[arg-type]
    inside = low <= result < high if open_high or high == math.inf else low <= result <= high
    if not inside:
        allowed = f">= {low:g}" if high == math.inf else f"in [{low:g}, {high:g}{')' if open_high else ']'}"
        raise ValueError(f"{name} must be a finite number {allowed}, got {value!r}; choose one in that range.")
    return result


def flag(name: str, value: object, *, optional: bool = False) -> None:
    """A bool (or None where optional), or a ValueError that names the argument."""
    if not (isinstance(value, bool) or (optional and value is None)):
        allowed = "True, False or None" if optional else "True or False"
        raise ValueError(f"{name} must be {allowed}, got {value!r}; pass one of these.")


def choice(name: str, value: object, known: Sequence[str]) -> None:
    """One of the known names, or a ValueError that lists them."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}; choose one of these.")


def check_options(group: Group) -> None:
    """Check the options of one parameter group and bring them to one form, in place.

    Raises:
        ValueError: naming the argument, its value, what is allowed and what to do.
    """
    group["levels"] = checked_levels(group["levels"])
    rule = group["rule"]
    choice("rule", rule, (*RULES, DRIVEN))
    for name, known in (
        ("reduce", REDUCTIONS),
        ("combine", COMBINATIONS),
        ("pull_form", PULL_FORMS),
        ("hyper_objective", OBJECTIVES),
        ("scope", SCOPES),
        ("layers", LAYERS),
    ):
        choice(name, group[name], known)
    for name in ("scaled", "include_decay", "tie_bias"):
        flag(name, group[name])
    flag("compiled", group["compiled"], optional=True)
    number("weight_lr", group["weight_lr"])
    check_hyper_lr(group)
    check_weights(group)
    check_pull(group)
    named = group.get("param_names") is not None
    for name, asked in (
        ("layers", group["layers"] == "module"),
        ("tie_bias", group["tie_bias"]),
        ("unit_dims", group["unit_dims"] is not None),
    ):
        if asked and not named:
            raise ValueError(
                f"{name} must be {OPTION_DEFAULTS[name]!r} without parameter names, got {group[name]!r}; "
                "pass model.named_parameters() instead of model.parameters()."
            )
    bounds_of(group)


def checked_levels(levels: object) -> tuple[str, ...]:
    """The levels in their fixed order, coarse to fine."""
    if isinstance(levels, str) or not isinstance(levels, Iterable):
        raise ValueError(
            f'levels must be a tuple of level names, got {levels!r}; write for example ("global", "layer").'
        )
    given = tuple(levels)
    if not given:
        raise ValueError(f"levels must name at least one of {', '.join(LEVELS)}, got (); pass for example ('global',).")
    for level in given:
        choice("levels", level, LEVELS)
    if len(set(given)) != len(given):
        raise ValueError(f"levels must name each level once, got {given!r}; remove the repeated one.")
    return tuple(level for level in LEVELS if level in given)


def check_hyper_lr(group: Group) -> None:
    """A number for all levels or one for each; below 1 where the rule multiplies by 1 + hyper_lr c."""
    limit = 1.0 if group["rule"] == "cosine" else math.inf
    given = group["hyper_lr"]
    if not isinstance(given, Mapping):
        if given is not None:
            number("hyper_lr", given, high=limit, open_high=True)
        return
    if set(given) != set(group["levels"]):
        raise ValueError(
            f"hyper_lr must have one value for each of {', '.join(group['levels'])}, got {dict(given)!r}; "
            "name each level of `levels` once, with 0 to freeze it."
        )
    for level, value in given.items():
        number(f"hyper_lr[{level!r}]", value, high=limit, open_high=True)
    group["hyper_lr"] = {level: float(given[level]) for level in group["levels"]}


def check_weights(group: Group) -> None:
    """One weight per level, none negative, not all zero."""
    given = group["weights"]
    if given is None:
        return
    if not isinstance(given, Mapping) or set(given) != set(group["levels"]):
        raise ValueError(
            f"weights must have one value for each of {', '.join(group['levels'])}, got {given!r}; "
            "name each level of `levels` once."
        )
    total = sum(number(f"weights[{level!r}]", value) for level, value in given.items())
    if not 0 < total < math.inf:
        raise ValueError(f"weights must sum to a positive number, got {dict(given)!r}; raise at least one of them.")
    if group["pull"] is not None:
        raise ValueError(
            f"weights must be None together with pull, got {dict(given)!r}; a pull uses the finest level's rates alone."
        )
    group["weights"] = {level: float(given[level]) for level in group["levels"]}


def check_pull(group: Group) -> None:
    """Pulls go from a level to a coarser one or to its own past; the weights of one level stay below 1 together."""
    given = group["pull"]
    if given is None:
        return
    if not isinstance(given, Mapping) or not given:
        raise ValueError(
            f'pull must map (level, target) to a weight, got {given!r}; e.g. {{("layer", "global"): 0.2}}.'
        )
    pairs = {}
    for key, value in given.items():
        if isinstance(value, Mapping):  # the normal form, as it comes back from a checkpoint
            pairs.update({(key, target): weight for target, weight in value.items()})
        else:
            pairs[key] = value
    levels = group["levels"]
    normal: dict[str, dict[str, float]] = {}
    for key, value in pairs.items():
        known = isinstance(key, tuple) and len(key) == 2 and key[0] in levels
        parents = [*levels[: levels.index(key[0])], PREVIOUS] if known else []
        if not known or key[1] not in parents:
            raise ValueError(
                f"pull must draw one of `levels` {levels} to a coarser one of them or to {PREVIOUS!r}, got {key!r}; "
                'write for example ("layer", "global").'
            )
        normal.setdefault(key[0], {})[key[1]] = number(f"pull[{key!r}]", value, high=1.0, open_high=True)
    for level, targets in normal.items():
        if sum(targets.values()) >= 1.0:
            raise ValueError(f"pull must give {level!r} weights below 1 together, got {targets!r}; lower them.")
    if group["rule"] == DRIVEN:
        raise ValueError("pull must be None when an optimizer drives the rates, got a pull; use one of the rules.")
    group["pull"] = {level: normal[level] for level in levels if level in normal}


def bounds_of(group: Group) -> Bounds:
    """The interval in which the rates of a group stay: given, or 1e-4 to 1e4 times the initial rate."""
    initial = group["initial_rate"]
    low = initial / BOUND_FACTOR if group["min_lr"] is None else number("min_lr", group["min_lr"])
    high = initial * BOUND_FACTOR if group["max_lr"] is None else number("max_lr", group["max_lr"])
    if low > high:
        raise ValueError(f"min_lr must be <= max_lr, got {low!r} and {high!r}; exchange or widen them.")
    if not low <= initial <= high:
        name = "min_lr" if initial < low else "max_lr"
        raise ValueError(f"{name} must leave room for lr={initial!r}, got [{low!r}, {high!r}]; widen the bounds.")
    return Bounds(initial=initial, low=low, high=high)


def hyper_rates(group: Group) -> dict[str, float]:
    """The hyper-rate of each level of a group; 1 where an optimizer drives the rates."""
    given = group["hyper_lr"]
    if isinstance(given, Mapping):
        return {level: float(given[level]) for level in group["levels"]}
    return dict.fromkeys(group["levels"], 1.0 if given is None else float(given))


def start_weights(group: Group) -> list[float]:
    """The combination weights that a group starts from, in the order of its levels, summing to 1.

    Regularised rates are not combined: the finest level's are applied.
    """
    levels = group["levels"]
    if group["pull"] is not None:
        return [float(level == levels[-1]) for level in levels]
    table = group["weights"] or DEFAULT_WEIGHTS
    total = sum(table[level] for level in levels)
    return [table[level] / total for level in levels]
