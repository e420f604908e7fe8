"""LearnedLR: attaches a schedule to an optimizer, reads the loss, writes the rate just before each step."""

import copy
import difflib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast, overload

import msgspec
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from metastep.core.distributed import (
    Ranks,
    broadcast_tensors,
    check_ranks,
    mean_over_ranks,
    rank_count,
    sum_over_ranks,
)
from metastep.schedules.base import LearnedSchedule, Loss, Rate, Schedule, State, state_like, whole
from metastep.schedules.calibrated import Calibrated
from metastep.schedules.calibration import Calibration, Calibrator, can_calibrate
from metastep.schedules.closed_form import OverHorizon
from metastep.schedules.cuda_graph import GraphedQuery
from metastep.schedules.files import load_schedule
from metastep.schedules.history import History
from metastep.schedules.loss_window import LossWindow, checked_number
from metastep.schedules.migration import upgraded_state
from metastep.schedules.param_groups import ParamGroups
from metastep.schedules.registry import REGISTRY
from metastep.schedules.run_warnings import RunWarnings, horizon_of, ignores_loss
from metastep.schedules.scale import RunScale, ScaleRule

#: Positional and keyword arguments of ``optimizer.step``; the optimizer itself is the first.
StepArguments = tuple[tuple[Any, ...], dict[str, Any]]

#: Bases that share the unit of a scale that is measured from the loss.
_SGD = frozenset({"sgd", "sgd-momentum"})
#: Parts of the names of optimizers whose steps are of a fixed size, whatever the gradient's.
_NORMALISING = ("ada", "rms", "rprop", "lion", "lamb", "lars", "muon", "shampoo", "prodigy", "sophia", "sign")

#: So many steps are told to the history at once.
_UNTOLD = 64
#: Of the state of a LearnedLR; older ones are upgraded when they are read.
_SCHEMA = 2


