"""What the contract tests of the methods share: short runs, and one entry of every kind in the table."""

from pathlib import Path
from typing import Any

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.methods import METHODS, Method, available
from metastep.lab.bench.run import Run

STEPS = 12


class Killed(BaseException):
    """Ends a run without giving it the time to write anything."""


def base_config(**changes: Any) -> RunConfig:
    """A dozen steps on wine/mlp, looked at and saved every now and then, at steps of their own."""
    values: dict[str, Any] = {
        "task": "wine/mlp",
        "schedule": "constant",
        "optimizer": "sgd",
        "optimizer_options": {"weight_decay": 1e-3},
        "lr": 0.05,
        "batch_size": 16,
        "total_steps": STEPS,
        "log_every": 2,
        "eval_every": 3,
        "checkpoint_every": 4,
        **changes,
    }
    return RunConfig(**values)


def _kind(method: Method) -> tuple[Any, ...]:
    """What a method consists of, but for the base optimizer under a schedule or a level."""
    if "/" not in method.name:
        return ("alone", method.name)
    first, _, rest = method.name.partition("/")
    nesterov = "nesterov" in method.options  # whose rates need another tensor of state
    return ("hyper", rest, nesterov) if first.startswith("hyper-") else ("schedule", rest, method.scale)


def _first_of_each_kind() -> list[str]:
    kinds: dict[tuple[Any, ...], str] = {}
    for name, method in METHODS.items():
        optimizer = ("optimizer", method.optimizer, *sorted(method.options))
        for kind in (_kind(method), optimizer):
            if available(method):
                kinds.setdefault(kind, name)
    return list(dict.fromkeys(kinds.values()))


#: Every optimizer with every set of options, every schedule, every choice of levels and every rule, at least once.
ONE_OF_EACH = _first_of_each_kind()


def run(config: RunConfig, folder: Path, dies_at: int | None = None) -> Run:
    """Run a configuration in a folder, to its end or to a kill before a step."""

    def should_stop() -> bool:
        if dies_at is not None and made.trainer.steps >= dies_at:
            raise Killed
        return False

    made = Run(config, folder, tensorboard=False, should_stop=should_stop)
    made.execute()
    return made
