"""The scale of a learned rate: the rule for the factor gamma, and what of it is measured in one run."""

import math
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

ScaleMode = Literal["recompute", "freeze", "floor", "relative"]

#: No measured scale is ever smaller than this, nor than this fraction of the run's first one.
_SMALLEST = 1e-3
#: A loss (perplexity) beyond this counts as this: the scale then still fits into float32.
_LARGEST_LEVEL = math.exp(30)
#: A loss (perplexity) of more than so many times that of guessing is no measurement of a fresh network.
_IMPLAUSIBLE = 10.0
#: So many windows of such losses are waited for a better one.
_PATIENCE = 10
#: Share of the newest window in the running mean of the loss, from which a scale is measured again.
_RECENT = 0.02


@dataclass(frozen=True, kw_only=True)
class ScaleRule:
    r"""The scale :math:`\gamma` that turns a schedule's output in (0, 1) into a learning rate.

    .. math:: \gamma = \tfrac14 \sqrt{L_0}\, |\ln(L_0 C)|\, C^{-1/4}

    with :math:`L_0` the mean training loss of the freshly initialised network and :math:`C` the number of classes.
    For text :math:`C` is the size of the vocabulary, :math:`L_0` the perplexity, and the network reads loss / ln C.

    Args:
        mode: what happens when the run asks again (a schedule of several phases does at each switch):
            ``"recompute"`` measures anew, as published; ``"freeze"`` keeps the first value; ``"floor"``
            measures anew but keeps at least ``floor`` times the first value. ``"relative"`` measures nothing: the
            optimizer's own initial rate stands in the place of gamma, which is in the unit of SGD's rates and far too
            large for Adam's.
        floor: fraction in (0, 1] for the mode ``"floor"``.
        text: True for language models, whose loss is in nats per token.

    The published rule is zero at :math:`L_0 = 1/C`, negative below it, and undefined for a negative loss. Here the
    magnitude of the loss counts, up to e^30, and the result is never below 0.001 or, when measured again, 0.001 times
    the first. An *observed* loss that is more than ten times that of guessing (in text: of ten times its perplexity)
    counts as that, with a warning, and the scale is then measured from one of the next losses.

    Source: arXiv 2007.14546; the pitfalls are those of its published code.

    Example:
        >>> round(ScaleRule().gamma(2.302585, num_classes=10), 3)
        0.669
    """

    mode: ScaleMode = "recompute"
    floor: float = 0.1
    text: bool = False

    def __post_init__(self) -> None:
        if self.mode not in get_args(ScaleMode):
            raise ValueError(f"mode must be one of {', '.join(get_args(ScaleMode))}, got {self.mode!r}.")
        if not isinstance(self.text, bool):
            raise ValueError(f"text must be True or False, got {self.text!r}; True for language models.")
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must be in (0, 1], got {self.floor}; it is a fraction of the first scale.")

    @property
    def is_measured(self) -> bool:
        """Whether the scale is that of SGD's rates; otherwise it is whatever the optimizer's user gave."""
        return self.mode != "relative"

    def gamma(self, loss: float, num_classes: int, first: float | None = None) -> float:
        """Return the scale: positive and finite for every finite loss.

        Args:
            loss: mean training loss (nats per example or token) of the network as it is now.
            num_classes: classes, or vocabulary size; at least 2.
            first: this run's first scale, when it is measured again.

        Raises:
            ValueError: if the loss is not finite or there are fewer than two classes.
        """
        if not math.isfinite(loss):
            raise ValueError(f"loss must be finite to set the scale of the rate, got {loss}.")
        if num_classes < 2:
            raise ValueError(f"num_classes must be >= 2, got {num_classes}.")
        if first is not None and self.mode == "freeze":
            return first
        level = min(math.exp(min(loss, 30.0)) if self.text else abs(loss), _LARGEST_LEVEL)
        measured = 0.0
        if level > 0:
            measured = math.sqrt(level) * abs(math.log(level) + math.log(num_classes)) / num_classes**0.25 / 4
        if first is None:
            return max(measured, _SMALLEST)
        return max(measured, first * (self.floor if self.mode == "floor" else _SMALLEST))

    def plausible(self, loss: float, num_classes: int) -> float:
        """The loss, or the largest that a fresh network has, whichever is smaller in magnitude."""
        chance = math.log(num_classes)
        largest = chance + math.log(_IMPLAUSIBLE) if self.text else _IMPLAUSIBLE * chance
        return max(-largest, min(loss, largest))

    def normalize(self, loss: float | Tensor, num_classes: int) -> float | Tensor:
        """Return what the network reads: the loss itself, or loss / ln C for text."""
        return loss / math.log(num_classes) if self.text else loss

    def guess_num_classes(self, initial_loss: float) -> int:
        """Return the number of equally likely classes whose cross-entropy is ``initial_loss`` (at least 2)."""
        return max(2, round(math.exp(min(initial_loss, 16.0))))

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that make this rule again."""
        return asdict(self)


class RunScale:
    """Measures the scale of one run by a :class:`ScaleRule`, and prepares the losses that the schedule reads.

    Args:
        rule: the schedule's.
        initial_loss: mean loss (nats) of the fresh network, which is believed; None: the first observed.
        num_classes: classes, or vocabulary size; None: guessed from the initial loss.
        measure_loss: the mean training loss of the network as it is; None: the running mean of the observed ones.
        base_rate: the optimizer's own, for the mode "relative".
        remeasures: whether the scale is measured again before a step; None: never.

    Attributes:
        gamma: the scale, None before it is measured.
        mean_over_ranks: makes ranks agree on what ``measure_loss`` says; by default there is one rank.
    """

    mean_over_ranks: Callable[[float], float] = staticmethod(float)

    def __init__(
        self,
        rule: ScaleRule,
        initial_loss: float | None,
        num_classes: int | None,
        measure_loss: Callable[[], float | Tensor] | None,
        base_rate: float,
        remeasures: Callable[[int], bool] | None = None,
    ) -> None:
        self.rule, self.base_rate = rule, base_rate
        self.initial_loss = None if initial_loss is None else float(initial_loss)
        self.num_classes = num_classes
        self.measure_loss, self.remeasures = measure_loss, remeasures
        self.gamma: float | None = None
        self._first: float | None = None
        self._recent: float | Tensor | None = None
        self._given_classes = num_classes
        self._doubtful = 0  # windows in which no plausible loss was seen; 0: the scale is settled, or not measured
        if self.initial_loss is not None:
            self._set(self.initial_loss, num_classes or rule.guess_num_classes(self.initial_loss))

    def read(self, loss: float | Tensor, step: int) -> float | Tensor | None:
        """Return what the schedule is to read for the mean loss of step ``step``; None if no loss was ever finite."""
        if (self.gamma is None or self._doubtful) and not self._measure(float(loss)):
            return None
        if self.remeasures is not None:
            if self.measure_loss is None:
                recent = loss if self._recent is None else self._recent
                self._recent = recent + _RECENT * (loss - recent)
            if self.remeasures(step):
                self._measure_again()
        assert self.num_classes is not None
        return self.rule.normalize(loss, self.num_classes)

    def _set(self, loss: float, num_classes: int) -> None:
        self.num_classes = num_classes
        self.gamma = self.base_rate if self.rule.mode == "relative" else self.rule.gamma(loss, num_classes)
        self._first = self.gamma

    def _measure(self, loss: float) -> bool:
        """Set the scale from an observed loss, for good if it can be that of a fresh network; False without any."""
        if not math.isfinite(loss):
            return self.gamma is not None
        num_classes = self._given_classes or self.rule.guess_num_classes(loss)
        plausible = self.rule.plausible(loss, num_classes)
        if plausible == loss or self.rule.mode == "relative":
            self._doubtful, self._recent = 0, None
        else:
            self._doubtful += 1
            if self._doubtful == 1:
                warnings.warn(
                    f"the first loss, {loss:.3g}, is far beyond that of guessing among {num_classes} classes: the "
                    "scale of the rate is set as if it were ten times that, and again from the next losses; give "
                    "initial_loss to set it.",
                    stacklevel=2,
                )
        if self._doubtful <= 1 or abs(loss) < abs(self.initial_loss or math.inf):
            self.initial_loss = loss
            self._set(plausible, num_classes)
        if self._doubtful >= _PATIENCE:  # the loss is of another kind: the smallest so far counts
            self._doubtful = 0
        return True

    @torch.no_grad()
    def _measure_again(self) -> None:
        assert self.num_classes is not None
        if self.rule.mode == "relative":
            return
        if self.measure_loss is not None:
            loss = self.mean_over_ranks(float(self.measure_loss()))
        else:
            assert self._recent is not None
            loss = float(self._recent)
        if math.isfinite(loss):
            self.gamma = self.rule.gamma(loss, self.num_classes, first=self._first)

    def share(self, from_first: Callable[[list[float]], list[float]]) -> None:
        """Take over the first rank's measurements.

        Args:
            from_first: turns numbers of this rank into those of the first; NaN stands for what is not known.
        """
        mine = [self.initial_loss, self.num_classes, self.gamma, self._first, self._doubtful]
        first = from_first([math.nan if value is None else value for value in mine])
        initial, classes, gamma, start, doubtful = (None if math.isnan(value) else value for value in first)
        self.initial_loss, self.num_classes = initial, None if classes is None else int(classes)
        self.gamma, self._first = gamma, start
        self._doubtful = int(doubtful or 0)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers; reads the device, if a running mean is there."""
        return {
            "initial_loss": self.initial_loss,
            "num_classes": self.num_classes,
            "scale": self.gamma,
            "first_scale": self._first,
            "recent_loss": None if self._recent is None else float(self._recent),
            "doubtful_losses": self._doubtful,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; other keys are ignored."""
        self.initial_loss, self.num_classes = state["initial_loss"], state["num_classes"]
        self.gamma, self._first, self._recent = state["scale"], state["first_scale"], state["recent_loss"]
        self._doubtful = state["doubtful_losses"]
