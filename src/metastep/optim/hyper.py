"""What every hypergradient optimizer shares: one step in two passes, with every rate complete in between."""

from __future__ import annotations

import functools
import importlib
import inspect
import math
import weakref
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from metastep.core.distributed import is_sharded, rank_count
from metastep.core.rates import RULES, rate_limit
from metastep.optim import readout
from metastep.optim.adapt import (
    GlobalSums,
    RateOptimizerStep,
    adapt,
    global_sums,
    guard,
    scaled_rows,
    share_global,
    share_rate,
)
from metastep.optim.group_state import SAFEGUARD, SHARED_KEYS, GroupState, rate_keys, start_buffers
from metastep.optim.online_scaling import OnlineScaling
from metastep.optim.options import (
    BY_OPTIMIZER,
    DEFAULT_HDM,
    DEFAULT_HYPER_LR,
    HDM,
    KEYS,
    Group,
    HyperOptions,
    Options,
    RateOptimizer,
    choice,
    flag,
    number,
    with_defaults,
)
from metastep.optim.two_pass import CompiledPasses, EagerPasses, GroupStep, Passes, add_up, pass_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim.optimizer import ParamsT
    from torch.utils.hooks import RemovableHandle

    from metastep.optim.directions import Direction

StateDict = dict[str, Any]

UNKNOWN = -1  # the step count is derived from the state at the next step
WORTH_A_KERNEL = 100_000  # elements of a group from which the CPU engine is chosen unasked
RATE_OPTIMIZERS = "rate_optimizers"  # their states in a checkpoint
#: torch.optim.Adam and AdamW did not write it in torch 2.6; of so old a checkpoint the optimizer's own value holds.
NEWER_IN_TORCH = ("decoupled_weight_decay",)
#: Options that states of earlier versions lack; there, too, the optimizer's own value holds.
NEWER_OPTIONS = (SAFEGUARD, "settle")


class GroupSettings(NamedTuple):
    """What a parameter group's values say, and the values, to see when they change."""

    values: list[Any]
    options: Options
    direction: Direction
    buffers: tuple[str, ...]  # of the direction


