"""What each signal of a shipped signal schedule is worth: the same schedule with one taken away, on quick tasks.

    python benchmarks/signal_ablation.py [signal-sgd signal-adamw] [--json results/reactive/ablation.json]

A signal is taken away by zeros for the weights that read it; nothing is learned again, so that this says what the
shipped weights use, not what a schedule could learn without the signal. "horizon unknown" is a run that is not told
how long it is: signals, annealing and pace then go without it. "nothing learned" is landing and annealing alone.
Every run starts from a tenth of its base's usual rate. Given are losses on outer_valid at the end over those of the
whole schedule with the same seed; the test split is not read.
"whole from 0.09" differs by its initial rate alone, which the landing takes away: its ratios are noise.
"""

import argparse
import math
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch

import metastep as ms
from measuring import write_record
from metastep.bench.optimizers import make_optimizer
from metastep.bench.table.scheduled import BASES
from metastep.core.policy import unpack_weights
from metastep.core.signals import HORIZON_SIGNALS, LOSS_SIGNALS
from metastep.meta.trainer import Trainer
from metastep.tasks import Task, load_task

STEPS = {
    "digits/mlp": 200,
    "digits/convnet": 100,
    "shakespeare/lstm-small": 80,
    "diabetes/mlp": 200,
    "breast-cancer/linear": 200,
}
START = 0.1
ALIGNMENTS = ("alignment", "alignment_slow")
#: Features, masks included, that are not read, by what the row is called.
GROUPS = {
    "horizon": (*HORIZON_SIGNALS, "horizon_known"),
    "all of the loss": (*LOSS_SIGNALS, "loss_known"),
    "both alignments": ALIGNMENTS,
}
WHOLE, NOISE, UNKNOWN, NOTHING = "whole", "whole from 0.09", "horizon unknown", "nothing learned"


def unread(whole: ms.SignalSchedule, taken: tuple[str, ...]) -> ms.SignalSchedule:
    """The same schedule with zeros for all weights that read these features."""
    made = ms.SignalSchedule.from_config(whole.config())
    flat = whole.flat_weights()
    rows = [place for place, name in enumerate(made.feature_names) if name.removeprefix("layer ") in taken]
    unpack_weights(flat, len(made.feature_names), made.hidden, made.recurrent)["input"][rows] = 0  # a view of flat
    made.load_flat(flat)
    return made


def variants(whole: ms.SignalSchedule) -> dict[str, ms.SignalSchedule]:
    """Schedules by the name of their row."""
    nothing = ms.SignalSchedule.from_config(whole.config())
    nothing.load_flat(torch.zeros_like(whole.flat_weights()))
    groups = {name: taken for name, taken in GROUPS.items() if set(taken) & set(whole.signals)}
    single = {name: (name,) for name in whole.signals if name not in HORIZON_SIGNALS}
    taken = {f"without {name}": unread(whole, names) for name, names in {**single, **groups}.items()}
    return {WHOLE: whole, NOISE: whole, **taken, UNKNOWN: whole, NOTHING: nothing}


def final_loss(task: Task, schedule: ms.SignalSchedule, label: str, seed: int) -> float:
    """Train once and return the loss on outer_valid; infinite where the run diverged."""
    assert schedule.trained_for is not None
    base = BASES[schedule.trained_for.split(", ")[-1]]
    torch.manual_seed(seed)
    model = task.make_model().train()
    start = base.lr * (0.09 if label == NOISE else START)
    optimizer = make_optimizer(base.optimizer, model, start, base.options)
    steps = STEPS[task.name]
    lr = ms.LearnedLR(optimizer, schedule, total_steps=None if label == UNKNOWN else steps)
    batches = task.batches("train", seed=seed)
    trainer = Trainer(
        model=model, optimizer=optimizer, lr=lr, loss=task.loss, batches=batches, clip_norm=task.clip_norm
    )
    for _ in range(steps):
        trainer.advance()
    loss = task.evaluate(model, "outer_valid")["loss"]
    return loss if math.isfinite(loss) else math.inf


def losses_of(name: str, task: Task, seed: int) -> dict[str, Any]:
    """The final loss of every row, on one task with one seed."""
    whole = ms.load_schedule(name)
    assert isinstance(whole, ms.SignalSchedule)
    losses = {label: final_loss(task, schedule, label, seed) for label, schedule in variants(whole).items()}
    finite = {label: loss if math.isfinite(loss) else None for label, loss in losses.items()}
    return {"schedule": name, "task": task.name, "steps": STEPS[task.name], "seed": seed, "outer_valid": finite}


def ratios(results: list[dict[str, Any]], name: str) -> dict[str, dict[str, float]]:
    """Geometric means over seeds of the loss over the whole schedule's, by row and task; infinite: one diverged."""
    logs: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        if result["schedule"] == name:
            whole = result["outer_valid"][WHOLE]
            for label, loss in result["outer_valid"].items():
                logs[label][result["task"]].append(math.inf if loss is None else math.log(loss / whole))
    return {
        label: {task: math.exp(statistics.fmean(found)) for task, found in by_task.items()}
        for label, by_task in logs.items()
    }


def table(results: list[dict[str, Any]], name: str) -> str:
    """A Markdown table: the geometric mean over tasks, and each task."""
    found = ratios(results, name)
    tasks = list(found[WHOLE])
    lines = [f"| {name} | mean | {' | '.join(tasks)} |", "|---|" + "---|" * (len(tasks) + 1)]
    for label, by_task in found.items():
        mean = math.exp(statistics.fmean(map(math.log, by_task.values())))
        lines.append(f"| {label} | {' | '.join(f'{value:.2f}' for value in (mean, *by_task.values()))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("schedules", nargs="*", default=["signal-sgd", "signal-adamw"])
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write a record to this file, after each task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for task in map(load_task, arguments.tasks):
            results += [losses_of(name, task, seed) for name in arguments.schedules]
            write_record(arguments.json, "cpu", results)
            print(f"{task.name} seed {seed}", flush=True)
    for name in arguments.schedules:
        print(table(results, name) + "\n")


if __name__ == "__main__":
    main()
