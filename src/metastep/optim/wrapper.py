"""Self-adapting rates for any torch optimizer, by looking at what its step did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import torch
from torch.optim import LBFGS, Optimizer, SparseAdam

from metastep.optim.directions import DISPLACEMENT, Displacement
from metastep.optim.hyper import HyperOptimizer
from metastep.optim.options import Group, HyperOptions, number

if TYPE_CHECKING:
    from metastep.optim.two_pass import GroupStep


class Hyper(HyperOptimizer):
    r"""Any torch optimizer, with learning rates that adapt themselves by hypergradient descent.

    .. math:: u_t = (\theta_{t-1} - \tilde\theta_t) / \eta_t, \quad \theta_t = \theta_{t-1} - \alpha^*_t \odot u_t

    where :math:`\tilde\theta_t` is where the optimizer went at its rate :math:`\eta_t`, `group["lr"]`. Exact for every
    optimizer whose step is linear in its rate (weight decay included); for others it is a learned multiple of their
    step. As long as all rates equal `group["lr"]` the parameters are the optimizer's own, bit for bit.

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

    def __init__(self, optimizer: Optimizer, **hyper: Unpack[HyperOptions]) -> None:
        refuse_unreadable(optimizer)
        self.optimizer = optimizer
        defaults = {"lr": optimizer.param_groups[0]["lr"]}
        super().__init__(optimizer.param_groups, defaults, hyper)
        optimizer.param_groups = self.param_groups

    def check_arguments(self, group: Group) -> None:
        """The base optimizer has checked its own arguments."""

    def direction(self, group: Group) -> Displacement:
        """What the last step did."""
        return Displacement(maximize=bool(group.get("maximize")))

    def base_keys(self, group: Group) -> tuple[str, ...]:
        """The base optimizer looks after its own keys."""
        del group
        return ()

    def plain_step(self, group: Group) -> None:
        """Nothing: the base optimizer steps all groups together."""

    def between_passes(self, steps: list[GroupStep]) -> None:
        """Let the base optimizer step, and note how far each parameter went."""
        for step in steps:
            torch._foreach_copy_(step.buffers[DISPLACEMENT], step.parameters)
        self.optimizer.step()
        for step in steps:
            lr = step.state.write_lr(step.lr)
            moved = step.buffers[DISPLACEMENT]
            torch._foreach_sub_(moved, step.parameters)
            torch._foreach_mul_(moved, torch.where(lr > 0, 1 / lr, 0.0))

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
