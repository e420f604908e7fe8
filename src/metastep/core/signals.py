r"""What a schedule may observe at a step: dimensionless numbers, from five raw ones.

Before step t the loss f, the gradient g and the last displacement :math:`u = \theta_{t-1} - \theta_t` (in the direction
of descent) are known. Of these only f, <g, u>, |g|^2, |u|^2 and :math:`|\theta|^2` enter. Everything here is a ratio of
such numbers, so that it stays the same when the loss or the parameters are measured in other units. ``REGISTRY`` has
every signal; features are about in [-1, 1] and never beyond +-3.

Every function takes tensors with any leading dimensions (one network: none; a population: one; its layers: two),
branches on none of their values, and reads nothing back to the host.

**The spike guard.** Has the loss or the gradient left the range in which it has been? Nothing to tune. A step is
skipped if its loss or its gradient is not finite, or, once ten of them are known and none of the last ten was skipped,

    r > max(2 slow(r) + 8 dev(r), 1/2)           the loss, with r = f / f_0
    |g| > max(4 slow(|g|) + 8 dev(|g|), peak)    the gradient

where slow is a slow average, dev that of the distance from it, and peak the largest |g| so far. All of it is free of
scale. The floors, half the initial loss and the largest gradient so far, are there for the end of a run, when a single
odd example in a batch multiplies a tiny loss. Skipping alone does not heal a network that was thrown far off: the rate
backs off to a tenth, and in a cooldown of ten steps at that rate only what is not finite is skipped.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: Observations before there is a range to leave, and steps of the cooldown.
COOLDOWN = 10
#: What a skipped step adds to the log-multiplier: a rate that is too high is seldom more than ten times too high.
BACKOFF = -math.log(10)

#: Share of the newest value in the averages.
_FAST_LOSS, _SLOW_LOSS = 0.1, 0.02
_FAST_ALIGNMENT, _SLOW_ALIGNMENT = 0.2, 0.03
#: A loss counts as at most this many times the first one, so that one spike does not own the averages.
_LARGEST_LOSS = 100.0
_SMALLEST_LOSS = 1e-4
#: No feature is beyond this.
_LARGEST = 3.0


# ---- what is remembered from step to step


class SignalState(NamedTuple):
    """What the signals remember: tensors of one shape, (...); floats, all of one dtype.

    Attributes:
        steps: observed steps.
        losses: observed finite losses, from the first that is not 0.
        first_loss: that loss, by which all others are divided; 0 before it.
        fast_loss: fast average of f / f_0.
        slow_loss: slow average of f / f_0.
        loss_deviation: slow average of the distance of f / f_0 from its slow average.
        alignment_fast: fast average of c, from 0.
        alignment_slow: slow average of c, from 0.
        gradients: observed finite gradient norms that are not 0.
        gradient_fast: fast average of |g|.
        gradient_slow: slow average of |g|.
        gradient_deviation: slow average of the distance of |g| from its slow average.
        gradient_peak: largest |g| so far.
        update: fast average of |u| / |theta|; 0 before the first displacement.
        drop: fast average of |g| |u| / |f|; 0 before the first displacement.
        first_update: 1 at the step that sees the first displacement, otherwise 0.
        skipped: 1 if the present step is to be skipped, otherwise 0.
        backoff: 1 if the multiplier is to back off at the present step, otherwise 0.
        cooldown: steps until a finite loss or gradient may be skipped again.
        skips: how many steps were to be skipped.
    """

    steps: Tensor
    losses: Tensor
    first_loss: Tensor
    fast_loss: Tensor
    slow_loss: Tensor
    loss_deviation: Tensor
    alignment_fast: Tensor
    alignment_slow: Tensor
    gradients: Tensor
    gradient_fast: Tensor
    gradient_slow: Tensor
    gradient_deviation: Tensor
    gradient_peak: Tensor
    update: Tensor
    drop: Tensor
    first_update: Tensor
    skipped: Tensor
    backoff: Tensor
    cooldown: Tensor
    skips: Tensor

    def packed(self) -> Tensor:
        """One tensor (..., S)."""
        return torch.stack(self, dim=-1)

    @classmethod
    def unpacked(cls, packed: Tensor) -> SignalState:
        """The state in a tensor (..., S)."""
        return cls(*packed.unbind(-1))


def init_signals(shape: Sequence[int], dtype: torch.dtype, device: torch.device | str = "cpu") -> SignalState:
    """The state before the first step, of tensors of this shape."""
    packed = torch.zeros(*shape, len(SignalState._fields), dtype=dtype, device=device)
    return SignalState.unpacked(packed)


def observe(
    state: SignalState,
    loss: Tensor | None,
    dot: Tensor,
    grad_sq: Tensor,
    update_sq: Tensor,
    param_sq: Tensor,
) -> SignalState:
    r"""Return the state after the raw numbers of one more step, all of the state's shape.

    The loss is measured against the first that is finite and not 0, :math:`f_0`: r = f / f_0, or 2 + f / |f_0| if that
    is negative (r then starts at 1, too, and falls while the loss improves). r is clipped to +-100. A step that is
    skipped, numbers that are not finite, and an alignment with a displacement or gradient of length 0 leave the
    averages as they are. The raw numbers may be of a wider dtype than the state.

    Args:
        state: before the step.
        loss: f; None if no loss was observed.
        dot: <g, u>.
        grad_sq: |g|^2.
        update_sq: |u|^2; 0 before the first displacement.
        param_sq: |theta|^2.
    """
    dtype = state.steps.dtype
    grad, update, size = (square.clamp(min=0).sqrt().to(dtype) for square in (grad_sq, update_sq, param_sq))
    first, ratio, has_loss = _loss_ratio(state, loss)
    has_grad = grad.isfinite() & (grad > 0)
    bad_loss = torch.zeros_like(has_grad) if loss is None else ~loss.isfinite()
    skipped, backoff = out_of_range(state, ratio, grad, has_loss, has_grad, bad_loss | ~grad.isfinite())
    has_loss, has_grad = has_loss & ~skipped, has_grad & ~skipped

    cosine = (dot / grad / update).to(dtype)  # the product of the lengths may leave the range of float32
    has_cosine = has_grad & (update > 0) & cosine.isfinite()
    cosine = torch.where(has_cosine, cosine, 0).clamp(-1, 1)
    moved = update / size
    has_moved = (update > 0) & (size > 0) & moved.isfinite()
    share = grad * update / (ratio * first).abs()
    has_share = has_cosine & has_loss & share.isfinite()
    grad = torch.where(has_grad, grad, 0)

    fresh_loss, fresh_grad = state.losses == 0, state.gradients == 0
    slow_loss = _average(state.slow_loss, ratio, _SLOW_LOSS, has_loss, fresh_loss)
    slow_grad = _average(state.gradient_slow, grad, _SLOW_LOSS, has_grad, fresh_grad)
    never = torch.zeros_like(fresh_loss)
    unmoved = (state.update == 0) | (state.first_update > 0)  # the first displacement was of a rate that nobody chose
    return SignalState(
        steps=state.steps + 1,
        losses=state.losses + has_loss,
        first_loss=first,
        fast_loss=_average(state.fast_loss, ratio, _FAST_LOSS, has_loss, fresh_loss),
        slow_loss=slow_loss,
        loss_deviation=_average(state.loss_deviation, (ratio - slow_loss).abs(), _SLOW_LOSS, has_loss, never),
        alignment_fast=_average(state.alignment_fast, cosine, _FAST_ALIGNMENT, has_cosine, never),
        alignment_slow=_average(state.alignment_slow, cosine, _SLOW_ALIGNMENT, has_cosine, never),
        gradients=state.gradients + has_grad,
        gradient_fast=_average(state.gradient_fast, grad, _FAST_LOSS, has_grad, fresh_grad),
        gradient_slow=slow_grad,
        gradient_deviation=_average(state.gradient_deviation, (grad - slow_grad).abs(), _SLOW_LOSS, has_grad, never),
        gradient_peak=torch.maximum(state.gradient_peak, grad),
        update=_average(state.update, torch.where(has_moved, moved, 0), _FAST_LOSS, has_moved, unmoved),
        drop=_average(state.drop, torch.where(has_share, share, 0), _FAST_LOSS, has_share, unmoved | (state.drop == 0)),
        first_update=(has_moved & (state.update == 0)).to(dtype),
        skipped=skipped.to(dtype),
        backoff=backoff.to(dtype),
        cooldown=torch.where(skipped, COOLDOWN, (state.cooldown - 1).clamp(min=0)),
        skips=state.skips + skipped,
    )


def _loss_ratio(state: SignalState, loss: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """f_0, the present loss over it, and whether there is one."""
    if loss is None:
        nothing = torch.zeros_like(state.first_loss)
        return state.first_loss, nothing, nothing.bool()
    finite = loss.isfinite()
    first = torch.where((state.first_loss == 0) & finite, loss, state.first_loss)
    has_loss = finite & (first != 0)
    ratio = torch.where(has_loss, loss, 0) / torch.where(has_loss, first.abs(), 1)
    ratio = torch.where(first < 0, ratio + 2, ratio).clamp(-_LARGEST_LOSS, _LARGEST_LOSS)
    return first, ratio, has_loss


def _average(old: Tensor, new: Tensor, share: float, counts: Tensor, fresh: Tensor) -> Tensor:
    """The exponential average after a new value, if it counts; a fresh one starts at it."""
    return torch.where(counts, torch.where(fresh, new, old * (1 - share) + new * share), old)


def out_of_range(
    state: SignalState, ratio: Tensor, grad: Tensor, has_loss: Tensor, has_grad: Tensor, broken: Tensor
) -> tuple[Tensor, Tensor]:
    """Whether the step is to be skipped, and whether the multiplier is to back off: bools, (...).

    Args:
        state: before this step.
        ratio: r.
        grad: |g|.
        has_loss: whether r is a number to go by.
        has_grad: whether |g| is.
        broken: whether the loss or the gradient is not finite.
    """
    loss_limit = (2 * state.slow_loss + 8 * state.loss_deviation).clamp(min=0.5)
    grad_limit = torch.maximum(4 * state.gradient_slow + 8 * state.gradient_deviation, state.gradient_peak)
    high = (has_loss & (state.losses >= COOLDOWN) & (ratio > loss_limit)) | (
        has_grad & (state.gradients >= COOLDOWN) & (grad > grad_limit)
    )
    ready = state.cooldown == 0
    return broken | (high & ready), (broken | high) & ready


# ---- the signals


class SignalInputs(NamedTuple):
    """What a feature is made of, tensors (...).

    Attributes:
        state: after :func:`observe`.
        log_multiplier: m before this step.
        done: t / T, in [0, 1].
        total: T.
        fast: fast average of f / f_0, at least 0.0001.
        slow: its slow average, likewise.
        chosen: whether the last displacement was of a rate that somebody chose.
    """

    state: SignalState
    log_multiplier: Tensor
    done: Tensor
    total: Tensor
    fast: Tensor
    slow: Tensor
    chosen: Tensor


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A signal.

    Args:
        feature: makes it, about in [-1, 1]; what is beyond +-3 is clipped.
        needs: a ``"horizon"`` T or a ``"loss"``; where that is missing, the feature and its mask are 0.
        of_layers: whether each layer has it of its own.
        formula: the feature, for the documents.
        says: what it tells, for the documents.
    """

    feature: Callable[[SignalInputs], Tensor]
    needs: Literal["horizon", "loss"] | None = None
    of_layers: bool = False
    formula: str
    says: str


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 1).log()


