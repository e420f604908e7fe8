"""What the runner costs over a bare loop written by hand on the same task, and how soon a cell's first step is taken.

The bare loop makes network, optimizer, cosine schedule and batches, takes the steps and evaluates as the run does, and
keeps nothing: no curves, rates, checks or checkpoint. The two take turns. A cell's fixed cost is its wall time less that
of its training and evaluation, in a process that has run a cell of the task before; a cold start is a new worker's first
cell, imports and data included.

    python benchmarks/runner_overhead.py --out results/runner-overhead.json
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measuring import write_record

from metastep.bench.cells import RunCell, cached_task
from metastep.bench.config import RunConfig
from metastep.bench.experiments.experiment import Arena
from metastep.bench.methods import METHODS
from metastep.bench.workers import process_context

METHOD = "sgd-momentum/cosine"
#: Steps of a run, by task: realistic steps first, then ones of a few tenths of a millisecond.
TASKS = {"cifar10/resnet8": 40, "digits/resnet": 200, "digits/mlp": 1000}
SMALL = {"threads": 1, "outer_valid": 200, "train_size": 4000}


def bare(config: RunConfig) -> float:
    """Seconds of the steps of a loop without the runner."""
    task = cached_task(config)
    torch.manual_seed(config.seed)
    model = task.make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, **config.optimizer_options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.total_steps)
    batches = task.batches("train", batch_size=config.batch_size, seed=config.seed)
    started = time.perf_counter()
    for _ in range(config.total_steps):
        loss = task.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.perf_counter() - started


def run(base: RunConfig, folder: Path) -> tuple[float, float]:
    """Seconds of a cell's training, and those that are neither training nor evaluation."""
    cell = RunCell(task=base.task, method=METHOD, base=base, budget=1, values=METHODS[METHOD].defaults, folder=folder)
    started = time.perf_counter()
    record = cell.run(lambda: False, lambda progress: None)
    wall = time.perf_counter() - started
    return record["train_seconds"], wall - record["train_seconds"] - record["eval_seconds"]


def measured(task: str, steps: int, rounds: int) -> dict[str, Any]:
    """Time the two in turn."""
    settings = {**SMALL, "steps": steps, "eval_every": steps}
    if task.startswith("digits"):
        settings.pop("train_size")
    base = replace(Arena(task=task, settings=settings).base({}), clip_norm=None, test=False)
    config = METHODS[METHOD].configure(base)
    with tempfile.TemporaryDirectory() as folder:
        bare(replace(config, total_steps=min(steps, 20)))
        run(replace(base, total_steps=min(steps, 20), eval_every=20, log_every=1), Path(folder) / "warm")
        pairs = []
        for turn in range(rounds):
            alone = bare(config)
            trained, fixed = run(base, Path(folder) / str(turn))
            pairs.append((alone, trained, fixed))
    ratios = [trained / alone for alone, trained, _ in pairs]
    return {
        "steps": steps,
        "batch_size": base.batch_size,
        "bare_ms_a_step": 1e3 * min(alone for alone, _, _ in pairs) / steps,
        "runner_ms_a_step": 1e3 * min(trained for _, trained, _ in pairs) / steps,
        "overhead_of_fastest": min(t for _, t, _ in pairs) / min(a for a, _, _ in pairs) - 1,
        "overhead_median_of_pairs": statistics.median(ratios) - 1,
        "fixed_seconds_a_cell": statistics.median(fixed for _, _, fixed in pairs),
    }


def _first_cell(line: Any, folder: str) -> None:
    """In a new process: run a cell of 1 step, tell when it began and ended."""
    base = Arena(task="digits/mlp", settings={"threads": 1, "steps": 1}).base({})
    run(base, Path(folder) / f"first-{os.getpid()}")
    line.send(time.time())


def new_worker(context: Any, folder: str) -> float:
    """Seconds from the request of a worker to the end of its first cell."""
    receiver, sender = context.Pipe(duplex=False)
    started = time.time()
    process = context.Process(target=_first_cell, args=(sender, folder))
    process.start()
    ended: float = receiver.recv()
    process.join()
    return ended - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {task: measured(task, TASKS[task], options.rounds) for task in options.tasks.split(",")}
    context = process_context()
    with tempfile.TemporaryDirectory() as folder:
        first = new_worker(context, folder)  # starts the server that workers are forked from
        results["first_worker_seconds"] = first
        results["next_worker_seconds"] = statistics.median(new_worker(context, folder) for _ in range(3))
    for name, value in results.items():
        print(name, value)
    write_record(options.out, "cpu", {**results, "load_average": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
