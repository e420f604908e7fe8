"""How much the initial rate matters: optimizers and their bases from rates 10 times too small and too large.

    python benchmarks/hyper_sweep.py --json results/hyper-sweep.json [--tasks digits/mlp ...] [--kappas 0.02 ...]

For every task and base optimizer the base is tuned first: of its rates the one with the smallest loss on outer_valid at
seed 0 is "well tuned". Then base and hypergradient optimizer start from 0.1, 1 and 10 times that rate, at every
hyper-rate, over three seeds. No schedule, constant batch size, the task's own network; the loss is read on outer_valid
at the end, the test split is not read at all. One record per run, with its seed.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch

import metastep
from metastep.lab.tasks import load_task
from metastep.optim import HyperAdamW, HyperSGD

STEPS = {
    "digits/mlp": 400,
    "digits/convnet": 250,
    "mnist/mlp": 250,
    "mnist/lenet5": 200,
    "shakespeare/lstm": 200,
    "shakespeare/transformer": 150,
}
BASES = {
    "sgd": (torch.optim.SGD, HyperSGD, {"momentum": 0.9}, (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)),
    "adamw": (torch.optim.AdamW, HyperAdamW, {}, (0.0003, 0.001, 0.003, 0.01, 0.03)),
}


def run(task: Any, optimizer_name: str, lr: float, seed: int, options: dict[str, Any] | None) -> dict[str, Any]:
    """Train once; options None is the base optimizer."""
    base, hyper, arguments, _ = BASES[optimizer_name]
    torch.manual_seed(seed)
    model = task.make_model()
    if options is None:
        optimizer = base(model.parameters(), lr=lr, **arguments)
    else:
        optimizer = hyper(model.named_parameters(), lr=lr, **arguments, **options)
    stream, losses, start = task.batches("train", seed=seed), [], time.perf_counter()
    for _ in range(STEPS[task.name]):
        optimizer.zero_grad()
        loss = task.loss(model, next(stream))
        loss.backward()
        if task.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), task.clip_norm)
        optimizer.step()
        losses.append(float(loss.detach()))
    tail = losses[-len(losses) // 10 :]
    record = {
        "task": task.name,
        "optimizer": optimizer_name,
        "lr": lr,
        "seed": seed,
        "options": options,
        "steps": len(losses),
        "train_loss": finite(sum(tail) / len(tail)),
        "valid_loss": finite(task.evaluate(model, "outer_valid")["loss"]),
        "seconds": round(time.perf_counter() - start, 2),
    }
    if options is not None:
        rates = optimizer.rates()[0]
        record["global_rate"] = float(rates["global"])
    return record


def finite(loss: float) -> float | None:
    """The loss, or None where a run diverged."""
    return loss if math.isfinite(loss) else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="+", default=list(STEPS))
    parser.add_argument("--optimizers", nargs="+", default=list(BASES))
    parser.add_argument("--kappas", nargs="+", type=float, default=[0.02, 0.1, 0.3])
    parser.add_argument("--levels", nargs="+", default=["global", "layer"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--factors", nargs="+", type=float, default=[0.1, 1.0, 10.0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    result: dict[str, Any] = {
        "command": "python benchmarks/hyper_sweep.py "
        + " ".join(
            f"--{k} {' '.join(map(str, v if isinstance(v, list) else [v]))}" for k, v in vars(arguments).items()
        ),
        "versions": {"torch": torch.__version__, "metastep": metastep.__version__},
        "tuned": {},
        "records": [],
    }
    for name in arguments.tasks:
        task = load_task(name)
        for optimizer in arguments.optimizers:
            tuning = [run(task, optimizer, lr, 0, None) for lr in BASES[optimizer][3]]
            best = min(tuning, key=lambda record: record["valid_loss"] or math.inf)["lr"]
            result["tuned"][f"{name} {optimizer}"] = {"lr": best, "tried": tuning}
            for factor in arguments.factors:
                for seed in range(arguments.seeds):
                    for kappa in [None, *arguments.kappas]:
                        options = None if kappa is None else {"levels": arguments.levels, "hyper_lr": kappa}
                        record = run(task, optimizer, best * factor, seed, options)
                        result["records"].append({"factor": factor, "kappa": kappa, **record})
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
            print(summary(result, name, optimizer, arguments), flush=True)


def summary(result: dict[str, Any], task: str, optimizer: str, arguments: argparse.Namespace) -> str:
    """Median loss over the seeds, per start and hyper-rate, relative to the tuned base."""
    chosen = [r for r in result["records"] if r["task"] == task and r["optimizer"] == optimizer]

    def median(factor: float, kappa: float | None) -> float:
        losses = [r["valid_loss"] for r in chosen if r["factor"] == factor and r["kappa"] == kappa]
        return sorted(math.inf if loss is None else loss for loss in losses)[len(losses) // 2]

    reference = median(1.0, None)
    lines = [f"{task} {optimizer} lr {result['tuned'][f'{task} {optimizer}']['lr']:g}: tuned loss {reference:.4f}"]
    for kappa in [None, *arguments.kappas]:
        cells = "  ".join(f"{median(factor, kappa) / reference:8.3f}" for factor in arguments.factors)
        lines.append(f"  {'base' if kappa is None else f'kappa {kappa:g}':12s} {cells}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
