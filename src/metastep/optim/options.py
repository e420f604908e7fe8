"""The keywords that every hypergradient optimizer adds to its base optimizer's, and their checks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, TypedDict

import torch
from torch import Tensor

from metastep.core.levels import LEVELS
from metastep.core.rates import COMBINATIONS, PREVIOUS, PULL_FORMS, REDUCTIONS, RULES, RateBounds

Group = dict[str, Any]
RateOptimizer = Callable[[list[Tensor]], torch.optim.Optimizer]

HDM = "hdm"  # a name for such an optimizer: see online_scaling.py
BY_OPTIMIZER = "optimizer"  # the `rule` of a group whose rates a torch optimizer moves
SCOPES = ("group", "all")
LAYERS = ("tensor", "module")
OBJECTIVES = ("regularized", "data")

DEFAULT_WEIGHTS = {"global": 0.4, "layer": 0.4, "unit": 0.2, "parameter": 0.2}
DEFAULT_HYPER_LR = {"exponentiated": 0.3, "cosine": 0.3, "additive": 1e-8, "log": 0.02}
DEFAULT_HDM = 0.3
BOUND_FACTOR = 1e4


class HyperOptions(TypedDict, total=False):
    """Keyword-only options of every hypergradient optimizer; `docs/optimizers.md` explains each."""

    levels: Iterable[str]
    hyper_lr: float | Mapping[str, float] | None
    rule: str | RateOptimizer
    combine: str
    weights: Mapping[str, float] | None
    weight_lr: float
    min_lr: float | None
    max_lr: float | None
    safeguard: bool
    layers: str
    compiled: bool | None
    # Those of `FurtherOptions`.
    pull: Mapping[tuple[str, str], float] | None
    pull_form: str
    scaled: bool
    reduce: str
    hyper_objective: str
    include_decay: bool
    scope: str
    settle: tuple[float, int] | None
    unit_dims: Mapping[str, int | None] | None
    tie_bias: bool


@dataclass(frozen=True, kw_only=True)
class FurtherOptions:
    """The options that few runs need; they are passed as keywords like the others.

    Args:
        pull: Per (level, target), the weight with which the level's rates are regularized towards the target's.
        pull_form: How regularization is evaluated, one of `PULL_FORMS`.
        scaled: Whether each level's hypergradient carries its combination weight.
        reduce: Whether the rules "additive" and "log" take the sum of a group or its mean.
        hyper_objective: Whether coupled weight decay belongs to the loss that teaches the rates.
        include_decay: Whether decoupled decay belongs to the last direction.
        scope: "all" for one global rate of all groups.
        settle: A rate that all rates go over to, and after how many steps, >= 1, they begin to.
        unit_dims: Per parameter name, the dimension whose slices are units, or None.
        tie_bias: Whether entry i of a bias shares the unit rate of row i of its weight.

    Raises:
        ValueError: naming the option, its value, what is allowed and what to do.
    """

    pull: Mapping[Any, Any] | None = None
    pull_form: str = "implicit"
    scaled: bool = True
    reduce: str = "sum"
    hyper_objective: str = "regularized"
    include_decay: bool = False
    scope: str = "group"
    settle: tuple[float, int] | None = None
    unit_dims: Mapping[str, int | None] | None = None
    tie_bias: bool = False

    def __post_init__(self) -> None:
        choice("pull_form", self.pull_form, PULL_FORMS)
        choice("reduce", self.reduce, REDUCTIONS)
        choice("hyper_objective", self.hyper_objective, OBJECTIVES)
        choice("scope", self.scope, SCOPES)
        for name in ("scaled", "include_decay", "tie_bias"):
            flag(name, getattr(self, name))
        if self.settle is not None:
            object.__setattr__(self, "settle", self._checked_settle(self.settle))
        if self.pull is not None and not (isinstance(self.pull, Mapping) and self.pull):
            raise ValueError(
                f'pull must map (level, target) to a weight, got {self.pull!r}; e.g. {{("layer", "global"): 0.2}}.'
            )
        if self.unit_dims is not None and not isinstance(self.unit_dims, Mapping):
            raise ValueError(
                f"unit_dims must map names of parameters to dimensions, got {self.unit_dims!r}; "
                'write for example {"up.weight": 1}.'
            )

    @staticmethod
    def _checked_settle(settle: object) -> tuple[float, int]:
        """A pair of a rate and a number of steps."""
        if not isinstance(settle, tuple | list) or len(settle) != 2:
            raise ValueError(f"settle must be a rate and a number of steps, got {settle!r}; e.g. (0.01, 1000).")
        rate, steps = settle
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            raise ValueError(f"settle[1] must be a whole number of steps >= 1, got {steps!r}; e.g. (0.01, 1000).")
        return number("settle[0]", rate), steps


@dataclass(frozen=True, kw_only=True)
class Options(FurtherOptions):
    """All options of one parameter group, checked and in one form: what a step reads.

    Args:
        levels: Which rates there are, coarse to fine.
        hyper_lr: The hyper-rate of all levels, or of each; None where a rate optimizer has rates of its own.
        rule: One of `RULES`, or `BY_OPTIMIZER`.
        combine: One of `COMBINATIONS`.
        weights: The combination weights to start from, by level; None for `DEFAULT_WEIGHTS`.
        weight_lr: Rate of the combination weights.
        min_lr: Least rate; None for 1e-4 times the initial one.
        max_lr: Greatest rate; None for 1e4 times the initial one.
        safeguard: Whether the rates are kept from running away.
        layers: Whether a layer is a tensor or a module.
        compiled: Whether fused or compiled passes are asked for; None leaves the choice to the package.
        initial_rate: What all rates start from.
        named: Whether the parameters have names.
    """

    levels: tuple[str, ...] = ("global", "layer")
    hyper_lr: float | Mapping[str, float] | None = None
    rule: str = "exponentiated"
    combine: str = "project"
    weights: Mapping[str, float] | None = None
    weight_lr: float = 0.02
    min_lr: float | None = None
    max_lr: float | None = None
    safeguard: bool = True
    layers: str = "tensor"
    compiled: bool | None = None
    initial_rate: float = 0.0
    named: bool = True

    @staticmethod
    def of(group: Group) -> Options:
        """The options that a parameter group holds."""
        return Options(named=group.get("param_names") is not None, **{name: group[name] for name in KEYS})

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "levels", checked_levels(self.levels))
        choice("rule", self.rule, (*RULES, BY_OPTIMIZER))
        choice("combine", self.combine, COMBINATIONS)
        choice("layers", self.layers, LAYERS)
        flag("safeguard", self.safeguard)
        flag("compiled", self.compiled, optional=True)
        number("weight_lr", self.weight_lr)
        object.__setattr__(self, "hyper_lr", self._checked_hyper_lr())
        object.__setattr__(self, "weights", self._checked_weights())
        object.__setattr__(self, "pull", self._checked_pull())
        for name, asked in (
            ("layers", self.layers == "module"),
            ("tie_bias", self.tie_bias),
            ("unit_dims", self.unit_dims is not None),
        ):
            if asked and not self.named:
                raise ValueError(
                    f"{name} must be {OPTION_DEFAULTS[name]!r} without parameter names, got {getattr(self, name)!r}; "
                    "pass model.named_parameters() instead of model.parameters()."
                )
        if self.settle is not None and "parameter" in self.levels:
            raise ValueError(
                f"settle must be None with the level 'parameter', got {self.settle!r}; it holds for coarser rates only."
            )
        assert self.bounds  # computed, and so checked

    def as_group(self) -> Group:
        """The options as a parameter group holds them: plain values, which a checkpoint can keep."""
        return {name: getattr(self, name) for name in KEYS}

    def _checked_hyper_lr(self) -> float | dict[str, float] | None:
        """A number for all levels or one for each; below 1 where the rule multiplies by 1 + hyper_lr c."""
        limit = 1.0 if self.rule == "cosine" else math.inf
        given = self.hyper_lr
        if not isinstance(given, Mapping):
            if given is not None:
                number("hyper_lr", given, high=limit, open_high=True)
            return given
        if set(given) != set(self.levels):
            raise ValueError(
                f"hyper_lr must have one value for each of {', '.join(self.levels)}, got {dict(given)!r}; "
                "name each level of `levels` once, with 0 to freeze it."
            )
        return {
            level: number(f"hyper_lr[{level!r}]", given[level], high=limit, open_high=True) for level in self.levels
        }

    def _checked_weights(self) -> dict[str, float] | None:
        """One weight per level, none negative, not all zero."""
        given = self.weights
        if given is None:
            return None
        if not isinstance(given, Mapping) or set(given) != set(self.levels):
            raise ValueError(
                f"weights must have one value for each of {', '.join(self.levels)}, got {given!r}; "
                "name each level of `levels` once."
            )
        weights = {level: number(f"weights[{level!r}]", given[level]) for level in self.levels}
        if not 0 < sum(weights.values()) < math.inf:
            raise ValueError(f"weights must sum to a positive number, got {dict(given)!r}; raise at least one of them.")
        if self.pull is not None:
            raise ValueError(
                f"weights must be None together with pull, got {dict(given)!r}; "
                "regularized rates are not combined: the finest level's are applied."
            )
        return weights

    def _checked_pull(self) -> dict[str, dict[str, float]] | None:
        """From a level to a coarser one or to its own past; the weights of one level stay below 1 together."""
        if self.pull is None:
            return None
        pairs = {}
        for key, value in self.pull.items():
            if isinstance(value, Mapping):  # the normal form, as it comes back from a checkpoint
                pairs.update({(key, target): weight for target, weight in value.items()})
            else:
                pairs[key] = value
        normal: dict[str, dict[str, float]] = {}
        for key, value in pairs.items():
            known = isinstance(key, tuple) and len(key) == 2 and key[0] in self.levels
            parents = [*self.levels[: self.levels.index(key[0])], PREVIOUS] if known else []
            if not known or key[1] not in parents:
                raise ValueError(
                    f"pull must regularize one of `levels` {self.levels} towards a coarser one of them or {PREVIOUS!r},"
                    f' got {key!r}; write for example ("layer", "global").'
                )
            normal.setdefault(key[0], {})[key[1]] = number(f"pull[{key!r}]", value, high=1.0, open_high=True)
        for level, targets in normal.items():
            if sum(targets.values()) >= 1.0:
                raise ValueError(f"pull must give {level!r} weights below 1 together, got {targets!r}; lower them.")
        if self.rule == BY_OPTIMIZER:
            raise ValueError("pull must be None where a rate optimizer moves the rates, got one; use one of the rules.")
        return {level: normal[level] for level in self.levels if level in normal}

    @cached_property
    def bounds(self) -> RateBounds:
        """The interval in which the rates stay: given, or 1e-4 to 1e4 times the initial rate."""
        initial = self.initial_rate
        low = initial / BOUND_FACTOR if self.min_lr is None else number("min_lr", self.min_lr)
        high = initial * BOUND_FACTOR if self.max_lr is None else number("max_lr", self.max_lr)
        if low > high:
            raise ValueError(f"min_lr must be <= max_lr, got {low!r} and {high!r}; exchange or widen them.")
        if not low <= initial <= high:
            name = "min_lr" if initial < low else "max_lr"
            raise ValueError(f"{name} must leave room for lr={initial!r}, got [{low!r}, {high!r}]; widen the bounds.")
        return RateBounds(initial=initial, low=low, high=high)

    @cached_property
    def hyper_rates(self) -> dict[str, float]:
        """The hyper-rate of each level; 1 where a rate optimizer has rates of its own."""
        if isinstance(self.hyper_lr, Mapping):
            return dict(self.hyper_lr)
        return dict.fromkeys(self.levels, 1.0 if self.hyper_lr is None else float(self.hyper_lr))

    @cached_property
    def adapts(self) -> bool:
        """Whether any rate is to move: by its hypergradient, or over to a given one."""
        return any(self.hyper_rates.values()) or self.settle is not None

    @cached_property
    def start_weights(self) -> list[float]:
        """The combination weights to start from, in the order of the levels, summing to 1.

        Regularized rates are not combined: the finest level's are applied.
        """
        if self.pull is not None:
            return [float(level == self.levels[-1]) for level in self.levels]
        table = self.weights or DEFAULT_WEIGHTS
        total = sum(table[level] for level in self.levels)
        return [table[level] / total for level in self.levels]

    @cached_property
    def weighs_hypergradients(self) -> bool:
        """Whether the hypergradient of a level carries its combination weight."""
        return self.scaled and self.pull is None

    @cached_property
    def learns_weights(self) -> bool:
        """Whether the combination weights move."""
        return len(self.levels) > 1 and self.weight_lr > 0 and self.pull is None and self.combine != "fixed"


#: What a parameter group holds of the options, in the order in which they are documented.
OPTION_DEFAULTS: dict[str, Any] = {
    name: {field.name: field.default for field in fields(Options)}[name] for name in HyperOptions.__annotations__
}
KEYS = (*OPTION_DEFAULTS, "initial_rate")


def with_defaults(options: HyperOptions) -> dict[str, Any]:
    """All options, given or default; an unknown one is a TypeError, as for any function."""
    unknown = sorted(set(options) - set(OPTION_DEFAULTS))
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; known options: {', '.join(OPTION_DEFAULTS)}.")
    return {**OPTION_DEFAULTS, **options}


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
