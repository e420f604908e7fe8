"""What a schedule that watches the optimizer adds to a training step of ResNet-8 on CIFAR-10 at batch 128.

    python benchmarks/signal_query.py [--device cuda] [--threads 1 2] [--rounds 12] [--json FILE]

Whole training steps (forward, backward, `torch.optim.SGD` with momentum) take turns, with and without `LearnedLR` and a
`SignalSchedule` of one rate, or one for each layer. Because other work on the machine makes whole steps vary by more
than what is added, the optimizer's step is timed by itself as well, on the same network and gradients, with and
without; `added` is that difference over the plain training step. Processor time of the process is shown beside the wall
clock. Images are random numbers of the task's shape: the arithmetic does not depend on them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import metastep as ms
from measuring import write_record
from metastep.lab.tasks.networks.resnet import resnet

BATCH, TARGET = 128, 0.03
CASES = ("plain", "network", "layer")


class Loop:
    """A network, its optimizer and, unless it is plain, a schedule that watches."""

    def __init__(self, case: str, device: str) -> None:
        torch.manual_seed(0)
        self.model = resnet(10, widths=(16, 32, 64), blocks=1, projection=False).to(device)
        self.images = torch.randn(BATCH, 3, 32, 32, device=device)
        self.labels = torch.randint(10, (BATCH,), device=device)
        rate = torch.tensor(1e-3, device=device) if device == "cuda" else 1e-3
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=rate, momentum=0.9)
        self.lr = None if case == "plain" else ms.LearnedLR(self.optimizer, schedule(case))
        self.loss = torch.zeros((), device=device)

    def train(self) -> None:
        """One whole training step."""
        self.optimizer.zero_grad()
        self.loss = torch.nn.functional.cross_entropy(self.model(self.images), self.labels)
        self.loss.backward()
        self.step()

    def step(self) -> None:
        """What comes after the backward pass."""
        if self.lr is not None:
            self.lr.observe(self.loss)
        self.optimizer.step()


def schedule(scope: str) -> ms.SignalSchedule:
    return ms.SignalSchedule(scope=scope, total_steps=10**6)


def timed(cases: dict[str, Callable[[], Any]], rounds: int, calls: int, wait: Callable[[], Any]) -> dict[str, Any]:
    """Seconds a call of each case, in turn: wall and processor, medians and smallest."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for case in cases.values():
        case()
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            wait()
            start, start_cpu = time.perf_counter(), time.process_time()
            for _ in range(calls):
                case()
            wait()
            seconds[name].append(((time.perf_counter() - start) / calls, (time.process_time() - start_cpu) / calls))
    return {name: summary(times) for name, times in seconds.items()}


def summary(times: list[tuple[float, float]]) -> dict[str, float]:
    wall, processor = zip(*times, strict=True)
    return {"wall": statistics.median(wall), "wall_min": min(wall), "cpu": statistics.median(processor)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    wait = torch.cuda.synchronize if options.device == "cuda" else lambda: None
    results = []
    for threads in options.threads:
        torch.set_num_threads(threads)
        loops = {case: Loop(case, options.device) for case in CASES}
        whole = timed({case: loop.train for case, loop in loops.items()}, options.rounds, 2, wait)
        steps = timed({case: loop.step for case, loop in loops.items()}, options.rounds, 50, wait)
        plain = whole["plain"]
        print(f"{options.device}, {threads} thread(s): a plain training step takes {plain['wall'] * 1e3:.1f} ms")
        for case in CASES[1:]:
            added = {clock: (steps[case][clock] - steps["plain"][clock]) / plain[clock] for clock in plain}
            ratio = {clock: whole[case][clock] / plain[clock] for clock in plain}
            milliseconds = (steps[case]["wall"] - steps["plain"]["wall"]) * 1e3
            print(
                f"  one rate a {case:8s} adds {milliseconds:.3f} ms, {added['wall']:.2%} (smallest "
                f"{added['wall_min']:.2%}, processor "
                f"{added['cpu']:.2%}; target {TARGET:.0%}); whole x{ratio['wall']:.3f}, processor x{ratio['cpu']:.3f}"
            )
            results.append({"threads": threads, "scope": case, "added": added, "whole_ratio": ratio, "plain": plain})
    write_record(options.json, options.device, results)


if __name__ == "__main__":
    main()
