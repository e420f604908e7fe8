"""LearnedLR: attaches a schedule to an optimizer, reads the loss, writes the rate just before each step."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.core.collectives import Ranks
from metastep.schedules.agreement import Agreement
from metastep.schedules.arguments import whole
from metastep.schedules.base import Loss, Rate, Schedule, State, state_like
from metastep.schedules.groups import GroupRates
from metastep.schedules.resuming import check_saved
from metastep.schedules.scaling import RunScale
from metastep.schedules.stepping import (
    ObservedClosure,
    StepArguments,
    closure_of,
    is_initialisation,
    is_skipped_by_scaler,
)
from metastep.schedules.window import LossWindow


class LearnedLR:
    r"""Sets the learning rate of any torch optimizer by a schedule that may read the training loss.

    .. math:: \eta_k = r_k \cdot \mathrm{clip}(w_t\, s\, \alpha_t)

    for group k, with :math:`\alpha_t` the schedule's output, s the scale (gamma for a learned schedule, the group's own
    initial rate for a relative one), :math:`w_t = \min(1, (t+1)/\mathrm{warmup})`, and :math:`r_k` the ratio of the
    group's initial rate to that of the first group. From then on ``group["lr"]`` belongs to this object.

    Call :meth:`observe` with each (micro-batch's) loss before ``optimizer.step()``. A hook of that step averages the
    window, asks the schedule once, and writes the rate. A step that never comes, as when AMP skips it, ticks nothing;
    its losses count in the next. With ``optimizer.step(closure)`` the closure may observe, or just return, the loss.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        schedule: any :class:`metastep.Schedule`.
        initial_loss: mean loss (nats) of the fresh network, from which gamma is set; default: the first observed.
        num_classes: classes, or vocabulary size; default: round(exp(initial_loss)), at least 2.
        total_steps: optimizer steps of the run, for schedules with a horizon.
        warmup_steps: steps of linear warm-up, >= 0.
        min_lr: lower bound of the first group's rate, >= 0.
        max_lr: upper bound of the first group's rate.
        measure_loss: returns the mean training loss of the network as it is, in eval mode; asked when a schedule of
            several phases re-measures its scale. Default: a running mean of the observed losses.
        process_group: the ranks that share one rate, from the mean of all their losses: those of a
            ``torch.distributed`` process group; None means all ranks there are, False this one alone.

    With several ranks every optimizer step must come on all of them; the first hands its schedule to the others at the
    first step. See ``docs/distributed.md``.

    Non-finite losses are ignored and counted (``non_finite_losses``); a window of nothing else repeats the loss before
    it. ``lr`` tensors are written in place, and with ``lr`` on an accelerator nothing is read back from it after the
    first step (nor in it, if ``initial_loss`` is given).

    Raises:
        TypeError: for something that is not an optimizer or a schedule.
        ValueError: for arguments out of range, or an optimizer that another LearnedLR drives.

    Example:
        >>> net = torch.nn.Linear(3, 1)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> lr = LearnedLR(optimizer, MLRSNet(), num_classes=10)
        >>> loss = net(torch.ones(3)).square().sum()
        >>> loss.backward()
        >>> lr.observe(loss)
        >>> optimizer.step()
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule,
        *,
        initial_loss: float | None = None,
        num_classes: int | None = None,
        total_steps: int | None = None,
        warmup_steps: int = 0,
        min_lr: float = 0.0,
        max_lr: float = math.inf,
        measure_loss: Callable[[], float | Tensor] | None = None,
        process_group: Ranks = None,
    ) -> None:
        if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
            found = type(optimizer).__name__
            raise TypeError(f"optimizer must be a torch.optim.Optimizer (of a wrapper, the one inside), got {found}.")
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule must be a metastep Schedule, got {type(schedule).__name__}; "
                "make one (MLRSNet(), Cosine()) or load one: load_schedule(path)."
            )
        hooks = optimizer._optimizer_step_pre_hooks.values()
        if any(isinstance(getattr(hook, "__self__", None), LearnedLR) for hook in hooks):
            raise ValueError("optimizer has a LearnedLR already; call its detach() first.")
        if initial_loss is not None and not math.isfinite(initial_loss):
            raise ValueError(f"initial_loss must be finite, got {initial_loss}; leave it out to measure it.")
        if num_classes is not None:
            whole("num_classes", num_classes, 2, "leave it out to guess it")
        if total_steps is not None:
            whole("total_steps", total_steps, 1)
        whole("warmup_steps", warmup_steps, 0, "0 means no warm-up")
        if not 0 <= min_lr <= max_lr or max_lr == 0:
            raise ValueError(f"min_lr and max_lr must satisfy 0 <= min_lr <= max_lr > 0, got {min_lr}, {max_lr}.")
        self.optimizer = optimizer
        self.groups = GroupRates(optimizer)
        self.agreement = Agreement(process_group, self.groups)
        self.schedule = schedule if total_steps is None else schedule.with_total_steps(total_steps)
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.min_lr, self.max_lr = float(min_lr), float(max_lr)
        self.steps = 0
        self._scale = RunScale(self.schedule, initial_loss, num_classes, measure_loss)
        self._window = LossWindow(math.nan if initial_loss is None else initial_loss)
        self._scale.mean_over_ranks = self.agreement.mean
        self._held = False
        self._last_rate: Rate | None = None
        self._device = self.groups.device()
        self._on_host = self._device.type == "cpu"
        self.schedule.to(self._device)
        self.state: State = self.schedule.init_state()
        self._hook: Any = None
        self._attach()

    # ---- the loop's side

    def observe(self, loss: Loss) -> None:
        """Take note of this (micro-)batch's loss; several calls before one step are averaged.

        Args:
            loss: a float, or a real floating-point tensor of one element, with or without a graph (which is let go).
        """
        self._window.add(loss)

    def get_last_lr(self) -> list[float]:
        """The rate of each parameter group as the last step used it (before the first: as it stands)."""
        return self.groups.read() if self._last_rate is None else self.groups.as_written(self._last_rate)

    @property
    def non_finite_losses(self) -> int:
        """How many observed losses, on all ranks, were NaN or infinite, and ignored."""
        return self._window.ignored

    @property
    def scale(self) -> float | None:
        """What the schedule's output is multiplied by (None until gamma is measured)."""
        return self.groups.reference if self.schedule.relative else self._scale.gamma

    @property
    def initial_loss(self) -> float | None:
        """The loss from which gamma was first measured (None until it is known)."""
        return self._scale.initial_loss

    @property
    def num_classes(self) -> int | None:
        """The number of classes in gamma (None until it is known)."""
        return self._scale.num_classes

    def detach(self) -> None:
        """Let go of the optimizer: its rates stay as they are and nothing writes them any more."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    # ---- one tick: window -> loss -> rate, state -> optimizer; MetaLearner takes these apart

    def close_window(self) -> Loss | None:
        """End the window and return the loss that the schedule is to read; None if no finite loss was ever observed.

        With several ranks it is the mean of all their losses, and they call this together: one message of 24 bytes.

        Raises:
            RuntimeError: if the schedule needs a loss and none was observed, on any rank, since the last step.
        """
        self.agreement.reach(self.schedule, self._scale, self._window)
        if self._window.calls == 0 and self.schedule.needs_loss:
            raise RuntimeError(
                f"optimizer.step() came without an observed loss, which {type(self.schedule).__name__} needs: call "
                "observe(loss) on the LearnedLR after computing the loss and before each optimizer.step()."
            )
        loss = self._window.close()
        if self._on_host and isinstance(loss, Tensor):
            loss = loss.item()
        if not self.schedule.relative:
            return self._scale.read(loss, self.steps)
        unknown = self.schedule.needs_loss and isinstance(loss, float) and math.isnan(loss)
        return None if unknown else loss

    def ask(self, loss: Loss) -> tuple[Rate, State]:
        """Return the first group's rate for this loss, and the state after it; nothing is changed.

        Args:
            loss: what :meth:`close_window` returned.
        """
        if self._on_host:
            alpha, state = self.schedule.query(float(loss), self.state)
            return self._bounded(alpha), state
        with torch.no_grad():
            alpha, state = self.schedule(loss, self.state)
            return self._bounded(alpha), state

    def ask_with_graph(self, loss: Loss, state: State) -> tuple[Tensor, State]:
        """Return a rate that is differentiable with respect to the schedule's weights, from a given state."""
        alpha, state = self.schedule(loss, state)
        return cast("Tensor", self._bounded(alpha)), state

    def _bounded(self, alpha: Rate) -> Rate:
        scale = self.scale
        assert scale is not None
        rate = alpha * scale
        if self.steps < self.warmup_steps:
            rate = rate * ((self.steps + 1) / self.warmup_steps)
        if isinstance(rate, Tensor):
            return rate.clamp(self.min_lr, self.max_lr)
        return min(max(rate, self.min_lr), self.max_lr)

    def tick(self, rate: Rate, state: State) -> None:
        """Write the rate into the optimizer, keep the state, count the step."""
        self.groups.write(rate)
        if not self._on_host and isinstance(self.state, Tensor):
            self.state.copy_(state)  # in place: a captured CUDA graph goes on from it
        else:
            self.state = state
        self._last_rate = rate
        self.steps += 1

    @contextmanager
    def held(self, rate: Rate) -> Iterator[None]:
        """Within, ``optimizer.step()`` uses ``rate`` and ticks nothing: a look-ahead."""
        self.groups.write(rate)
        self._held = True
        try:
            yield
        finally:
            self._held = False

    # ---- the optimizer's side

    def _attach(self) -> None:
        self._hook = self.optimizer.register_step_pre_hook(self._before_step)

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments | None:
        if self._held or is_skipped_by_scaler(optimizer):
            return None
        if self._window.calls == 0 and is_initialisation(self.groups, self._last_rate):
            return None
        closure = closure_of(args, kwargs)
        if closure is None or not self.schedule.needs_loss:
            self._advance()
            return None
        observed = self._window.calls

        def first(loss: Any) -> None:
            if observed == self._window.calls == 0:
                self.observe(loss)
            self._advance()

        return ObservedClosure(closure, first, self._window.discard).put_into(optimizer, args, kwargs)

    def _advance(self) -> None:
        loss = self.close_window()
        if loss is not None:
            self.tick(*self.ask(loss))

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs, the schedule's weights included: numbers, strings, and tensors."""
        state = {
            "schema": 1,
            "schedule": type(self.schedule).__name__,
            "config": self.schedule.config(),
            "weights": dict(self.schedule.state_dict()),
            "state": self.state,
            "steps": self.steps,
            **self._scale.state_dict(),
            "last_rate": None if self._last_rate is None else float(self._last_rate),
            "bases": self.groups.bases,
            "window": self._window.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, before or after the optimizer has loaded its own.

        Raises:
            ValueError: if a key is missing (named), the schema is unknown, or the state belongs to another schedule.
        """
        check_saved(state_dict, self.state_dict(), self.schedule.relative, len(self.optimizer.param_groups))
        state = copy.deepcopy(state_dict)
        recurrent = state_like(self.schedule.init_state(), state["state"])
        self.schedule.load_state_dict(state["weights"])
        self.schedule.weights_changed()
        self.state = recurrent
        self.steps, self._last_rate = state["steps"], state["last_rate"]
        self._scale.load_state_dict(state)
        self.groups.set_bases(state["bases"])
        self._window.load_state_dict(state["window"])
        self.agreement.started = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hook": self._hook is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _hook=None)
        if state["_hook"]:
            self._attach()

    def __repr__(self) -> str:
        rate = "no step yet" if self._last_rate is None else f"rate {float(self._last_rate):.3g}"
        return f"LearnedLR({type(self.optimizer).__name__}, {type(self.schedule).__name__}, {self.steps} steps, {rate})"
