"""MoMo and MoMo-Adam (arXiv 2305.07583): momentum with a Polyak-like bound on the rate, from the running loss."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metastep.lab.baselines.packages import quiet_import

with quiet_import():
    import momo  # type: ignore[import-untyped]

#: What the package keeps beside its state: without it a resumed run would start anew.
_KEPT = ("_number_steps", "loss_avg", "lb")


class _Momo(Optimizer):
    """Takes the loss as a closure, keeps its running means in the checkpoint, and measures the rate it applied.

    The package computes its rate tau and lets it go. It is measured from how far the smaller tensors moved: they all
    move by tau times a direction that the state still holds.
    """

    step_style = "loss"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._probes = _small([p for group in self.param_groups for p in group["params"]])
        self._before: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take a step; the closure gives the loss of the gradients that are there."""
        loss = closure()
        self._before = [p.detach().clone() for p in self._probes]
        step: Any = super().step
        step(loss=loss.detach())
        return loss

    def applied_rate(self) -> float:
        """The rate tau of the last step; 0 before the first."""
        group, along, square = self.param_groups[0], 0.0, 0.0
        stretch = 1 + float(group["lr"]) * float(group["weight_decay"])  # the proximal decay divides by it
        for parameter, before in zip(self._probes, self._before, strict=False):
            direction = self._direction(parameter).double()
            along += float(((before.double() - parameter.detach().double() * stretch) * direction).sum())
            square += float(direction.square().sum())
        return along / square if square > 0 else 0.0

    def _direction(self, parameter: Tensor) -> Tensor:
        mean: Tensor = self.state[parameter]["grad_avg"]
        return mean

    def state_dict(self) -> dict[str, Any]:
        """The state, with the running loss and the count of steps."""
        return {**super().state_dict(), "momo": {name: getattr(self, name, None) for name in _KEPT}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        kept = state_dict["momo"]
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "momo"})
        for name, value in kept.items():
            if value is not None:
                setattr(self, name, value.clone() if isinstance(value, Tensor) else value)


def _small(parameters: list[Tensor]) -> list[Tensor]:
    """The vectors among the parameters; all of them where there are none."""
    vectors = [p for p in parameters if p.ndim <= 1 and p.requires_grad]
    return vectors or parameters


class Momo(_Momo, momo.Momo):  # type: ignore[misc]
    """MoMo of the package ``momo-opt``."""


class MomoAdam(_Momo, momo.MomoAdam):  # type: ignore[misc]
    """MoMo-Adam of the package ``momo-opt``."""

    def _direction(self, parameter: Tensor) -> Tensor:
        group, state = self.param_groups[0], self.state[parameter]
        correction = 1 - group["betas"][1] ** state["step"]
        size: Tensor = (state["grad_avg_sq"] / correction).sqrt().add(group["eps"])
        mean: Tensor = state["grad_avg"]
        return mean / size
