"""Small experiments, and what must agree between two of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.bench.running import CIRCUMSTANCES, run_config, without

from metastep.lab.bench.engines.local import Local
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.plans import Plan
from metastep.lab.bench.records_file import records_of
from metastep.lab.bench.runner import ExperimentRun
from metastep.lab.bench.wanted import Place


def plan(**changes: Any) -> Plan:
    """Two methods on digits/mlp: 12 steps, 2 seeds, budgets of 1 and 3 trials, 10 times the rate."""
    base = run_config(total_steps=12, checkpoint_every=5, threads=1, optimizer_options={"weight_decay": 5e-4})
    values: dict[str, Any] = {
        "title": "small",
        "bases": {"digits/mlp": base},
        "methods": ("sgd/constant", "adamw/cosine"),
        "seeds": 2,
        "budgets": (1, 3),
        "factors": (10.0,),
        "study": "fixed",
        **changes,
    }
    return Plan(**values)


def executed(folder: Path, one: Plan | None = None, **options: Any) -> list[dict[str, Any]]:
    """The records of an experiment that is run to its end."""
    records = ExperimentRun(one or plan(), folder, **options).execute(Local())
    assert records is not None
    return records


def timeless(record: dict[str, Any]) -> dict[str, Any]:
    """A record without clocks and circumstances."""
    bare = without(record, *CIRCUMSTANCES)
    return {**bare, **{curve: without(bare[curve], "seconds") for curve in ("train", "valid")}}


def all_timeless(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder without clocks."""
    return [timeless(record) for _, record in records_of(folder / "records.jsonl")]


def places(records: list[dict[str, Any]]) -> list[Place]:
    """What they are of."""
    return [Place.of(record) for record in records]


class Failing(type(METHODS["sgd/constant"])):
    """A method whose runs raise."""

    def configure(self, base: Any, values: Any = None) -> Any:
        """Fail."""
        raise RuntimeError("no such luck\non two lines")


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a method in the table whose runs raise."""
    sound = METHODS["sgd/constant"]
    monkeypatch.setitem(METHODS, "failing", Failing(**{**vars(sound), "name": "failing"}))
    return "failing"


def diverging() -> Plan:
    """One method that diverges at 1e12 times its rate, and ends well at its own."""
    return replace(plan(), methods=("sgd/constant",), factors=(1e12,))
