"""The scale of a learned rate: from the initial loss and the number of classes to the factor gamma."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from torch import Tensor

ScaleMode = Literal["recompute", "freeze", "floor"]

#: No measured scale is ever smaller than this, nor than this fraction of the run's first one.
_SMALLEST = 1e-3
#: A loss (perplexity) beyond this counts as this: the scale then still fits into float32.
_LARGEST_LEVEL = math.exp(30)


@dataclass(frozen=True, kw_only=True)
class ScaleRule:
    r"""The scale :math:`\gamma` that turns a schedule's output in (0, 1) into a learning rate.

    .. math:: \gamma = \tfrac14 \sqrt{L_0}\, |\ln(L_0 C)|\, C^{-1/4}

    with :math:`L_0` the mean training loss of the freshly initialised network and :math:`C` the number of classes.
    For text :math:`C` is the size of the vocabulary, :math:`L_0` the perplexity, and the network reads loss / ln C.

    Args:
        mode: what happens when the run asks again (a schedule of several phases does at each switch):
            ``"recompute"`` measures anew, as published; ``"freeze"`` keeps the first value; ``"floor"``
            measures anew but keeps at least ``floor`` times the first value.
        floor: fraction in (0, 1] for the mode ``"floor"``.
        text: True for language models, whose loss is in nats per token.

    The published rule is zero at :math:`L_0 = 1/C`, negative below it, and undefined for a negative loss. Here the
    magnitude of the loss counts, up to e^30, and the result is never below 0.001 or, when measured again, 0.001 times
    the first.

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
        if not 0 < self.floor <= 1:
            raise ValueError(f"floor must be in (0, 1], got {self.floor}; it is a fraction of the first scale.")

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

    def normalize(self, loss: float | Tensor, num_classes: int) -> float | Tensor:
        """Return what the network reads: the loss itself, or loss / ln C for text."""
        return loss / math.log(num_classes) if self.text else loss

    def guess_num_classes(self, initial_loss: float) -> int:
        """Return the number of equally likely classes whose cross-entropy is ``initial_loss`` (at least 2)."""
        return max(2, round(math.exp(min(initial_loss, 16.0))))

    def config(self) -> dict[str, Any]:
        """Keyword arguments, of JSON types, that make this rule again."""
        return asdict(self)
