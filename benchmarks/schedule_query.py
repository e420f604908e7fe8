"""What a schedule costs in each step, beside torch's CosineAnnealingLR in the same run.

    python benchmarks/schedule_query.py [--device cuda] [--rounds 300] [--json FILE]

A query is what a step takes longer because of it: each case is a step of an optimizer that does nothing, with
``observe(loss)`` and the hook, with the step of torch's scheduler, or with an eager forward pass, as the published code
has it; the step alone is subtracted. All cases take turns in one run.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import metastep as ms
from measuring import interleaved, write_record

#: Longer than any run of this benchmark: no case falls off the end of its horizon.
HORIZON = 10**9


class Null(torch.optim.Optimizer):
    """An optimizer whose step does nothing."""

    def __init__(self, device: str) -> None:
        rate = torch.tensor(0.1, device=device) if device != "cpu" else 0.1
        super().__init__([nn.Parameter(torch.zeros(1, device=device))], {"lr": rate})

    def step(self, closure: object = None) -> None:
        """Nothing."""


def cases(device: str) -> dict[str, Callable[[], Any]]:
    loss = torch.tensor(2.3, device=device)
    plain, observed, closed, stepped = (Null(device) for _ in range(4))
    torch.manual_seed(0)
    schedule = ms.MLRSNet()
    learned = ms.LearnedLR(observed, schedule, initial_loss=2.3, num_classes=10)
    ms.LearnedLR(closed, ms.Cosine(HORIZON))
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(stepped, HORIZON)
    stepped.step()
    eager = ms.MLRSNet().to(device)
    state = eager.init_state()

    def observe_and_step() -> None:
        learned.observe(loss)
        observed.step()

    def step_with_scheduler() -> None:
        stepped.step()
        cosine.step()

    def step_with_forward() -> None:
        plain.step()
        with torch.no_grad():
            eager(loss, state)

    return {
        "nothing": plain.step,
        "torch CosineAnnealingLR": step_with_scheduler,
        "metastep Cosine": closed.step,
        "metastep MLR-SNet": observe_and_step,
        "eager MLR-SNet forward": step_with_forward,
    }


def measure(device: str, rounds: int) -> dict[str, dict[str, float]]:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = interleaved(cases(device), rounds=rounds, calls=100, wait=wait)
    nothing = times.pop("nothing")
    return {name: {kind: value - nothing[kind] for kind, value in time.items()} for name, time in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=300, help="turns of 100 calls")
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        times = measure(options.device, options.rounds)
        torchs = times["torch CosineAnnealingLR"]
        print(f"{options.device}, {threads} thread{'s' * (threads > 1)}: microseconds a step (smallest, median)")
        for name, time in times.items():
            ratio = time["min"] / torchs["min"]
            print(f"  {name:26} {time['min'] * 1e6:8.1f} {time['median'] * 1e6:8.1f}   {ratio:5.1f} x torch's cosine")
            results.append({"threads": threads, "case": name, **time, "ratio_to_torch_cosine": ratio})
    write_record(options.json, options.device, results)


if __name__ == "__main__":
    main()
