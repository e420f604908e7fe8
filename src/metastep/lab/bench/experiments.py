"""An experiment: which methods meet on which tasks, with how many trials and seeds, small and in full."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.protocols import training
from metastep.lab.tasks.table import recipe_of

ScaleName = Literal["small", "full"]

#: Looks at outer_valid, and entries of the training curve, in a run of an experiment; unless an arena says otherwise.
LOOKS, ENTRIES = 10, 25

#: Settings that go when another length is given.
_LENGTH = ("steps", "epochs", "eval_every", "log_every")


@dataclass(frozen=True, kw_only=True)
class Arena:
    """A task of an experiment, under its settings.

    Args:
        task: its name in the table of tasks.
        settings: of a run, as :func:`~metastep.lab.bench.protocols.training` takes them; by default the task's.
        label: its name in the experiment; empty: the task's.
    """

    task: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    label: str = ""

    @property
    def name(self) -> str:
        """What records call it."""
        return self.label or self.task

    def base(self, given: Mapping[str, Any]) -> RunConfig:
        """Return the run that methods change; ``given`` settings go before the arena's own.

        Raises:
            ValueError: for settings that the task refuses.
            OSError: if the data have to be read to count steps, and are not there.
        """
        settings = {**self.settings, **given}
        if "steps" in given or "epochs" in given:
            settings = {name: value for name, value in settings.items() if name in given or name not in _LENGTH}
        config = training(recipe_of(self.task), schedule="constant", **settings)
        total = config.total_steps
        looks: dict[str, Any] = {"log_every": math.ceil(total / ENTRIES), "eval_every": math.ceil(total / LOOKS)}
        return replace(config, **{name: every for name, every in looks.items() if name not in settings})


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of an experiment is run.

    Args:
        arenas: the tasks.
        seeds: 0, 1, ... of every run, >= 1.
        budgets: numbers of trials that values are chosen from, each >= 1; 1 is the defaults.
        factors: by which the rate found with the largest budget is multiplied, to see what that costs.
        factor_seeds: seeds of those runs.
    """

    arenas: tuple[Arena, ...]
    seeds: int = 3
    budgets: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = ()
    factor_seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A line of the table of experiments.

    Args:
        name: "family/what".
        summary: one line for ``metastep list experiments``.
        source: of the protocol.
        methods: names of the table of methods.
        small: for two cores, in minutes.
        full: for a GPU; None: there is only the small one.
    """

    name: str
    summary: str
    source: str
    methods: tuple[str, ...]
    small: Scale
    full: Scale | None = None

    def scale(self, name: ScaleName) -> Scale:
        """Return how much is run.

        Raises:
            ValueError: if there is no such scale.
        """
        scale = self.small if name == "small" else self.full
        if scale is None:
            raise ValueError(f"scale must be small for {self.name}, got {name}; there is no other.")
        return scale
