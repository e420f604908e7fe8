r"""What a schedule may observe at a step: dimensionless numbers, from five raw ones.

Before step t the loss f, the gradient g and the last displacement :math:`u = \theta_{t-1} - \theta_t` (in the direction
of descent) are known. Of these only f, <g, u>, |g|^2, |u|^2 and :math:`|\theta|^2` enter. Everything here is a ratio of
such numbers, so that it stays the same when the loss or the parameters are measured in other units:

    signal          feature, about in [-1, 1], never beyond +-3
    progress        2 t / T - 1
    remaining       log(1 - t / T) / 3                      1 - t / T at least 0.001
    length          log(T / 1000) / log 10
    loss            log(fast average of f / f_0) / 3        the ratio at least 0.0001
    loss_trend      3 log(fast / slow average of f)
    drop            (log(fast average of |g| |u| / |f|) + 3) / 3      the part of the loss that a step could take away
    alignment       4 x fast average of c = <g, u> / (|g| |u|): above 0 while steps are timid, below if too long
    alignment_slow  6 x slow average of c
    gradient_trend  log(fast / slow average of |g|)
    update          (log(fast average of |u| / |theta|) + 6) / 4
    multiplier      m / 5, with m the logarithm of the rate over the initial rate

Every function takes tensors with any leading dimensions (one network: none; a population: one; its layers: two),
branches on none of their values, and reads nothing back to the host.
"""

from __future__ import annotations

import math
from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from metastep.core.brake import QUIET, out_of_range
from metastep.core.signal_state import SignalState

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Signals that need a horizon T, and those that need a loss; where that is missing they are 0 and their mask is 0.
HORIZON_SIGNALS = ("progress", "remaining", "length")
LOSS_SIGNALS = ("loss", "loss_trend", "drop")
#: Signals that each layer has of its own.
LAYER_SIGNALS = ("alignment", "alignment_slow", "gradient_trend", "update", "multiplier")
#: Every signal, in the order in which a network reads them.
SIGNALS = (*HORIZON_SIGNALS, *LOSS_SIGNALS, *LAYER_SIGNALS)

#: Share of the newest value in the averages.
_FAST_LOSS, _SLOW_LOSS = 0.1, 0.02
_FAST_ALIGNMENT, _SLOW_ALIGNMENT = 0.2, 0.03
#: A loss counts as at most this many times the first one, so that one spike does not own the averages.
_LARGEST_LOSS = 100.0
_SMALLEST_LOSS = 1e-4
#: No feature is beyond this.
_LARGEST = 3.0


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
    is negative (r then starts at 1, too, and falls while the loss improves). r is clipped to +-100. A step that the
    brake skips, numbers that are not finite, and an alignment with a displacement or gradient of length 0 leave the
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
    braked, cut = out_of_range(state, ratio, grad, has_loss, has_grad, bad_loss | ~grad.isfinite())
    has_loss, has_grad = has_loss & ~braked, has_grad & ~braked

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
    unmoved = (state.update == 0) | (state.landing > 0)  # the first displacement was of a rate that nobody chose
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
        landing=(has_moved & (state.update == 0)).to(dtype),
        braked=braked.to(dtype),
        cut=cut.to(dtype),
        rest=torch.where(braked, QUIET, (state.rest - 1).clamp(min=0)),
        brakes=state.brakes + braked,
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
    masks = (("horizon_known", HORIZON_SIGNALS), ("loss_known", LOSS_SIGNALS))
    return (*names, *(mask for mask, masked in masks if any(name in masked for name in names)))


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
    chosen = state.landing == 0
    made = {
        "progress": lambda: (2 * done - 1) * horizon,
        "remaining": lambda: (1 - done).clamp(min=1e-3).log() / 3 * horizon,
        "length": lambda: ((total / 1000).log() / math.log(10)).clamp(-_LARGEST, _LARGEST) * horizon,
        "loss": lambda: fast.log() / 3 * seen,
        "loss_trend": lambda: 3 * (fast / slow).log() * seen,
        "drop": lambda: torch.where(chosen & (state.drop > 0), (state.drop.clamp(min=1e-30).log() + 3) / 3, 0) * seen,
        "alignment": lambda: 4 * state.alignment_fast,
        "alignment_slow": lambda: 6 * state.alignment_slow,
        "gradient_trend": lambda: _log_ratio(state.gradient_fast, state.gradient_slow),
        "update": lambda: torch.where(chosen & (state.update > 0), (state.update.clamp(min=1e-30).log() + 6) / 4, 0),
        "multiplier": lambda: log_multiplier / 5,
        "horizon_known": lambda: horizon,
        "loss_known": lambda: seen,
    }
    parts = [made[name]() for name in feature_names(names)]
    return torch.stack([part.expand(like.shape) for part in parts], dim=-1).nan_to_num().clamp(-_LARGEST, _LARGEST)


def _log_ratio(above: Tensor, below: Tensor) -> Tensor:
    return torch.where(below > 0, above / below, 1).log()


def layer_features(network: Tensor, layers: Tensor) -> Tensor:
    """Return the features of layers, (..., L, F + G): the network's, (..., F), beside each layer's own, (..., L, G)."""
    beside = network.unsqueeze(-2).expand(*layers.shape[:-1], network.shape[-1])
    return torch.cat((beside, layers), dim=-1)
