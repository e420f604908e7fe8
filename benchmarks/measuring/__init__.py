"""What the benchmarks share: interleaved timing, and a record of what was measured where."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy
import torch

import metastep


def interleaved(
    cases: Mapping[str, Callable[[], Any]], *, rounds: int, calls: int, wait: Callable[[], Any] = lambda: None
) -> dict[str, dict[str, float]]:
    """Time ``calls`` calls of each case in turn, ``rounds`` times over; seconds a call, smallest and median.

    The cases take turns, so that whatever else the machine does falls on all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for case in cases.values():
        case()
    for _ in range(rounds):
        for name, case in cases.items():
            wait()
            start = time.perf_counter()
            for _ in range(calls):
                case()
            wait()
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: {"min": min(times), "median": statistics.median(times)} for name, times in seconds.items()}


def machine(device: str) -> dict[str, Any]:
    """The processor, its cores, and the device."""
    names = [line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
    }


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []


def write_record(file: Path | None, device: str, results: Any) -> None:
    """Write a JSON record of the results with versions, machine and command, if a file is wanted."""
    if file is None:
        return
    record = {
        "results": results,
        "machine": machine(device),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "metastep": metastep.__version__,
        },
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n")
