"""What every hypergradient optimizer shares: one step in two passes, with every rate complete in between."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.optim import checkpoint, readout
from metastep.optim.adapt import GlobalSums, adapt, global_sums, scaled_rows, share_global, share_rate
from metastep.optim.driver import RateDriver
from metastep.optim.gather import gather, start_state
from metastep.optim.group_rates import GroupRates, State
from metastep.optim.options import (
    DEFAULT_HYPER_LR,
    DRIVEN,
    Group,
    HyperOptions,
    RateOptimizer,
    check_options,
    flag,
    hyper_rates,
    number,
    with_defaults,
)
from metastep.optim.shards import add_up
from metastep.optim.zero import refuse_zero_redundancy

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT

    from metastep.optim.direction import Direction
    from metastep.optim.work import Work


UNKNOWN = -1  # the step count is derived from the state at the next step


class HyperOptimizer(Optimizer):
    """Base of the hypergradient optimizers; a subclass says which direction it takes and how its namesake steps."""

    own_hyper_lr: ClassVar[dict[str, float]] = {}  # by rule, where the default does not suit
    key_prefix = ""  # of the keys in a checkpoint
    _clock: int  # steps so far in which any parameter had a gradient

    def __init__(self, params: ParamsT, base_defaults: dict[str, Any], options: HyperOptions) -> None:
        settings = with_defaults(options)
        self._rate_optimizer: RateOptimizer | None = None
        if callable(settings["rule"]):
            self._rate_optimizer = settings["rule"]
            settings["rule"] = DRIVEN
        elif settings["rule"] == DRIVEN:
            raise ValueError(
                "rule must be a function when an optimizer drives the rates, got 'driven'; "
                "pass for example rule=lambda rates: torch.optim.Adam(rates, lr=0.01)."
            )
        self._forget()
        defaults = {**base_defaults, **settings}
        self._check(checked := defaults | {"param_names": ()})
        defaults = {name: checked[name] for name in defaults}
        super().__init__(params, defaults)

    @abstractmethod
    def direction(self, group: Group) -> Direction:
        """The direction that a group's settings ask for."""

    @abstractmethod
    def plain_step(self, group: Group, parameters: list[Tensor]) -> None:
        """One step of the torch.optim namesake on the parameters that have a gradient."""

    @abstractmethod
    def plain_keys(self, group: Group) -> tuple[str, ...]:
        """The state keys of the namesake for a parameter that has been stepped."""

    @abstractmethod
    def check_arguments(self, group: Group) -> None:
        """Refuse arguments of the namesake that are out of range."""

    def _check(self, group: Group) -> None:
        """Check a group's arguments: those of every optimizer, the options, those of its namesake alone."""
        group["initial_rate"] = number("lr", group["lr"])
        check_options(group)
        if group["hyper_lr"] is None and group["rule"] != DRIVEN:
            group["hyper_lr"] = (DEFAULT_HYPER_LR | self.own_hyper_lr)[group["rule"]]
        flag("maximize", group.get("maximize", False))
        for name in ("foreach", "fused"):
            flag(name, group.get(name), optional=True)
        for name in ("differentiable", "capturable"):
            flag(name, group.get(name, False))
        if group.get("differentiable") and any(hyper_rates(group).values()):
            raise ValueError("differentiable must be False while rates adapt, got True; set hyper_lr=0.")
        if group.get("fused") and (group.get("foreach") or group.get("differentiable")):
            raise ValueError("fused must be None or False together with foreach or differentiable, got True; drop one.")
        self.check_arguments(group)
        if group["include_decay"] and not self.decoupled(group):
            raise ValueError(
                "include_decay must be False for coupled weight decay, got True; use hyper_objective to choose there."
            )

    def between_passes(self, works: list[Work]) -> None:
        """What a subclass does when all sums are taken and no parameter has moved."""

    def decoupled(self, group: Group) -> bool:
        """Whether weight decay stands beside the direction instead of in it."""
        del group
        return False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which may have its own value of every argument; its rates start at its own `lr`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            refuse_zero_redundancy(group)
            if group["scope"] != self.param_groups[0]["scope"]:
                raise ValueError(
                    f"scope must be the same in all groups, got {group['scope']!r}; set it for the whole optimizer."
                )
        except ValueError:
            del self.param_groups[-1]
            raise
        self._packed.append(None)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Adapt every rate, then move every parameter.

        Args:
            closure: Recomputes the loss and the gradients, once; run with gradients enabled.

        Returns:
            What the closure returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not any(with_gradient):
            return loss
        if self._clock == UNKNOWN:
            self._clock = max((int(s.get("last_update", 0)) for s in self.state.values()), default=0)
        works = []
        for position, (group, parameters) in enumerate(zip(self.param_groups, with_gradient, strict=True)):
            if not parameters:
                continue
            if self._is_plain(group):
                with torch.set_grad_enabled(bool(group.get("differentiable"))):
                    self.plain_step(group, parameters)
            else:
                works.append(self._measure(position, group, parameters))
        add_up(works)
        self.between_passes(works)
        self._adapt(works)
        for work in works:
            self._move(work)
        self._clock += 1
        return loss

    def rates(self) -> list[dict[str, Any]]:
        """The rates really in use: per group a dict, per level a tensor by parameter name; see `docs/optimizers.md`."""
        return readout.rates(self)

    def packed_rates(self, position: int) -> GroupRates | None:
        """The packed rates of a group; None as long as they stand at their start."""
        group = self.param_groups[position]
        if not any("last_update" in self.state[p] for p in group["params"] if p in self.state):
            return None
        return self._group_rates(position, group, [], self.direction(group))

    def describe(self) -> str:
        """A table of the current rates, as text."""
        return readout.describe(self)

    def _is_plain(self, group: Group) -> bool:
        """Whether the rates of a group stand still at their initial value: then the namesake's own kernels run."""
        if any(hyper_rates(group).values()):
            return False
        return not any("last_update" in self.state[p] for p in group["params"] if p in self.state)

    def _measure(self, position: int, group: Group, parameters: list[Tensor]) -> Work:
        """First pass over one group: its sums, and its buffers advanced."""
        direction = self.direction(group)
        rates = self._group_rates(position, group, parameters, direction)
        work = gather(position, group, rates, direction, parameters, self._clock)
        if any(rates.last_updates[i] for i in work.active):
            rows = work.engine.measure(work)
            work.rows = work.all_rows(rows).to(rates.layout.row_elements.dtype)
        else:
            work.engine.begin(work)
        rates.counts += 1 if work.active_mask is None else work.active_mask
        return work

    def _adapt(self, works: list[Work]) -> None:
        shared = self.param_groups[0]["scope"] == "all"
        moving = [work for work in works if work.rows is not None and (shared or not work.engine.adapt(work))]
        if not moving:
            return
        first = self.param_groups[0]["initial_rate"] or 1.0
        parts = []
        for work in moving:
            assert work.rows is not None
            work.rows = scaled_rows(work.rates, work.rows)
            ratio = work.group["initial_rate"] / first if shared else 1.0
            beta = hyper_rates(work.group).get("global", 0.0)
            parts.append(global_sums(work.rates, work.rows, work.fresh, ratio, beta))
        if shared:
            parts = share_global(parts)
        for work, whole in zip(moving, parts, strict=True):
            assert work.rows is not None
            if work.group["rule"] == DRIVEN:
                self._drive(work, work.rows, whole)
            else:
                adapt(work.group, work.rates, work.rows, whole, work.fresh)
        if shared and "global" in moving[0].rates.deviations:
            share_rate(moving[0].rates, self._packed)

    def _drive(self, work: Work, rows: Tensor, whole: GlobalSums) -> None:
        """Let the optimizer of the rates move them; it is made at its first use."""
        rates = work.rates
        driver = self._drivers.get(work.position)
        if driver is None or driver.rates is not rates:
            if self._rate_optimizer is None:
                raise ValueError(
                    "rule must be a function that makes an optimizer, got None; construct the optimizer anew."
                )
            driver = self._drivers[work.position] = RateDriver(self._rate_optimizer, rates)
            saved = self._driver_states.pop(work.position, None)
            if saved is not None:
                driver.optimizer.load_state_dict(saved)
        active = work.active_mask if work.active_mask is not None else torch.ones_like(rates.counts, dtype=torch.bool)
        driver.step(work.group, rows, whole, active[rates.layout.tensor_of_row])

    def _move(self, work: Work) -> None:
        """Second pass over one group: its parameters."""
        rates, group = work.rates, work.group
        lr = rates.write_lr(group["lr"])
        factor = lr / rates.bounds.initial if rates.bounds.initial > 0 else torch.ones_like(lr)
        if work.active_mask is None:
            rates.factors.copy_(factor.expand_as(rates.factors))
        else:
            rates.factors.copy_(torch.where(work.active_mask, factor, rates.factors))
        work.engine.move(work)
        for i in work.active:
            rates.last_updates[i] = rates.states[i]["last_update"] = self._clock + 1

    def _group_rates(self, position: int, group: Group, parameters: list[Tensor], direction: Direction) -> GroupRates:
        """The packed rates of a group, made anew when a member joined, state was replaced or settings changed."""
        if group["initial_rate"] == 0.0 and float(group["lr"]) > 0.0:
            group["initial_rate"] = float(group["lr"])  # a rate that starts at zero starts when it is first set
        members = parameters
        if len(parameters) != len(group["params"]):
            here = {id(p) for p in parameters}
            members = [p for p in group["params"] if id(p) in here or "last_update" in self.state.get(p, ())]
        states: list[State] = [self.state[p] for p in members]
        packed = self._packed[position]
        if packed is not None and packed.serves(group, members, states, direction.buffers):
            return packed
        for p, state in zip(members, states, strict=True):
            start_state(p, state, direction)
        rates = GroupRates(group, members, states)
        self._packed[position] = rates
        return rates

    def _forget(self) -> None:
        """Drop what is derived from `state`; the next step derives it again."""
        groups = getattr(self, "param_groups", [])
        self._packed: list[GroupRates | None] = [None] * len(groups)
        self._clock = UNKNOWN
        self._drivers: dict[int, RateDriver] = {}
        self._driver_states: dict[int, dict[str, Any]] = {}

    def state_dict(self) -> dict[str, Any]:
        """The whole state: torch's layout, and the state of the optimizers that drive rates where there are any."""
        result = super().state_dict()
        if self._drivers:
            result[checkpoint.DRIVERS] = {i: driver.optimizer.state_dict() for i, driver in self._drivers.items()}
        return result

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer, or of its torch.optim namesake (the rates then start anew).

        Raises:
            ValueError: naming the key that is missing, or the group that does not fit.
        """
        checkpoint.load(self, state_dict, super().load_state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rate_optimizer": self._rate_optimizer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
