"""The plan of an experiment: everything that will be run, fixed when it begins and kept in its folder."""

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.experiments.experiment import Arena, Scale
from metastep.lab.bench.methods import method_named

SCHEMA = 1

#: The file of a plan in the folder of its experiment.
PLAN_FILE = "experiment.json"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is run.

    Args:
        title: of the page.
        bases: the runs that methods change, by the name of the task in the experiment.
        methods: names of the table of methods.
        seeds: 0, 1, ... of every run.
        budgets: numbers of trials, from the smallest.
        factors: by which the rate found with the largest budget is multiplied.
        factor_seeds: seeds of those runs.
        study: beginning of the names of its searches, its own in whatever storage.
        storage: where trials are kept, without its password; None: in the folder.

    Raises:
        ValueError: for no task or method, numbers out of range, or tasks without the splits that tuning needs.
        ImportError: if the package of a method is not installed; it says which extra brings it.
    """

    title: str
    bases: Mapping[str, RunConfig]
    methods: tuple[str, ...]
    seeds: int = 3
    budgets: tuple[int, ...] = (1,)
    factors: tuple[float, ...] = ()
    factor_seeds: int = 1
    study: str
    storage: str | None = None

    def __post_init__(self) -> None:
        if not self.bases or not self.methods:
            raise ValueError(f"{'methods' if self.bases else 'tasks'} must name at least one, got none.")
        for name in self.methods:
            method_named(name)
        for what, number in (("seeds", self.seeds), ("factor_seeds", self.factor_seeds)):
            if number < 1:
                raise ValueError(f"{what} must be >= 1, got {number}.")
        if not self.budgets or min(self.budgets) < 1 or sorted(set(self.budgets)) != list(self.budgets):
            raise ValueError(f"budgets must be different numbers of trials >= 1, growing, got {list(self.budgets)}.")
        if not all(0 < factor < math.inf and factor != 1 for factor in self.factors):
            raise ValueError(f"factors must be > 0 and not 1, got {list(self.factors)}.")
        for name, base in self.bases.items():
            if self.budgets[-1] > 1 and (base.inner_valid == 0 or base.outer_valid == 0):
                raise ValueError(f"inner_valid and outer_valid must be > 0 to tune on {name}; trials are judged there.")

    @classmethod
    def of(
        cls, title: str, arenas: Sequence[Arena], methods: Sequence[str], scale: Scale, given: Mapping[str, Any]
    ) -> "Plan":
        """Make the plan of a new experiment.

        Args:
            title: of the page.
            arenas: the tasks.
            methods: names of the table of methods.
            scale: how many seeds, budgets and factors.
            given: settings of all runs, before those of the arenas.
        """
        return cls(
            title=title,
            bases={arena.name: arena.base(given) for arena in arenas},
            methods=tuple(methods),
            seeds=scale.seeds,
            budgets=scale.budgets,
            factors=scale.factors,
            factor_seeds=scale.factor_seeds,
            study=secrets.token_hex(6),
        )

    def to_json(self) -> str:
        """The plan as JSON text, with the schema's version."""
        bases = {name: json.loads(base.to_json()) for name, base in self.bases.items()}
        return json.dumps({"schema": SCHEMA, **asdict(self), "bases": bases}, indent=1)

    @classmethod
    def read(cls, folder: Path) -> "Plan":
        """Read the plan of an experiment's folder.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it cannot be read, or is of a newer version.
        """
        path = folder / PLAN_FILE
        if not path.is_file():
            raise FileNotFoundError(f"no experiment in {folder}; --resume wants a folder that an experiment made.")
        try:
            values = json.loads(path.read_text())
            schema = values.pop("schema")
            if isinstance(schema, int) and schema > SCHEMA:
                raise ValueError(f"schema must be at most {SCHEMA}, got {schema}; use a newer metastep")
            bases = {name: RunConfig.from_json(json.dumps(base)) for name, base in values.pop("bases").items()}
            values |= {name: tuple(values[name]) for name in ("methods", "budgets", "factors")}
            return cls(bases=bases, **values)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is no plan of an experiment: {error}") from error
