"""Whether a long run keeps anything: memory in use over a million queries and a hundred thousand optimizer steps.

    python benchmarks/soak.py [--queries 1000000] [--steps 100000] [--json results/soak.json]

Each schedule and optimizer works in a process of its own, one after the other, and what is in use is read at 20 points.
The test of the same name in ``tests/faults`` does the same, smaller.
"""

import argparse
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from measuring import standing, write_record
from metastep.lab.runtime.provenance import provenance

POINTS = 20


def measure(what: str, kind: str, total: int) -> dict[str, Any]:
    """One schedule or optimizer in a process of its own."""
    begun = time.perf_counter()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        points = pool.submit(getattr(standing, what), kind, total, POINTS).result()
    seconds = time.perf_counter() - begun
    second_half = standing.grown(points[POINTS // 2 - 1], points[-1])
    whole = standing.grown(points[0], points[-1])
    return {
        "what": what,
        "kind": kind,
        "total": total,
        "seconds": seconds,
        "grown_in_second_half": second_half,
        "grown_after_first_point": whole,
        "points": points,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=1_000_000, help="of each schedule")
    parser.add_argument("--steps", type=int, default=100_000, help="of each optimizer")
    parser.add_argument("--json", type=Path, help="write a record to this file")
    options = parser.parse_args()
    if min(options.queries, options.steps) < POINTS:
        parser.error(f"--queries and --steps must be >= {POINTS}, one for each point at which memory is read")
    if standing.heap is None:
        parser.error(standing.NO_HEAP)
    cases = [
        *(("query", kind, options.queries) for kind in standing.QUERIES),
        *(("step", kind, options.steps) for kind in standing.STEPS),
    ]
    print(f"{'grown between 5% of the work and its end: bytes, blocks, objects in use; resident bytes':>95}")
    results = []
    for what, kind, total in cases:
        found = measure(what, kind, total)
        numbers = "".join(f"{found['grown_after_first_point'][name]:12,d}" for name in standing.COUNTED)
        print(f"  {total:9,d} x {what:5} {kind:16}{numbers}   ({found['seconds']:.0f} s)", flush=True)
        results.append(found)
    revision = provenance("cpu")["git_revision"]
    write_record(options.json, "cpu", {"cases": results, "seeds": standing.SEEDS, "git_revision": revision})


if __name__ == "__main__":
    main()
