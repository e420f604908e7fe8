"""What the runner costs over a bare loop written by hand on the same task, and how soon a run is done in a new worker.

The bare loop makes network, optimizer, cosine schedule and batches, takes the steps and evaluates at the end as the run
does, and keeps nothing: no curves, rates, checks, checkpoint or record. The two take turns, in one process that has run
the task before. Besides the wall clock there is the time that the processor worked for this process, which is what can
be compared where other programs run, too. A first run is that of a new worker, imports and data included.

    python benchmarks/runner_overhead.py --out results/runner-overhead.json
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from measuring import write_record
from metastep.lab.bench.config import RunConfig
from metastep.lab.bench.experiments import Workload
from metastep.lab.bench.jobs import RunJob, cached_task
from metastep.lab.bench.methods import METHODS
from metastep.lab.bench.plan import RunKey
from metastep.lab.runtime.executor import process_context

METHOD = "sgd-momentum/cosine"
#: Steps of a run, by task: realistic steps first, then ones of a few tenths of a millisecond.
TASKS = {"cifar10/resnet8": 60, "digits/resnet": 300, "digits/mlp": 2000}


def bare(config: RunConfig) -> None:
    """A run without the runner."""
    task = cached_task(config)
    torch.manual_seed(config.seed)
    model = task.make_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=config.lr, **config.optimizer_options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.total_steps)
    batches = task.batches("train", batch_size=config.batch_size, seed=config.seed)
    for _ in range(config.total_steps):
        loss = task.loss(model, next(batches))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    task.evaluate(model, "outer_valid")


def run(base: RunConfig, folder: Path) -> None:
    """The same as a job of an experiment."""
    method = METHODS[METHOD]
    key = RunKey(base.task, METHOD, 1, base.seed, 1.0)
    job = RunJob(key=key, method=method, base=base, values=method.defaults, folder=folder)
    record = job.run(lambda: False, lambda progress: None)
    if record.status != "finished":
        raise RuntimeError(record.error or record.status)


def timed(call: Callable[[], None]) -> tuple[float, float]:
    """Seconds of the wall clock, and of the processor."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def measured(task: str, steps: int, rounds: int) -> dict[str, Any]:
    """Time the two in turn."""
    settings = {"threads": 1, "outer_valid": 200, "steps": steps, "eval_every": steps}
    if task.startswith("cifar10"):
        settings["train_size"] = 4000
    base = replace(Workload(task=task, settings=settings).base({}), clip_norm=None, test=False)
    config = METHODS[METHOD].configure(base)
    with tempfile.TemporaryDirectory() as folder:
        bare(replace(config, total_steps=10))
        run(replace(base, total_steps=10, eval_every=10), Path(folder) / "warm")
        alone, within = [], []
        for turn in range(rounds):
            alone.append(timed(lambda: bare(config)))
            within.append(timed(lambda turn=turn: run(base, Path(folder) / str(turn))))  # type: ignore[misc]
    result: dict[str, Any] = {"steps": steps, "batch_size": base.batch_size}
    for place, clock in enumerate(("wall", "processor")):
        by_hand, by_runner = (min(times[place] for times in both) for both in (alone, within))
        result[clock] = {
            "bare_seconds": by_hand,
            "runner_seconds": by_runner,
            "overhead": by_runner / by_hand - 1,
            "overhead_median": statistics.median(w[place] / a[place] for a, w in zip(alone, within, strict=True)) - 1,
        }
    return result


def _first_run(line: Any, folder: str) -> None:
    """In a new process: make a run of 1 step, tell when it began and ended."""
    base = Workload(task="digits/mlp", settings={"threads": 1, "steps": 1}).base({})
    run(base, Path(folder) / f"first-{os.getpid()}")
    line.send(time.time())


def new_worker(context: Any, folder: str) -> float:
    """Seconds from the request of a worker to the end of its first run."""
    receiver, sender = context.Pipe(duplex=False)
    started = time.time()
    process = context.Process(target=_first_run, args=(sender, folder))
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
    context = process_context(["metastep.lab.bench.jobs", "torch._dynamo"])
    with tempfile.TemporaryDirectory() as folder:
        first = new_worker(context, folder)  # starts the server that workers are forked from
        results["first_worker_seconds"] = first
        results["next_worker_seconds"] = statistics.median(new_worker(context, folder) for _ in range(3))
    for name, value in results.items():
        print(name, value)
    write_record(options.out, "cpu", {**results, "load_average": os.getloadavg()[0]})


if __name__ == "__main__":
    main()
