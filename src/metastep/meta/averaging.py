"""Many tasks, one schedule: their meta-gradients averaged, one step of the meta-optimizer, the same weights for all."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metastep.schedules import Schedule

#: The meta-gradient of one task, a tensor for each weight of the schedule; None: it has none to give this time.
Lesson = list[Tensor] | None


class HandsOver(Optimizer):
    """Stands in the place of a :class:`metastep.MetaLearner`'s meta-optimizer: it hands the gradients over.

    Where it would move the weights, the exchange is given the gradients and returns the weights to go on with. So the
    learner looks ahead, differentiates and goes on as ever, and somebody else decides what is learned.

    Args:
        weights: those of the schedule.
        exchange: takes this task's meta-gradient, returns the new weights.

    Example:
        >>> weight = nn.Parameter(torch.ones(2))
        >>> proxy = HandsOver([weight], lambda lesson: [torch.tensor([3.0, 4.0])])
        >>> weight.grad = torch.ones(2)
        >>> proxy.step()
        >>> weight.tolist()
        [3.0, 4.0]
    """

    def __init__(self, weights: Sequence[nn.Parameter], exchange: Callable[[Lesson], list[Tensor]]) -> None:
        super().__init__(list(weights), {})
        self._exchange = exchange
        self.handed_over = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Give the gradients, take the weights."""
        self.handed_over += 1
        weights = self.param_groups[0]["params"]
        set_weights(
            weights,
            self._exchange([torch.zeros_like(w) if w.grad is None else w.grad.detach().clone() for w in weights]),
        )


class SharedSchedule:
    r"""The one schedule of many tasks, and the meta-optimizer that moves it by the mean of what they give.

    .. math:: \frac{dL}{d\phi} = \frac1T \sum_{t=1}^{T} \frac{dL_t}{d\phi}

    with :math:`L_t` the validation loss of task t after its own step at its own rate. A task that has nothing to give
    (its validation loss was not finite) is not counted in T; if none has, nothing is learned.

    Args:
        schedule: with weights to learn.
        meta_optimizer: over these weights.

    Example:
        >>> from metastep.schedules import MLRSNet
        >>> net = MLRSNet(hidden_size=2)
        >>> shared = SharedSchedule(net, torch.optim.SGD(net.parameters(), lr=1.0))
        >>> before = shared.weights()
        >>> ones = [torch.ones_like(weight) for weight in before]
        >>> shared.learn([ones, [3 * one for one in ones], None])
        True
        >>> [torch.equal(old - new, 2 * one) for old, new, one in zip(before, shared.weights(), ones)][0]
        True
    """

    def __init__(self, schedule: Schedule, meta_optimizer: Optimizer) -> None:
        self.schedule, self.meta_optimizer = schedule, meta_optimizer

    def weights(self) -> list[Tensor]:
        """Copies of the weights that learn."""
        return [weight.detach().clone() for weight in learned_weights(self.schedule)]

    def learn(self, lessons: Sequence[Lesson]) -> bool:
        """Take one step along the mean of the lessons; False if there was none."""
        given = [lesson for lesson in lessons if lesson is not None]
        if not given:
            return False
        for weight, gradient in zip(learned_weights(self.schedule), mean_lesson(given), strict=True):
            weight.grad = gradient
        self.meta_optimizer.step()
        self.meta_optimizer.zero_grad(set_to_none=True)
        self.schedule.weights_changed()
        return True

    def state_dict(self) -> dict[str, Any]:
        """The weights and what the meta-optimizer remembers."""
        return {"weights": self.weights(), "meta_optimizer": self.meta_optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        set_weights(learned_weights(self.schedule), state["weights"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.schedule.weights_changed()


def mean_lesson(lessons: Sequence[list[Tensor]]) -> list[Tensor]:
    """The mean gradient of several tasks, summed in float64; of one task it is that task's, to the last bit."""
    return [
        torch.stack([part.double() for part in parts]).mean(0).to(parts[0].dtype)
        for parts in zip(*lessons, strict=True)
    ]


def learned_weights(schedule: Schedule) -> list[nn.Parameter]:
    """The weights of a schedule that are learned, in a fixed order."""
    return [weight for weight in schedule.parameters() if weight.requires_grad]


@torch.no_grad()
def set_weights(weights: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    """Copy values into weights."""
    for weight, value in zip(weights, values, strict=True):
        weight.copy_(value)
