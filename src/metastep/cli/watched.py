"""What ``metastep inspect`` shows of a schedule that watches its optimizer: the rates of real runs.

Made-up losses would say nothing of it: without displacements of parameters it never lands, and reads no alignment.
"""

from __future__ import annotations

import math
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from rich.table import Table

from metastep.cli.display import sparkline

if TYPE_CHECKING:
    from metastep.lab.bench.table.scheduled import Base
    from metastep.lab.tasks import Task
    from metastep.schedules import Schedule

#: Small, built in (scikit-learn has the data), and done in a second.
_TASK = "digits/mlp"
_STARTS = (0.01, 1.0, 10.0)
_WIDTH = 30


def watched_runs(schedule: Schedule, steps: int) -> dict[str, Any]:
    """Train a small network from a hundredth, one and ten times its optimizer's usual rate, and return what was set.

    Args:
        schedule: one that watches its optimizer. With a rate for each parameter, their geometric mean is returned.
        steps: of each run.

    Returns:
        ``ran``: the task, the base, the steps, the seed; ``rates``: by run, one a step, 0 where the brake skipped it;
        ``runs``: by run, the initial rate, the steps skipped, and the loss on outer_valid at the end.
    """
    from metastep.lab.tasks import load_task

    name, base = _base(schedule)
    task = load_task(_TASK)
    rates: dict[str, list[float]] = {}
    runs: dict[str, dict[str, Any]] = {}
    for factor in _STARTS:
        label = f"from {factor * base.lr:.4g}"
        rates[label], runs[label] = _run(task, base, schedule, factor * base.lr, steps)
    return {"ran": {"task": _TASK, "optimizer": name, "steps": steps, "seed": 0}, "rates": rates, "runs": runs}


def _base(schedule: Schedule) -> tuple[str, Base]:
    """The optimizer that it was trained for, the last named; SGD with momentum where that is unknown or not ours."""
    from metastep.lab.bench.table.scheduled import BASES

    named = (getattr(schedule, "trained_for", None) or "").split(", ")
    name = next((base for base in reversed(named) if base in BASES), "sgd-momentum")
    return name, BASES[name]


def _run(task: Task, base: Base, schedule: Schedule, start: float, steps: int) -> tuple[list[float], dict[str, Any]]:
    import torch

    from metastep.lab.bench.optimizers import make_optimizer
    from metastep.lab.bench.training import Trainer
    from metastep.schedules import LearnedLR

    torch.manual_seed(0)
    model = task.make_model().train()
    optimizer = make_optimizer(base.optimizer, model, start, base.options)
    lr = LearnedLR(optimizer, schedule, total_steps=steps)
    batches = task.batches("train", seed=0)
    trainer = Trainer(model=model, optimizer=optimizer, lr=lr, loss=task.loss, batches=batches)
    rates = []
    for _ in range(steps):
        trainer.advance()
        every = lr.get_last_lr()
        rates.append(geometric_mean(every) if min(every) > 0 else 0.0)
    loss = task.evaluate(model, "outer_valid")["loss"]
    return rates, {"initial": start, "brakes": lr.brakes, "outer_valid": loss if math.isfinite(loss) else None}


def runs_table(found: dict[str, Any]) -> Table:
    """The rates of :func:`watched_runs`: of the first step, the second (where it has landed), the middle, the last."""
    table = Table(title="rates", title_justify="left", box=None, pad_edge=False)
    for heading in ("run", "first", "second", "middle", "last", "brakes", "loss", "course"):
        table.add_column(heading, justify="left" if heading in ("run", "course") else "right")
    for name, rates in found["rates"].items():
        run = found["runs"][name]
        points = [rates[0], rates[1], rates[len(rates) // 2], rates[-1]]
        loss = "diverged" if run["outer_valid"] is None else f"{run['outer_valid']:.3f}"
        landed = rates[1:]
        picked = [landed[round(place * (len(landed) - 1) / (_WIDTH - 1))] for place in range(_WIDTH)]
        shown = (f"{value:.3g}" for value in points)
        table.add_row(name, *shown, str(run["brakes"]), loss, sparkline(picked))
    return table


def runs_note(found: dict[str, Any], schedule: Schedule) -> str:
    """What was run, in a sentence or two."""
    ran = found["ran"]
    of = ", the geometric mean over parameters" if schedule.watches == "layer" else ""
    return (
        f"These rates{of} were set in three real runs: {ran['steps']} steps on {ran['task']} with {ran['optimizer']}, "
        f"seed {ran['seed']}, from 0.01, 1 and 10 times its usual rate; loss is on outer_valid at the end, course on a "
        "logarithmic scale from the second step on. On other tasks the rates are others."
    )
