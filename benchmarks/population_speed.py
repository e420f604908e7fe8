"""How much of the batched products' arithmetic rate is left in vectorised training.

    python benchmarks/population_speed.py [--device cuda] [--rounds 30] [--json results/population-speed.json]

"products" is the forward and backward pass of the same networks alone, on one batch; "training" is everything that a
step of vectorised training does: batch, forward, backward, signals, policies, optimizer. Both take turns; the ratio of
the median times is the share of the arithmetic rate that is left.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from measuring import interleaved, write_record
from metastep.lab.evolution import default_config
from metastep.lab.evolution.task_distribution import sample_task
from metastep.lab.evolution.vectorised_trainer import VectorisedTrainer, losses

#: Typical tasks of the distribution; a digits batch of 64 is the largest that it draws.
CASES: dict[str, dict[str, Any]] = {
    "perceptron": {"family": "mlp", "data": "table:digits", "widths": (64, 64), "batch_size": 64},
    "convnet": {"family": "convnet", "data": "images:digits", "widths": (8, 16), "batch_size": 32},
    "transformer": {"family": "transformer", "data": "tokens", "widths": (32, 32), "batch_size": 8},
    "lstm": {"family": "recurrent", "data": "tokens", "widths": (32,), "batch_size": 16, "cell": "lstm"},
}


def pair(base: str, case: str, members: int, device: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A step of the products alone, and one of the training."""
    config = default_config(base)
    drawn = sample_task(np.random.default_rng(0), config.base)
    spec = dataclasses.replace(drawn, **CASES[case], activation="relu", norm="none", steps=10**9)
    rates = torch.full((members,), 1e-3)
    trainer = VectorisedTrainer(spec, config.base, config.policy, rates, device=device)
    weights = torch.zeros(members, config.policy.size, device=device)
    batch = trainer.next_batch()
    leaves = [part.detach().requires_grad_() for part in trainer.network.split(trainer.parameters.clone())]

    def products() -> None:
        loss = losses(trainer.network, leaves, trainer.data, batch)
        torch.autograd.grad(loss.sum(), leaves)

    def training() -> None:
        trainer.advance(weights, 1)

    return products, training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--members", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=30, help="turns of 5 steps")
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    results = []
    for base in ("sgd", "adamw"):
        for case in CASES:
            products, training = pair(base, case, options.members, options.device)
            times = interleaved({"products": products, "training": training}, rounds=options.rounds, calls=5, wait=wait)
            share = times["products"]["min"] / times["training"]["min"]
            milliseconds = " ".join(f"{name} {time['min'] * 1e3:.2f} ms" for name, time in times.items())
            print(f"{base:6s} {case:12s} {milliseconds}  share {share:.2f}", flush=True)
            results.append({"base": base, "case": case, "members": options.members, **times, "share": share})
    write_record(options.json, options.device, results)


if __name__ == "__main__":
    main()