class LearnedLR:
    r"""Sets the learning rate of any torch optimizer by a schedule that may read the training loss.

    .. math:: \eta_k = r_k \cdot \mathrm{clip}(w_t\, s\, \alpha_t)

    for group k, with :math:`\alpha_t` the schedule's output, s the scale (gamma for a learned schedule, the group's own
    initial rate for a relative one), :math:`w_t = \min(1, (t+1)/\mathrm{warmup})`, and :math:`r_k` the ratio of the
    group's initial rate to that of the first group. From then on ``group["lr"]`` belongs to this object.

    Call :meth:`observe` with each (micro-batch's) loss before ``optimizer.step()``. A hook of that step averages the
    window, queries the schedule once, and writes the rate. A step that never comes, as when AMP skips it, does not
    advance the schedule; its losses count in the next. With ``optimizer.step(closure)`` the closure may observe, or
    just return, the loss.

    A learned schedule knows for which base optimizers its rates are made; another one gets a warning.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        schedule: any :class:`metastep.Schedule`, or the name of one. Default: :class:`metastep.Calibrated`, for
            torch's optimizers that treat each number by itself; others have none.
        initial_loss: mean loss (nats) of the fresh network, from which gamma is set; default: the first observed.
        num_classes: classes, or vocabulary size; default: round(exp(initial_loss)), at least 2.
        total_steps: optimizer steps of the run, for schedules with a horizon.
        warmup_steps: steps of linear warm-up, >= 0, fewer than ``total_steps`` or the schedule's own.
        min_lr: lower bound of the first group's rate, >= 0.
        max_lr: upper bound of the first group's rate.
        measure_loss: returns the mean training loss of the network as it is, in eval mode; asked when a schedule of
            several phases re-measures its scale. Default: a running mean of the observed losses.
        process_group: the ranks that share one rate, from the mean of all their losses: those of a
            ``torch.distributed`` process group; None means all ranks there are, False this one alone.

    With several ranks every optimizer step must come on all of them; rank 0 sends its schedule to the others at the
    first step. See ``docs/distributed.md``.

    Non-finite losses are ignored and counted (``non_finite_losses``); a window of nothing else repeats the loss before
    it. ``lr`` tensors are written in place, and with ``lr`` on an accelerator nothing is read back from it after the
    first step (nor in it, if ``initial_loss`` is given).

    Raises:
        TypeError: for something that is not an optimizer or a schedule.
        ValueError: for arguments out of range, and an optimizer that has another LearnedLR, no default schedule, or no
            rate above 0 for a schedule to multiply.

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
        schedule: Schedule | str | None = None,
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
        elif isinstance(schedule, str):
            schedule = named_schedule(schedule, total_steps)
        schedule = _checked(optimizer, schedule)
        horizon = horizon_of(schedule) if total_steps is None else total_steps
        _check_numbers(initial_loss, num_classes, horizon, warmup_steps, min_lr, max_lr)
        if (doubt := another_base(schedule, base_name(optimizer))) is not None:
            warnings.warn(doubt, stacklevel=2)
        groups = ParamGroups(optimizer, joins_at_present_rates=schedule.calibrates)
        relative = schedule.relative or (isinstance(schedule, LearnedSchedule) and schedule.scale.mode == "relative")
        if relative and groups.bases and groups.reference == 0:
            raise ValueError(
                "lr of the optimizer must be > 0, got 0, which no factor changes; make the optimizer with its usual "
                "rate, and warm up with warmup_steps."
            )
        self.optimizer, self.groups = optimizer, groups
        self.schedule = schedule if total_steps is None else schedule.with_total_steps(total_steps)
        self._calibrator = Calibrator(optimizer) if schedule.calibrates else None
        self.total_steps, self.warmup_steps = total_steps, warmup_steps
        self.min_lr, self.max_lr = float(min_lr), float(max_lr)
        self.steps = 0
        self._cooling: tuple[int, int, float] | None = None  # from which step, in how many, from which factor
        self._sync = RankSync(process_group, groups)
        self._window = LossWindow(math.nan if initial_loss is None else initial_loss)
        self._scale: RunScale | None = None
        if isinstance(self.schedule, LearnedSchedule) and not schedule.relative and not schedule.calibrates:
            remeasures = self.schedule.remeasures if _overrides(self.schedule, "remeasures") else None
            self._scale = RunScale(
                self.schedule.scale, initial_loss, num_classes, measure_loss, groups.reference, remeasures
            )
            self._scale.mean_over_ranks = self._sync.mean
        self._given = initial_loss, num_classes
        self._reads_loss = schedule.needs_loss or self._scale is not None
        self._ignores_loss = ignores_loss(schedule)
        self._overridden = False
        self._history, self._warnings = History(), RunWarnings()
        self._untold: list[tuple[int, Loss, Rate]] = []  # steps that the history does not know yet
        self._written: float | None = None  # the first group's rate, as it was written; None: it may be anything
        self._horizon = horizon_of(self.schedule)
        self._window_mean: Loss = math.nan  # of the window that was flushed last; NaN if no loss was observed
        self._group_count, self._ignored = len(groups.bases), 0
        self._recorded_query = GraphedQuery()
        self._last_rate: Rate | None = None
        self._decayed = schedule.relative and groups.were_decayed()
        self._device = groups.device()
        self._on_host = self._device.type == "cpu"
        with torch.inference_mode(False):
            self.schedule.to(self._device)
            self.state: State = self.schedule.init_state()
        self._hooks: list[Any] = []
        self._attach()

    # ---- the loop's side

    def observe(self, loss: Loss, grad_norm: float | Tensor | None = None) -> None:
        """Take note of this (micro-)batch's loss; several calls before one step are averaged.

        Args:
            loss: a float, or a real floating-point tensor of one element, with or without a graph (which is let go).
            grad_norm: the length of the gradient that the step will see, where you have it: the lesser of what
                ``clip_grad_norm_`` returned and its bound. The calibrated schedule then need not read the gradient
                itself, over SGD. Give it in every step or in none.
        """
        self._window.add(loss)
        if grad_norm is not None:
            grad_norm = checked_number("grad_norm", grad_norm)
            if self._calibrator is not None:
                self._calibrator.given = float(grad_norm)

    def step(self, *args: object, **kwargs: object) -> None:
        """Nothing: ``optimizer.step()`` has moved the rate. It is here for loops that step a torch scheduler."""

    def observe_validation(self, loss: Loss) -> bool:
        """Take note of a validation loss, now and then, and say whether it is the least so far.

        It changes no rate. Keep the weights whenever this returns True, and a run that overfits ends with the best of
        them; ``history.best`` and :meth:`plot` say where they were.

        Args:
            loss: a float, or a tensor of one element, which is read. One that is not finite is never the best. Where
                the weights are kept by each rank for itself, give the same number on all.

        Raises:
            TypeError: for what is no real number.
            ValueError: for a tensor of several elements.
        """
        return self._history.add_validation(self.steps, float(checked_number("loss", loss)))

    def get_last_lr(self) -> list[float]:
        """The rate of each parameter group as the last step used it (before the first: as it stands)."""
        return self.groups.read() if self._last_rate is None else self.groups.as_written(self._last_rate)

    @property
    def non_finite_losses(self) -> int:
        """How many observed losses, on all ranks, were NaN or infinite, and ignored."""
        return self._window.ignored

    @property
    def history(self) -> History:
        """Losses and rates of at most 2,000 steps, and what happened: see :class:`metastep.schedules.history.History`.

        The losses are those of this rank, or the mean over all ranks where the schedule reads it. To ask for it reads
        the device, if losses are there.
        """
        self._tell_history()
        if (ignored := self._window.ignored) > 0:
            self._history.note_non_finite(self.steps, ignored)
        return self._history

    def plot(self, path: str | Path | None = None) -> Any:
        """Draw the loss and the rate over the steps with Altair (``pip install "metastep[report]"``).

        Args:
            path: where to write the picture: ``.png``, ``.svg`` or ``.html``.

        Returns:
            The chart, which a notebook shows.

        Raises:
            ModuleNotFoundError: if Altair is missing.
            ValueError: for a path that ends otherwise.
        """
        return self.history.plot(path)

    @property
    def scale(self) -> float | None:
        """What the schedule's output is multiplied by (None until it is measured)."""
        if self._calibrator is not None:
            return self._calibrator.found.unit
        return self.groups.reference if self._scale is None else self._scale.gamma

    @property
    def initial_loss(self) -> float | None:
        """The loss from which gamma was first measured (None until it is known)."""
        return self._given[0] if self._scale is None else self._scale.initial_loss

    @property
    def num_classes(self) -> int | None:
        """The number of classes in gamma (None until it is known)."""
        return self._given[1] if self._scale is None else self._scale.num_classes

    @property
    def process_group(self) -> Ranks:
        """The ranks that share one rate: a process group, None for all, False for this one alone."""
        return self._sync.process_group

    @property
    def rank_count(self) -> int:
        """How many they are."""
        return rank_count(self._sync.process_group)

    def detach(self) -> None:
        """Let go of the optimizer: its rates stay as the last step used them.

        Warns, as :meth:`check_end` does, of a run that ends before its rate has come down.
        """
        if self._hooks:
            self.check_end()
        for hook in self._hooks:
            hook.remove()
        if self._hooks and self._last_rate is not None:
            self.groups.write(self._last_rate)
        self._hooks = []

    def check_end(self) -> None:
        """The run ends here: warn, once, if the rate is still high because more steps were announced, or none.

        The adapters of Lightning and Transformers call it; at the end of a loop of your own, you can.
        """
        self._warnings.end(self.schedule, self.steps, self._cooling is not None)

    def extend(self, total_steps: int) -> None:
        """Go on under another horizon: the run is to end after ``total_steps`` steps in all, more than are done.

        The next rate is that of the new horizon. Without this call a rate beyond its horizon stays at its last. What
        :meth:`cool` began is over.
        """
        self._cooling = None
        self.total_steps = whole("total_steps", total_steps, self.steps + 1, f"{self.steps} steps are done")
        self.schedule = self.schedule.extended(total_steps)
        self._horizon = horizon_of(self.schedule)
        self._history.note(self.steps, f"extended to {self.total_steps} steps in all")
        if self._scale is not None and self._scale.remeasures is not None:
            self._scale.remeasures = cast("LearnedSchedule", self.schedule).remeasures

    def cool(self, steps: int) -> None:
        """Anneal from now on: the rate falls along a line to 0 in so many steps, beside what the schedule says.

        For a run whose length was not known: call it when the end is in sight, and stop after those steps.
        """
        self._cooling = self.steps, whole("steps", steps, 1), self._cooled()
        self._history.note(self.steps, f"cooling down in {steps} steps")

    # ---- one step: losses -> rate and next state -> optimizer; MetaLearner takes these apart

    def flush(self) -> Loss | None:
        """End the window of observed losses; return what the schedule is to read, None if no loss was ever finite.

        With several ranks it is the mean of all their losses, and they call this together: one message of 24 bytes.

        Raises:
            RuntimeError: if the schedule needs a loss and none was observed, on any rank, since the last step.
        """
        window = self._window
        calibrates = self._calibrator is not None and self._calibrator.found.share is None
        reads = self._reads_loss or calibrates
        if self._ignores_loss and window.calls == 0 and not reads:
            self._window_mean = math.nan
            return math.nan
        if reads and not self._sync.alone:
            self._sync.exchange(self.schedule, self._scale, window)
        if window.calls == 0 and self.schedule.needs_loss:
            raise RuntimeError(
                f"optimizer.step() came without an observed loss, which {type(self.schedule).__name__} needs: call "
                "observe(loss) on the LearnedLR after computing the loss and before each optimizer.step(), or let the "
                "closure return it."
            )
        observed = window.has_finite
        loss = window.flush()
        if self._on_host and isinstance(loss, Tensor) and (calibrates or not self._ignores_loss):
            loss = loss.item()
        self._window_mean = loss if observed else math.nan
        if self._scale is not None:
            return self._scale.read(loss, self.steps)
        unknown = self.schedule.needs_loss and isinstance(loss, float) and math.isnan(loss)
        return None if unknown else loss

    @overload
    def query(self) -> tuple[Rate, State] | None: ...

    @overload
    def query(self, loss: Loss) -> tuple[Rate, State]: ...

    def query(self, loss: Loss | None = None) -> tuple[Rate, State] | None:
        """Return the first group's rate, and the state after it; None if no loss was ever finite.

        Args:
            loss: what :meth:`flush` returned; left out: the window is flushed now.
        """
        factor = self._warmup_and_cooling() if self._cooling or self.steps < self.warmup_steps else 1.0
        if loss is None and (loss := self.flush()) is None:
            return None
        scale: float | None
        if self._calibrator is not None:
            scale = self._calibrated_scale(self._calibrator, loss)
        else:
            scale = self.groups.reference if self._scale is None else self._scale.gamma
        assert scale is not None
        alpha: Rate
        if self._on_host:
            alpha, state = self.schedule.query(math.nan if self._ignores_loss else float(loss), self.state)
        else:
            with torch.no_grad():
                alpha, state = self._recorded_query(self.schedule, loss, self.state)
        rate = alpha * (scale * factor)
        if isinstance(rate, Tensor):
            return rate.clamp(self.min_lr, self.max_lr), state
        if not self.min_lr <= rate <= self.max_lr:
            rate = min(max(rate, self.min_lr), self.max_lr)
        return rate, state

    def query_with_graph(self, loss: Loss, state: State) -> tuple[Tensor, State]:
        """Return a rate that is differentiable with respect to the schedule's weights, from a given state."""
        scale, factor = self.scale, self._warmup_and_cooling()
        assert scale is not None
        alpha, state = self.schedule(loss, state)
        rate: Tensor = (alpha * scale * factor).clamp(self.min_lr, self.max_lr)
        return rate, state

    def _calibrated_scale(self, calibrator: Calibrator, loss: Loss) -> float:
        self.groups.adopt_new_groups()
        schedule, known = cast("Calibrated", self.schedule), calibrator.found.share is not None
        if known:
            return calibrator.scale(schedule, self.groups.ratios, math.nan)
        found = calibrator.scale(schedule, self.groups.ratios, float(loss))
        self._note_calibration(calibrator.found, math.isfinite(float(loss)))
        return found

    def _note_calibration(self, found: Calibration, observed: bool) -> None:
        if found.unit is None or found.share is None:
            text = "no gradient said anything yet: the rate is 0 until one does"
            if any(event == text for _, event in self._history.events):
                return
        else:
            kind = "looks trained" if found.trained else "looks fresh"
            text = f"calibrated: unit rate {found.unit:.4g}, share {found.share:.3g}; the network {kind}"
            if not observed:
                text += "; no loss was observed, so the first steps are not bounded by it"
        self._history.note(self.steps, text)

    def _warmup_and_cooling(self) -> float:
        factor = (self.steps + 1) / self.warmup_steps if self.steps < self.warmup_steps else 1.0
        return factor if self._cooling is None else factor * self._cooled()

    def _cooled(self) -> float:
        """By which factor the rate is lower because :meth:`cool` was called."""
        if self._cooling is None:
            return 1.0
        begun, steps, first = self._cooling
        return first * max(steps - (self.steps - begun), 1) / steps

    @overload
    def commit(self) -> None: ...

    @overload
    def commit(self, rate: Rate, state: State) -> None: ...

    def commit(self, rate: Rate | None = None, state: State = None) -> None:
        """Write the rate into the optimizer, keep the state, count the step.

        Args:
            rate: what :meth:`query` returned; left out: the schedule is queried now.
            state: the same.
        """
        if rate is None:
            found = self.query()
            if found is None:
                return
            rate, state = found
        if self._decayed:
            self._warn_of_a_decayed_base()
        if self.steps == self._horizon and self._cooling is None:
            self._warnings.beyond(self._horizon)
        groups = self.groups
        groups.write(rate)
        written = self.optimizer.param_groups[0]["lr"] if groups.bases else None
        self._written = written if isinstance(written, float) else None
        ratio = groups.ratios[0] if groups.ratios else 1.0
        self._untold.append((self.steps, self._window_mean, rate if ratio == 1.0 else rate * ratio))
        happened = len(groups.bases) != self._group_count or self._window.ignored_on_host != self._ignored
        if happened or len(self._untold) == _UNTOLD:
            self._tell_history()
        if not self._on_host and isinstance(self.state, Tensor):
            self.state.copy_(state)  # in place: a captured CUDA graph goes on from it
        else:
            self.state = state
        self._last_rate = rate
        self.steps += 1

    def _tell_history(self) -> None:
        for step, loss, rate in self._untold:
            self._history.add(step, loss, rate)
        self._untold.clear()
        if (count := len(self.groups.bases)) != self._group_count:
            ratios = ", ".join(f"{ratio:.3g}" for ratio in self.groups.ratios[self._group_count :])
            self._history.note(self.steps, f"parameter groups joined, with {ratios} of the reference group's rate")
            self._group_count = count
        if self._window.ignored_on_host != self._ignored:
            self._ignored = self._window.ignored_on_host
            self._history.note_non_finite(self.steps, self._ignored)

    @contextmanager
    def override(self, rate: Rate) -> Iterator[None]:
        """Within, ``optimizer.step()`` uses ``rate`` and does not advance the schedule: a look-ahead."""
        self.groups.write(rate)
        self._written = None
        self._overridden = True
        try:
            yield
        finally:
            self._overridden = False

    def weights_changed(self) -> None:
        """Told after a meta-update: the schedule has learned over this optimizer's base."""
        if isinstance(self.schedule, LearnedSchedule):
            self.schedule.learned_for(base_name(self.optimizer))
            self.schedule.weights_changed()

    def _warn_of_a_decayed_base(self) -> None:
        self._decayed = False
        warnings.warn(
            f"the optimizer has taken steps, and its present rate, {self.groups.reference:g}, is taken for the initial "
            "one; to go on with a run, load the LearnedLR's state_dict beside the optimizer's.",
            stacklevel=2,
        )

    # ---- the optimizer's side

    def _attach(self) -> None:
        self._hooks = [self.optimizer.register_step_pre_hook(self._before_step)]

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments | None:
        if self._overridden or is_skipped_by_scaler(optimizer):
            return None
        written = self._written
        if not written or optimizer.param_groups[0]["lr"] != written:
            if self._window.calls == 0 and is_initialisation(self.groups, self._last_rate):
                return None
            if written is None or optimizer.param_groups[0]["lr"] != written:
                self._warnings.before_step(optimizer, self.steps, unknown=written is None)
        closure = closure_of(args, kwargs) if kwargs or len(args) > 1 else None
        if closure is None or not (self.schedule.needs_loss or self._calibrator is not None):
            self.commit()
            return None
        observed = self._window.calls

        def first(loss: Any) -> None:
            if observed == self._window.calls == 0 and loss is not None:
                self.observe(loss)
            self.commit()

        return ObservedClosure(closure, first, self._window.discard).put_into(optimizer, args, kwargs)

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """Everything a bit-exact resume needs, the schedule's weights included: numbers, strings, and tensors."""
        learned = self.schedule if isinstance(self.schedule, LearnedSchedule) else None
        scale = self._scale or RunScale(ScaleRule(), None, None, None, 0.0)
        state = {
            "schema": _SCHEMA,
            "schedule": type(self.schedule).__name__,
            "config": self.schedule.config(),
            "trained_for": None if learned is None else learned.trained_for,
            "weights": dict(self.schedule.state_dict()),
            "state": self.state,
            "steps": self.steps,
            **scale.state_dict(),
            "last_rate": None if self._last_rate is None else float(self._last_rate),
            "bases": self.groups.bases,
            "window": self._window.state_dict(),
            "cooling": self._cooling,
        }
        if self._scale is None:
            state["initial_loss"], state["num_classes"] = self._given
        if self._calibrator is not None:
            state["calibration"] = self._calibrator.state_dict()
        return {**copy.deepcopy(state), "history": self.history.state_dict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`, before or after the optimizer has loaded its own.

        Raises:
            TypeError: if it is no mapping.
            ValueError: if a key is missing (named), the schema is unknown, or the state belongs to another schedule.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be what state_dict() returned, got {type(state_dict).__name__}.")
        saved = upgraded_state(state_dict)
        self._check(saved)
        saved = copy.deepcopy(saved)
        learned = self.schedule if isinstance(self.schedule, LearnedSchedule) else None
        state = state_like(self.schedule.init_state(), saved["state"])
        self.schedule.load_state_dict(saved["weights"])
        if learned is not None:
            learned.weights_changed()
            for base in (saved["trained_for"] or "").split(", "):
                learned.learned_for(base) if base else None
        self.state = state
        self.steps, self._last_rate = saved["steps"], saved["last_rate"]
        if self._scale is not None:
            self._scale.load_state_dict(saved)
        self._given = saved["initial_loss"], saved["num_classes"]
        self.groups.set_bases(saved["bases"])
        self._window.load_state_dict(saved["window"])
        if self._calibrator is not None:
            self._calibrator.load_state_dict(saved["calibration"])
        self._cooling = msgspec.convert(saved["cooling"], tuple[int, int, float] | None)
        horizon = saved["config"].get("total_steps")
        if horizon is not None and getattr(self.schedule, "total_steps", horizon) is None:
            self.schedule, self.total_steps = self.schedule.extended(horizon), horizon
        self._horizon = horizon_of(self.schedule)
        self._untold.clear()
        self._history.load_state_dict(saved["history"])
        self._written = None  # whatever a checkpoint has set
        self._warnings.forget()
        self._group_count, self._ignored = len(self.groups.bases), self._window.ignored_on_host
        self._sync.restart()
        self._decayed = False

    def _check(self, saved: Mapping[str, Any]) -> None:
        """Raise a ValueError unless this LearnedLR can go on from a saved state.

        The state of a closed form is a step, which goes on under other arguments; weights fit one configuration,
        whatever the horizon.
        """
        expected = self.state_dict()
        missing = expected.keys() - saved.keys()
        if missing:
            raise ValueError(
                f"state_dict lacks {', '.join(sorted(missing))}; it is no LearnedLR state, or an older one."
            )
        kind = self.schedule
        closed_form = next(kind.parameters(), None) is None and (kind.relative or kind.calibrates)
        for key in ("schema", "schedule") if closed_form else ("schema", "schedule", "config"):
            if _of_the_weights(saved[key]) != _of_the_weights(expected[key]):
                raise ValueError(
                    f"state_dict has {key} {saved[key]!r}, this LearnedLR has {expected[key]!r}; "
                    "construct it with the schedule that was saved."
                )
        groups = len(self.optimizer.param_groups)
        if len(saved["bases"]) > groups:
            raise ValueError(
                f"state_dict is of {len(saved['bases'])} parameter groups, the optimizer has {groups}; "
                "add the groups before loading."
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hooks": bool(self._hooks)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _hooks=[])
        if state["_hooks"]:
            self._attach()

    def __repr__(self) -> str:
        rate = "no step yet" if self._last_rate is None else f"rate {self.get_last_lr()[0]:.3g}"
        return f"LearnedLR({type(self.optimizer).__name__}, {type(self.schedule).__name__}, {self.steps} steps, {rate})"


def _of_the_weights(value: Any) -> Any:
    """A configuration without what the weights do not depend on: the horizon, and for what they were trained."""
    if isinstance(value, dict):
        return {k: _of_the_weights(v) for k, v in value.items() if k not in ("total_steps", "trained_for")}
    return [_of_the_weights(part) for part in value] if isinstance(value, list | tuple) else value


def _overrides(schedule: LearnedSchedule, method: str) -> bool:
    return getattr(type(schedule), method) is not getattr(LearnedSchedule, method)


# ---- which optimizers and schedules go together


def base_name(optimizer: Optimizer) -> str:
    """The name of an optimizer as a schedule knows it: "sgd", "sgd-momentum", "adamw", "rmsprop", ..."""
    if type(optimizer) is SGD:
        return "sgd-momentum" if any(group["momentum"] for group in optimizer.param_groups) else "sgd"
    return type(optimizer).__name__.lower()


def another_base(schedule: Schedule, base: str) -> str | None:
    """What speaks against this schedule over an optimizer of this base; None if nothing does.

    A learned schedule is for the bases for which it was trained. Where that is not known, a scale that is measured from
    the loss is in the unit of SGD's rates, and too large for optimizers that normalise their steps.
    """
    if not isinstance(schedule, LearnedSchedule) or not (schedule.relative or schedule.scale.is_measured):
        return None
    if schedule.trained_for is not None:
        known = schedule.trained_for.split(", ")
        if base in known or (not schedule.relative and base in _SGD and not _SGD.isdisjoint(known)):
            return None
        return (
            f"the schedule was trained for {schedule.trained_for}, the optimizer is {base}: its rates may be far from "
            f"good; use a schedule trained for {base}, or {schedule.trained_for} as the optimizer."
        )
    if schedule.relative or not any(part in base for part in _NORMALISING):
        return None
    return (
        f"{type(schedule).__name__} measures the scale of its rate by a rule for sgd, the optimizer is {base}: its "
        'rates may be far too large; use ScaleRule(mode="relative"), which multiplies the own rate of the optimizer.'
    )


def default_schedule(optimizer: Optimizer) -> Schedule:
    """The schedule of an optimizer for which none was named: the calibrated one.

    Raises:
        ValueError: for an optimizer that it was not tried with.
    """
    if not can_calibrate(optimizer):
        raise ValueError(
            f"schedule must be named for {type(optimizer).__name__}: SGD, Adam, AdamW and others of torch that "
            "treat each number by itself and move in proportion to their rate have a default. The schedules are "
            f"{', '.join(_names())}; calibrated measures the rate of an optimizer, the others multiply your own."
        )
    return Calibrated()


def named_schedule(name: str, total_steps: int | None) -> Schedule:
    """The schedule of this name, over a horizon if there is one: one of the registry, or one in a file.

    Raises:
        ValueError: for an unknown name.
    """
    kind = _names().get(name)
    if kind is None:
        try:
            return load_schedule(name)
        except FileNotFoundError as error:
            if Path(name).suffix or len(Path(name).parts) > 1 or "calibrated" in str(error):
                raise
            close = difflib.get_close_matches(name.lower(), _names(), n=1)
            meant = f" Did you mean {close[0]}?" if close and "did you mean" not in str(error) else ""
            raise FileNotFoundError(f"{error}{meant} The schedules are {', '.join(_names())}.") from None
    if total_steps is None and issubclass(kind, OverHorizon):
        raise ValueError(f'total_steps must be given with schedule "{name}", which has a horizon.')
    return kind() if total_steps is None else kind.for_run(total_steps)


def _names() -> dict[str, type[Schedule]]:
    return {kind.name: kind for kind in REGISTRY.values() if kind.name}


def _checked(optimizer: object, schedule: object) -> Schedule:
    """Return the schedule; raise unless it is one, and the optimizer has hooks and no other LearnedLR."""
    if not isinstance(optimizer, Optimizer) or not hasattr(optimizer, "_optimizer_step_pre_hooks"):
        found = type(optimizer).__name__
        raise TypeError(f"optimizer must be a torch.optim.Optimizer (of a wrapper, the one inside), got {found}.")
    if not isinstance(schedule, Schedule):
        raise TypeError(
            f"schedule must be a metastep Schedule, got {type(schedule).__name__}; "
            "make one (MLRSNet(), Cosine()) or load one: load_schedule(path). A number of steps is total_steps=."
        )
    if not (schedule.relative or schedule.calibrates or isinstance(schedule, LearnedSchedule)):
        raise TypeError(
            f"schedule must be a LearnedSchedule with a scale, {type(schedule).__name__} is neither that nor relative, "
            "and does not calibrate; derive it from metastep.LearnedSchedule."
        )
    hooks = optimizer._optimizer_step_pre_hooks.values()
    if any(isinstance(getattr(hook, "__self__", None), LearnedLR) for hook in hooks):
        raise ValueError("optimizer has a LearnedLR already; call its detach() first.")
    return schedule


def _check_numbers(
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
    if total_steps is not None and warmup_steps >= total_steps:
        raise ValueError(
            f"warmup_steps must be less than total_steps, got {warmup_steps} of {total_steps}; nothing would follow it."
        )
    if not 0 <= min_lr <= max_lr or max_lr == 0:
        raise ValueError(f"min_lr and max_lr must satisfy 0 <= min_lr <= max_lr > 0, got {min_lr}, {max_lr}.")


# ---- several ranks


class RankSync:
    """Brings the ranks of a run to one rate: they start from one schedule and read the mean of all their losses.

    Args:
        process_group: whose ranks; None: all that there are; False: this one alone.
        groups: the optimizer's, on the device of whose parameters messages are sent.

    Attributes:
        alone: whether there is one rank, decided at the first step; False before it.

    Raises:
        ValueError: if it is no process group, None or False.
    """

    def __init__(self, process_group: Ranks, groups: ParamGroups) -> None:
        check_ranks("process_group", process_group)
        self.process_group, self.groups = process_group, groups
        self.restart()

    def restart(self) -> None:
        """All ranks start from rank 0's schedule in the next step."""
        self.alone, self._started = False, False

    def exchange(self, schedule: Schedule, scale: RunScale | None, window: LossWindow) -> None:
        """Put the losses of all ranks into the window; the first time, rank 0's schedule and scale on all."""
        if rank_count(self.process_group) == 1:
            self.alone = True
            return
        if not self._started:
            broadcast_tensors([*schedule.parameters(), *schedule.buffers()], self.process_group)
            if isinstance(schedule, LearnedSchedule):
                schedule.weights_changed()
            if scale is not None:
                scale.share(self._from_first)
            (window.last,) = self._from_first([window.last])
            self._started = True
        home = self.groups.parameter_device()
        window.share(lambda sums: sum_over_ranks(sums, self.process_group, home))

    def mean(self, number: float) -> float:
        """The mean over ranks of a number on the host."""
        mine = torch.tensor(number, dtype=torch.float64)
        return float(mean_over_ranks(mine, self.process_group, self.groups.parameter_device()))

    def _from_first(self, numbers: list[float]) -> list[float]:
        shared = torch.tensor(numbers, dtype=torch.float64)
        broadcast_tensors([shared], self.process_group)
        return [float(number) for number in shared]


# ---- what a call of optimizer.step is: a real step, an empty one, a skipped one, or one that runs a closure first


class ObservedClosure:
    """A step's closure that tells of its evaluations: the first sets the rate, later ones (a line search) do not.

    Args:
        closure: computes and returns the loss.
        first: called with the loss of the first evaluation, before the optimizer goes on.
        later: called after every other one.
    """

    def __init__(self, closure: Callable[[], Any], first: Callable[[Any], None], later: Callable[[], None]) -> None:
        self._closure, self._first, self._later = closure, first, later
        self._evaluated = False
        self._ahead: list[Any] = []

    def __call__(self) -> Any:
        """Evaluate the closure, or hand out what was evaluated ahead."""
        if self._ahead:
            return self._ahead.pop()
        loss = self._closure()
        if self._evaluated:
            self._later()
        else:
            self._evaluated = True
            self._first(loss)
        return loss

    def put_into(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> StepArguments:
        """Return the arguments of the step with this closure in place of its own."""
        if isinstance(optimizer, torch.optim.LBFGS):  # it reads its rate before it calls the closure
            with torch.enable_grad():
                self._ahead.append(self())
        if "closure" in kwargs:
            return args, {**kwargs, "closure": self}
        return (args[0], self, *args[2:]), kwargs


def closure_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Any] | None:
    """The closure that a step was given, if any."""
    return kwargs["closure"] if "closure" in kwargs else args[1] if len(args) > 1 else None


def is_initialisation(groups: ParamGroups, last_rate: float | Tensor | None) -> bool:
    """True in the empty step at rate zero by which torch.distributed.checkpoint makes an optimizer create its state.

    Args:
        groups: the optimizer's.
        last_rate: the rate last written; a zero of our own means nothing.
    """
    if not groups.all_zero():
        return False
    if groups.reference == 0:  # the rates were zero from the start: only the gradients tell
        parameters = [p for group in groups.optimizer.param_groups for p in group["params"]]
        return not any(p.grad is not None and p.grad.any() for p in parameters)
    if isinstance(last_rate, Tensor) and last_rate.device.type == "cpu":
        return bool(last_rate.any())
    return isinstance(last_rate, Tensor) or last_rate != 0


def is_skipped_by_scaler(optimizer: Optimizer) -> bool:
    """True if a fused optimizer under GradScaler will skip this step on the device (which is asked)."""
    found_inf = vars(optimizer).get("found_inf")
    return found_inf is not None and float(found_inf) != 0
