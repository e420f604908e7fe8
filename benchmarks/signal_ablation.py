"""What each signal of a signal schedule is worth: the same schedule with one taken away, on quick tasks.

    python benchmarks/signal_ablation.py [signal-sgd signal-adamw] [--json results/reactive/ablation.json]
    python benchmarks/signal_ablation.py --warm-starts warm-sgd warm-adamw [--json results/reactive/relearned.json]

The first takes a signal away by zeros for the weights that read it; nothing is learned again, so that this says what
the weights use, not what a schedule could learn without the signal. The second fits the weights anew, without the
signal, to the rate sweeps in the folder of a `metastep evolve`; evolution is left out.

"horizon unknown" is a run that is not told how long it is: signals, annealing and pace then go without it. "nothing
learned" is landing and annealing alone. Every run starts from a tenth of its base's usual rate. Given are losses on
outer_valid at the end over those of the whole schedule with the same seed; the test split is not read.
"whole from 0.09" differs by its initial rate alone, which the landing takes away: its ratios are noise.
"""

import argparse
import math
import statistics
from collections import defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import metastep as ms
from measuring import write_record
from metastep.core.policy import unpack_weights
from metastep.core.signals import HORIZON_SIGNALS, LOSS_SIGNALS, feature_names
from metastep.files import read_json
from metastep.lab.bench.optimizers import make_optimizer
from metastep.lab.bench.table.scheduled import BASES
from metastep.lab.bench.training import Trainer
from metastep.lab.evolution import EvolutionConfig
from metastep.lab.evolution.run import SETTINGS
from metastep.lab.evolution.warm_start import RateSweep, fit_policy
from metastep.lab.runtime.folder import CheckpointFile
from metastep.lab.tasks import Task, load_task

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


def taken_away(signals: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    """The features, masks included, that each row goes without."""
    groups = {name: taken for name, taken in GROUPS.items() if set(taken) & set(signals)}
    single = {name: (name,) for name in signals if name not in HORIZON_SIGNALS}
    return {f"without {name}": taken for name, taken in {**single, **groups}.items()}


def variants(whole: ms.SignalSchedule, without: dict[str, ms.SignalSchedule]) -> dict[str, ms.SignalSchedule]:
    """Schedules by the name of their row."""
    nothing = ms.SignalSchedule.from_config(whole.config())
    nothing.load_flat(torch.zeros_like(whole.flat_weights()))
    return {WHOLE: whole, NOISE: whole, **without, UNKNOWN: whole, NOTHING: nothing}


def not_read(name: str) -> dict[str, ms.SignalSchedule]:
    """The rows of a schedule whose weights are set to 0."""
    whole = ms.load_schedule(name)
    assert isinstance(whole, ms.SignalSchedule)
    return variants(whole, {row: unread(whole, taken) for row, taken in taken_away(whole.signals).items()})


def relearned(folder: str) -> dict[str, ms.SignalSchedule]:
    """The rows of a warm start, each with weights that were fitted to what it may read."""
    config = EvolutionConfig.from_dict(read_json(Path(folder) / SETTINGS, dict[str, Any]))
    state, _ = CheckpointFile(Path(folder) / "checkpoint.pt").load()
    sweeps = [RateSweep(**sweep) for sweep in state["trainer"]["sweeps"]]
    names = feature_names(config.policy.signals)

    def fitted(taken: tuple[str, ...] = ()) -> ms.SignalSchedule:
        signals = tuple(name for name in config.policy.signals if name not in taken)
        policy = config.policy._replace(signals=signals)
        columns = [names.index(name) for name in feature_names(signals)]
        seen = [replace(sweep, features=sweep.features[..., columns]) for sweep in sweeps]
        made = ms.SignalSchedule(
            signals,
            policy.hidden,
            bounds=policy.bounds,
            trained_for={"sgd": "sgd-momentum"}.get(config.base, config.base),
        )
        made.load_flat(fit_policy(seen, policy, config.seed, config.fit_steps))
        return made

    return variants(fitted(), {row: fitted(taken) for row, taken in taken_away(config.policy.signals).items()})


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


def losses_of(name: str, rows: dict[str, ms.SignalSchedule], task: Task, seed: int) -> dict[str, Any]:
    """The final loss of every row, on one task with one seed."""
    losses = {label: final_loss(task, schedule, label, seed) for label, schedule in rows.items()}
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
    parser.add_argument("--warm-starts", nargs="+", help="folders of warm starts, in place of the schedules")
    parser.add_argument("--tasks", nargs="+", choices=STEPS, default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write a record to this file, after each task")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    entrants = {name: relearned(name) for name in arguments.warm_starts or ()}
    entrants = entrants or {name: not_read(name) for name in arguments.schedules}
    results: list[dict[str, Any]] = []
    for seed in range(arguments.seeds):
        for task in map(load_task, arguments.tasks):
            results += [losses_of(name, rows, task, seed) for name, rows in entrants.items()]
            write_record(arguments.json, "cpu", results)
            print(f"{task.name} seed {seed}", flush=True)
    for name in entrants:
        print(table(results, name) + "\n")


if __name__ == "__main__":
    main()
