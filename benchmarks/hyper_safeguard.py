"""What the safeguard of the hypergradient optimizers does: where rates ran away, and from rates that are wrong.

    python benchmarks/hyper_safeguard.py --json results/hyper-safeguard.json [--tasks digits/mlp ...] [--seeds 3]

First a perceptron 6-16-3 on 64 examples without noise, 200 steps: over bases, rules and levels, with and without the
safeguard, the highest loss relative to the first one, and the last one relative to the base's. Then the tasks of
`hyper_sweep.py` with the rates that it found to be tuned (read from its records): held-out loss from 0.01, 0.1, 1 and
10 times that rate, relative to the tuned base. The test split is not read.
"""

import argparse
import functools
import json
import math
from pathlib import Path
from typing import Any

import torch

from hyper_sweep import STEPS, run
from measuring import write_record
from metastep import optim as ours
from metastep.lab.tasks import load_task

MAKERS: dict[str, Any] = {
    "SGD": (lambda p, **o: ours.HyperSGD(p, lr=0.1, **o), lambda p: torch.optim.SGD(p, lr=0.1)),
    "SGD, momentum": (
        lambda p, **o: ours.HyperSGD(p, lr=0.1, momentum=0.9, **o),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    ),
    "Adam": (lambda p, **o: ours.HyperAdam(p, lr=0.01, **o), lambda p: torch.optim.Adam(p, lr=0.01)),
    "AdamW": (lambda p, **o: ours.HyperAdamW(p, lr=0.01, **o), lambda p: torch.optim.AdamW(p, lr=0.01)),
    "RMSprop": (lambda p, **o: ours.HyperRMSprop(p, lr=0.01, **o), lambda p: torch.optim.RMSprop(p, lr=0.01)),
    "Adagrad": (lambda p, **o: ours.HyperAdagrad(p, lr=0.1, **o), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    "NAdam": (lambda p, **o: ours.Hyper(torch.optim.NAdam(p, lr=0.01), **o), lambda p: torch.optim.NAdam(p, lr=0.01)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "default": {},
    **{rule: {"rule": rule} for rule in ("cosine", "additive", "log")},
    **{level: {"levels": (level,)} for level in ("layer", "unit", "parameter")},
    "all levels": {"levels": ("global", "layer", "unit", "parameter")},
}
FACTORS = (0.01, 0.1, 1.0, 10.0)


def perceptron(make: Any, seed: int, steps: int = 200) -> tuple[float, float]:
    """The highest loss of a run relative to its first, and the last."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
    optimizer, losses = make(model.parameters()), []
    for _ in range(steps + 1):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        losses.append(float(loss.detach()))
        optimizer.step()
    return max(losses) / losses[0], losses[-1]


def runaways(seeds: int) -> list[dict[str, Any]]:
    """One record per base, setting and safeguard: the worst over the seeds."""
    found = []
    for base, (hyper, plain) in MAKERS.items():
        reference = [perceptron(plain, seed)[1] for seed in range(seeds)]
        for setting, options in SETTINGS.items():
            record: dict[str, Any] = {"base": base, "setting": setting}
            for safeguard in (False, True):
                make = functools.partial(hyper, safeguard=safeguard, **options)
                runs = [perceptron(make, seed) for seed in range(seeds)]
                record["on" if safeguard else "off"] = {
                    "peak": max(peak for peak, _ in runs),
                    "end": max(end / base_end for (_, end), base_end in zip(runs, reference, strict=True)),
                }
            print(base, setting, record["off"], record["on"], flush=True)
            found.append(record)
    return found


def tuned_rates() -> dict[str, tuple[float, float]]:
    """By task and optimizer, the rate that the sweep found, and the base's median held-out loss at it."""
    found = {}
    for name in ("sgd", "adamw", "more"):
        sweep = json.loads((Path(__file__).parents[1] / "results" / f"hyper-sweep-{name}.json").read_text())
        for key, tuned in sweep["tuned"].items():
            task, optimizer = key.split()
            losses = [
                record["valid_loss"]
                for record in sweep["records"]
                if (record["task"], record["optimizer"], record["factor"]) == (task, optimizer, 1.0)
                and record["kappa"] is None
            ]
            found[key] = (tuned["lr"], median(losses))
    return found


def median(losses: list[float | None]) -> float:
    """The median; a run that diverged counts as infinite."""
    return sorted(math.inf if loss is None else loss for loss in losses)[len(losses) // 2]


def sweep(tasks: list[str], seeds: int) -> list[dict[str, Any]]:
    """One record per task, optimizer, factor and safeguard: relative held-out losses of the seeds."""
    found, rates = [], tuned_rates()
    for name in tasks:
        task = load_task(name)
        for optimizer in ("sgd", "adamw"):
            lr, reference = rates[f"{name} {optimizer}"]
            for factor in FACTORS:
                for safeguard in (False, True):
                    options = {"levels": ["global", "layer"], "safeguard": safeguard}
                    runs = [run(task, optimizer, factor * lr, seed, options)["valid_loss"] for seed in range(seeds)]
                    middle = median(runs)
                    found.append(
                        {
                            "task": name,
                            "optimizer": optimizer,
                            "lr": lr,
                            "factor": factor,
                            "safeguard": safeguard,
                            "losses": runs,
                            "relative": middle / reference if math.isfinite(middle) else None,
                        }
                    )
                    print(found[-1], flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", nargs="*", default=list(STEPS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--runaway-seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = {"runaways": runaways(arguments.runaway_seeds), "sweep": sweep(arguments.tasks, arguments.seeds)}
    write_record(arguments.json, "cpu", {"seeds": [arguments.seeds, arguments.runaway_seeds], **results})


if __name__ == "__main__":
    main()
