"""How long it takes to begin: `import metastep` beside `import torch`, and `metastep --help`.

    python benchmarks/start_up.py [--rounds 15] [--json results/start-up.json]

Each case is a process of its own, with its bytecode cached, in turns. Metastep imports its public names when they are
first asked for, so one case asks for all of them: the price of using the package. Wall seconds are what one waits;
processor seconds (user and system) hardly depend on what else the machine does.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from measuring import write_record

CASES = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import torch, metastep": ["-c", "import torch, metastep"],
    "import torch, metastep and all its names": ["-c", "import torch, metastep\nfrom metastep import *"],
    "metastep --help": ["-m", "metastep", "--help"],
    "metastep --version": ["-m", "metastep", "--version"],
}
#: The limits that the package sets itself, in seconds.
ABOVE_TORCH, HELP = 0.15, 1.5


def start(arguments: list[str]) -> tuple[float, float]:
    """Wall and processor seconds of one Python process."""
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begun = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=silent)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}.")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Smallest and median seconds of each case."""
    for arguments in CASES.values():
        start(arguments)  # fills the disk's and the bytecode's caches
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name, arguments in CASES.items():
            found[name].append(start(arguments))
    return {name: {"wall": spread(wall), "processor": spread(cpu)} for name, (wall, cpu) in transposed(found).items()}


def transposed(found: dict[str, list[tuple[float, float]]]) -> dict[str, tuple[list[float], list[float]]]:
    return {name: ([wall for wall, _ in pairs], [cpu for _, cpu in pairs]) for name, pairs in found.items()}


def spread(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds)}


def verdict(times: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What metastep adds to torch and how long its help takes, beside the limits."""
    torch, every = times["import torch"], times["import torch, metastep and all its names"]
    above = {kind: every[kind]["min"] - torch[kind]["min"] for kind in ("wall", "processor")}
    return {
        "above_torch": {**above, "limit": ABOVE_TORCH},
        "help": {kind: times["metastep --help"][kind]["min"] for kind in ("wall", "processor")} | {"limit": HELP},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15, help="processes of each case")
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    times = measure(options.rounds)
    print(f"{'seconds: wall, smallest and median; processor, smallest':>68}")
    for name, kinds in times.items():
        wall = kinds["wall"]
        print(f"  {name:42} {wall['min']:6.3f} {wall['median']:6.3f} {kinds['processor']['min']:8.3f}")
    found = verdict(times)
    for name, figures in found.items():
        print(f"{name}: {json.dumps({kind: round(value, 3) for kind, value in figures.items()})}")
    write_record(options.json, "cpu", {"times": times, **found})


if __name__ == "__main__":
    main()
