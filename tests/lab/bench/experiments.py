"""Small experiments, and what must agree between two of them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.lab.bench.running import CIRCUMSTANCES, run_config, without

from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.plan import ExperimentPlan, RunKey
from metastep.lab.bench.runner import ExperimentRun
from metastep.lab.records import Record, read_records
from metastep.lab.runtime.executor import LocalExecutor


def plan(**changes: Any) -> ExperimentPlan:
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
    return ExperimentPlan(**values)


def executed(folder: Path, one: ExperimentPlan | None = None, **options: Any) -> list[Record]:
    """The records of an experiment that is run to its end."""
    records = ExperimentRun(one or plan(), folder, **options).execute(LocalExecutor())
    assert records is not None
    return records


def timeless(record: Record) -> dict[str, Any]:
    """A record without clocks and circumstances."""
    bare = without(record.as_dict(), *CIRCUMSTANCES)
    curves = [name for name in ("train", "valid", "meta") if bare.get(name)]
    return {**bare, **{name: without(bare[name], "seconds") for name in curves}}


def all_timeless(folder: Path) -> list[dict[str, Any]]:
    """The records of a folder without clocks."""
    return [timeless(record) for _, record in read_records(folder / "records.jsonl")]


def keys(records: list[Record]) -> list[RunKey]:
    """What they are of."""
    return [RunKey.of(record) for record in records]


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


def diverging() -> ExperimentPlan:
    """One method that diverges at 1e12 times its rate, and ends well at its own."""
    return replace(plan(), methods=("sgd/constant",), factors=(1e12,))
