"""MetaLearner: learns a schedule's weights from validation data, inside the user's own training loop."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Adam, Optimizer

from metastep.meta.lookahead import LookAhead, Window, check_loss
from metastep.meta.shared import SharedSchedule
from metastep.schedules import LearnedLR
from metastep.schedules.linearity import check_linear_in_rate


class MetaLearner:
    r"""Takes optimizer steps at the schedule's rate and, now and then, a gradient step on the schedule itself.

    One step of look-ahead from :math:`\theta` at the rate :math:`\eta(\phi)` gives
    :math:`\hat\theta = \theta - \eta u`, and

    .. math:: \frac{dL_\mathrm{val}(\hat\theta)}{d\phi}
        = -\langle \nabla L_\mathrm{val}(\hat\theta), u \rangle \frac{d\eta}{d\phi}

    exactly, for every optimizer whose update is linear in its rate: u is what its step did, divided by the rate. So a
    meta-update costs one validation pass, one inner product, and one copy of the parameters. Then the real step is
    taken at the rate of the new weights. Buffers, modes, random streams and gradients are as without the look-ahead,
    the schedule advances once per step, and a validation loss or slope that is not finite skips the update
    (``skipped_updates``).

    With several ranks each takes its own validation batch, and the loss is the mean of theirs: they send it and the
    inner product, 16 bytes, and no gradient (see ``docs/distributed.md``).

    Args:
        lr: the :class:`metastep.LearnedLR` that attaches a learned schedule to the optimizer.
        validation_loss: computes the model's loss on validation data, in training mode as published; called with the
            parameters at the look-ahead point. The modes (train or eval) of modules are put back after it.
        every: a meta-update in every ``every``-th call of :meth:`step`, >= 1.
        meta_lr: rate of the default meta-optimizer, > 0.
        meta_optimizer: any torch optimizer over ``lr.schedule.parameters()``; default Adam with weight decay 1e-4.
        horizon: number K >= 1 of optimizer steps whose rates are judged together by the validation loss after the last.
            With K > 1 the K steps stay as they were taken, and the new weights act from the next step on.
        first_order: for K > 1: True neglects how earlier steps change later gradients (one validation pass and K copies
            of the parameters); False is exact (one Hessian-vector product a step more), for torch optimizers with
            ``differentiable``, and wants :meth:`step` to be given a closure.
        max_grad_norm: clip the meta-gradient to this norm; None does not.
        keep_gradients: True gives the training gradients back after a meta-update of ``horizon=1``, for another copy of
            the parameters at the peak of memory; by default ``grad`` is None after one, as after ``zero_grad()``.
        shared: several ranks that each train a task of their own learn one schedule, by the mean of their
            meta-gradients (see :class:`metastep.meta.SharedSchedule`); None: this task alone.

    ``last_meta_loss`` is the latest validation loss (None before), ``meta_updates`` counts updates.

    Raises:
        ValueError: for arguments out of range, a schedule without weights, or weights that do not require gradients.
        NotLinearInRate: in the first meta-update, for an optimizer whose direction cannot be read off.

    Source: arXiv 2007.14546. *Differs from the paper:* training and look-ahead share one forward and backward pass, so
    the direction is that of the step really taken (with dropout the paper draws another mask), and in a meta-update the
    schedule's recurrent state advances once, where the published code advances it twice.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> lr = LearnedLR(optimizer, MLRSNet(), num_classes=2)
        >>> x, y = torch.ones(4, 2), torch.ones(4, 1)
        >>> learner = MetaLearner(lr, lambda: (model(x) - y).square().mean(), every=2)
        >>> for _ in range(4):
        ...     loss = (model(x) - y).square().mean()
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     lr.observe(loss)
        ...     learner.step()
        >>> learner.meta_updates
        2
    """

    def __init__(
        self,
        lr: LearnedLR,
        validation_loss: Callable[[], Tensor],
        every: int = 300,
        meta_lr: float = 1e-3,
        meta_optimizer: Optimizer | None = None,
        *,
        horizon: int = 1,
        first_order: bool = False,
        max_grad_norm: float | None = None,
        keep_gradients: bool = False,
        shared: SharedSchedule | None = None,
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be >= 1, got {every}; 1 learns in every step.")
        if not 0 < meta_lr < math.inf:
            raise ValueError(f"meta_lr must be > 0 and finite, got {meta_lr}.")
        if not 1 <= horizon <= every:
            raise ValueError(f"horizon must be in 1 ... every = {every}, got {horizon}.")
        if max_grad_norm is not None and not max_grad_norm > 0:
            raise ValueError(f"max_grad_norm must be > 0, got {max_grad_norm}; None does not clip.")
        weights = [weight for weight in lr.schedule.parameters() if weight.requires_grad]
        if not weights:
            raise ValueError(
                f"lr.schedule must have weights to learn, {type(lr.schedule).__name__} has none that require gradients."
            )
        if meta_optimizer is None:
            meta_optimizer = default_meta_optimizer(weights, meta_lr)
        elif not {id(p) for g in meta_optimizer.param_groups for p in g["params"]} & {id(w) for w in weights}:
            raise ValueError("meta_optimizer must hold lr.schedule.parameters(), it holds none of them.")
        self.lr = lr
        self.validation_loss = validation_loss
        self.every, self.horizon, self.first_order = every, horizon, first_order
        self.meta_optimizer = meta_optimizer
        self.max_grad_norm, self.keep_gradients = max_grad_norm, keep_gradients
        self.shared, self.ranks = shared, lr.process_group
        self.last_meta_loss: float | None = None
        self.meta_updates = 0
        self.skipped_updates = 0
        self._calls = 0
        self._checked = False
        self._window: Window | None = None
        if shared is not None and lr.rank_count > 1:
            raise ValueError(
                "lr must have process_group=False where each rank trains a task of its own: the losses of different "
                "tasks are not averaged."
            )
        if horizon > 1:
            Window.check(self.lr, first_order=first_order, every=every, horizon=horizon)

    # ---- the loop's side

    def step(
        self,
        closure: Callable[[], Tensor] | None = None,
        *,
        meta: bool | None = None,
        scaler: GradScaler | None = None,
    ) -> None:
        """Take one optimizer step at the schedule's rate; in every ``every``-th call learn from validation data, too.

        Args:
            closure: only for the exact horizon K > 1, which differentiates the training loss twice: computes this
                batch's training loss. The learner then zeroes the gradients, calls it, runs the backward pass and
                observes the loss; otherwise that is done before this call. It is called again at the end of the window,
                and must then compute the same loss: bind the batch, as in ``functools.partial(loss_of, x, y)``.
            meta: learn in this very call, or not; default: by counting. Only for ``horizon=1``.
            scaler: the loop's GradScaler, whose ``step`` is then called in place of the optimizer's. Unscaling and
                clipping before this call is fine; ``scaler.update()`` stays with the loop.
        """
        self._calls += 1
        scaler = scaler if scaler is not None and scaler.is_enabled() else None
        if self.horizon > 1:
            self._step_in_window(closure, meta, scaler)
            return
        if closure is not None:
            raise ValueError("closure must be left out for horizon=1; call backward() and observe() before step().")
        learn = self._calls % self.every == 0 if meta is None else meta
        if not learn:
            self._optimizer_step(scaler)
        elif scaler is None or self._gradients_are_finite(scaler):
            self._step_and_learn(scaler)
        else:
            scaler.step(self.lr.optimizer)  # will skip: the schedule does not advance
            self._learn_from_others()

    @property
    def in_window(self) -> bool:
        """True between the first and the last of the K steps of a window (horizon > 1)."""
        return self._window is not None

    # ---- one step of look-ahead

    def _step_and_learn(self, scaler: GradScaler | None) -> None:
        self._make_sure_of_linearity()
        loss = self.lr.flush()
        if loss is None:  # no finite loss was ever observed
            with self.lr.override(self.lr.groups.reference):
                self._optimizer_step(scaler)
            self._learn_from_others()
            return
        rate, state = self.lr.query(loss)
        look_ahead = LookAhead(self.lr.optimizer, self.ranks)
        with self.lr.override(rate):
            self._optimizer_step(scaler)
        try:
            rate_graph, _ = self.lr.query_with_graph(loss, self.lr.state)
            loss_scale = 1.0 if scaler is None else scaler.get_scale()
            found = look_ahead.slope(self.validation_loss, loss_scale, keep_gradients=self.keep_gradients)
            if self._update(found, [rate_graph]):
                new_rate, state = self.lr.query(loss)
                look_ahead.stretch(new_rate / rate)
                rate = new_rate
        finally:  # the step is taken, whatever becomes of the update
            self.lr.commit(rate, state)

    def _update(self, found: tuple[float, Tensor], rates: list[Tensor]) -> bool:
        r"""Learn from :math:`\sum_k (s_k / \eta_k)\, d\eta_k / d\phi`; False if nothing was learned.

        Args:
            found: the validation loss, and its slopes s along the displacements that the rates caused.
            rates: :math:`\eta`, with their graph.
        """
        self.last_meta_loss, slopes = found
        cotangents = [
            (slope / rate.detach()).to(rate) for slope, rate in zip(slopes.to(rates[0].device), rates, strict=True)
        ]
        if not (math.isfinite(self.last_meta_loss) and all(math.isfinite(float(c)) for c in cotangents)):
            return self._learn(None)
        gradient = torch.autograd.grad(rates, self._weights(), cotangents, allow_unused=True)
        norm = torch.cat([part.reshape(-1) for part in gradient if part is not None]).norm()
        return self._learn(list(gradient) if math.isfinite(float(norm)) else None)

    def _learn(self, gradient: list[Tensor | None] | None, *, skipped: int = 1) -> bool:
        """Move the schedule's weights along a meta-gradient, or along the mean of those of all tasks.

        Args:
            gradient: a part for each weight, None for one that the rates do not depend on; None as a whole if it is not
                finite.
            skipped: how many skipped updates None counts for.
        """
        weights = self._weights()
        self.meta_optimizer.zero_grad(set_to_none=True)
        if gradient is None:
            self.skipped_updates += skipped
        if self.shared is not None:
            gradient = self.shared.mean(gradient)
        if gradient is None:
            return False
        for weight, part in zip(weights, gradient, strict=True):
            weight.grad = part
        if self.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(weights, self.max_grad_norm)
        self.meta_optimizer.step()
        self.lr.weights_changed()
        self.meta_updates += 1
        return True

    def _learn_from_others(self) -> None:
        """Take part in the outer step of a shared schedule in which this task has no meta-gradient."""
        if self.shared is not None:
            self._learn(None, skipped=0)

    # ---- K steps

    def _step_in_window(
        self, closure: Callable[[], Tensor] | None, meta: bool | None, scaler: GradScaler | None
    ) -> None:
        if meta is not None or scaler is not None:
            raise ValueError("meta and scaler must be left out for horizon > 1.")
        if (closure is None) is not self.first_order:
            wanted = "must be left out with first_order=True" if self.first_order else "is needed for the exact horizon"
            raise ValueError(f"closure {wanted}; it computes the training loss of this batch.")
        in_window = (self._calls - 1) % self.every >= self.every - self.horizon
        if in_window and self._window is None:
            Window.check(self.lr, first_order=self.first_order, every=self.every, horizon=self.horizon)
            self._window = Window(self.lr, first_order=self.first_order)
        rng = self._window.begin() if self._window is not None and closure is not None else None
        loss = None if closure is None else self._backward(closure)
        if self._window is None:
            self.lr.optimizer.step()
            return
        self._make_sure_of_linearity()
        self._window.step(closure, loss, rng)
        if self._calls % self.every == 0:
            window, self._window = self._window, None
            if window.rates:
                self._update(window.slopes(self.validation_loss), window.rates)
            else:
                self._learn_from_others()

    def _backward(self, closure: Callable[[], Tensor]) -> Tensor:
        """The training loss, detached, after its backward pass."""
        self.lr.optimizer.zero_grad()
        with torch.enable_grad():
            loss = closure()
        check_loss(loss, "closure")
        loss.backward()  # type: ignore[no-untyped-call]
        self.lr.observe(loss)
        return loss.detach()

    # ---- small parts

    def _weights(self) -> list[nn.Parameter]:
        return [weight for weight in self.lr.schedule.parameters() if weight.requires_grad]

    def _make_sure_of_linearity(self) -> None:
        self._checked = self._checked or check_linear_in_rate(self.lr.optimizer)

    def _optimizer_step(self, scaler: GradScaler | None) -> None:
        if scaler is None:
            self.lr.optimizer.step()
        else:
            scaler.step(self.lr.optimizer)

    def _gradients_are_finite(self, scaler: GradScaler) -> bool:
        state = scaler._per_optimizer_states[id(self.lr.optimizer)]
        if not state["found_inf_per_device"]:
            scaler.unscale_(self.lr.optimizer)
        return not any(float(found) for found in state["found_inf_per_device"].values())

    # ---- checkpoints

    def state_dict(self) -> dict[str, Any]:
        """The counters and the meta-optimizer's state; the schedule's weights are in ``lr.state_dict()``.

        Raises:
            RuntimeError: inside a window of K > 1 steps, whose graphs cannot be saved; see :attr:`in_window`.
        """
        if self.in_window:
            raise RuntimeError("a window of K steps is open and cannot be saved; save when learner.in_window is False.")
        state = {
            "schema": 1,
            "calls": self._calls,
            "last_meta_loss": self.last_meta_loss,
            "meta_updates": self.meta_updates,
            "skipped_updates": self.skipped_updates,
            "meta_optimizer": self.meta_optimizer.state_dict(),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`.

        Raises:
            ValueError: if a key is missing (named) or the schema is unknown.
        """
        keys = {"schema", "calls", "last_meta_loss", "meta_updates", "skipped_updates", "meta_optimizer"}
        if missing := ", ".join(sorted(keys - state_dict.keys())):
            raise ValueError(f"state_dict lacks {missing}; it is no MetaLearner state, or an older one.")
        if state_dict["schema"] != 1:
            raise ValueError(f"state_dict has schema {state_dict['schema']!r}, this version reads 1.")
        self._calls = state_dict["calls"]
        self.last_meta_loss = state_dict["last_meta_loss"]
        self.meta_updates, self.skipped_updates = state_dict["meta_updates"], state_dict["skipped_updates"]
        self.meta_optimizer.load_state_dict(copy.deepcopy(state_dict["meta_optimizer"]))
        self._window = None


def default_meta_optimizer(weights: Sequence[nn.Parameter], meta_lr: float) -> Adam:
    """Adam with the published weight decay, with its state from the start rather than from its first step.

    ``torch.distributed.checkpoint`` loads only what is there already.
    """
    optimizer = Adam(weights, lr=meta_lr, weight_decay=1e-4)
    for weight in weights:
        zeros = {
            key: torch.zeros_like(weight, memory_format=torch.preserve_format) for key in ("exp_avg", "exp_avg_sq")
        }
        optimizer.state[weight] = {"step": torch.tensor(0.0), **zeros}
    return optimizer
