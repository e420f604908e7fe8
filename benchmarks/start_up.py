"""How long it takes to begin: what `import metastep` adds to `import torch`, and `metastep --help`.

    python benchmarks/start_up.py [--rounds 15] [--json results/start-up.json]

Each case is a process of its own, with its bytecode cached, in turns. What metastep adds to torch is timed in a process
that has imported torch already: once for the package, once with all its public names, which are imported when they are
first asked for. Wall seconds are what one waits; processor seconds (user and system) hardly depend on what else the
machine does, and the record says how busy it was.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from measuring import write_record

#: Whole processes.
PROGRAMS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "metastep --help": ["-m", "metastep", "--help"],
    "metastep --version": ["-m", "metastep", "--version"],
}
#: What is timed in a process that has imported torch.
AFTER_TORCH = {
    "import metastep, after torch": "import metastep",
    "all names of metastep, after torch": "from metastep import *",
}
TIMED = """import time, torch
wall, processor = time.perf_counter(), time.process_time()
{code}
print(time.perf_counter() - wall, time.process_time() - processor)
"""
#: The limits that the package sets itself, in seconds.
ABOVE_TORCH, HELP = 0.15, 1.5

Seconds = tuple[float, float]  # wall, processor


def run_program(arguments: list[str]) -> Seconds:
    """The seconds of one Python process."""
    silent = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begun = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *arguments], os.environ, file_actions=silent)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise RuntimeError(f"python {' '.join(arguments)} ended with {os.waitstatus_to_exitcode(status)}.")
    return time.perf_counter() - begun, usage.ru_utime + usage.ru_stime


def run_after_torch(code: str) -> Seconds:
    """The seconds of some code in a process that has imported torch."""
    command = [sys.executable, "-c", TIMED.format(code=code)]
    wall, processor = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    return float(wall), float(processor)


def measure(rounds: int) -> dict[str, dict[str, Any]]:
    """Smallest and median seconds of each case."""
    found: dict[str, list[Seconds]] = {name: [] for name in (*PROGRAMS, *AFTER_TORCH)}
    for _ in range(rounds + 1):
        for name, arguments in PROGRAMS.items():
            found[name].append(run_program(arguments))
        for name, code in AFTER_TORCH.items():
            found[name].append(run_after_torch(code))
    return {  # the first round fills the disk's and the bytecode's caches
        name: {"wall": spread([wall for wall, _ in times[1:]]), "processor": spread([cpu for _, cpu in times[1:]])}
        for name, times in found.items()
    }


def spread(seconds: list[float]) -> dict[str, float]:
    return {"min": min(seconds), "median": statistics.median(seconds)}


def verdict(times: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What metastep with all its names adds to torch and how long its help takes, smallest, beside the limits."""
    limits = {"all names of metastep, after torch": ABOVE_TORCH, "metastep --help": HELP}
    return {
        name: {kind: times[name][kind]["min"] for kind in ("wall", "processor")} | {"limit": limit}
        for name, limit in limits.items()
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
    load = os.getloadavg()[0]  # processes that wanted a core, over the last minute
    print(f"load of the machine: {load:.1f} on {os.cpu_count()} cores")
    write_record(options.json, "cpu", {"times": times, "limits": found, "load": load})


if __name__ == "__main__":
    main()
