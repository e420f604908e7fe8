"""A quick look at a signal schedule on real tasks: against cosine over a grid of rates, and from rates far off.

    python benchmarks/reactive_check.py SCHEDULE... [--tasks digits/resnet ...] [--json results/reactive/check.json]
    python benchmarks/reactive_check.py FILE FILE@max_increase=4 FILE@control --base sgd-momentum

Cosine (5 % warm-up) is tried at six rates, half a decade apart, around the own of the task; that with the least loss on
inner_valid is "tuned". Each schedule runs once from 0.01, 1 and 10 times the task's own rate. All losses shown are on
outer_valid, at the end; the test split is not read at all. Schedules are files or names; one whose base is not that of
the task is left out there. With --base every task is trained by that base of the benchmark, from its usual rate, and
not by its own. `@max_increase=4` is a schedule whose rate rises by at most 4/T a step, `@control` one whose
weights are 0.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import metastep as ms
from metastep.lab.bench.optimizers import make_optimizer
from metastep.lab.bench.table.scheduled import BASES
from metastep.lab.tasks import load_task

STEPS = {
    "digits/mlp": 300,
    "digits/resnet": 200,
    "digits/vit": 200,
    "digits/autoencoder": 300,
    "digits/mlp-noisy": 200,
    "diabetes/mlp": 200,
    "breast-cancer/linear": 200,
    "mnist/mlp": 200,
    "mnist/lenet5": 150,
    "cifar10/convnet": 100,
    "shakespeare/transformer-small": 150,
    "shakespeare/lstm-small": 150,
}
GRID = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
STARTS = (0.01, 1.0, 10.0)


def base_of(task: Any, name: str | None) -> tuple[str, dict[str, Any], float]:
    """The optimizer's name, its options and the usual rate: the task's own, or those of a base of the benchmark."""
    if name is None:
        return task.optimizer, task.optimizer_options, task.learning_rate
    base = BASES[name]
    return base.optimizer, dict(base.options), base.lr


def schedule_named(label: str) -> ms.Schedule:
    """A file or a name, with what stands behind the @ changed."""
    name, _, change = label.partition("@")
    schedule = ms.load_schedule(name)
    if change == "control":
        schedule.load_flat(torch.zeros_like(schedule.flat_weights()))
    elif change:
        field, _, value = change.partition("=")
        schedule.bounds = schedule.bounds._replace(**{field: float(value)})
    return schedule


def run(
    task: Any, base: str | None, schedule: ms.Schedule | None, factor: float, steps: int, seed: int
) -> dict[str, Any]:
    """Train once from `factor` times the usual rate; None is cosine with warm-up."""
    torch.manual_seed(seed)
    model = task.make_model()
    name, options, usual = base_of(task, base)
    rate = usual * factor
    optimizer = make_optimizer(name, model, rate, options)
    begun = time.perf_counter()
    warmup = 0 if schedule is not None else steps // 20
    chosen = ms.Cosine(steps) if schedule is None else schedule
    lr = ms.LearnedLR(optimizer, chosen, total_steps=steps, warmup_steps=warmup)
    rates, stream = [], task.batches("train", seed=seed)
    for _ in range(steps):
        loss = task.loss(model, next(stream))
        optimizer.zero_grad()
        loss.backward()
        if task.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip_norm)
        lr.observe(loss)
        optimizer.step()
        rates.append(lr.get_last_lr()[0])
    return {
        "task": task.name,
        "factor": factor,
        "seed": seed,
        "rate": rate,
        "inner_valid": finite(task.evaluate(model, "inner_valid")["loss"]),
        "outer_valid": finite(task.evaluate(model, "outer_valid")["loss"]),
        "rates": [float(f"{rate:.3g}") for rate in rates[:: max(1, steps // 20)]],
        "brakes": getattr(lr, "brakes", 0) if schedule is not None else 0,
        "seconds": round(time.perf_counter() - begun, 2),
    }


def finite(loss: float) -> float | None:
    """The loss, or None where a run diverged."""
    return loss if math.isfinite(loss) else None


def measured(record: dict[str, Any], split: str) -> float:
    """The loss on a split, infinite where the run diverged."""
    return math.inf if record[split] is None else float(record[split])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("schedules", nargs="+")
    parser.add_argument("--tasks", nargs="+", default=list(STEPS))
    parser.add_argument("--base", choices=BASES, help="train all tasks by this one; default: each by its own")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--times", type=float, default=1.0, help="multiply all lengths by this")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    schedules = {label: schedule_named(label) for label in arguments.schedules}
    records = []
    for name in arguments.tasks:
        task, steps = load_task(name), round(STEPS[name] * arguments.times)
        for seed in range(arguments.seeds):
            cosine = [run(task, arguments.base, None, factor, steps, seed) for factor in GRID]
            best = min(cosine, key=lambda record: measured(record, "inner_valid"))
            records += [{"schedule": "cosine", "steps": steps, **record} for record in cosine]
            tuned = measured(best, "outer_valid")
            print(f"{name} seed {seed}: cosine {tuned:.4f} at {best['rate']:.2g}, own", end=" ")
            print(f"{measured(cosine[GRID.index(1.0)], 'outer_valid') / tuned:.3f}")
            for label, schedule in schedules.items():
                trained_for = getattr(schedule, "trained_for", None)
                if arguments.base is None and not (trained_for or Path(label).stem.split("-")[-1]).startswith(
                    task.optimizer
                ):
                    continue
                mine = [run(task, arguments.base, schedule, factor, steps, seed) for factor in STARTS]
                records += [{"schedule": label, "steps": steps, **record} for record in mine]
                ratios = "  ".join(f"{measured(record, 'outer_valid') / tuned:.3f}" for record in mine)
                peak = max(mine[1]["rates"])
                print(f"    {Path(label).stem:24s} {ratios}   peak rate {peak:.2g}", end=" ")
                print(f"brakes {[r['brakes'] for r in mine]}", flush=True)
    if arguments.json is not None:
        arguments.json.write_text("".join(json.dumps(record) + "\n" for record in records))


if __name__ == "__main__":
    main()
