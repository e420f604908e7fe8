"""Schedule-Free SGD, AdamW and RAdam (arXiv 2405.15682): the gradient is taken at y, the network to be used is x."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.optim import Optimizer

from metastep.lab.baselines.packages import quiet_import, restored

with quiet_import():
    from schedulefree import AdamWScheduleFree, RAdamScheduleFree, SGDScheduleFree  # type: ignore[import-untyped]


class _ScheduleFree(Optimizer):
    """In train mode from the start to the end, checkpoints included; the average x is shown by :meth:`averaged`."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.train()

    def train(self) -> None:
        """Put y into the parameters."""
        super().train()  # type: ignore[misc]

    def eval(self) -> None:
        """Put x into the parameters."""
        super().eval()  # type: ignore[misc]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the parameters are x. The package's way back to y rounds; here y is kept."""
        with restored(self):
            self.eval()
            try:
                yield
            finally:
                for group in self.param_groups:
                    group["train_mode"] = True

    def applied_rate(self) -> float:
        """The rate of the last step, warm-up included."""
        return float(self.param_groups[0]["scheduled_lr"])


class ScheduleFreeSGD(_ScheduleFree, SGDScheduleFree):  # type: ignore[misc]
    """SGD of the package ``schedulefree``."""


class ScheduleFreeAdamW(_ScheduleFree, AdamWScheduleFree):  # type: ignore[misc]
    """AdamW of the package ``schedulefree``."""


class ScheduleFreeRAdam(_ScheduleFree, RAdamScheduleFree):  # type: ignore[misc]
    """RAdam of the package ``schedulefree``, which needs no warm-up."""
