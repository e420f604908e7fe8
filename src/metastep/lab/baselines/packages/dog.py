"""DoG and LDoG (arXiv 2302.12022): rates from the distance travelled over the gradients, with averaged iterates."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer

from metastep.lab.baselines.packages import quiet_import, restored

with quiet_import():
    import dog  # type: ignore[import-untyped]

AVERAGE, COUNT = "average", "average_count"


class _Averaged(Optimizer):
    """Adds polynomial-decay averaging, which the authors prescribe, tensor by tensor.

    The package's averager copies the whole model; the average is kept here in the optimizer's state, where a
    checkpoint finds it. With gamma = 8: mean <- (1 - 9 / (8 + t)) mean + 9 / (8 + t) x_t, t = 1, 2, ...
    """

    def __init__(self, params: Any, lr: float = 1.0, **options: Any) -> None:
        super().__init__(params, **options)
        for group in self.param_groups:  # afterwards: for another rate than 1 the package's constructor warns
            group["lr"] = lr
            group[COUNT] = 0
        self.gamma = 8.0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take a step and bring the average up to date."""
        loss = super().step(closure)
        for group in self.param_groups:
            group[COUNT] += 1
            weight = (self.gamma + 1) / (self.gamma + group[COUNT])
            for parameter in group["params"]:
                state = self.state[parameter]
                if AVERAGE not in state:
                    state[AVERAGE] = parameter.detach().clone()
                else:
                    state[AVERAGE].lerp_(parameter, weight)
        return loss

    def _update_group_state(self, group: dict[str, Any], init: list[Any]) -> None:
        """Find the rates; where a gradient is not finite there is none, and the run is seen to diverge."""
        update: Any = super()._update_group_state  # type: ignore[misc]
        try:
            update(group, init)
        except AssertionError:  # the package refuses a sum of squares that is not positive: with eps in it, only NaN
            group["eta"] = [torch.full_like(group["G"].sum(), math.nan)] * len(group["params"])

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are their averages."""
        with restored(self):
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        if AVERAGE in self.state[parameter]:
                            parameter.copy_(self.state[parameter][AVERAGE])
            yield

    def applied_rate(self) -> float:
        """The mean over the elements of the rates of the last step."""
        pairs = [(p, eta) for group in self.param_groups for p, eta in zip(group["params"], group["eta"], strict=True)]
        moved: float = sum(float(eta) * p.numel() for p, eta in pairs)
        elements: int = sum(p.numel() for p, _ in pairs)
        return moved / elements


class DoG(_Averaged, dog.DoG):  # type: ignore[misc]
    """DoG of the package ``dog-optimizer``."""


class LDoG(_Averaged, dog.LDoG):  # type: ignore[misc]
    """DoG for each tensor by itself."""
