"""LearnedLR: attaches a schedule to an optimizer, reads the loss, writes the rate just before each step."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.core.distributed import Ranks
from metastep.schedules.agreement import Agreement
from metastep.schedules.arguments import whole
from metastep.schedules.attaching import check_numbers, check_optimizer, warn_of_another_base
from metastep.schedules.base import Loss, Rate, Reading, Schedule, State
from metastep.schedules.defaults import default_schedule
from metastep.schedules.graphed import GraphedQuery
from metastep.schedules.groups import GroupRates
from metastep.schedules.reading import Signals
from metastep.schedules.resuming import go_on_from, saved_state
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
    For a :class:`metastep.SignalSchedule` the hook also measures gradients and displacements; see ``docs/signals.md``.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        schedule: any :class:`metastep.Schedule`. Default: "signal-adamw" for AdamW; other optimizers have none.
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
        ValueError: for arguments out of range, and an optimizer that another LearnedLR drives or that has no default.

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
        schedule: Schedule | None = None,
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
        if schedule is None and isinstance(optimizer, Optimizer):
            schedule = default_schedule(optimizer)
        schedule = check_optimizer(optimizer, schedule, LearnedLR)
        check_numbers(initial_loss, num_classes, total_steps, warmup_steps, min_lr, max_lr)
        warn_of_another_base(schedule, optimizer)
        self.optimizer = optimizer
        self.schedule = schedule if total_steps is None else schedule.with_total_steps(total_steps)
        self.signals: Signals | None = None
        if schedule.watches is not None:
            self.signals = Signals(optimizer, schedule.watches)
            self.schedule = self.schedule.with_layers(self.signals.layers)
        self.groups = GroupRates(optimizer)
        self.agreement = Agreement(process_group, self.groups)
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.min_lr, self.max_lr = float(min_lr), float(max_lr)
        self.steps = 0
        self._scale = RunScale(self.schedule, initial_loss, num_classes, measure_loss)
        self._window = LossWindow(math.nan if initial_loss is None else initial_loss)
        self._scale.mean_over_ranks = self.agreement.mean
        self._held = False
        self._query = GraphedQuery()
        self._last_rate: Rate | None = None
        self._device = self.groups.device()
        self._on_host = self._device.type == "cpu"
        self.schedule.to(self._device)
        self.state: State = self.schedule.init_state()
        self._hooks: list[Any] = []
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
    def brakes(self) -> int:
        """How many steps the schedule's brake has skipped (reads the device, if the state is there)."""
        return self.schedule.brakes(self.state)

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
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def extend(self, total_steps: int) -> None:
        """Go on under another horizon: the run is to end after ``total_steps`` steps in all, more than are done.

        The next rate is that of the new horizon. Without this call a rate beyond its horizon stays at its last.
        """
        self.total_steps = whole("total_steps", total_steps, self.steps + 1, f"{self.steps} steps are done")
        self.schedule = self._scale.schedule = self.schedule.extended(total_steps)

    # ---- one tick: window -> loss -> rate, state -> optimizer; MetaLearner takes these apart

    def close_window(self) -> Loss | Reading | None:
        """End the window and return the loss that the schedule is to read; None if no finite loss was ever observed.

        Of a schedule that watches the optimizer it is a reading; the gradients must be those of the step to come.

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
        observed, broken = (False, 0) if self.signals is None else (self._window.calls > 0, self._window.broken())
        loss = self._window.close()
        if self._on_host and isinstance(loss, Tensor):
            loss = loss.item()
        if self.signals is not None:
            return self.signals.read(loss if observed else None, broken, self._device)
        if not self.schedule.relative:
            return self._scale.read(loss, self.steps)
        unknown = self.schedule.needs_loss and isinstance(loss, float) and math.isnan(loss)
        return None if unknown else loss

    def ask(self, loss: Loss | Reading) -> tuple[Rate, State]:
        """Return the first group's rate for what :meth:`close_window` returned, and the state after it."""
        if self._on_host and not isinstance(loss, Reading):
            alpha, state = self.schedule.query(float(loss), self.state)
            return self._bounded(alpha), state
        with torch.no_grad():
            rate, state = self._query(self.schedule, loss, self.state)
            rate = self._bounded(rate)
            if self.signals is not None:
                rate = self.signals.unless_skipped(rate, self.schedule.skips(state), on_host=self._on_host)
        return rate, state

    def ask_with_graph(self, loss: Loss | Reading, state: State) -> tuple[Tensor, State]:
        """Return a rate that is differentiable with respect to the schedule's weights, from a given state.

        Raises:
            ValueError: if the schedule sets a rate for each layer.
        """
        alpha, state = self.schedule(loss, state)
        if isinstance(alpha, Tensor) and alpha.ndim:
            raise ValueError(
                f"lr.schedule must set one rate for a look-ahead, got one for each of {len(alpha)} layers; use "
                'scope="network", or learn over a population.'
            )
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
        self._hooks = [self.optimizer.register_step_pre_hook(self._before_step)]
        if self.signals is not None:
            self._hooks.append(self.optimizer.register_step_post_hook(self.signals.step_is_over))

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments | None:
        if self._held and self.signals is not None:
            self.signals.prepare_step()
        if self._held or is_skipped_by_scaler(optimizer):
            return None
        if self._window.calls == 0 and is_initialisation(self.groups, self._last_rate):
            return None
        closure = closure_of(args, kwargs) if kwargs or len(args) > 1 else None
        if closure is None or not (self.schedule.needs_loss or self.signals is not None):
            self._advance()
            return None
        observed = self._window.calls

        def first(loss: Any) -> None:
            if observed == self._window.calls == 0:
                self.observe(loss)
            self._advance()

        return ObservedClosure(closure, first, self._window.discard).put_into(optimizer, args, kwargs)

    def _advance(self) -> None:
        if (loss := self.close_window()) is not None:
            self.tick(*self.ask(loss))
        if self.signals is not None:
            self.signals.prepare_step()

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs, the schedule's weights included: numbers, strings, and tensors."""
        return saved_state(self)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, before or after the optimizer has loaded its own.

        Raises:
            ValueError: if a key is missing (named), the schema is unknown, or the state belongs to another schedule.
        """
        go_on_from(self, state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _hooks=[])
        if state["_hooks"]:
            self._attach()

    def __repr__(self) -> str:
        rate = "no step yet" if self._last_rate is None else f"rate {self.get_last_lr()[0]:.3g}"
        return f"LearnedLR({type(self.optimizer).__name__}, {type(self.schedule).__name__}, {self.steps} steps, {rate})"
