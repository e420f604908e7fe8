"""Self-adapting rates for any torch optimizer, by looking at what its step did."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch import Tensor
from torch.optim import LBFGS, Optimizer, SparseAdam

from metastep.core.inner import wide
from metastep.optim.directions import DISPLACEMENT, Displacement
from metastep.optim.hyper import HyperOptimizer
from metastep.optim.options import BOUND_FACTOR, Group, HyperOptions, number

if TYPE_CHECKING:
    from metastep.optim.two_pass import GroupStep


DECOUPLED = ("AdamW", "Muon", "Adafactor")  # optimizers of torch with decoupled decay and no flag that says so
LOW_PRECISION = (torch.bfloat16, torch.float16)
#: Times the initial rate, where the base shows its direction: 256 times the most that rates reach by default.
PROBE = 256 * BOUND_FACTOR


class Hyper(HyperOptimizer):
    r"""Any torch optimizer, with learning rates that adapt themselves by hypergradient descent.

    .. math:: u_t = (\theta_{t-1} - \tilde\theta_t) / \eta_t, \quad \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t

    where :math:`\tilde\theta_t` is where the optimizer went at its rate :math:`\eta_t`, `group["lr"]`. Exact for every
    optimizer whose step is linear in its rate (weight decay included); for others it is a learned multiple of their
    step. As long as all rates equal `group["lr"]` the parameters are the optimizer's own, bit for bit.

    Beside parameters of bfloat16 or float16 a step at a small rate is lost in rounding, and with it the direction.
    There the optimizer steps at a larger rate, :math:`u_t` is read off, and the parameters go back before they take
    :math:`\alpha^*_t`; they are the optimizer's own up to a rounding. This needs steps proportional to the rate, which
    is tried on a fresh optimizer of the same kind.

    It shares the parameter groups of the optimizer, so schedulers work on either. It keeps one tensor per parameter,
    the last displacement. `state_dict` holds both states, ours under keys that begin with "hyper_".

    Args:
        optimizer: The optimizer whose steps are scaled; after this only `Hyper` may be stepped.
        hyper: Options of every hypergradient optimizer, keyword-only; see `docs/optimizers.md`.

    Raises:
        ValueError: If the optimizer's steps cannot be read (L-BFGS, sparse ones, groups without a number `lr`, one that
            adapts its rates already) or an option is out of range.

    Source: arXiv 1703.04782 and 2008.07277; reading the direction off the step is ours.

    Example:
        >>> import torch
        >>> from metastep.optim import Hyper
        >>> model = torch.nn.Linear(3, 1)
        >>> opt = Hyper(torch.optim.NAdam(model.parameters(), lr=1e-3), levels=("global", "layer"))
        >>> model(torch.ones(4, 3)).square().mean().backward()
        >>> opt.step()
    """

    key_prefix = "hyper_"
    _linear: bool | None = None  # whether the base's steps are proportional to its rate, once that was asked

    def __init__(self, optimizer: Optimizer, **hyper: Unpack[HyperOptions]) -> None:
        refuse_unreadable(optimizer)
        self.optimizer = optimizer
        defaults = {"lr": optimizer.param_groups[0]["lr"]}
        super().__init__(optimizer.param_groups, defaults, hyper)
        optimizer.param_groups = self.param_groups

    def check_arguments(self, group: Group) -> None:
        """The base optimizer has checked its own arguments."""

    def decoupled_decay(self, group: Group) -> float:
        """The base's decay where it is decoupled; in the steps that are read it is a part of the direction."""
        kinds = {kind.__name__ for kind in type(self.optimizer).__mro__}
        decoupled = group.get("decoupled_weight_decay", not kinds.isdisjoint(DECOUPLED))
        return float(group.get("weight_decay", 0.0)) if decoupled else 0.0

    def direction(self, group: Group) -> Displacement:
        """What the last step did."""
        return Displacement(maximize=bool(group.get("maximize")), taken=not self._probes(group))

    def base_keys(self, group: Group) -> tuple[str, ...]:
        """The base optimizer looks after its own keys."""
        del group
        return ()

    def plain_step(self, group: Group) -> None:
        """Nothing: the base optimizer steps all groups together."""

    def between_passes(self, steps: list[GroupStep]) -> None:
        """Let the base optimizer step, and note how far each parameter went per unit of rate."""
        for step in steps:
            torch._foreach_copy_(step.buffers[DISPLACEMENT], step.parameters)
        probing = [step for step in steps if not step.direction.taken]
        try:
            for step in probing:
                rate = probe_rate(step)
                like = step.lr  # a tensor stays one
                self.param_groups[step.position]["lr"] = (
                    torch.full_like(like, rate) if isinstance(like, Tensor) else rate
                )
            self.optimizer.step()
        finally:
            for step in probing:
                self.param_groups[step.position]["lr"] = step.lr
        for step in steps:
            moved = step.buffers[DISPLACEMENT]
            if step.direction.taken:
                lr = step.state.write_lr(step.lr)
                torch._foreach_sub_(moved, step.parameters)
                torch._foreach_mul_(moved, torch.where(lr > 0, 1 / lr, 0.0))
                continue
            for kept, theta in zip(moved, step.parameters, strict=True):
                u = (wide(kept) - wide(theta)) / probe_rate(step)
                theta.copy_(kept)
                kept.copy_(u)

    def _probes(self, group: Group) -> bool:
        """Whether a group's base steps at a larger rate, for the direction alone: see `probe_rate`."""
        if not any(p.dtype in LOW_PRECISION for p in group["params"]):
            return False
        if self._linear is None:
            self._linear = linear_in_rate(self.optimizer)
            if not self._linear:
                warnings.warn(
                    f"steps of {type(self.optimizer).__name__} are not proportional to its lr, so that Hyper cannot "
                    "see which way it goes where a step is below the rounding of bfloat16 or float16 parameters: their "
                    "rates stay as they are there. Keep the parameters in float32, or begin with a larger lr.",
                    stacklevel=2,
                )
        return self._linear

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer and to this one."""
        known = any(param_group is group for group in self.optimizer.param_groups)
        if known:  # while constructing
            super().add_param_group(param_group)
            return
        self.optimizer.param_groups = list(self.param_groups)
        try:
            self.optimizer.add_param_group(param_group)
            super().add_param_group(param_group)
        finally:
            self.optimizer.param_groups = self.param_groups

    def state_dict(self) -> dict[str, Any]:
        """Both states in torch's layout."""
        own, base = super().state_dict(), self.optimizer.state_dict()
        states: dict[Any, dict[str, Any]] = {index: dict(entries) for index, entries in base["state"].items()}
        for index, entries in own["state"].items():
            states.setdefault(index, {}).update({self.key_prefix + key: value for key, value in entries.items()})
        return {**base, **own, "state": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load both states; a checkpoint of the base optimizer alone starts the rates anew."""
        super().load_state_dict(state_dict)
        base: dict[Any, dict[str, Any]] = {}
        for key, entries in list(self.state.items()):
            base[key] = {name: value for name, value in entries.items() if not name.startswith(self.key_prefix)}
            own = {name.removeprefix(self.key_prefix): v for name, v in entries.items() if name not in base[key]}
            if own:
                self.state[key] = own
            else:
                del self.state[key]
        self.optimizer.state.clear()
        self.optimizer.state.update({key: entries for key, entries in base.items() if entries})
        self.optimizer.__setstate__({"state": self.optimizer.state, "param_groups": self.param_groups})

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "optimizer": self.optimizer}


def refuse_unreadable(optimizer: object) -> None:
    """A ValueError for a base optimizer whose steps say nothing of a direction."""
    reason = None
    if not isinstance(optimizer, Optimizer):
        reason = "it is not a torch.optim.Optimizer"
    elif isinstance(optimizer, HyperOptimizer):
        reason = "it adapts its rates already"
    elif isinstance(optimizer, LBFGS):
        reason = "one step of it evaluates the loss several times"
    elif isinstance(optimizer, SparseAdam):
        reason = "its gradients are sparse"
    elif any(group.get("differentiable") for group in optimizer.param_groups):
        reason = "it is differentiable"
    if reason is not None:
        kind = type(optimizer).__name__
        raise ValueError(f"optimizer must take one dense step along a direction, got {kind}: {reason}; wrap another.")
    assert isinstance(optimizer, Optimizer)
    for position, group in enumerate(optimizer.param_groups):
        try:
            number("lr", group.get("lr"))
        except ValueError as error:
            raise ValueError(
                f"optimizer must have a number `lr` in every group, got {group.get('lr')!r} in group {position}; "
                "give it a fixed rate."
            ) from error


def probe_rate(step: GroupStep) -> float:
    """The rate at which a base optimizer shows its direction beside low-precision parameters.

    256 times the largest that the rates can reach by default: what moves a parameter there at all is known to the eight
    bits that bfloat16 has. In float16, which ends at 65504, not beyond 1: a displacement at the rate 1 is u itself.
    """
    initial = step.options.initial_rate or 1.0
    rate = PROBE * initial
    return max(initial, min(rate, 1.0)) if any(p.dtype == torch.float16 for p in step.parameters) else rate


def linear_in_rate(optimizer: Optimizer) -> bool:
    """Whether steps are proportional to `lr` and leave nothing of it behind, tried on a fresh one of the same kind."""
    group = optimizer.param_groups[0]
    names = set(inspect.signature(type(optimizer).__init__).parameters) & set(group) - {
        "params", "lr", "foreach", "fused", "capturable", "differentiable"
    }  # fmt: skip
    start = torch.linspace(1.0, 2.0, 16, dtype=torch.float64).reshape(4, 4)

    def displacements(factor: float) -> list[Tensor]:
        weight = torch.nn.Parameter(start.clone())
        fresh = type(optimizer)([weight], lr=1e-3, **{name: group[name] for name in names})  # type: ignore[call-arg]
        found = []
        for k, lr in enumerate((1e-3, 1e-3 * factor, 1e-3)):
            weight.copy_(start)
            weight.grad = torch.cos((k + 1) * start)
            fresh.param_groups[0]["lr"] = lr
            inspect.unwrap(type(fresh).step)(fresh)  # unwrapped: hooks are for the steps of a run
            found.append(start - weight)
        return found

    try:
        with torch.no_grad():
            (_, before, after), (_, longer, again) = displacements(1.0), displacements(PROBE)
    except (TypeError, ValueError, RuntimeError, KeyError, AttributeError):  # it needs more than parameters and a rate
        return False
    return bool(
        torch.allclose(longer, PROBE * before, rtol=1e-4) and torch.allclose(again, after, rtol=1e-6, atol=1e-12)
    )