def _log_share(share: Tensor, chosen: Tensor, offset: float, scale: float) -> Tensor:
    """(log(share) + offset) / scale; 0 where there is no share that somebody chose."""
    return torch.where(chosen & (share > 0), (share.clamp(min=1e-30).log() + offset) / scale, 0)


#: Every signal by name, in the order in which a network reads them. A new one is an entry here: names are in the files
#: of schedules, which go on reading what they were trained with. What it needs besides is a field of SignalState.
REGISTRY: dict[str, Signal] = {
    "progress": Signal(
        feature=lambda x: 2 * x.done - 1,
        needs="horizon",
        formula="2t/T - 1",
        says="how far the run is",
    ),
    "remaining": Signal(
        feature=lambda x: (1 - x.done).clamp(min=1e-3).log() / 3,
        needs="horizon",
        formula=r"\log(1 - t/T)/3",
        says="how close its end",
    ),
    "length": Signal(
        feature=lambda x: ((x.total / 1000).log() / math.log(10)).clamp(-_LARGEST, _LARGEST),
        needs="horizon",
        formula=r"\log_{10}(T/1000)",
        says="how long it is",
    ),
    "loss": Signal(
        feature=lambda x: x.fast.log() / 3,
        needs="loss",
        formula=r"\log(\text{fast average of } f / f_0)/3",
        says="what has been learned",
    ),
    "loss_trend": Signal(
        feature=lambda x: 3 * (x.fast / x.slow).log(),
        needs="loss",
        formula=r"3 \log(\text{fast}/\text{slow average of } f)",
        says="whether it still learns",
    ),
    "drop": Signal(
        feature=lambda x: _log_share(x.state.drop, x.chosen, 3, 3),
        needs="loss",
        formula=r"(\log(\text{average of } \lvert g\rvert\lvert u\rvert/\lvert f\rvert) + 3)/3",
        says="how much of the loss one step could take away",
    ),
    "alignment": Signal(
        feature=lambda x: 4 * x.state.alignment_fast,
        of_layers=True,
        formula=r"4 \times \text{fast average of } c = \langle g, u\rangle/(\lvert g\rvert\lvert u\rvert)",
        says="above 0: steps are too short; below: they overshoot",
    ),
    "alignment_slow": Signal(
        feature=lambda x: 6 * x.state.alignment_slow,
        of_layers=True,
        formula=r"6 \times \text{slow average of } c",
        says="the same, over a longer time",
    ),
    "gradient_trend": Signal(
        feature=lambda x: _log_ratio(x.state.gradient_fast, x.state.gradient_slow),
        of_layers=True,
        formula=r"\log(\text{fast}/\text{slow average of } \lvert g\rvert)",
        says="whether gradients grow",
    ),
    "update": Signal(
        feature=lambda x: _log_share(x.state.update, x.chosen, 6, 4),
        of_layers=True,
        formula=r"(\log(\text{average of } \lvert u\rvert/\lvert\theta\rvert) + 6)/4",
        says="how large the steps are",
    ),
    "multiplier": Signal(
        feature=lambda x: x.log_multiplier / 5,
        of_layers=True,
        formula="m/5",
        says="where the rate is, over the initial one",
    ),
}

