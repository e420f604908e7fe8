"""What trains in float16 on a GPU: the optimizers and schedules, a loop with a GradScaler, and what is compared."""

from typing import Any

import torch
from tests.integrations.digits import digits, learned, network, note_rates
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

import metastep as ms

DEVICE = "cuda"
#: Learned schedules over SGD, and optimizers that adapt by themselves.
SCHEDULES, OPTIMIZERS = ("learned", "calibrated"), ("hyper-sgd", "hyper-adamw")
KINDS = (*SCHEDULES, *OPTIMIZERS)
#: Gradients of these networks neither overflow nor vanish under this scale; under the other one all do.
SCALE, TOO_LARGE = 2.0**10, 2.0**60
STEPS, ROWS = 20, 32


def optimizer_of(kind: str, parameters: Any, **options: Any) -> Optimizer:
    """The optimizer of a kind of run."""
    if kind == "hyper-sgd":
        return ms.HyperSGD(parameters, lr=0.1)
    if kind == "hyper-adamw":
        return ms.HyperAdamW(parameters, lr=1e-3)
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, **options)


def schedule_of(kind: str, steps: int = STEPS) -> ms.Schedule | None:
    """Its schedule, if it has one."""
    if kind == "calibrated":
        return ms.Calibrated(steps)
    return learned() if kind in ("learned", "meta") else None


def rates(optimizer: Optimizer, used: list[float]) -> list[float]:
    """All rates that were used; of a hypergradient optimizer, where those of its layers are."""
    if not isinstance(optimizer, ms.HyperSGD | ms.HyperAdamW):
        return list(used)
    return [float(rate) for rate in optimizer.rates()[0]["layer"].values()]


def flat(model: torch.nn.Module) -> Tensor:
    """All parameters, (elements,)."""
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


class Loop:
    """A plain loop, in float32 or with autocast and a GradScaler; whether steps were taken is in ``taken``.

    The scale is too large in the steps ``overflows``; ``leaves_out`` leaves out the batches of some steps.
    """

    def __init__(
        self,
        kind: str,
        half: bool = True,
        overflows: tuple[int, ...] = (),
        leaves_out: tuple[int, ...] = (),
        schedule: ms.Schedule | None = None,
        **options: Any,
    ) -> None:
        self.half, self.overflows, self.leaves_out = half, overflows, leaves_out
        self.model = network().to(DEVICE)
        self.optimizer = optimizer_of(kind, self.model.parameters(), **options)
        self.used, self.taken, self.losses = note_rates(self.optimizer), [], []
        self.scaler = torch.amp.GradScaler(DEVICE, init_scale=SCALE, enabled=half)
        made = schedule_of(kind) if schedule is None else schedule
        self.lr = None
        if made is not None:
            self.lr = ms.LearnedLR(self.optimizer, made, **({} if made.relative else {"num_classes": 10}))
        self.before: list[Any] = []  # what each step found
        self.done = 0

    def train(self, steps: int = STEPS) -> "Loop":
        for step in range(self.done, self.done + steps):
            if step not in self.leaves_out:
                self._step(step)
        self.done += steps
        return self

    def _step(self, step: int) -> None:
        x, y = (part.to(DEVICE) for part in digits(ROWS, start=ROWS * step))
        if self.half:
            self.scaler.scale(torch.zeros((), device=DEVICE))  # a new one has no scale yet that could be changed
            self.scaler.update(TOO_LARGE if step in self.overflows else SCALE)
        self.before.append(self.standing())
        self.optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.float16, enabled=self.half):
            loss = cross_entropy(self.model(x), y)
        self.losses.append(loss.item())
        if self.lr is not None:
            self.lr.observe(loss)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.taken.append(not torch.equal(flat(self.model), self.before[-1]["weights"]))

    def standing(self) -> dict[str, Any]:
        """Copies of the weights, of the optimizer's tensors, of the rates, and of the schedule's state."""
        buffers = [
            t.detach().clone() for s in self.optimizer.state.values() for t in s.values() if isinstance(t, Tensor)
        ]
        found: dict[str, Any] = {"weights": flat(self.model), "buffers": buffers}
        if self.lr is not None:
            return {**found, "state": self.lr.state, "steps": self.lr.steps, "rates": self.lr.get_last_lr()}
        return {**found, "rates": rates(self.optimizer, []) if buffers else []}

    def state_dict(self) -> dict[str, Any]:
        """Everything, as a checkpoint has it."""
        parts = {"model": self.model, "optimizer": self.optimizer, "scaler": self.scaler, "lr": self.lr}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from it."""
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


def windows(losses: list[float], taken: list[bool]) -> list[float]:
    """The mean losses that steps are to read: a skipped step's count in the next one taken."""
    found: list[float] = []
    window: list[float] = []
    for loss, went in zip(losses, taken, strict=True):
        window.append(loss)
        if went:
            found.append(sum(window) / len(window))
            window = []
    return found
