"""How a calibrated run may end, on the held-out tasks: a known length, best weights, averages, a cool-down.

    python benchmarks/run_endings.py [--tasks friedman/mlp ...] [--seeds 2] [--base adamw] [--json FILE]

Each run is made with a horizon, and is judged by its last weights and by those of the least loss on outer_valid, looked
at 25 times. It is made again without one, and is judged by averages of its weights, and after a cool-down over its last
fifth. The test loss of each stands beside that of the tuned cosine, where results/untuned/tuned has it. A task that is
in FILE already is not run again.
"""

import argparse
import copy
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import metastep as ms
from measuring import write_record
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.experiments import EXPERIMENTS
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.protocols import load_run_task
from metastep.lab.bench.training import Trainer, make_trainer, recalibration
from metastep.lab.tasks.task import Task
from untuned_table import BASELINE, Score
from untuned_table import losses as losses_of

LOOKS = 25  # at the validation loss of a run
COOLED = 0.2  # of a run: its end
TUNED = Path("results/untuned/tuned")

#: Averages of the weights by name.
AVERAGES = {
    "exponential average, 0.99": get_ema_multi_avg_fn(0.99),
    "polynomial average, 10": ms.polynomial_average(10.0),
}


def ends(config: RunConfig, task: Task) -> Iterator[tuple[str, float]]:
    """The test loss of each way to end a run."""
    right_norms = recalibration(config, task)

    def tested(network: nn.Module, within: AbstractContextManager[None] | None = None) -> float:
        with within or nullcontext():
            return task.evaluate(network, "test")["loss"]

    trainer = make_trainer(config, task)
    best: dict[str, Tensor] = {}
    for step in range(1, config.total_steps + 1):
        trainer.advance()
        if step % math.ceil(config.total_steps / LOOKS) and step < config.total_steps:
            continue
        if trainer.lr.observe_validation(task.evaluate(trainer.network, "outer_valid")["loss"]):
            best = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    yield "known length", tested(trainer.network)
    trainer.network.load_state_dict(best)
    yield "known length, best weights", tested(trainer.network)

    trainer = make_trainer(config, task)
    trainer.lr.detach()
    trainer.lr = ms.LearnedLR(trainer.optimizer, num_classes=task.num_classes)
    averages = {name: AveragedModel(trainer.network, multi_avg_fn=average) for name, average in AVERAGES.items()}
    cooled = round(COOLED * config.total_steps)
    until(trainer, config.total_steps - cooled, averages.values())
    before = copy.deepcopy(trainer.state_dict())
    until(trainer, config.total_steps, averages.values())
    yield "unknown length, last weights", tested(trainer.network)
    for name, average in averages.items():
        yield f"unknown length, {name}", tested(average.module, right_norms(average.module))
    trainer.load_state_dict(before)
    trainer.lr.cool(cooled)
    until(trainer, config.total_steps)
    yield "unknown length, cooled over the last fifth", tested(trainer.network)


def until(trainer: Trainer, steps: int, averages: Iterable[AveragedModel] = ()) -> None:
    """Train up to a number of steps in all, and average the weights."""
    while trainer.steps < steps:
        trainer.advance()
        for average in averages:
            average.update_parameters(trainer.network)


def summary(results: dict[str, dict[str, list[float]]], base: str) -> list[dict[str, object]]:
    """For each way to end a run: how it stands beside a known length, and beside the tuned cosine."""
    means = {task: {way: fmean(losses) for way, losses in ways.items()} for task, ways in results.items()}
    cosine = losses_of([TUNED])[BASELINE[base] + "@8"] if TUNED.exists() else {}
    rivals = {
        "known length": {task: ways["known length"] for task, ways in means.items()},
        "tuned cosine": {task: fmean(seeds.values()) for task, seeds in cosine.items()},
    }
    rows = []
    for way in next(iter(means.values())):
        for rival, losses in rivals.items():
            score = Score(ratios={task: ways[way] / losses[task] for task, ways in means.items() if task in losses})
            if score.ratios:
                within = {f"within {percent} %": score.within(percent) for percent in (2, 3, 5, 10)}
                middle = {"better": score.better, "mean": score.mean, "worst": score.worst}
                rows.append({"way": way, "over": rival, "tasks": score.tasks, **within, **middle})
    return rows


def main() -> None:
    workloads = {workload.name: workload for workload in EXPERIMENTS["untuned/held-out"].small.workloads}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=workloads, default=list(workloads), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--base", choices=("adamw", "sgd-momentum"), default="adamw")
    parser.add_argument("--json", type=Path, help="write a record to this file, after each task")
    options = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    if options.json is not None and options.json.exists():
        results = json.loads(options.json.read_text())["results"]["losses"]
    for name in options.tasks:
        if name in results:
            continue
        losses: dict[str, list[float]] = {}
        config = METHODS[f"{options.base}/calibrated"].configure(workloads[name].base({}))
        torch.set_num_threads(config.threads or 1)
        task = load_run_task(config)
        for seed in range(options.seeds):
            for way, loss in ends(replace(config, seed=seed), task):
                losses.setdefault(way, []).append(loss)
        results[name] = losses
        print(name, {way: [round(loss, 4) for loss in found] for way, found in losses.items()}, flush=True)
        write_record(options.json, "cpu", {"losses": results, "summary": summary(results, options.base)})
    for row in summary(results, options.base):
        print(row)


if __name__ == "__main__":
    main()