#: Signals that need a horizon T, and those that need a loss.
HORIZON_SIGNALS = tuple(name for name, signal in REGISTRY.items() if signal.needs == "horizon")
LOSS_SIGNALS = tuple(name for name, signal in REGISTRY.items() if signal.needs == "loss")
#: Signals that each layer has of its own.
LAYER_SIGNALS = tuple(name for name, signal in REGISTRY.items() if signal.of_layers)
#: Every signal.
SIGNALS = tuple(REGISTRY)


def table() -> str:
    """The signals as a table in Markdown, for the documents."""
    rows = [f"| `{name}` | ${signal.formula}$ | {signal.says} |" for name, signal in REGISTRY.items()]
    return "\n".join(["| signal | feature | says |", "|---|---|---|", *rows])


# ---- features


def check_signals(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: for an unknown signal (the nearest names are suggested), one named twice, or none at all.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"signals must name at least one of {', '.join(SIGNALS)}, as a tuple, got {names!r}.")
    for name in names:
        if name not in SIGNALS:
            near = get_close_matches(str(name), SIGNALS)
            advice = f"did you mean {' or '.join(near)}?" if near else "see metastep.core.signals."
            raise ValueError(f"signals must be of {', '.join(SIGNALS)}, got {name!r}; {advice}")
    if len(set(names)) != len(names):
        raise ValueError(f"signals must name each signal once, got {', '.join(names)}.")
    return tuple(names)


