"""How the mean squared gradient of SGD under MLR-SNet falls with the length of the run, where theory says that it does.

    python benchmarks/convergence.py [--longest 31623] [--seeds 5] [--json results/convergence.json]

The function is smooth and not convex, sum of x^2 / (1 + x^2) over 10 numbers; a batch adds <z, x>, and so z to the
gradient. docs/theory/convergence.md has the statement and what each case does to its assumptions.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

import metastep as ms
from measuring import write_record

SIZE, NOISE, SMOOTHNESS = 10, 1.0, 2.0  # numbers; standard deviation of z as a whole; largest second derivative
C, FIXED = 1.0, 0.3  # scale sqrt(T) of the falling scale; the one that does not fall
#: By case: whether the scale falls with T, whether the schedule reads the batch that it moves with, the noise.
CASES = {
    "assumptions hold": (True, False, "normal"),
    "reads its own batch": (True, True, "normal"),
    "scale does not fall": (False, False, "normal"),
    "noise without variance": (True, False, "heavy"),
}


def run(case: str, steps: int, seed: int) -> tuple[float, float, float]:
    """The mean squared gradient of a run, and the least and greatest output of the schedule."""
    falls, own, kind = CASES[case]
    draw = np.random.default_rng(seed)
    torch.manual_seed(seed)
    schedule = ms.MLRSNet().double()
    state, x = schedule.init_state(), np.ones(SIZE)
    scale = C / math.sqrt(steps) if falls else FIXED
    before, total, outputs = 0.5 * SIZE, 0.0, []
    for _ in range(steps):
        z = draw.standard_normal(SIZE) if kind == "normal" else draw.standard_t(1.1, SIZE)
        z *= NOISE / math.sqrt(SIZE)
        gradient = 2 * x / (1 + x * x) ** 2
        loss = float((x * x / (1 + x * x)).sum() + z @ x)
        output, state = schedule.query(loss if own else before, state)
        before = loss
        total += float(gradient @ gradient)
        outputs.append(output)
        x = x - scale * output * (gradient + z)
    return total / steps, min(outputs), max(outputs)


def bound(steps: int, least: float) -> float:
    """What the statement says of a run whose outputs were at least so large, with nothing read from its own batch."""
    start = 0.5 * SIZE  # the function at 1, above its least value, 0
    return (2 * start / (C * least) + SMOOTHNESS * C * NOISE**2 / least) / math.sqrt(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--longest", type=int, default=31623)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    lengths = [round(10 ** (power / 2)) for power in range(4, 20) if 10 ** (power / 2) < given.longest + 1]
    rows: list[dict[str, Any]] = []
    for case in CASES:
        for steps in lengths:
            means, least, greatest = zip(*(run(case, steps, seed) for seed in range(given.seeds)), strict=True)
            row = {"case": case, "steps": steps, "mean": float(np.mean(means)), "outputs": [min(least), max(greatest)]}
            if case == "assumptions hold":
                row["bound"] = float(np.mean([bound(steps, low) for low in least]))
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
        mine = [row for row in rows if row["case"] == case]
        slope = np.polyfit(np.log([r["steps"] for r in mine]), np.log([r["mean"] for r in mine]), 1)[0]
        print(f"{case}: the mean squared gradient goes with steps to the power {slope:.2f}\n", flush=True)
    write_record(given.json, "cpu", {"seeds": given.seeds, "rows": rows})


if __name__ == "__main__":
    with torch.no_grad():
        main()