class HyperOptimizer(Optimizer):
    """Base of the hypergradient optimizers; a subclass says which direction it takes and whose arguments it has."""

    base: ClassVar[type[Optimizer]]  # the torch.optim class that it is while its rates stand still
    own_hyper_lr: ClassVar[dict[str, float]] = {}  # by rule, where the default does not suit
    key_prefix = ""  # of the keys in a checkpoint
    _zero_hook: RemovableHandle | None = None
    _clock: int  # steps so far in which any parameter had a gradient

    def __init__(self, params: ParamsT, base_arguments: dict[str, Any], options: HyperOptions) -> None:
        given = with_defaults(options)
        self._rate_optimizer: RateOptimizer | None = None
        if given["rule"] == HDM:
            given["rule"] = OnlineScaling()
            given["hyper_lr"] = DEFAULT_HDM if given["hyper_lr"] is None else given["hyper_lr"]
        if callable(given["rule"]):
            self._rate_optimizer = given["rule"]
            given["rule"] = BY_OPTIMIZER
        elif given["rule"] == BY_OPTIMIZER:
            raise ValueError(
                f"rule must be a function that makes the rate optimizer, got {BY_OPTIMIZER!r}; "
                "pass for example rule=lambda rates: torch.optim.Adam(rates, lr=0.01)."
            )
        else:
            choice("rule", given["rule"], (*RULES, HDM))
        self._forget()
        defaults = {**base_arguments, **given}
        self._check(checked := defaults | {"param_names": ()})
        super().__init__(params, {name: checked[name] for name in defaults})
        self._watch()
        self._refuse_zero_redundancy()

    @abstractmethod
    def direction(self, group: Group) -> Direction:
        """The direction that a group's settings ask for."""

    @abstractmethod
    def base_keys(self, group: Group) -> tuple[str, ...]:
        """The state keys of the base optimizer for a parameter that has been stepped."""

    @abstractmethod
    def check_arguments(self, group: Group) -> None:
        """Refuse arguments of the base optimizer that are out of range."""

    def decoupled(self, group: Group) -> bool:
        """Whether weight decay stands beside the direction instead of in it."""
        del group
        return False

    def decoupled_decay(self, group: Group) -> float:
        """The decay that the rate multiplies beside the direction."""
        return float(group["weight_decay"]) if self.decoupled(group) else 0.0

    def base_of(self, group: Group) -> type[Optimizer]:
        """The base optimizer of a group."""
        del group
        return self.base

    def plain_step(self, group: Group) -> None:
        """One step of the base optimizer itself, which reads and writes the same state and group."""
        plain = object.__new__(self.base_of(group))
        plain.__dict__.update(self.__dict__)
        plain.param_groups = [group]
        with torch.set_grad_enabled(bool(group.get("differentiable"))):
            inspect.unwrap(type(plain).step)(plain)  # unwrapped, because the hooks of this step run already

    def between_passes(self, steps: list[GroupStep]) -> None:
        """What a subclass does when all sums are taken and no parameter has moved."""

    def _check(self, group: Group) -> None:
        """Check a group's arguments, those of every optimizer, the options, the base's own; bring them to one form."""
        group["initial_rate"] = number("lr", group["lr"])
        options = self._options(group)
        group.update(options.as_group())
        flag("maximize", group.get("maximize", False))
        for name in ("foreach", "fused"):
            flag(name, group.get(name), optional=True)
        for name in ("differentiable", "capturable"):
            flag(name, group.get(name, False))
        if group.get("differentiable") and options.adapts:
            raise ValueError("differentiable must be False while rates adapt, got True; set hyper_lr=0.")
        if group.get("fused") and (group.get("foreach") or group.get("differentiable")):
            raise ValueError("fused must be None or False together with foreach or differentiable, got True; drop one.")
        self.check_arguments(group)
        if options.include_decay and not self.decoupled(group):
            raise ValueError(
                "include_decay must be False for coupled weight decay, got True; use hyper_objective to choose there."
            )

    def _options(self, group: Group) -> Options:
        """A group's options, with this optimizer's own default of the hyper-rate."""
        rule = group["rule"]
        if group["hyper_lr"] is None and isinstance(rule, str) and rule in DEFAULT_HYPER_LR:
            group = {**group, "hyper_lr": (DEFAULT_HYPER_LR | self.own_hyper_lr)[rule]}
        return Options.of(group)

    def _settings(self, position: int) -> GroupSettings:
        """A group's options and direction, read anew when any of its values has changed."""
        group = self.param_groups[position]
        values = [group.get(key) for key in self._watched]
        seen = self._seen[position]
        if seen is None or seen.values != values:
            direction = self.direction(group)
            seen = GroupSettings(values, self._options(group), direction, direction.buffers)
            written_in_place = any(isinstance(v, Tensor) or (isinstance(v, tuple) and holds_tensor(v)) for v in values)
            self._seen[position] = None if written_in_place else seen
        return seen

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which may have its own value of every argument; its rates start at its own `lr`."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            for parameter in group["params"]:
                if parameter.is_inference():
                    raise ValueError(
                        "parameters must not be made under torch.inference_mode(), got one of shape "
                        f"{tuple(parameter.shape)}; it can never be updated: make it outside."
                    )
            self._check(group)
            if group["scope"] != self.param_groups[0]["scope"]:
                raise ValueError(
                    f"scope must be the same in all groups, got {group['scope']!r}; set it for the whole optimizer."
                )
        except ValueError:
            del self.param_groups[-1]
            raise
        self._states.append(None)
        self._seen.append(None)

    @torch._disable_dynamo  # type: ignore[attr-defined]
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Adapt every rate, then move every parameter.

        Args:
            closure: Recomputes the loss and the gradients, once; run with gradients enabled.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: If a gradient is sparse while rates adapt, or under `torch.inference_mode()`.
            ValueError: If a parameter has changed its shape or type.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                f"{type(self).__name__}.step must run outside torch.inference_mode(), which makes tensors that cannot "
                "be updated later; torch.no_grad() is no trouble."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with_gradient = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if not any(with_gradient):
            return loss
        if self._clock == UNKNOWN:
            self._clock = max((int(s.get("last_update", 0)) for s in self.state.values()), default=0)
        adapting = [k for k, parameters in enumerate(with_gradient) if parameters and not self._is_plain(k)]
        for position in adapting:
            refuse_sparse(type(self).__name__, with_gradient[position])
        for position, parameters in enumerate(with_gradient):
            if parameters and position not in adapting:
                self.plain_step(self.param_groups[position])
        steps = [self._measure(position, with_gradient[position]) for position in adapting]
        add_up(steps)
        self.between_passes(steps)
        self._adapt(steps)
        for step in steps:
            step.state.write_factors(step.lr, step.active_mask, step.options.safeguard)
            step.passes.move(step)
            for i in step.active:
                step.state.last_updates[i] = step.state.states[i]["last_update"] = self._clock + 1
        self._clock += 1
        if self._zero_hook is not None:  # one step is enough to see it
            self._zero_hook.remove()
            self._zero_hook = None
        return loss

    def rates(self) -> list[dict[str, Any]]:
        """The rates really in use: per group a dict, per level a tensor by parameter name; see `docs/optimizers.md`."""
        return readout.rates(self)

    def group_state(self, position: int) -> GroupState | None:
        """The packed rates of a group; None as long as they stand at their start."""
        return self._group_state(position, [])[0] if self._has_adapted(position) else None

    def options(self, position: int) -> Options:
        """The checked options of a group."""
        return self._settings(position).options

    def describe(self) -> str:
        """A table of the current rates, as text."""
        return readout.describe(self)

    def _has_adapted(self, position: int) -> bool:
        members = self.param_groups[position]["params"]
        return any("last_update" in self.state[p] for p in members if p in self.state)

    def _is_plain(self, position: int) -> bool:
        """Whether the rates of a group stand still at their initial value: then the base optimizer itself steps."""
        return not self._settings(position).options.adapts and not self._has_adapted(position)

    def _measure(self, position: int, parameters: list[Tensor]) -> GroupStep:
        """First pass over one group: its sums, and its buffers advanced."""
        group = self.param_groups[position]
        if not isinstance(group["lr"], (int, float, Tensor)):
            number("lr", group["lr"])
        if group["initial_rate"] == 0.0 and float(group["lr"]) > 0.0:
            group["initial_rate"] = float(group["lr"])  # a rate that starts at zero starts when it is first set
        state, (_, options, direction, keys) = self._group_state(position, parameters)
        everyone = len(parameters) == len(state.members)
        active, fresh, unit_dims = state.everyone, None, state.layout.unit_dims
        if not everyone:
            places = {id(p): i for i, p in enumerate(state.members)}
            active = [places[id(p)] for p in parameters]
            unit_dims = tuple(unit_dims[i] for i in active)
        if not everyone or self._clock == 0 or state.last_updates.count(self._clock) != len(state.members):
            kept = [i for i in active if state.last_updates[i] == self._clock != 0]
            fresh = state.mask(kept)[state.layout.tensor_of_row]
        tensors, gradients, buffers = state.tensors(parameters, active, keys)
        step = GroupStep(
            position=position,
            lr=group["lr"],
            options=options,
            state=state,
            direction=direction,
            settings=pass_settings(state, options, direction, unit_dims),
            active=active,
            parameters=tensors,
            gradients=gradients,
            buffers=buffers,
            active_mask=None if everyone else state.mask(active),
            fresh=fresh,
        )
        step.passes = passes_for(step, fused=group.get("fused"))
        if any(map(state.last_updates.__getitem__, active)):
            step.rows = step.all_rows(step.passes.measure(step)).to(state.layout.row_elements.dtype)
        else:
            step.passes.begin(step)
        state.counts += 1 if step.active_mask is None else step.active_mask
        return step

    def _adapt(self, steps: list[GroupStep]) -> None:
        """Between the passes: every rate and every combination weight moves."""
        shared = self.param_groups[0]["scope"] == "all"
        moving = [
            step
            for step in steps
            if step.rows is not None and (shared or not step.passes.adapts or not step.passes.adapt(step))
        ]
        if not moving:
            return
        first = self.param_groups[0]["initial_rate"] or 1.0
        parts = []
        for step in moving:
            assert step.rows is not None
            step.rows = scaled_rows(step.state, step.rows)
            ratio = step.options.initial_rate / first if shared else 1.0
            parts.append(global_sums(step.options, step.state, step.rows, step.fresh, ratio))
        if shared:
            parts = share_global(parts)
        guard([step for step in moving if step.options.safeguard], shared)
        for step, whole in zip(moving, parts, strict=True):
            assert step.rows is not None
            if step.options.rule == BY_OPTIMIZER:
                self._step_rate_optimizer(step, step.rows, whole)
            else:
                adapt(step.options, step.state, step.rows, whole, step.fresh)
        if shared:
            share_rate(moving[0].state, self._states)

    def _step_rate_optimizer(self, step: GroupStep, rows: Tensor, whole: GlobalSums) -> None:
        """Let the rate optimizer move the rates; it is made at its first use."""
        state = step.state
        known = self._rate_optimizers.get(step.position)
        if known is None or known.state is not state:
            if self._rate_optimizer is None:
                raise ValueError(
                    "rule must be a function that makes an optimizer, got None; construct the optimizer anew."
                )
            known = self._rate_optimizers[step.position] = RateOptimizerStep(self._rate_optimizer, state, step.options)
            saved = self._rate_optimizer_states.pop(step.position, None)
            if saved is not None:
                if saved["param_groups"][0].keys() != known.optimizer.param_groups[0].keys():
                    raise ValueError(
                        f"rule must be the one of the saved run, got one that makes {type(known.optimizer).__name__}; "
                        "construct the optimizer with the same rule."
                    )
                known.optimizer.load_state_dict(saved)
        active = step.active_mask if step.active_mask is not None else torch.ones_like(state.counts, dtype=torch.bool)
        known.step(step.options, rows, whole, active[state.layout.tensor_of_row])

    def _group_state(self, position: int, parameters: list[Tensor]) -> tuple[GroupState, GroupSettings]:
        """The packed rates of a group, made anew when a member joined, state was replaced or settings changed."""
        group, settings = self.param_groups[position], self._settings(position)
        members = parameters
        if len(parameters) != len(group["params"]):
            here = {id(p) for p in parameters}
            members = [p for p in group["params"] if id(p) in here or "last_update" in self.state.get(p, ())]
        states = [self.state[p] for p in members]
        packed = self._states[position]
        if packed is None or not packed.serves(settings.options, members, states, settings.buffers):
            for p, state in zip(members, states, strict=True):
                start_buffers(p, state, settings.direction)
            self._states[position] = packed = GroupState(group, settings.options, members, states)
        safe, decay = settings.options.safeguard, self.decoupled_decay(group)
        packed.limit = rate_limit(settings.options.initial_rate, decay) if safe else math.inf
        return packed, settings

    def _forget(self) -> None:
        """Drop what is derived from `state`; the next step derives it again."""
        groups = getattr(self, "param_groups", [])
        self._states: list[GroupState | None] = [None] * len(groups)
        self._seen: list[GroupSettings | None] = [None] * len(groups)
        self._clock = UNKNOWN
        self._rate_optimizers: dict[int, RateOptimizerStep] = {}
        self._rate_optimizer_states: dict[int, dict[str, Any]] = {}

    def state_dict(self) -> StateDict:
        """The whole state: torch's layout, and the state of the rate optimizers where there are any."""
        result = super().state_dict()
        if states := self._states_of_rate_optimizers():
            result[RATE_OPTIMIZERS] = states
        return result

    def _states_of_rate_optimizers(self) -> dict[int, dict[str, Any]]:
        """Of those that there are, and those that were loaded and not yet used."""
        made = {i: known.optimizer.state_dict() for i, known in self._rate_optimizers.items()}
        return {**self._rate_optimizer_states, **made}

    def load_state_dict(self, state_dict: StateDict) -> None:
        """Load a state of this optimizer, or of its base optimizer (the rates then start anew).

        It loads through torch's own loader, with checks before it and exact tensors after it: torch's casts every
        tensor to its parameter's type and shares memory with the given dict where it can; rates kept in float32 beside
        bfloat16 parameters must survive the one, and nobody expects the other.

        Raises:
            ValueError: naming the key that is missing, or the group that does not fit.
        """
        seen: StateDict = {}

        def check(_: Optimizer, given: StateDict) -> StateDict:
            seen.update(given)
            seen["param_groups"] = self._completed_groups(given)
            for saved, group in zip(seen["param_groups"], self.param_groups, strict=False):
                self._check_saved(given["state"], saved, group)
                check_shards(self.key_prefix, given["state"], saved, group)
            return seen

        def restore(_: Optimizer) -> None:
            for saved, group in zip(seen["param_groups"], self.param_groups, strict=True):
                own = {self.key_prefix + key for key in rate_keys(group["levels"])}
                for index, parameter in zip(saved["params"], group["params"], strict=True):
                    entries, state = seen["state"].get(index, {}), self.state[parameter]
                    for key, value in entries.items():
                        if isinstance(value, Tensor):
                            kind = value.dtype if key in own or value.dim() == 0 else state[key].dtype
                            on_host = key == "step" and "last_update" not in entries
                            device = value.device if on_host else parameter.device
                            state[key] = value.detach().to(device, kind, copy=True)
            self._rate_optimizer_states = dict(seen.get(RATE_OPTIMIZERS, {}))

        # Temporary hooks, so that the user's own see the dict first and find the state complete.
        before = self.register_load_state_dict_pre_hook(check)
        after = self.register_load_state_dict_post_hook(restore, prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _completed_groups(self, given: StateDict) -> list[Group]:
        """The saved groups; one of the base optimizer gets this optimizer's options.

        Raises:
            ValueError: naming the key that a group lacks.
        """
        result = []
        for position, (saved, group) in enumerate(zip(given["param_groups"], self.param_groups, strict=False)):
            plain = set(KEYS).isdisjoint(saved)
            newer = (*NEWER_IN_TORCH, *KEYS) if plain else NEWER_OPTIONS
            saved = {**{key: group[key] for key in newer if key in group}, **saved}
            if saved.get("rule") == "driven":  # as older states say
                saved = {**saved, "rule": BY_OPTIMIZER}
            for key in group:
                if key not in saved and key not in ("param_names", "initial_lr"):
                    raise ValueError(
                        f"state_dict must have {key!r} in param_groups[{position}], got {sorted(saved)}; "
                        "it is of another optimizer or version: add the key, or start with fresh state."
                    )
            if saved["rule"] == BY_OPTIMIZER and self._rate_optimizer is None:
                raise ValueError(
                    "rule must be the function that made the saved rate optimizer, got none; pass the same again, "
                    f"or rule={HDM!r}, if it was that."
                )
            result.append(saved)
        result.extend(given["param_groups"][len(result) :])
        return result

    def _check_saved(self, states: StateDict, saved: Group, group: Group) -> None:
        """Refuse a state that lacks a key, by name; a parameter without any state is one without gradients so far."""
        prefix = self.key_prefix
        buffers = self.direction({**group, **saved, "params": group["params"]}).buffers
        for index in saved["params"]:
            state = states.get(index)
            if not state:
                continue
            adapting = any(prefix + key in state for key in (*SHARED_KEYS[1:], "layer_deviation", "global_deviation"))
            needed = (*rate_keys(saved["levels"]), *buffers) if adapting else self.base_keys(saved)
            for key in (prefix + key for key in needed if key != SAFEGUARD):
                if key not in state:
                    raise ValueError(
                        f"state_dict must have {key!r} in the state of parameter {index}, got {sorted(state)}; "
                        "it is of another optimizer or version: add the key, or start with fresh state."
                    )

    def __getstate__(self) -> dict[str, Any]:
        own = {"_rate_optimizer": self._rate_optimizer, RATE_OPTIMIZERS: self._states_of_rate_optimizers()}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        states = state.pop(RATE_OPTIMIZERS, {})
        super().__setstate__(state)
        self._watch()
        self._forget()
        self._rate_optimizer_states = states

    def _watch(self) -> None:
        """Note the keys of a group that its options and its direction depend on."""
        own = (name for name in self.defaults if name != "lr" and name not in KEYS)
        self._watched = tuple(dict.fromkeys((*KEYS, "param_names", "maximize", *own)))

    def _refuse_zero_redundancy(self) -> None:
        """Refuse the first step inside a ZeroRedundancyOptimizer where rates depend on tensors of other ranks.

        It gives each rank whole tensors, a part of all, and tells the optimizer inside nothing of it. A single level of
        "layer" or finer needs no others; a global rate, the weights that combine several levels, and the safeguard,
        would come out different on every rank. Seen from torch's hook before any optimizer's step: of the one that
        holds this one.
        """
        kinds = [(g["levels"], g["safeguard"]) for g in self.param_groups]
        bad = next((kind for kind in kinds if kind[1] or len(kind[0]) > 1 or "global" in kind[0]), None)
        if rank_count() == 1 or bad is None:
            return
        inside = weakref.ref(self)

        def refuse(outside: Optimizer, *_: object) -> None:
            if type(outside).__name__ == "ZeroRedundancyOptimizer" and getattr(outside, "optim", None) is inside():
                raise ValueError(
                    "levels must be one of 'layer', 'unit', 'parameter' alone and safeguard False under "
                    f"ZeroRedundancyOptimizer, got {bad[0]} and {bad[1]}: a rank sees only some of the tensors there; "
                    "or shard the model by torch.distributed.fsdp.fully_shard."
                )

        handle = register_optimizer_step_pre_hook(refuse)
        weakref.finalize(self, handle.remove)
        self._zero_hook = handle


EAGER = EagerPasses()


@functools.cache
def cpu_engine() -> Callable[[GroupStep], Passes | None] | None:
    """What gives the passes of the compiled CPU engine; None where its folder is not there."""
    try:
        engine = importlib.import_module("metastep.optim.cpu")
    except ModuleNotFoundError as error:
        if error.name != "metastep.optim.cpu":
            raise
        return None
    chooser: Callable[[GroupStep], Passes | None] = engine.passes_for
    return chooser


def passes_for(step: GroupStep, fused: bool | None) -> Passes:
    """The fastest passes that the group asks for and its tensors allow.

    On the CPU `compiled=None` takes the engine for groups that are large enough to gain from it. On accelerators, where
    compiling takes most of a minute, the passes are compiled only if `compiled=True` or `fused=True` asks for it. The
    passes over shards run as they are.
    """
    asked = step.options.compiled if step.options.compiled is not None else fused
    if asked is False or step.state.shards is not None:
        return EAGER
    if step.parameters[0].device.type != "cpu":
        untraceable = step.settings.elements is not None and step.options.rule == BY_OPTIMIZER
        return CompiledPasses() if asked and not untraceable else EAGER
    if asked is None and sum(map(Tensor.numel, step.parameters)) < WORTH_A_KERNEL:
        return EAGER
    engine = cpu_engine()
    return EAGER if engine is None else engine(step) or EAGER


def refuse_sparse(name: str, parameters: list[Tensor]) -> None:
    """A RuntimeError, as of torch's optimizers, for sparse gradients while rates adapt."""
    for p in parameters:
        if p.grad is not None and p.grad.layout != torch.strided:
            raise RuntimeError(
                f"{name} does not support sparse gradients while rates adapt, got one of shape {tuple(p.shape)}; "
                "use sparse=False in the embedding, or hyper_lr=0."
            )


def holds_tensor(values: tuple[Any, ...]) -> bool:
    """Whether any of the values is a tensor, which can change in place."""
    return any(isinstance(value, Tensor) for value in values)


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