def feature_names(names: Sequence[str]) -> tuple[str, ...]:
    """What stands in the features of these signals: themselves, and the masks of those that may be missing."""
    return (*names, *(f"{need}_known" for need in _needs(names)))


def _needs(names: Sequence[str]) -> list[str]:
    """What of a horizon and a loss these signals need, in this order."""
    needed = {REGISTRY[name].needs for name in names}
    return [need for need in ("horizon", "loss") if need in needed]


def scope_feature_names(names: Sequence[str], scope: Literal["network", "layer"]) -> tuple[str, ...]:
    """What a schedule of this scope reads: :func:`feature_names`, and beside them the layer's own of LAYER_SIGNALS."""
    own = tuple(f"layer {name}" for name in layer_signals(names)) if scope == "layer" else ()
    return (*feature_names(names), *own)


def layer_signals(names: Sequence[str]) -> tuple[str, ...]:
    """Those of these signals that a layer has of its own, in their order."""
    return tuple(name for name in names if name in LAYER_SIGNALS)


def features(
    state: SignalState,
    log_multiplier: Tensor,
    step: int | Tensor,
    total_steps: float | Tensor,
    names: Sequence[str],
    horizon_known: bool | Tensor = True,
    loss_known: bool | Tensor = True,
) -> Tensor:
    """Return what the network reads, (..., F): finite, each in [-3, 3]; F and the order are :func:`feature_names`.

    Args:
        state: after :func:`observe`.
        log_multiplier: m before this step, (...).
        step: t, the steps done before this one; beyond T it counts as T.
        total_steps: T >= 1; any number where it is not known.
        names: the signals.
        horizon_known: whether T is known (else the signals of the horizon, and their mask, are 0).
        loss_known: whether losses may be read (as for the horizon); they are masked, too, until there is one.
    """
    like = state.steps
    horizon = torch.zeros_like(like) + horizon_known
    seen = (state.losses > 0).to(like.dtype) * loss_known
    total = torch.zeros_like(like) + total_steps
    done = ((torch.zeros_like(like) + step) / total).clamp(0, 1)
    fast, slow = state.fast_loss.clamp(min=_SMALLEST_LOSS), state.slow_loss.clamp(min=_SMALLEST_LOSS)
    inputs = SignalInputs(state, log_multiplier, done, total, fast, slow, state.first_update == 0)
    masks = {"horizon": horizon, "loss": seen}
    parts = []
    for name in names:
        signal = REGISTRY[name]
        part = signal.feature(inputs)
        parts.append(part if signal.needs is None else part * masks[signal.needs])
    parts += [masks[need] for need in _needs(names)]
    return torch.stack([part.expand(like.shape) for part in parts], dim=-1).nan_to_num().clamp(-_LARGEST, _LARGEST)


def layer_features(network: Tensor, layers: Tensor) -> Tensor:
    """Return the features of layers, (..., L, F + G): the network's, (..., F), beside each layer's own, (..., L, G)."""
    beside = network.unsqueeze(-2).expand(*layers.shape[:-1], network.shape[-1])
    return torch.cat((beside, layers), dim=-1)
